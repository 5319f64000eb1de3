package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

var errCookie = errors.New("a wrong cookie")

// replayed is a connection of which something was read that is to be read again.
type replayed struct {
	net.Conn
	r io.Reader
}

func (c replayed) Read(b []byte) (int, error) { return c.r.Read(b) }

// cookie admits callers that say "cook\n" and nobody else.
func cookie(_ context.Context, _ pinhole.Side, c net.Conn) (net.Conn, error) {
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, err
	}
	if string(b) != "cook\n" {
		return nil, errCookie
	}
	return replayed{c, io.MultiReader(bytes.NewReader(b), c)}, nil
}

// transferRequest asks for what a file transfer needs: the outside dials, the inside listens.
func transferRequest(first, last uint16) pinhole.Request {
	q := testRequest(pinhole.TCP)
	q.Ports, q.Listen, q.Once, q.Admit = [2]uint16{first, last}, [2]bool{pinhole.Far: true}, true, cookie
	return q
}

// until waits for a condition that the relay's mutex guards.
func until(t *testing.T, r *Relay, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(tcpPatience); time.Now().Before(end); <-time.After(2 * time.Millisecond) {
		r.mu.Lock()
		ok := is()
		r.mu.Unlock()
		if ok {
			return
		}
	}
	t.Fatal(what)
}

// admitted says the cookie, and returns the listener's connection after it came there too.
func admitted(t *testing.T, c *net.TCPConn, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	if _, err := io.WriteString(c, "cook\n"); err != nil {
		t.Fatal(err)
	}
	peer, got := accept(t, ln), make([]byte, 5)
	if _, err := io.ReadFull(peer, got); err != nil || string(got) != "cook\n" {
		t.Fatalf("%q, %v", got, err)
	}
	return peer
}

// pass lets a caller send a line, and the listener read both and answer.
func pass(t *testing.T, c, peer *net.TCPConn, line string) {
	t.Helper()
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(peer, got); err != nil || string(got) != line {
		t.Fatalf("%q of %q arrived: %v", got, line, err)
	}
	if _, err := io.WriteString(peer, "!"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got[:1]); err != nil || got[0] != '!' {
		t.Fatalf("%q came back: %v", got[:1], err)
	}
}

// TestOnce: 13 transfers run at once on 11 ports, as each gives its port back when it begins. What comes to a
// port afterwards belongs to the next transfer, or to nobody.
func TestOnce(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	ln, server := listenTCP(t, "127.0.3.7")
	type transfer struct {
		lease        pinhole.Lease
		caller, peer *net.TCPConn
	}
	var running []transfer
	for i := range 13 {
		l := mustOpen(t, r, transferRequest(26891, 26901))
		if p := l.Local(pinhole.Near).Addr.Port(); p != 0 {
			t.Fatalf("port %d is spent on a side that dials nobody", p)
		}
		at := l.Local(pinhole.Far).Addr
		if p := at.Port(); p < 26891 || p > 26901 {
			t.Fatalf("port %d was not asked for", p)
		}
		declare(t, l, pinhole.Near, server)
		c := dialFrom(t, "127.0.4.7", at)
		peer := admitted(t, c, ln)
		running = append(running, transfer{l, c, peer})
		pass(t, c, peer, fmt.Sprint("transfer ", i))
	}
	for i, x := range running {
		pass(t, x.caller, x.peer, fmt.Sprint("still ", i))
	}
	for _, x := range running {
		exchange(t, x.caller, x.peer)
		x.lease.Close()
	}
	if p := r.pools[poolKey{netip.MustParseAddr("127.0.4.1"), true, PortRange{26891, 26901}}]; p.n != 0 {
		t.Errorf("%d ports are still in use", p.n)
	}
}

