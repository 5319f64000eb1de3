package peerpolicy

import (
	"net/netip"
	"testing"
)

func testPolicy(cfg Config) *Policy {
	own := netip.MustParseAddr("11.0.0.1")
	cfg.Own = func(a netip.Addr) bool { return a == own }
	return New(cfg)
}

// TestDefault: what is not a public unicast address is refused in every encoding (the hostile list of TURN advisories).
func TestDefault(t *testing.T) {
	p := testPolicy(Config{DenyPorts: []uint16{53}})
	for _, text := range []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.0.0.2", "10.1.2.3", "100.64.0.1", "169.254.169.254", "172.31.255.255",
		"192.168.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001::1", "2001:db8::1",
		"fe80::1", "fe80::1%lo", "fc00::1", "fd00::1", "fec0::1", "ff02::1", "3fff::1", "5f00::1", "100::1",
		"2400::5efe:7f00:1", "11.0.0.1", "64:ff9b::b00:1", "2002:b00:1::",
	} {
		a := netip.MustParseAddr(text)
		if p.Permission(a) == "" {
			t.Errorf("permission for %s", text)
		}
		if p.Packet(netip.AddrPortFrom(a, 4000)) == "" || p.Connect(netip.AddrPortFrom(a, 4000)) == "" {
			t.Errorf("packets or connections to %s", text)
		}
	}
	for _, text := range []string{"8.8.8.8", "11.0.0.2", "2400::1", "64:ff9b::808:808", "2002:808:808::1"} {
		a := netip.MustParseAddr(text)
		if why := p.Permission(a) + p.Packet(netip.AddrPortFrom(a, 4000)) + p.Connect(netip.AddrPortFrom(a, 4000)); why != "" {
			t.Errorf("%s: %s", text, why)
		}
	}
}

func TestLists(t *testing.T) {
	prefix := netip.MustParsePrefix
	p := testPolicy(Config{
		Allow: []netip.Prefix{prefix("10.0.0.0/8"), prefix("127.0.0.0/8")}, Deny: []netip.Prefix{prefix("10.9.0.0/16"), prefix("8.8.8.0/24")},
		DenyPorts: []uint16{53}, TCPPorts: []uint16{443},
	})
	for text, want := range map[string]string{
		"10.1.1.1": "", "10.9.1.1": Denied, "8.8.8.8": Denied, "64:ff9b::808:808": Denied, "64:ff9b::a00:1": "", "192.168.1.1": Special, "127.0.0.1": "",
	} {
		if got := p.Permission(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	for port, want := range map[uint16][2]string{0: {Port, Port}, 53: {Port, Port}, 443: {"", ""}, 80: {"", Port}, 1024: {"", ""}} {
		to := netip.AddrPortFrom(netip.MustParseAddr("10.1.1.1"), port)
		if got := [2]string{p.Packet(to), p.Connect(to)}; got != want {
			t.Errorf("port %d: %q, want %q", port, got, want)
		}
	}
	only := testPolicy(Config{Allow: []netip.Prefix{prefix("10.0.0.0/8")}, Only: true})
	if only.Permission(netip.MustParseAddr("8.8.8.8")) != NotListed || only.Permission(netip.MustParseAddr("10.0.0.1")) != "" {
		t.Error("an allow-list that is not kept")
	}
}

// TestOwn: of the edge's addresses only live relay ports are peers.
func TestOwn(t *testing.T) {
	p := testPolicy(Config{OwnPort: func(a netip.AddrPort) bool { return a.Port() == 7000 }})
	own := netip.MustParseAddr("11.0.0.1")
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(own, port) }
	if p.Permission(own) != Own || p.Packet(at(5000)) != Own {
		t.Error("an own address without relay ports is a peer")
	}
	p.Relay(at(5000), true)
	p.Relay(at(5000), true)
	p.Relay(at(5000), false)
	if why := p.Permission(own) + p.Packet(at(5000)) + p.Packet(at(7000)); why != "" {
		t.Error("a relay port is no peer:", why)
	}
	if p.Packet(at(3478)) != Own || p.Connect(at(3478)) != Own {
		t.Error("a server's own port is a peer")
	}
	p.Relay(at(5000), false)
	if p.Permission(own) != Own || p.Packet(at(5000)) != Own {
		t.Error("a port that is given back is still a peer")
	}
}

func TestPacketAllocatesNothing(t *testing.T) {
	p := testPolicy(Config{})
	v4, v6 := netip.MustParseAddrPort("8.8.8.8:1"), netip.MustParseAddrPort("[64:ff9b::808:808]:1")
	if n := testing.AllocsPerRun(100, func() { p.Packet(v4); p.Packet(v6) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
