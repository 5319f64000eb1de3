package turn

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
)

// shut is a Denier that changes its mind.
type shut struct {
	addr atomic.Pointer[netip.Addr]
	user atomic.Pointer[string]
}

func (s *shut) Addr(a netip.Addr) bool {
	p := s.addr.Load()
	return p != nil && *p == a
}

func (s *shut) User(name string) bool {
	p := s.user.Load()
	return p != nil && *p == name
}

// TestDenied: the allocations of a user who is shut out end, and he gets no new one; another user does. Datagrams of an
// address that is shut out are dropped.
func TestDenied(t *testing.T) {
	deny := &shut{}
	b := serve(t, func(_ *Config, d *Deps) { d.Deny = deny })
	c := b.client("udp", testUser, testPass)
	if _, err := c.Allocate(); err != nil {
		t.Fatal(err)
	}
	if n := b.s.Expel(); n != 0 || b.s.Open() != 1 {
		t.Fatalf("%d of nobody", n)
	}
	name := testUser
	deny.user.Store(&name)
	if n := b.s.Expel(); n != 1 || b.s.Open() != 0 {
		t.Errorf("%d ended, %d are left", n, b.s.Open())
	}
	if _, err := b.client("udp", testUser, testPass).Allocate(); err == nil {
		t.Error("who is shut out allocates")
	}
	if _, err := b.client("udp", "bob", "secret").Allocate(); err != nil {
		t.Errorf("another: %v", err)
	}
	host := netip.MustParseAddr("127.0.0.1")
	deny.addr.Store(&host)
	if n := b.s.Expel(); n != 1 {
		t.Errorf("%d ended", n)
	}
	stranger := b.socket()
	if _, err := stranger.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(b.udp)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the datagram is dropped", func() bool { return b.dropped("banned") > 0 })
}
