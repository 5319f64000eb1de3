package carrier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// stays is who waits to the end.
func stays() error { return nil }

// TestLobbyServesInTurn has one source with many connections and others with one: the others wait for one of it, not for all.
func TestLobbyServesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p places
		b := bounds{places: 1, waiting: 100}
		flood, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("198.51.100.1/32")
		held := p.take(flood, b)
		var mu sync.Mutex
		var order []netip.Prefix
		come := func(from netip.Prefix) {
			go func() {
				pl, err := p.wait(t.Context(), from, b, stays)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, from)
				mu.Unlock()
				p.give(pl, b)
			}()
			synctest.Wait()
		}
		for range 5 {
			come(flood)
		}
		come(other)
		if n := p.queued(); n != 6 {
			t.Fatalf("%d wait", n)
		}
		p.give(held, b)
		synctest.Wait()
		if len(order) != 6 || order[1] != other {
			t.Errorf("served: %v", order)
		}
		if p.taken() != 0 || p.queued() != 0 || len(p.sources) != 0 || p.fresh != 0 {
			t.Errorf("left behind: %d places, %d waiting, %d sources, %d fresh", p.taken(), p.queued(), len(p.sources), p.fresh)
		}
	})
}

// TestLobbyGivesFewAtATime: places are given a few at a time, a slow device holds others up for a second only, and in all
// there are not more than the bound.
func TestLobbyGivesFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p places
		b := bounds{places: freshCount * 5 / 2, waiting: 1000}
		in := make(chan *place, 1000)
		for i := range 4 * freshCount {
			go func() {
				pl, err := p.wait(t.Context(), netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 250)}), 32), b, stays)
				if err == nil {
					in <- pl
				}
			}()
		}
		for _, want := range []int{freshCount, 2 * freshCount, b.places, b.places} {
			synctest.Wait()
			if len(in) != want {
				t.Errorf("%d have a place, want %d", len(in), want)
			}
			time.Sleep(freshTime)
		}
		p.give(<-in, b)
		synctest.Wait()
		if p.taken() != b.places {
			t.Errorf("%d have a place when one was given back", p.taken())
		}
		time.Sleep(waitTime + sayWaitEvery)
		synctest.Wait()
		if p.queued() != 0 {
			t.Errorf("%d wait for ever", p.queued())
		}
	})
}

// TestLobbyPassesWhoIsBlocked: a source that holds all that it may have, and has more in line, keeps nobody else waiting
// though nothing is given back.
func TestLobbyPassesWhoIsBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var p places
		b := bounds{places: 4, waiting: 100}
		flood, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("198.51.100.1/32")
		p.take(flood, b)
		p.take(flood, b)
		blocked := make(chan error, 1)
		go func() {
			_, err := p.wait(ctx, flood, b, stays)
			blocked <- err
		}()
		time.Sleep(2 * freshTime) // nothing happens any more by itself
		began := time.Now()
		pl, err := p.wait(ctx, other, b, stays)
		if err != nil || time.Since(began) != 0 {
			t.Errorf("the other waited %v: %v", time.Since(began), err)
		} else {
			p.give(pl, b)
		}
		cancel()
		if err := <-blocked; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestLobbyIsBounded: the waiting room is, and half of it is one source's.
func TestLobbyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var p places
		b := bounds{places: 2, waiting: 4}
		errs := make(chan error, 10)
		come := func(ip string, remind func() error) {
			go func() {
				_, err := p.wait(ctx, netip.PrefixFrom(netip.MustParseAddr(ip), 32), b, remind)
				errs <- err
			}()
			synctest.Wait()
		}
		p.take(netip.MustParsePrefix("203.0.113.1/32"), b)
		p.take(netip.MustParsePrefix("203.0.113.2/32"), b)
		come("192.0.2.1", stays)
		come("192.0.2.1", stays)
		come("192.0.2.1", stays) // more than half
		come("192.0.2.2", func() error { return errLeft })
		come("192.0.2.3", stays)
		come("192.0.2.4", stays) // more than all
		for range 2 {
			if err := <-errs; !errors.Is(err, errFull) {
				t.Error(err)
			}
		}
		time.Sleep(sayWaitEvery)
		if err := <-errs; !errors.Is(err, errLeft) {
			t.Error(err)
		}
		cancel()
		for range 3 {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if p.queued() != 0 || len(p.sources) != 2 {
			t.Errorf("%d wait, %d sources", p.queued(), len(p.sources))
		}
	})
}

