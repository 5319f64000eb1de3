package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

type sent struct {
	flow flow.Flow
	err  error
}

// sendTo calls SendTo and waits for its verdict.
func sendTo(t testing.TB, tr *Transport, tg flow.Target, msg string) sent {
	t.Helper()
	ch := make(chan sent, 2)
	tr.SendTo(tg, []byte(msg), func(f flow.Flow, err error) { ch <- sent{f, err} })
	select {
	case s := <-ch:
		return s
	case <-time.After(patience):
		t.Fatal("done was not called")
		panic("unreachable")
	}
}

func TestTCPFrames(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	own, stop := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	nc := dialTCP(t, own)
	one, two := sipMessage(1, "hello"), sipMessage(2, strings.Repeat("x", 60000))
	write(t, nc, "\r\n\r\n"+one+"\r\n\r\n"+two+one)
	f := rec.message(t, one)
	rec.message(t, two)
	rec.message(t, one)
	expect(t, nc, "\r\n\r\n") // two pongs
	want := flow.Flow{Conn: f.Conn, Network: "inside", Proto: flow.TCP, Local: own, Remote: pinhole.AddrPortOf(nc.LocalAddr())}
	if f != want || f.Conn == 0 {
		t.Errorf("flow %+v, want %+v", f, want)
	}
	if err := tr.Send(f, []byte(two)); err != nil {
		t.Fatal(err)
	}
	expect(t, nc, two)
	// A target that is the client's own address is reached over the connection it opened.
	if s := sendTo(t, tr, flow.Target{Network: "inside", Proto: flow.TCP, Addr: f.Remote}, one); s != (sent{f, nil}) {
		t.Errorf("sent %+v, want on %+v", s, f)
	}
	expect(t, nc, one)
	nc.Close()
	rec.ended(t, f)
	if err := tr.Send(f, []byte(one)); !errors.Is(err, ErrGone) {
		t.Errorf("send after the end: %v, want ErrGone", err)
	}
	stop()
	rec.quiet(t)
}

// A message cut at every byte, with a ping before the rest.
func TestTCPEveryCut(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	nc := dialTCP(t, own)
	nc.SetNoDelay(true)
	msg := sipMessage(7, "body")
	for i := 1; i < len(msg); i++ {
		write(t, nc, msg[:i])
		write(t, nc, msg[i:])
		rec.message(t, msg)
	}
}

func TestTCPFraming(t *testing.T) {
	tr, rec := newTransport(Config{MaxMessage: 4096}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	head := "MESSAGE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;branch=z9hG4bK1\r\nFrom: <sip:a@example.org>;tag=1\r\n" +
		"To: <sip:bob@example.org>\r\nCall-ID: 1\r\nCSeq: 1 MESSAGE\r\nMax-Forwards: 70\r\n"
	for i, c := range []struct{ bad, answer string }{
		{head + "Content-Length: -1\r\n\r\n", "SIP/2.0 400 "},
		{head + "Content-Length: 99999999999999999999\r\n\r\nbody", "SIP/2.0 400 "},
		{head + "\r\n", "SIP/2.0 400 "},
		{head + "Content-Length: 5000\r\n\r\n" + strings.Repeat("x", 3000), "SIP/2.0 513 "},
		{"MESSAGE sip:bob@example.org SIP/2.0\r\nContent-Length: -1\r\n\r\n", ""},
		{"SIP/2.0 200 OK\r\nContent-Length: -1\r\n\r\n", ""},
		{strings.Repeat("x", 5000), ""},
		{"\x16\x03\x01\x02\x00\x01\x00", ""}, // a TLS client at the wrong port
	} {
		nc := dialTCP(t, own)
		write(t, nc, c.bad)
		got, err := io.ReadAll(nc)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%.60q: %v", c.bad, err)
		}
		if ok := strings.HasPrefix(string(got), c.answer); !ok || c.answer == "" && len(got) > 0 {
			t.Errorf("%.60q: answered %.60q, want %q", c.bad, got, c.answer)
		}
		nc.Close()
		if e := rec.next(t); !e.closed {
			t.Errorf("%.60q: got %+v", c.bad, e)
		}
		if n := drops(tr, framing); n != uint64(i+1) {
			t.Errorf("%.60q: counted %d", c.bad, n)
		}
	}
}

