package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

func udpPeer(t testing.TB, listen string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket("udp", listen)
	if err != nil {
		t.Skipf("needs a socket on %s: %v", listen, err)
	}
	t.Cleanup(func() { pc.Close() })
	pc.SetDeadline(time.Now().Add(patience))
	return pc.(*net.UDPConn)
}

func sendUDP(t testing.TB, pc *net.UDPConn, to netip.AddrPort, s string) {
	t.Helper()
	if _, err := pc.WriteToUDPAddrPort([]byte(s), to); err != nil {
		t.Fatal(err)
	}
}

func expectUDP(t testing.TB, pc *net.UDPConn, want string, from netip.AddrPort) {
	t.Helper()
	buf := make([]byte, datagramMax)
	n, src, err := pc.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != want || netip.AddrPortFrom(src.Addr().Unmap(), src.Port()) != from {
		t.Fatalf("got %q from %v, %v; want %q from %v", buf[:n], src, err, want, from)
	}
}

func TestUDPBothFamilies(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	for _, host := range []string{"127.0.0.1:0", "[::1]:0"} {
		own, _ := serveUDP(t, tr, "inside", host)
		peer := udpPeer(t, host)
		sendUDP(t, peer, own, "OPTIONS one")
		f := rec.message(t, "OPTIONS one")
		if want := (flow.Flow{Network: "inside", Proto: flow.UDP, Local: own, Remote: pinhole.AddrPortOf(peer.LocalAddr())}); f != want {
			t.Errorf("flow %+v, want %+v", f, want)
		}
		if err := tr.Send(f, []byte("SIP/2.0 200 OK")); err != nil {
			t.Fatal(err)
		}
		expectUDP(t, peer, "SIP/2.0 200 OK", own)

		// A target's family chooses the listener.
		var used flow.Flow
		tr.SendTo(flow.Target{Network: "inside", Proto: flow.UDP, Addr: f.Remote}, []byte("INVITE"), func(f flow.Flow, err error) {
			used = f
			if err != nil {
				t.Error(err)
			}
		})
		if used != f {
			t.Errorf("sent on %+v, want %+v", used, f)
		}
		expectUDP(t, peer, "INVITE", own)
	}
}

func TestUDPKeepAlives(t *testing.T) {
	tr, rec := newTransport(Config{MaxMessage: 1024}, nil)
	own, _ := serveUDP(t, tr, "inside", "127.0.0.1:0")
	peer := udpPeer(t, "127.0.0.1:0")
	for _, s := range []string{"\r\n", "\r\n\r\n", "\x00", "\x00\x00\x00\x00", ""} {
		sendUDP(t, peer, own, s)
	}
	sendUDP(t, peer, own, string(make([]byte, 1025)))
	sendUDP(t, peer, own, string(unhex(t, "0001 0004"+rfc5769)))
	sendUDP(t, peer, own, string(unhex(t, "0001 0000"+rfc5769)))
	buf := make([]byte, 100)
	n, err := peer.Read(buf)
	if err != nil || n != 32 || buf[0] != 1 || buf[1] != 1 {
		t.Fatalf("answer to the STUN keep-alive: %x, %v", buf[:n], err)
	}
	sendUDP(t, peer, own, "OPTIONS")
	rec.message(t, "OPTIONS") // and nothing before it
	if e, o, s := drops(tr, emptyDatagram), drops(tr, oversize), drops(tr, badSTUN); e != 5 || o != 1 || s != 1 {
		t.Errorf("counted %d keep-alives, %d oversize, %d STUN; want 5, 1, 1", e, o, s)
	}
}

func TestUDPOrder(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	own, _ := serveUDP(t, tr, "inside", "127.0.0.1:0")
	peer := udpPeer(t, "127.0.0.1:0")
	for i := range 200 {
		sendUDP(t, peer, own, sipMessage(i, ""))
	}
	for i := range 200 {
		rec.message(t, sipMessage(i, ""))
	}
}

func TestUDPUnknownListener(t *testing.T) {
	tr, _ := newTransport(Config{}, nil)
	own, stop := serveUDP(t, tr, "inside", "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.UDP)
	f := flow.Flow{Network: "outside", Proto: flow.UDP, Local: own, Remote: netip.MustParseAddrPort("127.0.0.1:9")}
	if err := tr.Send(f, []byte("x")); !errors.Is(err, ErrGone) {
		t.Errorf("another network's address: %v, want ErrGone", err)
	}
	tr.SendTo(flow.Target{Network: "inside", Proto: flow.UDP, Addr: netip.MustParseAddrPort("[2001:db8::1]:5060")}, nil, func(_ flow.Flow, err error) {
		if !errors.Is(err, ErrNoListener) {
			t.Errorf("no IPv6 listener: %v, want ErrNoListener", err)
		}
	})
	f.Network = "inside"
	if err := tr.Send(f, make([]byte, 70000)); !errors.Is(err, syscall.EMSGSIZE) || drops(tr, sendFailed) != 1 {
		t.Errorf("too large: %v, counted %d", err, drops(tr, sendFailed))
	}
	stop()
	if err := tr.Send(f, []byte("x")); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: %v, want ErrGone", err)
	}
	if _, ok := tr.LocalFor("inside", flow.UDP, pinhole.AnyFamily); ok {
		t.Error("LocalFor still names a listener that is not served")
	}
}

