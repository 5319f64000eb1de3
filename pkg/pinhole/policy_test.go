package pinhole

import (
	"errors"
	"net/netip"
	"testing"
)

func testPolicy() Policy {
	pfx := netip.MustParsePrefix
	addr := netip.MustParseAddr
	return Policy{
		Networks: Networks{
			"inside": {
				Addresses: []netip.Addr{addr("10.0.0.1")}, Trusted: true,
				Subnets: []netip.Prefix{pfx("10.0.0.0/24"), pfx("203.0.113.0/28")},
			},
			"outside": {Addresses: []netip.Addr{addr("198.51.100.1")}, Advertise: addr("203.0.113.200")},
		},
		Allow: map[string][]netip.Prefix{
			"inside":  {pfx("10.0.0.64/28")},
			"outside": {pfx("10.0.0.99/32"), pfx("239.1.0.0/16")},
		},
		OwnPort: func(a netip.AddrPort) bool { return a.Port() == 50000 },
	}
}

func TestPolicyCheck(t *testing.T) {
	tests := []struct {
		name, network, addr, rtcp, source string
		trusted                           bool
		reason                            string
		reachable                         bool
	}{
		{"nothing known", "inside", "", "", "10.0.0.7", false, "", false},
		{"own host", "inside", "10.0.0.7:4000", "", "10.0.0.7", false, "", true},
		{"mapped", "inside", "[::ffff:10.0.0.7]:4000", "", "10.0.0.7", false, "", true},
		{"port 0", "inside", "10.0.0.7:0", "", "10.0.0.7", false, "", false},
		{"slipstream to a neighbour", "inside", "10.0.0.8:445", "", "10.0.0.7", false, ReasonNotSource, false},
		{"slipstream by rtcp", "inside", "10.0.0.7:4000", "10.0.0.8:445", "10.0.0.7", false, ReasonNotSource, false},
		{"dual-stack phone", "inside", "[fd00::7]:4000", "", "10.0.0.7", false, "", false},
		{"slipstream in the other family", "inside", "[fd00::8]:445", "", "10.0.0.7", false, ReasonServicePort, false},
		{"no source", "inside", "10.0.0.8:445", "", "", false, ReasonNotSource, false},
		{"trusted server", "inside", "10.0.0.8:4000", "", "10.0.0.7", true, "", true},
		{"allowed target", "inside", "10.0.0.65:4000", "", "10.0.0.7", false, "", true},
		{"trunk media server", "outside", "192.0.2.9:4000", "", "192.0.2.1", false, "", true},
		{"outside names inside", "outside", "10.0.0.7:4000", "", "192.0.2.1", false, ReasonOtherNetwork, false},
		{"outside names allowed inside", "outside", "10.0.0.99:4000", "", "192.0.2.1", false, "", true},
		{"public subnet inside", "outside", "203.0.113.3:4000", "", "192.0.2.1", false, ReasonOtherNetwork, false},
		{"behind a NAT", "outside", "192.168.1.5:4000", "", "192.0.2.1", false, "", false},
		{"behind a carrier NAT", "outside", "100.64.1.5:4000", "", "192.0.2.1", false, "", false},
		{"both private", "outside", "192.168.1.5:4000", "", "192.168.1.6", false, "", true},
		{"loopback", "outside", "127.0.0.1:4000", "", "192.0.2.1", false, ReasonLoopback, false},
		{"loopback peer", "outside", "127.0.0.1:4000", "", "127.0.0.9", false, "", true},
		{"link-local", "outside", "169.254.169.254:80", "", "192.0.2.1", false, ReasonLinkLocal, false},
		{"link-local v6", "outside", "[fe80::1]:80", "", "2001:db8::1", false, ReasonLinkLocal, false},
		{"multicast", "outside", "224.0.0.1:4000", "", "192.0.2.1", true, ReasonMulticast, false},
		{"multicast allowed", "outside", "239.1.0.1:4000", "", "192.0.2.1", false, "", true},
		{"broadcast", "outside", "255.255.255.255:4000", "", "192.0.2.1", false, ReasonMulticast, false},
		{"unspecified", "outside", "0.0.0.0:4000", "", "192.0.2.1", true, ReasonUnspecified, false},
		{"own signalling port", "outside", "198.51.100.1:5060", "", "192.0.2.1", false, ReasonOwnAddress, false},
		{"spiral", "outside", "198.51.100.1:50000", "", "192.0.2.1", false, "", true},
		{"spiral, advertised", "outside", "203.0.113.200:50000", "", "192.0.2.1", false, "", true},
		{"own port of the other side", "outside", "10.0.0.1:50000", "", "192.0.2.1", false, ReasonOwnAddress, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := Remote{Addr: parsePort(t, tt.addr), RTCP: parsePort(t, tt.rtcp), Trusted: tt.trusted}
			if tt.source != "" {
				r.Source = netip.MustParseAddr(tt.source)
			}
			reachable, err := testPolicy().Check(tt.network, r)
			reason := ""
			if te := (*TargetError)(nil); errors.As(err, &te) {
				reason = te.Reason
			}
			if reason != tt.reason || reachable != tt.reachable {
				t.Fatalf("reachable %v, reason %q, want %v, %q", reachable, reason, tt.reachable, tt.reason)
			}
			if (err != nil) != errors.Is(err, ErrTarget) {
				t.Fatalf("error %v does not wrap ErrTarget", err)
			}
		})
	}
}

func parsePort(t *testing.T, s string) netip.AddrPort {
	t.Helper()
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}