func TestTCPDial(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	serveTCP(t, tr, "outside", flow.TCP, "127.0.0.2:0")
	waitLocal(t, tr, "outside", flow.TCP)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tg := flow.Target{Network: "outside", Proto: flow.TCP, Addr: pinhole.AddrPortOf(ln.Addr())}
	const n = 50
	verdicts := make(chan sent, 2*n)
	want := ""
	for i := range n { // all while the connection is made, or just after
		want += sipMessage(i, "")
		tr.SendTo(tg, []byte(sipMessage(i, "")), func(f flow.Flow, err error) { verdicts <- sent{f, err} })
	}
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	expect(t, nc, want)
	first := <-verdicts
	for range n - 1 {
		if s := <-verdicts; s != first || s.err != nil {
			t.Fatalf("sent %+v, first %+v", s, first)
		}
	}
	if a := first.flow.Local.Addr(); a != netip.MustParseAddr("127.0.0.2") {
		t.Errorf("dialled from %v, want the network's own address", a)
	}
	write(t, nc, sipMessage(1, "answer"))
	if f := rec.message(t, sipMessage(1, "answer")); f != first.flow {
		t.Errorf("answer on %+v, want %+v", f, first.flow)
	}
	if i, ok := tr.Connection(first.flow); !ok || !i.Dialled || len(tr.Connections()) != 1 {
		t.Errorf("connection %+v, %v of %d", i, ok, len(tr.Connections()))
	}
	tr.Hangup(first.flow)
	rec.ended(t, first.flow)
	if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
		t.Errorf("after Hangup: %q, %v", rest, err)
	}
}

func TestTCPDialErrors(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := pinhole.AddrPortOf(ln.Addr())
	ln.Close()
	tg := flow.Target{Network: "inside", Proto: flow.TCP, Addr: refused}
	if s := sendTo(t, tr, tg, "x"); !errors.Is(s.err, ErrGone) {
		t.Errorf("nothing served: %v, want ErrGone", s.err)
	}
	serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.TCP)
	if s := sendTo(t, tr, tg, "x"); !errors.Is(s.err, syscall.ECONNREFUSED) {
		t.Errorf("refused: %v", s.err)
	}
	tg.Network = "nowhere"
	if s := sendTo(t, tr, tg, "x"); !errors.Is(s.err, pinhole.ErrNetwork) {
		t.Errorf("no such network: %v", s.err)
	}
	tg.Network, tg.Addr = "outside", netip.MustParseAddrPort("[2001:db8::1]:5060")
	if s := sendTo(t, tr, tg, "x"); !errors.Is(s.err, pinhole.ErrNetwork) {
		t.Errorf("no address of the family: %v", s.err)
	}
	tg.Addr = netip.AddrPort{}
	if s := sendTo(t, tr, tg, "x"); !errors.Is(s.err, ErrNoListener) {
		t.Errorf("no address: %v", s.err)
	}
	if s := sendTo(t, tr, flow.Target{Network: "inside", Addr: refused}, "x"); !errors.Is(s.err, ErrNoListener) {
		t.Errorf("no transport: %v", s.err)
	}
	if n := drops(tr, dialFailed); n != 3 {
		t.Errorf("counted %d failed dials, want 3", n)
	}
	rec.quiet(t) // Closed is only for what was open
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.out != 0 || len(tr.dials) != 0 {
		t.Errorf("%d connections and %d dials are left", tr.out, len(tr.dials))
	}
}

// What waits for a connection under way is bounded, and gets its error when serving ends.
func TestTCPDialBounds(t *testing.T) {
	tr, _ := newTransport(Config{MaxMessage: 1024, Queue: 2048, MaxDials: 1, Dial: time.Hour}, nil)
	_, stop := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.TCP)
	full := blackhole(t)
	tg := flow.Target{Network: "inside", Proto: flow.TCP, Addr: full}
	var wg sync.WaitGroup
	var busy, other atomic.Int64
	done := func(_ flow.Flow, err error) {
		if errors.Is(err, ErrBusy) {
			busy.Add(1)
		} else if err != nil {
			other.Add(1)
		}
		wg.Done()
	}
	wg.Add(5)
	for range 4 {
		tr.SendTo(tg, make([]byte, 1000), done)
	}
	tg.Addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), full.Port())
	tr.SendTo(tg, []byte("x"), done)
	if busy.Load() != 3 || drops(tr, queueFull) != 2 || drops(tr, dialLimit) != 1 {
		t.Errorf("%d refused; counted %d queue, %d dials", busy.Load(), drops(tr, queueFull), drops(tr, dialLimit))
	}
	stop()
	wg.Wait()
	if other.Load() != 2 {
		t.Errorf("%d of the two that waited got an error", other.Load())
	}
}

// blackhole returns the address of a listener whose queue is full, so that connecting to it hangs.
func blackhole(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*syscall.SockaddrInet4).Port))
	for range 64 {
		nc, err := net.DialTimeout("tcp", addr.String(), 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { nc.Close() })
	}
	t.Skip("needs a system whose listen queue can be filled")
	panic("unreachable")
}

// A peer that does not read holds nobody up: the queue fills, the connection ends.
func TestTCPSlowPeer(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	nc := dialTCP(t, own)
	nc.SetReadBuffer(4096)
	write(t, nc, sipMessage(1, ""))
	f := rec.message(t, sipMessage(1, ""))
	msg := []byte(sipMessage(2, strings.Repeat("x", 30000)))
	var err error
	for range 2000 { // 60 MB; the system's buffers hold a few
		if err = tr.Send(f, msg); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrSlow) {
		t.Fatalf("send to a peer that does not read: %v, want ErrSlow", err)
	}
	rec.ended(t, f)
	if drops(tr, slowPeer) != 1 {
		t.Errorf("counted %d", drops(tr, slowPeer))
	}
}

