package rfc1350

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// wire is a network in memory: sockets by address, datagrams that arrive at once.
type wire struct {
	mu    sync.Mutex
	socks map[netip.AddrPort]*sock
	port  uint16
	fail  bool
}

type datagram struct {
	from   netip.AddrPort
	b      []byte
	called netip.AddrPort // whom it was for, where that is not whom it has come to
}

// sock is a socket on a wire.
type sock struct {
	w      *wire
	at     netip.AddrPort
	in     chan datagram // as long as a test sends without reading
	closed chan struct{}
	once   sync.Once
}

func (w *wire) listen(_ context.Context, at netip.AddrPort) (net.PacketConn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail {
		return nil, errors.New("no descriptors")
	}
	if at.Port() == 0 {
		w.port++
		at = netip.AddrPortFrom(at.Addr(), 40000+w.port)
	}
	s := &sock{w: w, at: at, in: make(chan datagram, 1024), closed: make(chan struct{})}
	w.socks[at] = s
	return s, nil
}

func (s *sock) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case d := <-s.in:
		udp := net.UDPAddrFromAddrPort(d.from)
		if d.called.IsValid() {
			return copy(b, d.b), pinhole.CalledAddr{UDPAddr: udp, Called: d.called}, nil
		}
		return copy(b, d.b), udp, nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	}
}

func (s *sock) WriteTo(b []byte, to net.Addr) (int, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if d := s.w.socks[pinhole.AddrPortOf(to)]; d != nil {
		d.in <- datagram{from: s.at, b: bytes.Clone(b)}
	}
	return len(b), nil
}

func (s *sock) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		delete(s.w.socks, s.at)
	})
	return nil
}

func (s *sock) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(s.at) }
func (s *sock) SetDeadline(time.Time) error      { return nil }
func (s *sock) SetReadDeadline(time.Time) error  { return nil }
func (s *sock) SetWriteDeadline(time.Time) error { return nil }

// host is a client or server of a test.
type host struct {
	t *testing.T
	*sock
}

// to sends a packet.
func (h host) to(at netip.AddrPort, b []byte) {
	h.t.Helper()
	if _, err := h.WriteTo(b, net.UDPAddrFromAddrPort(at)); err != nil {
		h.t.Fatal(err)
	}
}

// get returns the next packet and who sent it; it must be want, or begin with it where that is an ERROR.
func (h host) get(want []byte) netip.AddrPort {
	h.t.Helper()
	synctest.Wait()
	select {
	case d := <-h.in:
		if !bytes.Equal(d.b, want) {
			h.t.Fatalf("%v got %q, not %q", h.at, d.b, want)
		}
		return d.from
	default:
		h.t.Fatalf("%v got nothing, not %q", h.at, want)
	}
	return netip.AddrPort{}
}

// nothing checks that nothing has come.
func (h host) nothing() {
	h.t.Helper()
	synctest.Wait()
	if n := len(h.in); n > 0 {
		h.t.Fatalf("%v got %q", h.at, (<-h.in).b)
	}
}

// scene is a relay between an inside client and an outside server.
type scene struct {
	t      *testing.T
	wire   *wire
	relay  *Relay
	edge   netip.AddrPort
	server host
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func networks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, Subnets: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}},
	}
}

func testConfig() Config {
	cfg := DefaultConfig()
	cfg.Listen = []pinhole.Listen{{Proto: "udp", Network: "inside", Port: 69}}
	cfg.Servers = map[string]Server{"inside": Server(ap("198.51.100.20:69"))}
	cfg.Write = true
	return cfg
}

