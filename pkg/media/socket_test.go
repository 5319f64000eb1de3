package media

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSockaddr(t *testing.T) {
	addrs := []string{"192.0.2.1:0", "192.0.2.1:5004", "192.0.2.2:5004", "[2001:db8::1]:5004", "[2001:db8::1]:5005", "[2001:db8:1::1]:5004"}
	for i, a := range addrs {
		sa := SockaddrOf(netip.MustParseAddrPort(a))
		if got := sa.AddrPort().String(); got != a || !sa.Valid() {
			t.Errorf("%s became %s", a, got)
		}
		for j, b := range addrs {
			sb := SockaddrOf(netip.MustParseAddrPort(b))
			sb.Raw[27] = 3 // a scope, or what lies behind an IPv4 address, does not count
			if sa.Equal(&sb) != (i == j) {
				t.Errorf("%s equal to %s: %v", a, b, i != j)
			}
		}
	}
	six := SockaddrOf(netip.MustParseAddrPort("[2001:db8::1]:5004"))
	labelled := six
	labelled.Raw[6] = 9
	if !six.Equal(&labelled) {
		t.Error("the flow label counts")
	}
	none := SockaddrOf(netip.AddrPort{})
	if none.Valid() || none.AddrPort().IsValid() || none.Equal(&six) {
		t.Error("no address is one")
	}
}

func TestDSCP(t *testing.T) {
	for _, tt := range []struct {
		addr        string
		level, name int
	}{
		{"127.0.3.1:0", unix.IPPROTO_IP, unix.IP_TOS},
		{"[::1]:0", unix.IPPROTO_IPV6, unix.IPV6_TCLASS},
	} {
		fd, err := bindUDP(netip.MustParseAddrPort(tt.addr), 46)
		if err != nil {
			t.Logf("%s: %v", tt.addr, err)
			continue
		}
		defer unix.Close(fd)
		if v, err := unix.GetsockoptInt(fd, tt.level, tt.name); err != nil || v != 46<<2 {
			t.Errorf("%s: traffic class %d, %v", tt.addr, v, err)
		}
	}
}
