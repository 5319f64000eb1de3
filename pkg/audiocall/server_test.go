package audiocall

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

const patience = 20 * time.Second

func networks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.7.1.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("127.7.1.0/24")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.7.2.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("127.7.2.0/24")}},
	}
}

// house is a server on loopback: callers come from outside to bob inside. It has one UDP port, on both sides.
type house struct {
	t      *testing.T
	server *Server
	at     string
	bob    net.Listener
	port   uint16
}

func newHouse(t *testing.T, change func(*Config, *Deps)) *house {
	t.Helper()
	bob, err := net.Listen("tcp4", "127.7.1.9:0")
	if err != nil {
		t.Fatal(err)
	}
	inside, outside, port := ports(t)
	cfg, deps := DefaultConfig(), Deps{Networks: networks()}
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "outside", Port: wellKnown}}
	cfg.Targets = map[string]netip.AddrPort{"outside": pinhole.AddrPortOf(bob.Addr())}
	cfg.UDP = Ports{port, port}
	if change != nil {
		change(&cfg, &deps)
	}
	h := &house{t: t, bob: bob, port: port}
	if h.server, err = New(cfg, deps, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp4", "127.7.2.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.at = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	run := func(f func() error) {
		work.Go(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	run(func() error { return h.server.ServeListener(ctx, "outside", ln) })
	run(func() error { return h.server.ServePacket(ctx, "inside", inside) })
	run(func() error { return h.server.ServePacket(ctx, "outside", outside) })
	t.Cleanup(func() {
		bob.Close()
		cancel()
		work.Wait()
	})
	return h
}

// ports binds one number at both addresses of the edge.
func ports(t *testing.T) (inside, outside net.PacketConn, port uint16) {
	t.Helper()
	for range 100 {
		in, err := net.ListenPacket("udp4", "127.7.1.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port = pinhole.AddrPortOf(in.LocalAddr()).Port()
		if out, err := net.ListenPacket("udp4", netip.AddrPortFrom(netip.MustParseAddr("127.7.2.1"), port).String()); err == nil {
			return in, out, port
		}
		in.Close()
	}
	t.Fatal("no port is free at both addresses")
	return nil, nil, 0
}

// dial connects from a host to the edge.
func (h *house) dial(from string) net.Conn {
	h.t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	c, err := d.Dial("tcp4", h.at)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func (h *house) accept() net.Conn {
	h.t.Helper()
	h.bob.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	c, err := h.bob.Accept()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// hear binds the port at a host.
func (h *house) hear(host string) *net.UDPConn {
	h.t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), h.port)))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *house) say(c *net.UDPConn, edge, text string) {
	h.t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(netip.MustParseAddr(edge), h.port)); err != nil {
		h.t.Fatal(err)
	}
}

func want(t *testing.T, c *net.UDPConn, text string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil || string(b[:n]) != text {
		t.Fatalf("heard %q from %v, %v", b[:n], from, err)
	}
}

func read(t *testing.T, c net.Conn, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("%q, %v", b, err)
	}
}

func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// TestCall: octets pass both ways, and datagrams between the two hosts as long as the connection lives; those of
// others are dropped.
func TestCall(t *testing.T) {
	h := newHouse(t, nil)
	alice, bob, stranger := h.hear("127.7.2.9"), h.hear("127.7.1.9"), h.hear("127.7.2.10")
	h.say(alice, "127.7.2.1", "too early")
	until(t, "it is dropped", func() bool { return h.server.count.stray.Load() == 1 })
	a := h.dial("127.7.2.9")
	if _, err := a.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := h.accept()
	if host := pinhole.AddrPortOf(b.RemoteAddr()).Addr(); host != netip.MustParseAddr("127.7.1.1") {
		t.Errorf("bob is called from %v", host)
	}
	read(t, b, "hello")
	if _, err := b.Write([]byte("yes?")); err != nil {
		t.Fatal(err)
	}
	read(t, a, "yes?")
	h.say(stranger, "127.7.2.1", "me too")
	until(t, "it is dropped", func() bool { return h.server.count.stray.Load() == 2 })
	h.say(alice, "127.7.2.1", "audio")
	want(t, bob, "audio")
	h.say(bob, "127.7.1.1", "audio too")
	want(t, alice, "audio too")
	a.Close()
	if _, err := io.ReadFull(b, make([]byte, 1)); err != io.EOF {
		t.Errorf("bob's connection: %v", err)
	}
	b.Close()
	until(t, "the connection ends", func() bool { return h.server.Open() == 0 })
	h.say(alice, "127.7.2.1", "too late")
	until(t, "it is dropped", func() bool { return h.server.count.stray.Load() == 3 })
	if n := h.server.count.packets.Load(); n != 2 || len(h.server.pairs) != 0 {
		t.Errorf("%d datagrams, %d pairs are left", n, len(h.server.pairs))
	}
}