// run runs a test with a relay, in a bubble; everything must have ended at its end.
func run(t *testing.T, change func(*Config, *Deps), f func(*scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{socks: map[netip.AddrPort]*sock{}}
		cfg, nets := testConfig(), networks()
		deps := Deps{Networks: nets, ListenPacket: w.listen, RouteTo: nets.Of}
		if change != nil {
			change(&cfg, &deps)
		}
		relay, err := New(cfg, deps, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		s := &scene{t: t, wire: w, relay: relay, edge: ap("10.0.0.1:69")}
		s.server = s.host("198.51.100.20:69")
		pc, err := w.listen(t.Context(), s.edge)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- relay.ServePacket(ctx, "inside", pc) }()
		f(s)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		relay.mu.Lock()
		defer relay.mu.Unlock()
		if len(relay.pairs) != 0 || relay.active != 0 || len(relay.perSource) != 0 {
			t.Errorf("%d transfers left, %v", len(relay.pairs), relay.perSource)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for at := range w.socks {
			if a := at.Addr().String(); a == "10.0.0.1" || a == "198.51.100.1" {
				t.Errorf("%v is left open", at)
			}
		}
	})
}

func (s *scene) host(at string) host {
	s.t.Helper()
	pc, err := s.wire.listen(s.t.Context(), ap(at))
	if err != nil {
		s.t.Fatal(err)
	}
	return host{s.t, pc.(*sock)}
}

// drops checks the count of a reason.
func (s *scene) drops(reason string, want uint64) {
	s.t.Helper()
	synctest.Wait()
	s.relay.count.mu.Lock()
	defer s.relay.count.mu.Unlock()
	if got := s.relay.count.drops[reason]; got != want {
		s.t.Errorf("%d drops for %s, want %d (%v)", got, reason, want, s.relay.count.drops)
	}
}

func (s *scene) result(name string, want uint64) {
	s.t.Helper()
	synctest.Wait()
	s.relay.count.mu.Lock()
	defer s.relay.count.mu.Unlock()
	if got := s.relay.count.results[name]; got != want {
		s.t.Errorf("%d transfers %s, want %d (%v)", got, name, want, s.relay.count.results)
	}
}

// TestGet: a whole get with options; each side sees only the edge, and the server's new port only is heard.
func TestGet(t *testing.T) {
	run(t, nil, func(s *scene) {
		c, srv, stranger := s.host("10.0.0.5:3000"), s.host("198.51.100.20:50000"), s.host("203.0.113.9:50000")
		rrq := ask(opRead, "boot.bin", "octet", "blksize", "1428", "windowsize", "2")
		c.to(s.edge, rrq)
		far := s.server.get(rrq)
		if far.Addr() != netip.MustParseAddr("198.51.100.1") || far.Port() == 69 {
			t.Errorf("the request comes from %v", far)
		}
		c.to(s.edge, rrq) // repeated too soon
		s.server.nothing()
		time.Sleep(patience)
		c.to(s.edge, rrq) // repeated before the answer: to the server, from the same port
		if again := s.server.get(rrq); again != far {
			t.Errorf("the repeated request comes from %v", again)
		}
		stranger.to(far, data(1, 10))
		c.nothing()
		srv.to(far, oack("blksize", "1428", "windowsize", "2"))
		near := c.get(oack("blksize", "1428", "windowsize", "2"))
		if near.Addr() != s.edge.Addr() || near == s.edge {
			t.Errorf("the answer comes from %v", near)
		}
		c.to(s.edge, rrq) // repeated after the answer: the server repeats by itself
		s.server.nothing()
		second := s.host("198.51.100.20:50001") // what the repeated request has begun is ended
		second.to(far, data(1, 512))
		second.get(errorPacket(codeUnknown, "unknown transfer ID"))
		other := s.host("10.0.0.6:3000")
		other.to(near, ack(0))
		srv.nothing()
		c.to(near, ack(0))
		srv.get(ack(0))
		srv.to(far, data(1, 1428))
		srv.to(far, data(2, 1428))
		c.get(data(1, 1428))
		c.get(data(2, 1428))
		c.to(near, ack(2))
		srv.get(ack(2))
		srv.to(far, data(3, 100))
		c.get(data(3, 100))
		c.to(near, ack(3))
		srv.get(ack(3))
		srv.to(far, data(3, 100)) // the last ACK was lost
		c.get(data(3, 100))
		c.to(near, ack(3))
		srv.get(ack(3))
		time.Sleep(linger + time.Second)
		s.result("completed", 1)
		s.drops("source", 2)
		s.drops("unknown_tid", 1)
		if got := s.relay.count.octets; got != [2]uint64{2956, 0} {
			t.Errorf("counted %v", got)
		}
	})
}