// A wildcard socket goes by the network's addresses, and sends to both families.
func TestUDPWildcard(t *testing.T) {
	tr, rec := newTransport(Config{}, nil)
	bound, _ := serveUDP(t, tr, "inside", ":0")
	if !bound.Addr().Is6() {
		t.Skipf("needs a dual-stack socket, got %v", bound)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		own := netip.AddrPortFrom(netip.MustParseAddr(host), bound.Port())
		peer := udpPeer(t, net.JoinHostPort(host, "0"))
		sendUDP(t, peer, own, "OPTIONS")
		f := rec.message(t, "OPTIONS")
		if f.Local != own {
			t.Errorf("local %v, want %v", f.Local, own)
		}
		if err := tr.Send(f, []byte("answer")); err != nil {
			t.Fatal(err)
		}
		expectUDP(t, peer, "answer", own)
	}
}

func TestUDPDSCP(t *testing.T) {
	tr, _ := newTransport(Config{Dscp: 24}, nil)
	pc := udpPeer(t, "127.0.0.1:0")
	serving(t, func(ctx context.Context) error { return tr.ServePacket(ctx, "inside", pc) })
	waitLocal(t, tr, "inside", flow.UDP)
	raw, err := pc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var tos int
	raw.Control(func(fd uintptr) { tos, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS) })
	if err != nil || tos != 24<<2 {
		t.Errorf("IP_TOS is %d, %v; want %d", tos, err, 24<<2)
	}
}

// faulty is a PacketConn whose reads fail: some ICMP error, again and again, between two messages.
type faulty struct {
	net.PacketConn
	reads  atomic.Int64
	closed chan struct{}
}

func (p *faulty) ReadFrom(b []byte) (int, net.Addr, error) {
	switch n := p.reads.Add(1); {
	case n == 1 || n == 20:
		return copy(b, "OPTIONS"), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5060}, nil
	case n < 20:
		return 0, nil, &net.OpError{Op: "read", Err: syscall.ECONNREFUSED}
	}
	<-p.closed
	return 0, nil, net.ErrClosed
}

func (p *faulty) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5060} }

func (p *faulty) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func TestUDPReadErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, rec := newTransport(Config{}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- tr.ServePacket(ctx, "inside", &faulty{closed: make(chan struct{})}) }()
		rec.message(t, "OPTIONS")
		rec.message(t, "OPTIONS") // 18 errors later
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServePacket returned %v", err)
		}
		p := &faulty{closed: make(chan struct{})}
		p.reads.Store(20)
		p.Close()
		if err := tr.ServePacket(t.Context(), "inside", p); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a socket that somebody else closed: %v, want net.ErrClosed", err)
		}
	})
}

func TestUDPAllocations(t *testing.T) {
	tr, _ := newTransport(Config{}, nil)
	tr.h = discard{}
	own, _ := serveUDP(t, tr, "inside", "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.UDP)
	peer := udpPeer(t, "127.0.0.1:0")
	f := flow.Flow{Network: "inside", Proto: flow.UDP, Local: own, Remote: pinhole.AddrPortOf(peer.LocalAddr())}
	msg := []byte(sipMessage(1, ""))
	if n := testing.AllocsPerRun(100, func() {
		if err := tr.Send(f, msg); err != nil {
			t.Fatal(err)
		}
	}); n >= 1 { // a sync.Pool may lose an entry to the collector
		t.Errorf("sending a datagram allocates %v times", n)
	}
	s := tr.socks[sockKey{"inside", own}][0]
	if n := testing.AllocsPerRun(100, func() { tr.packet(s, msg, f.Remote, netip.AddrPort{}) }); n != 0 {
		t.Errorf("handling a datagram allocates %v times", n)
	}
}

// discard is a Handler that does nothing.
type discard struct{}

func (discard) Receive(flow.Flow, []byte) {}
func (discard) Closed(flow.Flow)          {}

func BenchmarkUDPSend(b *testing.B) {
	tr, _ := newTransport(Config{}, nil)
	own, _ := serveUDP(b, tr, "inside", "127.0.0.1:0")
	waitLocal(b, tr, "inside", flow.UDP)
	f := flow.Flow{Network: "inside", Proto: flow.UDP, Local: own, Remote: pinhole.AddrPortOf(udpPeer(b, "127.0.0.1:0").LocalAddr())}
	msg := []byte(sipMessage(1, ""))
	b.ReportAllocs()
	for b.Loop() {
		tr.Send(f, msg)
	}
}
