package t120

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/t120/x224"
)

// announcing has the listeners that announcements name.
func announcing() Config {
	cfg := DefaultConfig()
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 1503}, {Proto: "tcp", Network: "outside", Port: 1503}}
	return cfg
}

// announce opens an announcement from the inside to the outside and declares hosts; one that is not valid is not.
func announce(t *testing.T, s *Server, near, far netip.AddrPort) pinhole.Lease {
	t.Helper()
	l, err := s.Announcer().Open(t.Context(), pinhole.Request{Kind: pinhole.TCP, Networks: [2]string{"inside", "outside"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for side, at := range []netip.AddrPort{near, far} {
		if !at.IsValid() {
			continue
		}
		if err := l.Declare(pinhole.Side(side), pinhole.Remote{Addr: at, Source: at.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// TestAnnounced: two hosts of an announced conference reach each other through 1503, whoever calls, and nobody else does.
func TestAnnounced(t *testing.T) {
	in, acceptIn := host(t, "127.1.0.2")
	out, acceptOut := host(t, "127.2.0.9")
	g := serve(t, announcing(), Deps{})
	l := announce(t, g.server, in, out)
	if near, far := l.Local(pinhole.Near).Addr, l.Local(pinhole.Far).Addr; near.String() != "127.1.0.1:1503" || far.String() != "198.51.100.1:1503" {
		t.Errorf("the edge is %v and %v", near, far)
	}
	a := g.dial("127.2.0.9", g.outside)
	b := up(t, a, acceptIn, "Staff", 1)
	a.dt([]byte{0x28})
	b.tpdu(x224.Data)
	c := g.dial("127.1.0.2", g.inside)
	d := up(t, c, acceptOut, "Staff", 2)

	other := g.dial("127.2.0.8", g.outside)
	other.packet(request)
	other.tpdu(x224.ConnectionConfirm)
	other.dt(connectInitial(joinRequest(t, "Staff", "Mallory")))
	other.closed()
	g.counted("route", 0)

	sum := l.Close()
	for _, p := range []*peer{a, b, c, d} {
		p.closed()
	}
	if sum.From[0].Bytes == 0 || sum.From[1].Bytes == 0 || l.Close() != sum {
		t.Errorf("carried %+v", sum)
	}
	late := g.dial("127.2.0.9", g.outside)
	late.packet(request)
	late.tpdu(x224.ConnectionConfirm)
	late.dt(connectInitial(joinRequest(t, "Staff", "Alice")))
	late.closed()
	g.counted("route", 1)
}

// TestAnnouncedTaken: hosts are told apart by their addresses, so one takes part in one conference at a time.
func TestAnnouncedTaken(t *testing.T) {
	s, err := New(announcing(), Deps{Networks: loopback()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	first := announce(t, s, at("127.1.0.2:1503"), at("127.2.0.9:1503"))
	second := announce(t, s, netip.AddrPort{}, netip.AddrPort{})
	declare := func(l pinhole.Lease, side pinhole.Side, a string) error {
		return l.Declare(side, pinhole.Remote{Addr: at(a), Source: at(a).Addr()})
	}
	for side, a := range []string{"127.1.0.2:1503", "127.2.0.9:1503"} {
		if err := declare(second, pinhole.Side(side), a); !errors.Is(err, ErrTaken) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if err := declare(second, pinhole.Near, "127.1.0.3:1503"); err != nil {
		t.Error(err)
	}
	if err := second.Declare(pinhole.Near, pinhole.Remote{Addr: at("127.1.0.9:1503"), Source: netip.MustParseAddr("127.1.0.3")}); !errors.Is(err, pinhole.ErrTarget) {
		t.Error("an inside host may name another")
	}
	// a second answer to the same call is no other conference
	fork, err := first.Fork()
	if err != nil {
		t.Fatal(err)
	}
	if err := declare(fork, pinhole.Near, "127.1.0.2:1503"); err != nil {
		t.Error(err)
	}
	if err := declare(fork, pinhole.Far, "127.2.0.10:1503"); err != nil {
		t.Error(err)
	}
	fork.Close()
	if err := declare(first, pinhole.Far, "127.2.0.11:1503"); err != nil { // the host has another address now
		t.Error(err)
	}
	if err := declare(second, pinhole.Far, "127.2.0.9:1503"); err != nil {
		t.Error(err)
	}
	first.Close()
	second.Close()
	if err := declare(first, pinhole.Near, "127.1.0.2:1503"); !errors.Is(err, pinhole.ErrClosed) {
		t.Error(err)
	}
	if len(s.announced) != 0 || s.announcements != 0 {
		t.Errorf("%v, %d left", s.announced, s.announcements)
	}
}

// TestAnnouncedBehindNAT: a host that names an address of its own network calls from its NAT's, and cannot be called.
func TestAnnouncedBehindNAT(t *testing.T) {
	nets := pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
	}
	s, err := New(announcing(), Deps{Networks: nets}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	l := announce(t, s, at("10.0.0.5:1503"), netip.AddrPort{})
	if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: at("192.168.7.7:1503"), Source: netip.MustParseAddr("203.0.113.9")}); err != nil {
		t.Fatal(err)
	}
	call := func(network, from string) *session {
		return s.session(Call{Network: network, Client: at(from), Local: at("198.51.100.1:1503")}, nil)
	}
	if to, ok := s.join(call("outside", "203.0.113.9:4711")); !ok || to != at("10.0.0.5:1503") {
		t.Errorf("brought to %v, %v", to, ok)
	}
	if to, ok := s.join(call("inside", "10.0.0.5:4711")); ok {
		t.Errorf("brought to %v", to)
	}
}

// TestAnnouncedIdle: the owner hears that nobody calls, once both are known and answered, and that somebody does again.
func TestAnnouncedIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(announcing(), Deps{Networks: loopback()}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan bool, 8)
		l, err := s.Announcer().Open(t.Context(), pinhole.Request{Networks: [2]string{"inside", "outside"}, OnIdle: func(idle bool) { said <- idle }})
		if err != nil {
			t.Fatal(err)
		}
		at := netip.MustParseAddrPort
		declare := func(quiet bool) {
			for side, a := range []string{"127.1.0.2:1503", "127.2.0.9:1503"} {
				if err := l.Declare(pinhole.Side(side), pinhole.Remote{Addr: at(a), Source: at(a).Addr(), Quiet: quiet}); err != nil {
					t.Fatal(err)
				}
			}
		}
		declare(true)
		time.Sleep(time.Hour)
		if len(said) != 0 {
			t.Errorf("while it rings: %v", <-said)
		}
		declare(false)
		time.Sleep(2*announcedIdle + time.Second)
		c := s.session(Call{Network: "outside", Client: at("127.2.0.9:4711"), Local: at("127.0.0.1:1503")}, nil)
		if to, ok := s.join(c); !ok || to != at("127.1.0.2:1503") {
			t.Errorf("brought to %v, %v", to, ok)
		}
		time.Sleep(time.Hour)
		if len(said) != 2 || !<-said || <-said {
			t.Error("not: silent, heard")
		}
		s.leave(c)
		time.Sleep(announcedIdle + time.Second)
		if len(said) != 1 || !<-said {
			t.Error("not silent again")
		}
		l.Close()
	})
}

// TestAnnouncedNowhere: without a listener on both networks there is nothing to announce.
func TestAnnouncedNowhere(t *testing.T) {
	cfg := announcing()
	cfg.Listen = cfg.Listen[:1]
	s, err := New(cfg, Deps{Networks: loopback()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Announcer().Open(t.Context(), pinhole.Request{Networks: [2]string{"inside", "outside"}}); !errors.Is(err, pinhole.ErrNetwork) {
		t.Error(err)
	}
	s.Drain()
	if _, err := s.Announcer().Open(t.Context(), pinhole.Request{Networks: [2]string{"inside", "inside"}}); !errors.Is(err, pinhole.ErrExhausted) {
		t.Error(err)
	}
}

// TestAnnouncedTwice: two inside hosts call each other through a server outside, so the call passes the edge twice and
// each passage names the edge as its other end. Each is brought to the other all the same.
func TestAnnouncedTwice(t *testing.T) {
	s, err := New(announcing(), Deps{Networks: loopback()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	open := func(label string, networks ...string) pinhole.Lease {
		t.Helper()
		l, err := s.Announcer().Open(t.Context(), pinhole.Request{Label: label, Networks: [2]string(networks)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	alice, bob, edge, server := at("127.1.0.2:1503"), at("127.1.0.3:1503"), at("198.51.100.1:1503"), netip.MustParseAddr("127.2.0.20")
	there, back := open("call", "inside", "outside"), open("call", "outside", "inside")
	other := open("other call", "outside", "inside")
	for _, d := range []struct {
		l    pinhole.Lease
		side pinhole.Side
		r    pinhole.Remote
		err  error
	}{
		{there, pinhole.Near, pinhole.Remote{Addr: alice, Source: alice.Addr()}, nil},
		{other, pinhole.Near, pinhole.Remote{Addr: edge, Source: server}, pinhole.ErrTarget},
		{back, pinhole.Near, pinhole.Remote{Addr: edge, Source: server}, nil},
		{back, pinhole.Far, pinhole.Remote{Addr: bob, Source: bob.Addr()}, nil},
		{there, pinhole.Far, pinhole.Remote{Addr: edge, Source: server, Trusted: true}, nil},
	} {
		if err := d.l.Declare(d.side, d.r); !errors.Is(err, d.err) {
			t.Errorf("declare %v: %v", d.r.Addr, err)
		}
	}
	for from, want := range map[netip.AddrPort]netip.AddrPort{alice: bob, bob: alice} {
		c := s.session(Call{Network: "inside", Client: netip.AddrPortFrom(from.Addr(), 4711), Local: at("127.1.0.1:1503")}, nil)
		if to, ok := s.join(c); !ok || to != want {
			t.Errorf("%v is brought to %v, %v", from, to, ok)
		}
	}
	back.Close()
	c := s.session(Call{Network: "inside", Client: at("127.1.0.2:4711"), Local: at("127.1.0.1:1503")}, nil)
	if to, ok := s.join(c); ok {
		t.Errorf("brought to %v after the end", to)
	}
}