// TestPut: a whole put, then the next from the same port while the first lingers.
func TestPut(t *testing.T) {
	run(t, nil, func(s *scene) {
		c, srv := s.host("10.0.0.5:3000"), s.host("198.51.100.20:50000")
		for range 2 {
			wrq := ask(opWrite, "up.bin", "octet")
			c.to(s.edge, wrq)
			far := s.server.get(wrq)
			srv.to(far, ack(0))
			near := c.get(ack(0))
			c.to(near, data(1, 512))
			srv.get(data(1, 512))
			srv.to(far, ack(1))
			c.get(ack(1))
			c.to(near, data(2, 0))
			srv.get(data(2, 0))
			srv.to(far, ack(2))
			c.get(ack(2))
		}
		s.result("completed", 1)
		s.relay.mu.Lock()
		defer s.relay.mu.Unlock()
		if len(s.relay.pairs) != 1 || s.relay.active != 0 || len(s.relay.perSource) != 0 {
			t.Errorf("%d transfers, %d of them count, %v", len(s.relay.pairs), s.relay.active, s.relay.perSource)
		}
	})
}

// TestErrors: an ERROR passes and ends the transfer at once.
func TestErrors(t *testing.T) {
	run(t, nil, func(s *scene) {
		c := s.host("10.0.0.5:3000")
		c.to(s.edge, ask(opRead, "gone", "octet"))
		far := s.server.get(ask(opRead, "gone", "octet"))
		s.server.to(far, errorPacket(1, "File not found")) // some answer errors from 69
		c.get(errorPacket(1, "File not found"))
		s.result("error", 1)
		if n := s.relay.Open(); n != 0 {
			t.Errorf("%d transfers", n)
		}
	})
}

// TestRefused: what policy and limits refuse is answered with ERROR, and reaches no server.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		reason string
		b      []byte
		want   []byte
		change func(*Config, *Deps)
	}{
		{"malformed", []byte("nonsense"), errorPacket(codeIllegal, "illegal request"), nil},
		{"malformed", bytes.Repeat([]byte{0, 1}, 400), errorPacket(codeIllegal, "illegal request"), nil},
		{"write", ask(opWrite, "a", "octet"), errorPacket(codeAccess, "read only"), func(c *Config, _ *Deps) { c.Write = false }},
		{"name", ask(opRead, "../../etc/passwd", "octet"), errorPacket(codeAccess, "not allowed"), nil},
		{"client", ask(opRead, "a", "octet"), errorPacket(codeAccess, "not allowed"), func(c *Config, _ *Deps) { c.Clients = []netip.Prefix{netip.MustParsePrefix("10.0.0.64/26")} }},
		{"too_large", ask(opWrite, "a", "octet", "tsize", "1001"), errorPacket(codeFull, "file too large"), func(_ *Config, d *Deps) { d.MaxSize = 1000 }},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			run(t, tt.change, func(s *scene) {
				c := s.host("10.0.0.5:3000")
				c.to(s.edge, tt.b)
				if from := c.get(tt.want); from != s.edge {
					t.Errorf("refused by %v", from)
				}
				s.server.nothing()
				s.drops(tt.reason, 1)
			})
		})
	}
}