// TestPatient drops what says wait, however it is cut, and nothing else.
func TestPatient(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{waitRecord + waitRecord + "\x16\x03\x03\x00\x01x", "\x16\x03\x03\x00\x01x"},
		{"\x16\x03\x03\x00\x01x" + waitRecord, "\x16\x03\x03\x00\x01x" + waitRecord},
		{"\x14\x03\x03\x00\x02\x01\x01", "\x14\x03\x03\x00\x02\x01\x01"},
		{"x", "x"},
	} {
		for cut := 1; cut <= len(c.in); cut++ {
			p := newPatient(&cutConn{in: []byte(c.in), cut: cut}, time.Hour, nil)
			got, err := io.ReadAll(p)
			p.silent.Stop()
			if err != nil || string(got) != c.out {
				t.Errorf("%q in pieces of %d: %q, %v", c.in, cut, got, err)
			}
		}
	}
}

// cutConn gives at most cut octets at once.
type cutConn struct {
	net.Conn
	in  []byte
	cut int
}

func (c *cutConn) Read(b []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.in[:min(c.cut, len(c.in))])
	c.in = c.in[n:]
	return n, nil
}

// TestDeviceWaitsForItsPlace has a device come while all places are taken: it is told to wait, for longer than it would
// wait for a relay that says nothing, and is served when a place is free. One that hangs up while it waits is let go.
func TestDeviceWaitsForItsPlace(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(within(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	server := &Server{TLS: r.server.TLS, Handshakes: 1, Session: func(_ context.Context, c *Carrier) { c.Close() }}
	server.begun.every = 20 * time.Millisecond
	port := r.listen(ctx, &wg, func(c net.Conn) { server.ServeConn(ctx, c) })
	leave := server.enter(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)})
	d := r.dialer("", func(d *Dialer) { d.Rungs, d.PortTLS, d.Attempt = []Rung{TLS}, port, time.Second })
	done := make(chan error, 1)
	began := time.Now()
	go func() {
		c, err := d.Dial(ctx)
		if err == nil {
			c.Close()
		}
		done <- err
	}()
	poll := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			select {
			case <-ctx.Done():
				t.Fatalf("%s: %d wait, refused %v", what, server.Queued(), server.Refused())
			case <-time.After(time.Millisecond):
			}
		}
	}
	poll("a place in the line", func() bool { return server.Queued() == 1 })
	gone, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
	if err != nil {
		t.Fatal(err)
	}
	poll("another one in the line", func() bool { return server.Queued() == 2 })
	gone.Close()
	poll("who hangs up to be let go", func() bool { return server.Refused()["left"] == 1 && server.Queued() == 1 })
	poll("longer than silence is borne", func() bool { return time.Since(began) > 3*d.Attempt+time.Second })
	leave()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("not served")
	}
}

// TestSilentRelay: a relay that says nothing is given up.
func TestSilentRelay(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(within(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	port := r.listen(ctx, &wg, func(c net.Conn) {
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	})
	d := r.dialer("", func(d *Dialer) { d.Rungs, d.PortTLS, d.Attempt = []Rung{TLS}, port, 50*time.Millisecond })
	if _, err := d.Dial(ctx); err == nil || !bytes.Contains([]byte(err.Error()), []byte("no answer within")) {
		t.Error(err)
	}
}