// What the socket does not take at once is written by the writing goroutine, in order and whole.
func TestTCPQueue(t *testing.T) {
	tr, rec := newTransport(Config{Queue: 32 << 20}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	nc := dialTCP(t, own)
	write(t, nc, sipMessage(0, ""))
	f := rec.message(t, sipMessage(0, ""))
	var want bytes.Buffer
	for i := range 400 {
		msg := sipMessage(i, strings.Repeat(fmt.Sprint(i%10), 40000))
		want.WriteString(msg)
		if err := tr.Send(f, []byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(nc, got); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("what came differs from what was sent (%v)", err)
	}
	waitFor(t, "the queue to be empty", func() bool { i, _ := tr.Connection(f); return i.Queued == 0 })
}

func TestConnectionLimits(t *testing.T) {
	tr, rec := newTransport(Config{PerSource: 2, MaxConns: 3}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	open := func(from string) *net.TCPConn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		nc, err := d.Dial("tcp", own.String())
		if errors.Is(err, syscall.ECONNRESET) {
			return nil // refused as fast as that
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(patience))
		return nc.(*net.TCPConn)
	}
	served := func(nc *net.TCPConn) bool {
		if nc == nil {
			return false
		}
		nc.Write([]byte("\r\n\r\n")) // may fail if it was refused already
		_, err := io.ReadFull(nc, make([]byte, 2))
		return err == nil
	}
	first, second := open("127.0.0.1"), open("127.0.0.1")
	if !served(first) || !served(second) || served(open("127.0.0.1")) {
		t.Error("want two of three connections of one source served")
	}
	if !served(open("127.0.0.3")) || served(open("127.0.0.4")) {
		t.Error("want three connections served in all")
	}
	if s, c := drops(tr, sourceLimit), drops(tr, connLimit); s != 1 || c != 1 {
		t.Errorf("counted %d by source, %d in all; want 1, 1", s, c)
	}
	first.Close()
	rec.next(t)
	waitFor(t, "the slot", func() bool { return admitted(tr) == 2 })
	tr.SetLimits(Config{PerSource: 1, MaxConns: 3, Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	if !served(open("127.0.0.1")) {
		t.Error("an exempt source was refused")
	}
}

func TestSourceKey(t *testing.T) {
	for in, want := range map[string]string{"192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::", "2001:db8:0:1::1": "2001:db8:0:1::", "fe80::1%eth0": "fe80::"} {
		if got := sourceKey(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s counts as %v, want %s", in, got, want)
		}
	}
}

// The end of ctx closes what is open, in every state, and Serve waits for it.
func TestServeEnds(t *testing.T) {
	tr, rec := newTransport(Config{}, &certs{})
	plain, stop := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	secure, stopTLS := serveTCP(t, tr, "inside", flow.TLS, "127.0.0.1:0")
	web, stopWS := serveTCP(t, tr, "inside", flow.WS, "127.0.0.1:0")
	talking := dialTCP(t, plain)
	write(t, talking, sipMessage(1, ""))
	f := rec.message(t, sipMessage(1, ""))
	dialTCP(t, secure)
	half := dialTCP(t, web)
	write(t, half, "GET / HTTP/1.1\r\n")
	stop()
	rec.ended(t, f)
	stopTLS()
	stopWS()
	rec.quiet(t)
	if n := len(tr.Connections()); n != 0 || tr.in != 0 || len(tr.sources) != 0 {
		t.Errorf("%d connections, %d admitted, %d sources are left", n, tr.in, len(tr.sources))
	}
}

// A dialled connection lives as long as anything is served, and ends with the last.
func TestDialledEndsWithServing(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	_, stop := serveUDP(t, tr, "inside", "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.UDP)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := sendTo(t, tr, flow.Target{Network: "inside", Proto: flow.TCP, Addr: pinhole.AddrPortOf(ln.Addr())}, "x")
	if s.err != nil {
		t.Fatal(s.err)
	}
	stop()
	rec.ended(t, s.flow)
}

// exhausted is a listener that runs out of descriptors for a while.
type exhausted struct {
	net.Listener
	failures atomic.Int64
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptErrors(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ex := &exhausted{Listener: ln}
	ex.failures.Store(4)
	serving(t, func(ctx context.Context) error { return tr.Serve(ctx, "inside", flow.TCP, ex) })
	write(t, dialTCP(t, pinhole.AddrPortOf(ln.Addr())), sipMessage(1, ""))
	rec.message(t, sipMessage(1, ""))
	if n := drops(tr, acceptFailed); n != 4 {
		t.Errorf("counted %d failures, want 4", n)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if err := tr.Serve(t.Context(), "inside", flow.TCP, closed); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v, want net.ErrClosed", err)
	}
	if err := tr.Serve(t.Context(), "inside", flow.TLS, closed); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("TLS without a TLSSource: %v, want ErrUnsupported", err)
	}
}
