package sealed

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
)

// wire is one end of a pair; what is sent waits in the other's queue.
type wire struct {
	in, out chan []byte
}

func (w wire) SendDatagram(b []byte) error {
	w.out <- bytes.Clone(b)
	return nil
}

func (w wire) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case b := <-w.in:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pair returns the two ends, and their wires.
func pair(t testing.TB) (ends [2]*Conn, wires [2]wire) {
	t.Helper()
	x, y := make(chan []byte, 4096), make(chan []byte, 4096) // as many as a test sends before it receives
	wires = [2]wire{{x, y}, {y, x}}
	for i, s := range sessions(t) {
		c, err := New(wires[i], &s, i == 1)
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c
	}
	return ends, wires
}

// sessions returns the states of a server and a client of one session.
func sessions(t testing.TB) [2]tls.ConnectionState {
	t.Helper()
	a, err := device.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	server, err := device.EndServerTLS(a, a.ID())
	if err != nil {
		t.Fatal(err)
	}
	client, err := device.EndClientTLS(a, a.ID())
	if err != nil {
		t.Fatal(err)
	}
	p, q := net.Pipe()
	t.Cleanup(func() { p.Close(); q.Close() })
	s, c := tls.Server(p, server), tls.Client(q, client)
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return [2]tls.ConnectionState{s.ConnectionState(), c.ConnectionState()}
}

func receive(t *testing.T, c *Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	b, err := c.Receive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBothWays(t *testing.T) {
	ends, wires := pair(t)
	for i, c := range ends {
		for _, text := range []string{"", "x", string(make([]byte, 1400))} {
			if err := c.Send([]byte(text)); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, ends[1-i]); got != text {
				t.Errorf("%q arrives as %q", text, got)
			}
		}
	}
	if err := ends[0].Send([]byte("a secret of ours")); err != nil {
		t.Fatal(err)
	}
	if b := <-wires[1].in; bytes.Contains(b, []byte("secret")) || len(b) != 16+Overhead {
		t.Errorf("on the wire: %q", b)
	}
}

func TestHostile(t *testing.T) {
	ends, wires := pair(t)
	if err := ends[0].Send([]byte("one")); err != nil {
		t.Fatal(err)
	}
	one := <-wires[1].in
	for i := range one { // every octet changed, then cut short
		bad := bytes.Clone(one)
		bad[i] ^= 1
		wires[0].out <- bad
		wires[0].out <- bytes.Clone(one[:i])
	}
	wires[0].out <- bytes.Clone(one)
	wires[0].out <- bytes.Clone(one) // repeated
	wires[1].out <- bytes.Clone(one) // turned round
	if err := ends[0].Send([]byte("two")); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, ends[1]); got != "one" {
		t.Errorf("%q", got)
	}
	if got := receive(t, ends[1]); got != "two" {
		t.Errorf("a repeated datagram arrives as %q", got)
	}
	if forged, again := ends[1].Dropped(); forged != uint64(2*len(one)) || again != 1 {
		t.Errorf("%d forged, %d again; want %d and 1", forged, again, 2*len(one))
	}
	if err := ends[1].Send([]byte("mine")); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, ends[0]); got != "mine" {
		t.Errorf("what was turned round arrives: %q", got)
	}
}

func TestOrder(t *testing.T) {
	ends, wires := pair(t)
	const n = windowSize + 100
	var all [][]byte
	for range n {
		if err := ends[0].Send(nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, <-wires[1].in)
	}
	deliver := func(i int) { wires[0].out <- bytes.Clone(all[i]) }
	deliver(n - 1)
	receive(t, ends[1])
	for i := range n { // the newest is there: what is older by the window or more is late, the newest itself comes again
		deliver(i)
	}
	for range windowSize - 1 {
		receive(t, ends[1])
	}
	if err := ends[0].Send([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, ends[1]); got != "last" {
		t.Errorf("%q arrives before the last", got)
	}
	if forged, again := ends[1].Dropped(); forged != 0 || again != n-windowSize+1 {
		t.Errorf("%d forged, %d again", forged, again)
	}
}

// TestWindow compares the window with a set, over a walk that goes forward, back and in leaps.
func TestWindow(t *testing.T) {
	var w window
	seen, newest := map[uint64]bool{}, uint64(0)
	x := uint64(1)
	for i := range 200000 {
		x = x*6364136223846793005 + 1442695040888963407
		n := newest + x>>54 // 0-1023 ahead
		if i%3 != 0 {
			n -= min(n, x>>33%2048)
		}
		if i%10007 == 0 {
			n += 5000
		}
		want := n != 0 && n+windowSize > newest && !seen[n]
		if got := w.first(n); got != want {
			t.Fatalf("step %d: counter %d with newest %d: %v", i, n, newest, got)
		}
		if want {
			seen[n], newest = true, max(newest, n)
		}
	}
}

func FuzzReceive(f *testing.F) {
	ends, wires := pair(f)
	if err := ends[0].Send([]byte("seed")); err != nil {
		f.Fatal(err)
	}
	f.Add(<-wires[1].in)
	f.Add(make([]byte, Overhead))
	f.Fuzz(func(t *testing.T, b []byte) {
		wires[1].in <- bytes.Clone(b)
		ctx, cancel := context.WithCancel(t.Context())
		if err := ends[0].Send(nil); err != nil {
			t.Fatal(err)
		}
		defer cancel()
		for range 2 { // the seed itself is genuine, once
			got, err := ends[1].Receive(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) == 0 {
				return
			}
			if string(got) != "seed" {
				t.Fatalf("%q was opened", got)
			}
		}
	})
}
