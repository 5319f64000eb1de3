package media

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
)

const tcpPatience = 20 * time.Second

// newJoiningRelay returns a relay with a joiner that runs until the test has ended.
func newJoiningRelay(t *testing.T) *Relay {
	t.Helper()
	j, err := splice.New(1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- j.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	r, _ := newTestRelay(t, nil)
	r.JoinWith(j)
	return r
}

// dialFrom connects from a host of a network, so that the relay sees that host.
func dialFrom(t *testing.T, host string, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	local := netip.AddrPortFrom(netip.MustParseAddr(host), 0)
	c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(local), net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(tcpPatience))
	return c
}

func listenTCP(t *testing.T, host string) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	ln.SetDeadline(time.Now().Add(tcpPatience))
	return ln, ln.Addr().(*net.TCPAddr).AddrPort()
}

func accept(t *testing.T, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	c, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(tcpPatience))
	return c
}

func declare(t *testing.T, l pinhole.Lease, s pinhole.Side, a netip.AddrPort) {
	t.Helper()
	if err := l.Declare(s, pinhole.Remote{Addr: a, Source: a.Addr()}); err != nil {
		t.Fatal(err)
	}
}

// exchange sends a file each way, half-closing after each, and compares.
func exchange(t *testing.T, a, b *net.TCPConn) {
	t.Helper()
	for _, way := range []struct{ from, to *net.TCPConn }{{a, b}, {b, a}} {
		file := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
		failed := make(chan error, 1)
		go func() {
			_, err := way.from.Write(file)
			failed <- errors.Join(err, way.from.CloseWrite())
		}()
		got, err := io.ReadAll(way.to)
		if err != nil || !bytes.Equal(got, file) {
			t.Fatalf("%d bytes of %d arrived: %v", len(got), len(file), err)
		}
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
}

// dead expects an end or a reset, not silence.
func dead(t *testing.T, c *net.TCPConn) {
	t.Helper()
	n, err := c.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v", n, err)
	}
}

// refused connects from a host that must get nothing: the reset may come before connect returns.
func refused(t *testing.T, host string, to netip.AddrPort) {
	t.Helper()
	local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0))
	c, err := net.DialTCP("tcp", local, net.TCPAddrFromAddrPort(to))
	if err != nil {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(tcpPatience))
	dead(t, c)
}

func TestTCPDial(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	ln, server := listenTCP(t, "127.0.4.7")
	declare(t, l, pinhole.Far, server)
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	a := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	b := accept(t, ln)
	if from := b.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); from != l.Local(pinhole.Far).Addr.Addr() {
		t.Errorf("the server sees %v", from)
	}
	exchange(t, a, b)
	sum := l.Close()
	if sum.From[0].Bytes != 3_200_000 || sum.From[1].Bytes != 3_200_000 {
		t.Errorf("counted %d and %d bytes", sum.From[0].Bytes, sum.From[1].Bytes)
	}
}

// TestTCPBothDial: two peers that only dial meet at the edge.
func TestTCPBothDial(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	declare(t, l, pinhole.Far, netip.AddrPortFrom(farPhone.Addr(), 0))
	a := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	b := dialFrom(t, "127.0.4.7", l.Local(pinhole.Far).Addr)
	exchange(t, a, b)
	l.Close()
}

// TestTCPAnswerLater: a connection that comes before the answer waits for it.
func TestTCPAnswerLater(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	defer l.Close()
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	a := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	ln, server := listenTCP(t, "127.0.4.7")
	declare(t, l, pinhole.Far, server)
	exchange(t, a, accept(t, ln))
}