// TestLimits: transfers of one client and of all are bounded, what nobody answers ends, and refusals are not endless.
func TestLimits(t *testing.T) {
	run(t, func(c *Config, _ *Deps) { c.PerSource, c.Transfers = 2, 3 }, func(s *scene) {
		rrq, busy := ask(opRead, "a", "octet"), errorPacket(codeUndefined, "busy")
		for _, at := range []string{"10.0.0.5:3000", "10.0.0.5:3001"} {
			s.host(at).to(s.edge, rrq)
			s.server.get(rrq)
		}
		third := s.host("10.0.0.5:3002")
		third.to(s.edge, rrq)
		third.get(busy)
		s.drops("per_source", 1)
		s.host("10.0.0.6:3000").to(s.edge, rrq)
		s.server.get(rrq)
		last := s.host("10.0.0.7:3000")
		last.to(s.edge, rrq)
		last.get(busy)
		s.drops("transfers", 1)
		for range 2 * refusals {
			last.to(s.edge, rrq)
		}
		synctest.Wait()
		if n := len(last.in); n == 0 || n > refusals {
			t.Errorf("%d refusals in a second", n)
		}
		time.Sleep(s.relay.cfg.Idle + time.Second)
		s.result("timeout", 3)
		third.to(s.edge, rrq)
		s.server.get(rrq)
		s.relay.Drain()
		s.host("10.0.0.8:3000").to(s.edge, rrq)
		s.server.nothing()
		s.drops("draining", 1)
	})
}

