package msturn

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// quietPort is a relay port to which nobody sends.
type quietPort struct {
	testPort
	mu       sync.Mutex
	deadline *time.Timer
	wake     chan error
}

func newQuietPort() *quietPort { return &quietPort{wake: make(chan error, 1)} }

func (p *quietPort) OpenPort(context.Context, pinhole.PortRequest) (pinhole.Port, error) {
	return p, nil
}

func (*quietPort) Front(c net.PacketConn) (net.PacketConn, error) { return c, nil }

func (*quietPort) Local() pinhole.Local {
	return pinhole.Local{Addr: netip.MustParseAddrPort("198.51.100.1:50000")}
}

func (p *quietPort) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, <-p.wake }

func (p *quietPort) SetReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deadline != nil {
		p.deadline.Stop()
	}
	p.deadline = time.AfterFunc(time.Until(t), func() { p.wake <- os.ErrDeadlineExceeded })
	return nil
}

func (p *quietPort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline.Stop()
	select {
	case p.wake <- net.ErrClosed:
	default:
	}
	return nil
}

// lastFront keeps the last datagram that was written.
type lastFront struct {
	net.PacketConn
	b []byte
}

func (f *lastFront) WriteTo(b []byte, _ net.Addr) (int, error) {
	f.b = b
	return len(b), nil
}

// TestLifetime: a port lives as long as it is prolonged, and its end is everybody's.
func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nets := pinhole.Networks{"outside": {Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}}
		cfg := DefaultConfig()
		cfg.Realm, cfg.Users = "example.org", map[string]Secret{"alice": "secret"}
		s, err := New(cfg, Deps{Networks: nets, Ports: newQuietPort(), Peers: testPeers{}, Challenge: func(netip.Addr) bool { return true }}, zap.NewNop())
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { must(t, s.Run(ctx)) })
		front, from := &lastFront{}, netip.MustParseAddrPort("203.0.113.1:4000")
		g := &guest{t: t, user: "alice", password: []byte("secret"), realm: "example.org"}
		allocate := func(seconds uint32) uint32 {
			t.Helper()
			nonce := s.core.users.nonce(from.Addr(), time.Now())
			r := begin(allocateRequest, newID()).number(attrLifetime, seconds).bytes(attrNonce, nonce).bytes(attrUsername, []byte("alice"))
			if !s.Receive(ctx, "outside", front, from, r.sign(g.key())) {
				t.Fatal("not taken")
			}
			_, attrs := g.attrs(front.b)
			life, _ := number(attrs[attrLifetime])
			synctest.Wait()
			return life
		}
		for _, tt := range []struct{ ask, get uint32 }{{1, 60}, {120, 120}, {1 << 31, 3600}, {60, 60}} {
			if got := allocate(tt.ask); got != tt.get {
				t.Errorf("asked for %d s, got %d", tt.ask, got)
			}
			time.Sleep(59 * time.Second)
			synctest.Wait()
			if s.Open() != 1 {
				t.Errorf("%d s: over after 59", tt.get)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s.Open() != 0 {
			t.Error("not over in time")
		}
		cancel()
		work.Wait()
	})
}

// TestSilentStream: a client on TCP that does not log in is not kept.
func TestSilentStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := DefaultConfig()
		s, err := New(cfg, Deps{Peers: testPeers{}, Challenge: func(netip.Addr) bool { return true }}, zap.NewNop())
		must(t, err)
		ours, theirs := net.Pipe()
		go func() {
			s.serveStream(t.Context(), "outside", ours)
			ours.Close()
		}()
		g := &guest{t: t, conn: theirs, framed: true}
		if code := g.allocate(nil); code != 401 {
			t.Fatalf("%d, not 401", code)
		}
		since := time.Now()
		if n, err := theirs.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d octets more", n)
		}
		if d := time.Since(since); d != firstTime {
			t.Errorf("closed after %v", d)
		}
		synctest.Wait()
	})
}

// FuzzReceive has whatever comes from a client that has an allocation judged, signed or not.
func FuzzReceive(f *testing.F) {
	f.Add(unhex(f, firstAllocate), false, true)
	f.Add(unhex(f, "00060014"+testID+"000f000472c64bc6"+"0011000800010050c0000201"), true, false)
	f.Add(unhex(f, "00040018"+testID+"000f000472c64bc6"+"0011000800010050c0000201"+"00130000"), true, false)
	f.Add([]byte{0x80, 0, 0, 1}, false, true)
	f.Fuzz(func(t *testing.T, b []byte, sign, chosen bool) {
		now := time.Unix(1e9, 0)
		u := newUsers("example.org", map[string]Secret{"alice": "secret"}, nil)
		key := u.key("alice", []byte("secret"))
		from := tuple{new(int), netip.MustParseAddrPort("203.0.113.1:4000")}
		a := &allocation{
			tuple: from, user: "alice", name: "alice", key: key, account: &account{allocations: 1}, relay: netip.MustParseAddrPort("198.51.100.1:50000"),
			until: now.Add(time.Minute), allowed: map[netip.Addr]time.Time{}, out: &udpRelay{port: &quietPort{wake: make(chan error, 1)}},
		}
		if chosen {
			a.active = netip.MustParseAddrPort("192.0.2.1:4000")
		}
		c := &core{
			users: u, peers: testPeers{}, challenge: func(netip.Addr) bool { return true }, maxUser: 2,
			allocs: map[tuple]*allocation{from: a}, perUser: map[string]*account{"alice": a.account},
		}
		if _, err := decode(b); err == nil && sign && len(b) < 60000 {
			b = reply(b[:len(b):len(b)]).bytes(attrUsername, []byte("alice")).bytes(attrNonce, u.nonce(from.client.Addr(), now)).sign(key)
		}
		v := c.receive(now, from, b, false)
		if v.reply != nil && !IsMessage(v.reply) {
			t.Errorf("answer %x", v.reply)
		}
		if v.from != nil && !v.to.IsValid() {
			t.Error("data for nobody")
		}
		if v.mine != (IsMessage(b) || chosen) {
			t.Errorf("mine: %v", v.mine)
		}
	})
}