func TestTCPStrangers(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	refused(t, "127.0.3.66", l.Local(pinhole.Near).Addr)
	refused(t, "127.0.4.66", l.Local(pinhole.Far).Addr) // nobody is declared there
	var open []*net.TCPConn
	for range maxJoins {
		open = append(open, dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr))
	}
	waitDrops(t, r, 0, 1)
	waitJoins(t, r, l)
	refused(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	l.Close()
	for _, c := range open {
		dead(t, c)
	}
	if _, err := net.DialTimeout("tcp", l.Local(pinhole.Near).Addr.String(), time.Second); err == nil {
		t.Error("a closed pinhole still accepts")
	}
}

func waitDrops(t *testing.T, r *Relay, s int, n uint64) {
	t.Helper()
	for end := time.Now().Add(tcpPatience); time.Now().Before(end); <-time.After(2 * time.Millisecond) {
		if r.Pinholes()[0].Ends[s].Stats.Dropped["connection"] == n {
			return
		}
	}
	t.Fatalf("dropped: %+v", r.Pinholes()[0].Ends[s].Stats)
}

// waitJoins waits until the relay has taken as many connections as a lease may have.
func waitJoins(t *testing.T, r *Relay, l pinhole.Lease) {
	t.Helper()
	for end := time.Now().Add(tcpPatience); time.Now().Before(end); <-time.After(2 * time.Millisecond) {
		r.mu.Lock()
		n := len(l.(*lease).tcp.waiting[pinhole.Near])
		r.mu.Unlock()
		if n == maxJoins {
			return
		}
	}
	t.Fatal("connections are not taken")
}

// TestTCPIdle: a connection that stands still is ended by the sweep, with its lease.
func TestTCPIdle(t *testing.T) {
	r := newJoiningRelay(t)
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	declare(t, l, pinhole.Far, netip.AddrPortFrom(farPhone.Addr(), 9))
	a := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	b := dialFrom(t, "127.0.4.7", l.Local(pinhole.Far).Addr)
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.sweep(time.Now().Add(30 * time.Second))
	if len(r.Pinholes()) != 1 {
		t.Fatal("closed too early")
	}
	r.sweep(time.Now().Add(61 * time.Second))
	if len(r.Pinholes()) != 0 {
		t.Fatal("left open")
	}
	dead(t, a)
	dead(t, b)
	r.closeAll()
}

// TestTCPWait: a connection whose other half does not come is ended, also while the lease is kept alive.
func TestTCPWait(t *testing.T) {
	r := newJoiningRelay(t)
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	declare(t, l, pinhole.Near, netip.AddrPortFrom(nearPhone.Addr(), 9))
	a := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	for end := time.Now().Add(tcpPatience); ; <-time.After(2 * time.Millisecond) {
		r.mu.Lock()
		n := len(l.(*lease).tcp.waiting[pinhole.Near])
		r.mu.Unlock()
		if n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the connection is not taken")
		}
	}
	r.sweep(time.Now().Add(waitTime + time.Second))
	dead(t, a)
	if st := r.Pinholes()[0].Ends[pinhole.Near].Stats; st.Dropped["connection"] != 1 {
		t.Errorf("%+v", st)
	}
	r.closeAll()
}

func TestTCPFork(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	l := mustOpen(t, r, testRequest(pinhole.TCP))
	fork, err := l.Fork()
	if err != nil {
		t.Fatal(err)
	}
	nine := func(host string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(host), 9) }
	declare(t, l, pinhole.Near, nine("127.0.3.7"))
	declare(t, fork, pinhole.Near, nine("127.0.3.7"))
	declare(t, l, pinhole.Far, nine("127.0.4.7"))
	declare(t, fork, pinhole.Far, nine("127.0.4.8"))
	one := dialFrom(t, "127.0.3.7", l.Local(pinhole.Near).Addr)
	two := dialFrom(t, "127.0.3.7", fork.Local(pinhole.Near).Addr)
	exchange(t, two, dialFrom(t, "127.0.4.8", l.Local(pinhole.Far).Addr))
	fork.Close()
	exchange(t, one, dialFrom(t, "127.0.4.7", l.Local(pinhole.Far).Addr))
	l.Close()
}