// TestManyShort: transfers that are over leave room for others at once, but not all of them are kept.
func TestManyShort(t *testing.T) {
	run(t, func(c *Config, _ *Deps) { c.PerSource, c.Transfers = 1, 2 }, func(s *scene) {
		srv := s.host("198.51.100.20:50000")
		for i := range 5 {
			c := s.host(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.5"), uint16(3000+i)).String())
			c.to(s.edge, ask(opRead, "a", "octet"))
			far := s.server.get(ask(opRead, "a", "octet"))
			srv.to(far, data(1, 0))
			near := c.get(data(1, 0))
			c.to(near, ack(1))
			srv.get(ack(1))
		}
		s.result("completed", 3)
	})
}

// TestTooLarge: a file that grows beyond the limit is ended on both sides.
func TestTooLarge(t *testing.T) {
	run(t, func(_ *Config, d *Deps) { d.MaxSize = 600 }, func(s *scene) {
		c, srv := s.host("10.0.0.5:3000"), s.host("198.51.100.20:50000")
		full := errorPacket(codeFull, "file too large")
		c.to(s.edge, ask(opRead, "a", "octet"))
		far := s.server.get(ask(opRead, "a", "octet"))
		srv.to(far, data(1, 512))
		near := c.get(data(1, 512))
		c.to(near, ack(1))
		srv.get(ack(1))
		srv.to(far, data(2, 512))
		srv.get(full)
		c.get(full)
		s.result("refused", 1)

		s.relay.SetMaxSize(550)
		c.to(s.edge, ask(opWrite, "a", "octet"))
		far = s.server.get(ask(opWrite, "a", "octet"))
		srv.to(far, ack(0))
		near = c.get(ack(0))
		c.to(near, data(1, 512))
		srv.get(data(1, 512))
		c.to(near, data(2, 100))
		srv.get(full)
		c.get(full)
		s.result("refused", 2)
	})
}

// TestNoSocket: without descriptors the client is told.
func TestNoSocket(t *testing.T) {
	run(t, nil, func(s *scene) {
		c := s.host("10.0.0.5:3000")
		s.wire.mu.Lock()
		s.wire.fail = true
		s.wire.mu.Unlock()
		c.to(s.edge, ask(opRead, "a", "octet"))
		c.get(errorPacket(codeUndefined, "busy"))
		s.drops("socket", 1)
	})
}

// TestOversize: a packet larger than the request's block is dropped whole.
func TestOversize(t *testing.T) {
	run(t, nil, func(s *scene) {
		c, srv := s.host("10.0.0.5:3000"), s.host("198.51.100.20:50000")
		c.to(s.edge, ask(opRead, "a", "octet"))
		far := s.server.get(ask(opRead, "a", "octet"))
		srv.to(far, data(1, 513))
		srv.to(far, append(data(1, 512), strings.Repeat("x", 2000)...))
		c.nothing()
		s.drops("oversize", 2)
		srv.to(far, data(1, 512))
		c.get(data(1, 512))
	})
}

func TestValidate(t *testing.T) {
	for key, change := range map[string]func(*Config){
		"listen[0]":      func(c *Config) { c.Listen[0].Network = "nowhere" },
		"listen[1]":      func(c *Config) { c.Listen = append(c.Listen, c.Listen[0]) },
		"servers.dmz":    func(c *Config) { c.Servers["dmz"] = c.Servers["inside"] },
		"servers.inside": func(c *Config) { c.Servers["inside"] = Server(ap("198.51.100.1:69")) },
		"allow[0]":       func(c *Config) { c.Allow = []string{"["} },
		"deny[0]":        func(c *Config) { c.Deny = []string{""} },
		"transfers":      func(c *Config) { c.Transfers = 100000 },
		"per_source":     func(c *Config) { c.PerSource = 0 },
		"idle":           func(c *Config) { c.Idle = time.Millisecond },
	} {
		cfg := testConfig()
		change(&cfg)
		err := cfg.Validate(networks())
		var f pinhole.Fault
		if !errors.As(err, &f) || !strings.HasPrefix(err.Error(), key+":") {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := testConfig().Validate(networks()); err != nil {
		t.Error(err)
	}
	cfg := testConfig()
	cfg.Servers = nil
	if err := cfg.Validate(networks()); err == nil || !strings.Contains(err.Error(), "no server for clients") {
		t.Error(err)
	}
}

// taken has the edge take a packet on its way to somebody else.
func (s *scene) taken(from host, called string, b []byte) {
	s.t.Helper()
	s.wire.mu.Lock()
	defer s.wire.mu.Unlock()
	s.wire.socks[s.edge].in <- datagram{from.at, b, ap(called)}
}

// TestTransparent: a request that was for somebody else goes there, from the edge's address or the client's; the client is answered
// from the address that it has asked, and two servers that it asks from one port are told apart.
func TestTransparent(t *testing.T) {
	for name, keep := range map[string]bool{"198.51.100.1": false, "10.0.0.5": true} {
		run(t, func(c *Config, _ *Deps) { c.Transparent, c.KeepSource, c.Servers = true, keep, nil }, func(s *scene) {
			c, one, two := s.host("10.0.0.5:3000"), s.host("203.0.113.20:69"), s.host("203.0.113.21:69")
			rrq := ask(opRead, "boot.bin", "octet")
			for _, srv := range []host{one, two} {
				s.taken(c, srv.at.String(), rrq)
				far := srv.get(rrq)
				if far.Addr().String() != name {
					t.Errorf("%v is asked by %v", srv.at, far)
				}
				answers := s.host(netip.AddrPortFrom(srv.at.Addr(), 50000).String())
				answers.to(far, data(1, 10))
				near := c.get(data(1, 10))
				if near.Addr() != srv.at.Addr() {
					t.Errorf("%v answers for %v", near, srv.at)
				}
				c.to(near, ack(1))
				answers.get(ack(1))
			}
			c.to(s.edge, rrq) // nobody is configured
			c.get(errorPacket(codeAccess, "not allowed"))
			time.Sleep(2 * linger)
			s.result("completed", 2)
		})
	}
}

// TestTransparentRefused: nothing is taken to where no server can be, or if that is not configured.
func TestTransparentRefused(t *testing.T) {
	for called, on := range map[string]bool{"127.0.0.1:69": true, "224.0.0.1:69": true, "169.254.1.1:69": true, "203.0.113.20:69": false} {
		run(t, func(c *Config, _ *Deps) { c.Transparent = on }, func(s *scene) {
			c := s.host("10.0.0.5:3000")
			s.taken(c, called, ask(opRead, "boot.bin", "octet"))
			c.get(errorPacket(codeAccess, "not allowed"))
			s.server.nothing()
		})
	}
}