// TestBusy: a host that has a connection with another gets no third one, as datagrams could not be told apart; further
// connections between the same two are one pair.
func TestBusy(t *testing.T) {
	h := newHouse(t, nil)
	h.dial("127.7.2.9")
	h.accept()
	h.dial("127.7.2.9")
	h.accept()
	third := h.dial("127.7.2.10")
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third host got through")
	}
	h.server.count.mu.Lock()
	defer h.server.count.mu.Unlock()
	if n := h.server.count.drops["busy"]; n != 1 {
		t.Errorf("%v", h.server.count.drops)
	}
}

// TestIdle: a connection on which nothing passes is closed.
func TestIdle(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.Idle = time.Second })
	a := h.dial("127.7.2.9")
	h.accept()
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Error("something came")
	}
	until(t, "nothing is left", func() bool { return h.server.Open() == 0 })
}

// book knows where one address of the edge leads.
type book map[netip.Addr]netip.Addr

// Route implements Directory.
func (b book) Route(local, _ netip.Addr) (netip.Addr, bool) {
	a, ok := b[local]
	return a, ok
}

func TestTarget(t *testing.T) {
	ap, host := netip.MustParseAddrPort, netip.MustParseAddr
	for _, tt := range []struct {
		name, network, local string
		book                 book
		targets              map[string]netip.AddrPort
		want                 string // an address, or the error
	}{
		{"nobody", "outside", "127.7.2.1:1731", nil, nil, "route"},
		{"the network's", "outside", "127.7.2.1:1731", nil, map[string]netip.AddrPort{"outside": ap("127.7.1.9:1731")}, "127.7.1.9:1731"},
		{"another network's", "inside", "127.7.1.1:1731", nil, map[string]netip.AddrPort{"outside": ap("127.7.1.9:1731")}, "route"},
		{"the directory's", "outside", "127.7.2.1:1731", book{host("127.7.2.1"): host("127.7.1.8")}, map[string]netip.AddrPort{"outside": ap("127.7.1.9:1731")}, "127.7.1.8:1731"},
		{"on its way", "inside", "203.0.113.7:1731", nil, nil, "203.0.113.7:1731"},
		{"on its way from outside", "outside", "10.0.0.7:1731", nil, nil, "route"},
		{"the edge", "outside", "127.7.2.1:1731", book{host("127.7.2.1"): host("127.7.1.1")}, nil, "loop"},
	} {
		cfg := DefaultConfig()
		cfg.Targets = tt.targets
		deps := Deps{Networks: networks()}
		if tt.book != nil {
			deps.Directory = tt.book
		}
		s, err := New(cfg, deps, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		to, err := s.target(tt.network, ap(tt.local), host("198.51.100.7"))
		got := to.String()
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestConfig(t *testing.T) {
	var p Ports
	if err := p.UnmarshalText([]byte("49608-49623")); err != nil || len(p.Each()) != 16 {
		t.Errorf("%v, %v", p, err)
	}
	if b, err := p.MarshalText(); err != nil || string(b) != "49608-49623" {
		t.Errorf("%s, %v", b, err)
	}
	for _, bad := range []string{"5000", "5000-", "-5", "a-b", "5000-70000"} {
		if err := p.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if err := (Ports{65535, 65535}); len(err.Each()) != 1 {
		t.Errorf("%v", err.Each())
	}
	for _, c := range []Config{
		{Idle: time.Hour, UDP: Ports{80, 90}}, {Idle: time.Hour, UDP: Ports{5010, 5000}}, {Idle: time.Hour, UDP: Ports{5000, 5064}}, {},
		{Idle: time.Hour, Targets: map[string]netip.AddrPort{"outside": netip.MustParseAddrPort("127.7.1.1:1731")}},
		{Idle: time.Hour, Listen: []pinhole.Listen{{Proto: "udp", Network: "inside", Port: 1}}},
	} {
		if c.Validate(networks()) == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
