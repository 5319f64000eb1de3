package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// memory is a listener whose connections are pipes, for tests in which time is not real.
type memory struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newMemory() *memory { return &memory{conns: make(chan net.Conn), done: make(chan struct{})} }

func (m *memory) Accept() (net.Conn, error) {
	select {
	case nc := <-m.conns:
		return nc, nil
	case <-m.done:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.once.Do(func() { close(m.done) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5060} }

// dial returns the client's end of a new connection that seems to come from a.
func (m *memory) dial(a netip.AddrPort) net.Conn {
	client, server := net.Pipe()
	m.conns <- named{server, a}
	return client
}

// named is a pipe with addresses.
type named struct {
	net.Conn
	remote netip.AddrPort
}

func (n named) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5060} }
func (n named) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(n.remote) }

// inBubble serves a memory listener within a synctest bubble.
func inBubble(t *testing.T, cfg Config, p flow.Proto, test func(t *testing.T, tr *Transport, rec *recorder, ln *memory)) {
	synctest.Test(t, func(t *testing.T) {
		tr, rec := newTransport(cfg, nil)
		rec.patience = 24 * time.Hour // it costs nothing here
		ctx, cancel := context.WithCancel(t.Context())
		ln := newMemory()
		done := make(chan error, 1)
		go func() { done <- tr.Serve(ctx, "inside", p, ln) }()
		test(t, tr, rec, ln)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

var client = netip.MustParseAddrPort("192.0.2.7:49152")

// lasted reads until the server closes, and returns how long that took.
func lasted(t *testing.T, nc net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
		t.Errorf("read %q, %v until the end", rest, err)
	}
	return time.Since(start)
}

func ping(t *testing.T, nc net.Conn) {
	t.Helper()
	write(t, nc, "\r\n\r\n")
	expect(t, nc, "\r\n")
}

func TestTimers(t *testing.T) {
	msg := sipMessage(1, "hello")
	cfg := Config{FirstByte: 30 * time.Second, Complete: 10 * time.Second, Idle: time.Hour}
	for _, c := range []struct {
		name string
		play func(t *testing.T, nc net.Conn, rec *recorder)
		want time.Duration
		why  reason
	}{
		{"silent from the start", func(*testing.T, net.Conn, *recorder) {}, 30 * time.Second, firstByte},
		{"pings are not enough", func(t *testing.T, nc net.Conn, _ *recorder) {
			for range 5 {
				time.Sleep(5 * time.Second)
				ping(t, nc)
			}
		}, 5 * time.Second, firstByte},
		{"half a message", func(t *testing.T, nc net.Conn, _ *recorder) { write(t, nc, msg[:30]) }, 10 * time.Second, incomplete},
		{"dribbled bytes", func(t *testing.T, nc net.Conn, rec *recorder) {
			write(t, nc, msg)
			rec.message(t, msg)
			for i := range 9 {
				write(t, nc, msg[i:i+1])
				time.Sleep(time.Second)
			}
		}, time.Second, incomplete},
		{"half a message after a whole one", func(t *testing.T, nc net.Conn, rec *recorder) {
			write(t, nc, msg+msg[:5])
			rec.message(t, msg)
		}, 10 * time.Second, incomplete},
		{"slow but in time", func(t *testing.T, nc net.Conn, rec *recorder) {
			for range 3 {
				write(t, nc, msg[:30])
				time.Sleep(9 * time.Second)
				write(t, nc, msg[30:])
				rec.message(t, msg)
			}
		}, time.Hour, idle},
		{"pings keep a registered phone", func(t *testing.T, nc net.Conn, rec *recorder) {
			write(t, nc, msg)
			rec.message(t, msg)
			for range 50 {
				time.Sleep(59 * time.Minute)
				ping(t, nc)
			}
		}, time.Hour, idle},
		{"half a ping is no message", func(t *testing.T, nc net.Conn, rec *recorder) {
			write(t, nc, msg)
			rec.message(t, msg)
			write(t, nc, "\r")
		}, time.Hour, idle},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, cfg, flow.TCP, func(t *testing.T, tr *Transport, rec *recorder, ln *memory) {
				nc := ln.dial(client)
				c.play(t, nc, rec)
				if d := lasted(t, nc); d != c.want {
					t.Errorf("the connection lasted %v more, want %v", d, c.want)
				}
				if e := rec.next(t); !e.closed || e.flow.Remote != client {
					t.Errorf("got %+v, want the end", e)
				}
				if drops(tr, c.why) != 1 {
					t.Errorf("%v was counted %d times", c.why, drops(tr, c.why))
				}
			})
		})
	}
}

