package h323

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

const patience = 20 * time.Second

// house is a server on loopback with a called party that listens.
type house struct {
	t      *testing.T
	server *Server
	at     netip.AddrPort
	bob    net.Listener
	opener *pinholetest.Opener
}

func newHouse(t *testing.T) *house {
	t.Helper()
	before := runtime.NumGoroutine()
	in, out := netip.MustParseAddr("127.0.9.1"), netip.MustParseAddr("127.0.9.2")
	nets := pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{in}, Trusted: true, Subnets: []netip.Prefix{netip.MustParsePrefix("127.0.9.64/26")}},
		"outside": {Addresses: []netip.Addr{out}},
	}
	bob, err := net.Listen("tcp", "127.0.9.200:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.Listen = []pinhole.Listen{{Proto: "tcp", Network: "inside", Port: 1720}, {Proto: "tcp", Network: "outside", Port: 1720}}
	cfg.Aliases = map[string]Target{"bob": Target(pinhole.AddrPortOf(bob.Addr())), "nobody": Target(netip.MustParseAddrPort("127.0.9.201:1"))}
	h := &house{t: t, bob: bob, opener: pinholetest.New(nets, 20000)}
	h.server, err = New(cfg, Deps{Networks: nets, Opener: h.opener}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.9.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.at = pinhole.AddrPortOf(ln.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- h.server.Serve(ctx, "inside", ln) }()
	go func() { ended <- h.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		bob.Close()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if n := h.opener.Count(); n != 0 {
			t.Errorf("%d pinholes are left", n)
		}
		until(t, "the goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return h
}

// until polls until something is so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
		runtime.Gosched()
		<-time.After(5 * time.Millisecond)
	}
}

func (h *house) dial() net.Conn {
	h.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, 70)}}
	c, err := d.Dial("tcp", h.at.String())
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

func framed(t *testing.T, p []byte) []byte {
	t.Helper()
	b, err := tpkt.Append(nil, 0, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// receive reads a message.
func receive(t *testing.T, c net.Conn) *h225.Message {
	t.Helper()
	var header [4]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, int(header[2])<<8|int(header[3])-4)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	m, err := h225.NewCodec().Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ended waits for the end of a connection.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection stays")
	}
}

// TestServer: a call through sockets, its Setup in segments of one octet, its end by ReleaseComplete.
func TestServer(t *testing.T) {
	h := newHouse(t)
	alice := h.dial()
	for _, x := range framed(t, setup(t, 1, netip.MustParseAddrPort("127.0.9.70:1720"), "bob")) {
		if _, err := alice.Write([]byte{x}); err != nil {
			t.Fatal(err)
		}
	}
	bob := h.accept()
	if m := receive(t, bob); m.Type != q931.Setup {
		t.Fatalf("bob got %v", m.Type)
	}
	// Two messages in one segment.
	if _, err := bob.Write(append(framed(t, connect(t, 1)), framed(t, facility(t, 1, true, "undefinedReason"))...)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []q931.Type{q931.Connect, q931.Facility} {
		if m := receive(t, alice); m.Type != want {
			t.Fatalf("alice got %v", m.Type)
		}
	}
	if calls := h.server.Calls(); len(calls) != 1 || calls[0].Connected == nil {
		t.Errorf("calls %+v", calls)
	}
	if _, err := alice.Write(framed(t, release(t, 1, false))); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, bob); m.Type != q931.ReleaseComplete {
		t.Errorf("bob got %v", m.Type)
	}
	ended(t, alice)
	ended(t, bob)
	until(t, "the call ends", func() bool { return len(h.server.Calls()) == 0 })
}

// TestServerUnreachable: the caller is told when nobody takes the connection.
func TestServerUnreachable(t *testing.T) {
	h := newHouse(t)
	alice := h.dial()
	if _, err := alice.Write(framed(t, setup(t, 1, netip.MustParseAddrPort("127.0.9.70:1720"), "nobody"))); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, alice); m.Type != q931.ReleaseComplete || m.Reason() != "unreachableDestination" {
		t.Errorf("%v %s", m.Type, m.Reason())
	}
	ended(t, alice)
}

// TestServerHostile: what is no call signalling ends its own connection at once, and is counted; what is never
// finished disturbs nobody.
func TestServerHostile(t *testing.T) {
	h := newHouse(t)
	slow := h.dial() // the first half of a header, and no more
	if _, err := slow.Write([]byte{3, 0}); err != nil {
		t.Fatal(err)
	}
	h.dial()         // nothing at all
	long := h.dial() // an announced length that never comes
	if _, err := long.Write([]byte{3, 0, 0xff, 0xff, 8, 2}); err != nil {
		t.Fatal(err)
	}
	dropped := func() uint64 {
		h.server.mu.Lock()
		defer h.server.mu.Unlock()
		return h.server.core.counts.dropped[droppedMalformed]
	}
	for i, garbage := range [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"), {3, 0, 0, 3}, {3, 0, 0, 0}, {0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5}, bytes.Repeat([]byte{0xff}, 9000),
	} {
		c := h.dial()
		_, _ = c.Write(garbage)
		ended(t, c)
		if n := dropped(); n < uint64(i+1) {
			t.Errorf("%x is not counted: %d", garbage[:4], n)
		}
	}
	// A TPKT that is no call signalling is dropped, and the connection lives.
	alice := h.dial()
	if _, err := alice.Write(framed(t, []byte{9, 9, 9, 9})); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Write(framed(t, setup(t, 1, netip.MustParseAddrPort("127.0.9.70:1720"), "bob"))); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, h.accept()); m.Type != q931.Setup {
		t.Fatalf("bob got %v", m.Type)
	}
}

// TestServerConnections: one host may have so many connections, and others still come in.
func TestServerConnections(t *testing.T) {
	h := newHouse(t)
	accepted := func(n int) {
		until(t, "all are accepted", func() bool {
			return h.server.gate.Open() == n
		})
	}
	for range 20 { // no limit
		h.dial()
	}
	accepted(20)
	h.server.SetPerSource(21)
	h.dial()
	accepted(21)
	ended(t, h.dial())
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, 71)}}
	other, err := d.Dial("tcp", h.at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetDeadline(time.Now().Add(patience))
	if _, err := other.Write(framed(t, setup(t, 1, netip.MustParseAddrPort("127.0.9.71:1720"), "bob"))); err != nil {
		t.Fatal(err)
	}
	if m := receive(t, h.accept()); m.Type != q931.Setup {
		t.Fatalf("bob got %v", m.Type)
	}
}