// TestAskedPorts: 12 that nobody takes up use 11 ports of one address and one of the next; closed, all can be
// had again at once.
func TestAskedPorts(t *testing.T) {
	nets := testNetworks()
	nets["outside"] = pinhole.Network{Addresses: []netip.Addr{
		netip.MustParseAddr("127.0.4.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.4.2"),
	}}
	r, err := New(DefaultPinholeConfig(), DefaultConfig(), nets, newHeldPath(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var open []pinhole.Lease
		at := make(map[netip.AddrPort]bool)
		for range 22 {
			l := mustOpen(t, r, transferRequest(26911, 26921))
			open = append(open, l)
			at[l.Local(pinhole.Far).Addr] = true
			if want := []string{"127.0.4.1", "127.0.4.2"}[(len(open)-1)/11]; l.Local(pinhole.Far).Addr.Addr().String() != want {
				t.Fatalf("the %dth is at %v", len(open), l.Local(pinhole.Far).Addr)
			}
		}
		if _, err := r.Open(context.Background(), transferRequest(26911, 26921)); !errors.Is(err, pinhole.ErrExhausted) {
			t.Fatalf("a 23rd: %v", err)
		}
		if len(at) != 22 {
			t.Fatalf("%d addresses for 22 transfers", len(at))
		}
		for a := range at {
			if !r.ownPortLocked(a) {
				t.Errorf("%v is not known as the edge's own", a)
			}
		}
		for _, l := range open {
			l.Close()
		}
	}
	// Two ports behind one advertised address could not be told apart.
	r.nets["outside"] = pinhole.Network{Addresses: r.nets["outside"].Addresses, Advertise: netip.MustParseAddr("203.0.113.5")}
	for range 11 {
		mustOpen(t, r, transferRequest(26911, 26921))
	}
	if _, err := r.Open(context.Background(), transferRequest(26911, 26921)); !errors.Is(err, pinhole.ErrExhausted) {
		t.Fatalf("a twelfth at an advertised address: %v", err)
	}
	r.closeAll()
}

// TestAdmit: hosts and cookies that are refused do not use up the one connection.
func TestAdmit(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	ln, server := listenTCP(t, "127.0.3.7")
	l := mustOpen(t, r, transferRequest(26931, 26931))
	at := l.Local(pinhole.Far).Addr
	declare(t, l, pinhole.Near, server)
	if err := l.Declare(pinhole.Far, pinhole.Remote{Source: netip.MustParseAddr("127.0.4.7")}); err != nil {
		t.Fatal(err)
	}
	refused(t, "127.0.4.66", at)
	third := dialFrom(t, "127.0.4.7", at)
	io.WriteString(third, "wild\n")
	dead(t, third)
	slow := dialFrom(t, "127.0.4.7", at)
	c := dialFrom(t, "127.0.4.7", at)
	peer := admitted(t, c, ln)
	pass(t, c, peer, "it runs")
	dead(t, slow)
	if _, err := net.DialTimeout("tcp", at.String(), time.Second); err == nil {
		t.Error("the port still accepts")
	}
	waitDrops(t, r, 1, 2)
	l.Close()
	dead(t, c)
}

// TestAdmitCrowd: callers who say nothing keep nobody out who speaks, though where he comes from is not known.
func TestAdmitCrowd(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	ln, server := listenTCP(t, "127.0.3.7")
	l := mustOpen(t, r, transferRequest(26932, 26932))
	defer l.Close()
	at := l.Local(pinhole.Far).Addr
	declare(t, l, pinhole.Near, server)
	j := l.(*lease).tcp
	first := dialFrom(t, "127.0.4.100", at)
	until(t, r, "the first is not taken", func() bool { return len(j.admitting) == 1 })
	for i := range maxAdmitting {
		dialFrom(t, fmt.Sprintf("127.0.4.%d", 101+i), at)
	}
	dead(t, first)
	for range maxAdmittingHost {
		dialFrom(t, "127.0.4.99", at)
	}
	until(t, r, "more than are allowed", func() bool { return len(j.admitting) == maxAdmitting })
	until(t, r, "those of one host are not taken", func() bool {
		n := 0
		for _, c := range j.admitting {
			if c.host == netip.MustParseAddr("127.0.4.99") {
				n++
			}
		}
		return n == maxAdmittingHost
	})
	refused(t, "127.0.4.99", at)
	c := dialFrom(t, "127.0.4.7", at)
	pass(t, c, admitted(t, c, ln), "it runs")
	until(t, r, "callers are left", func() bool { return len(j.admitting) == 0 })
}

// TestUnjoined: the owner hears that the other end does not listen.
func TestUnjoined(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	ln, server := listenTCP(t, "127.0.3.7")
	ln.Close()
	told := make(chan error, 1)
	q := transferRequest(26933, 26933)
	q.Unjoined = func(err error) { told <- err }
	l := mustOpen(t, r, q)
	declare(t, l, pinhole.Near, server)
	c := dialFrom(t, "127.0.4.7", l.Local(pinhole.Far).Addr)
	io.WriteString(c, "cook\n")
	if err := <-told; err == nil {
		t.Error("no reason")
	}
	dead(t, c)
	l.Close()
}

// TestAdmitEnds: a lease that is closed ends the reading of its callers, and leaves no descriptor.
func TestAdmitEnds(t *testing.T) {
	before := descriptors(t)
	r, _ := newTestRelay(t, nil)
	end := serve(t, r)
	for range 3 {
		l := mustOpen(t, r, transferRequest(26934, 26934))
		c, err := net.Dial("tcp", l.Local(pinhole.Far).Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		until(t, r, "not taken", func() bool { return len(l.(*lease).tcp.admitting) == 1 })
		l.Close()
		c.SetDeadline(time.Now().Add(tcpPatience))
		dead(t, c.(*net.TCPConn))
		c.Close()
	}
	end()
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors, before %d", n, before)
	}
}

// TestAdmitDeclared: who was let in before anybody was declared is out when another is.
func TestAdmitDeclared(t *testing.T) {
	r := newJoiningRelay(t)
	defer serve(t, r)()
	ln, server := listenTCP(t, "127.0.3.7")
	l := mustOpen(t, r, transferRequest(26935, 26935))
	defer l.Close()
	at := l.Local(pinhole.Far).Addr
	declare(t, l, pinhole.Near, server)
	early := dialFrom(t, "127.0.4.66", at)
	until(t, r, "not taken", func() bool { return len(l.(*lease).tcp.admitting) == 1 })
	declare(t, l, pinhole.Far, netip.AddrPortFrom(netip.MustParseAddr("127.0.4.7"), 0))
	if _, err := io.WriteString(early, "cook\n"); err != nil {
		t.Fatal(err)
	}
	dead(t, early)
	c := dialFrom(t, "127.0.4.7", at)
	pass(t, c, admitted(t, c, ln), "it runs")
}