// Who dialled whom, and whether it proved its name, decides how long silence is borne at first.
func TestFirstDeadline(t *testing.T) {
	cfg := Config{FirstByte: 30 * time.Second, Idle: time.Hour}.withDefaults()
	now := time.Now()
	for _, c := range []struct {
		c    *conn
		want reason
	}{
		{&conn{}, firstByte},
		{&conn{valid: true}, idle},
		{&conn{dialled: true}, idle},
		{&conn{peer: &x509.Certificate{}}, idle},
	} {
		c.c.cfg, c.c.since, c.c.heard = &cfg, now, now
		at, why := c.c.deadline()
		if why != c.want || at.Sub(now) != map[reason]time.Duration{firstByte: 30 * time.Second, idle: time.Hour}[why] {
			t.Errorf("%v after %v, want %v", why, at.Sub(now), c.want)
		}
	}
}

// A peer that accepts nothing is dropped after Write, though its queue is not full.
func TestWriteTimeout(t *testing.T) {
	inBubble(t, Config{Write: 20 * time.Second}, flow.TCP, func(t *testing.T, tr *Transport, rec *recorder, ln *memory) {
		nc := ln.dial(client)
		write(t, nc, sipMessage(1, ""))
		f := rec.message(t, sipMessage(1, ""))
		start := time.Now()
		if err := tr.Send(f, []byte("nobody reads this")); err != nil {
			t.Fatal(err)
		}
		rec.ended(t, f)
		if d := time.Since(start); d != 20*time.Second || drops(tr, writeFailed) != 1 {
			t.Errorf("ended after %v, counted %d; want 20s, 1", d, drops(tr, writeFailed))
		}
		nc.Close()
	})
}

// Accepting that keeps failing is tried again, but does not spin.
func TestAcceptBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, _ := newTransport(Config{}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ex := &exhausted{Listener: newMemory()}
		ex.failures.Store(1 << 40)
		done := make(chan error, 1)
		go func() { done <- tr.Serve(ctx, "inside", flow.TCP, ex) }()
		time.Sleep(time.Minute)
		if n := drops(tr, acceptFailed); n < 50 || n > 80 {
			t.Errorf("tried %d times in a minute, want about once a second", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// 100,000 connections, each with one byte of a message: the limit holds, the rest are refused and
// counted, and memory stays bounded.
func TestDribblingFlood(t *testing.T) {
	const attempts, limit = 100_000, 2_000 // a quarter of MaxConns is kept for trusted networks
	inBubble(t, Config{MaxConns: limit * 4 / 3}, flow.TCP, func(t *testing.T, tr *Transport, rec *recorder, ln *memory) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var held []net.Conn
		for i := range attempts {
			from := [16]byte{0x20, 0x01, 0x0d, 0xb8, 5: byte(i >> 16), byte(i >> 8), byte(i)} // each its own /64
			nc := ln.dial(netip.AddrPortFrom(netip.AddrFrom16(from), 5060))
			if _, err := nc.Write([]byte("I")); err == nil {
				held = append(held, nc)
			} else if !errors.Is(err, io.ErrClosedPipe) {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		runtime.GC()
		runtime.ReadMemStats(&after)
		grown := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)
		t.Logf("%d attempts, %d held, %d refused, %d KiB in all, %d bytes per connection held",
			attempts, len(held), drops(tr, connLimit), grown>>10, grown/limit)
		if len(held) != limit || drops(tr, connLimit) != attempts-limit {
			t.Errorf("%d held, %d refused; want %d, %d", len(held), drops(tr, connLimit), limit, attempts-limit)
		}
		if grown > limit*64<<10 {
			t.Errorf("%d bytes for %d connections", grown, limit)
		}
		time.Sleep(time.Minute)
		if n := drops(tr, incomplete); n != limit || admitted(tr) != 0 {
			t.Errorf("%d of %d dribbling connections were dropped in time, %d are left", n, limit, admitted(tr))
		}
		for range limit {
			rec.next(t)
		}
		nc := ln.dial(client) // and honest ones get in again
		write(t, nc, sipMessage(1, ""))
		rec.message(t, sipMessage(1, ""))
		nc.Close()
	})
}

func TestLongDribbleIsLinear(t *testing.T) {
	inBubble(t, Config{Complete: time.Hour, MaxMessage: 1 << 20}, flow.TCP, func(t *testing.T, _ *Transport, rec *recorder, ln *memory) {
		nc := ln.dial(client)
		msg := sipMessage(1, strings.Repeat("x", 200_000))
		for i := range len(msg) {
			write(t, nc, msg[i:i+1])
		}
		rec.message(t, msg)
		nc.Close()
	})
}
