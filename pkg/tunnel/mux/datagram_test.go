package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{Datagrams: true})
		for i := range 10 {
			if err := x.SendDatagram(fmt.Append(nil, "number ", i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 10 {
			got, err := y.ReceiveDatagram(t.Context())
			if err != nil || string(got) != fmt.Sprint("number ", i) {
				t.Fatalf("%q, %v", got, err)
			}
		}
		if err := x.SendDatagram(make([]byte, MaxDatagram+1)); !errors.Is(err, ErrDatagramSize) {
			t.Error(err)
		}
		if err := y.SendDatagram(make([]byte, MaxDatagram)); err != nil {
			t.Error(err)
		}
		if got, err := x.ReceiveDatagram(t.Context()); err != nil || len(got) != MaxDatagram {
			t.Error(len(got), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := x.ReceiveDatagram(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		z, _ := open(t, client, server, OpenOptions{})
		if err := z.SendDatagram(nil); !errors.Is(err, ErrNoDatagrams) {
			t.Error(err)
		}
	})
}

// A queue that nobody reads keeps the 64 newest.
func TestDatagramsDropOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{Datagrams: true})
		for i := range 100 {
			if err := x.SendDatagram([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		time.Sleep(time.Second)
		for i := 36; i < 100; i++ {
			if got, err := y.ReceiveDatagram(t.Context()); err != nil || got[0] != byte(i) {
				t.Fatalf("%d: %v, %v", i, got, err)
			}
		}
		if v := server.Stats(); v.DroppedQueue != 36 || v.DatagramsRecv != 100 {
			t.Errorf("%+v", v)
		}
	})
}

// What waited when the carrier was lost, or is sent without one, is dropped;
// nothing is sent again.
func TestDatagramsAreNotReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{Datagrams: true})
		a.mute()
		if err := x.SendDatagram([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Write([]byte("kept")); err != nil {
			t.Fatal(err)
		}
		<-client.Lost()
		if err := x.SendDatagram([]byte("lost too")); err != nil {
			t.Fatal(err)
		}
		c, d := newPipe(time.Millisecond, unlimited)
		go func() {
			_, _, err := Server(t.Context(), d, func(ID) *Session { return server }, Config{})
			if err != nil {
				t.Error(err)
			}
		}()
		if err := client.Resume(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := x.SendDatagram([]byte("new")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(y, got); err != nil || string(got) != "kept" {
			t.Errorf("%q, %v", got, err)
		}
		if got, err := y.ReceiveDatagram(t.Context()); err != nil || string(got) != "new" {
			t.Errorf("%q, %v", got, err)
		}
	})
}

// beside is a carrier that has datagrams of its own, up to 1200 bytes.
type beside struct {
	net.Conn
	out, in chan []byte
}

func (c *beside) SendDatagram(b []byte) error {
	if len(b) > 1200 {
		return errors.New("too long")
	}
	c.out <- append([]byte(nil), b...)
	return nil
}

func (c *beside) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case b := <-c.in:
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func TestDatagramsBeside(t *testing.T) {
	a, b := loopback(t)
	up, down := make(chan []byte, 100), make(chan []byte, 100)
	client, server := pair(t, &beside{a, up, down}, &beside{b, down, up}, Config{})
	x, y := open(t, client, server, OpenOptions{Datagrams: true})
	for _, n := range []int{0, 10, 1192, 1193, 9000} {
		if err := x.SendDatagram(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if got, err := y.ReceiveDatagram(t.Context()); err != nil || len(got) != n {
			t.Fatal(len(got), err)
		}
	}
	up <- []byte("garbage") // is dropped
	up <- []byte{byte(typeDgram), 0, 0, 99, 0, 0, 0, 1}
	both(t, x, y, 100000)
}

// Under bulk a datagram waits behind a write or two, not behind all that is queued.
func TestDatagramsBeforeBulk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, 2*maxFrame) // a socket that blocks soon
		client, server := pair(t, &slow{a}, b, Config{})
		x, y := open(t, client, server, OpenOptions{Datagrams: true})
		for range 4 {
			f, g := open(t, client, server, OpenOptions{})
			go func() { _, _ = f.Write(make([]byte, 50<<20)) }() // until the session ends
			go func() { _, _ = io.Copy(io.Discard, g) }()
		}
		time.Sleep(time.Second)
		var worst time.Duration
		for range 100 {
			start := time.Now()
			if err := x.SendDatagram([]byte("now")); err != nil {
				t.Fatal(err)
			}
			if _, err := y.ReceiveDatagram(t.Context()); err != nil {
				t.Fatal(err)
			}
			worst = max(worst, time.Since(start))
			time.Sleep(7 * time.Millisecond)
		}
		// 16 KiB take 5 ms here; a write of at most 64 KiB is under way, and two frames in the socket.
		if worst > 40*time.Millisecond {
			t.Errorf("worst delay %v", worst)
		}
		if n := server.Stats().Received; n < 3<<20 {
			t.Errorf("bulk got only %d bytes", n)
		}
	})
}

// slow is a pipe that takes 5 ms for 16 KiB.
type slow struct{ *pipe }

func (s *slow) Write(b []byte) (int, error) {
	time.Sleep(time.Duration(len(b)) * 5 * time.Millisecond / maxFrame)
	return s.pipe.Write(b)
}

// Owners share the carrier, however many streams each has; streams of one
// owner share by weight.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, 2*maxFrame)
		client, server := pair(t, &slow{a}, b, Config{})
		var mu sync.Mutex
		got := map[string]int{}
		flood := func(name string, o OpenOptions) {
			f, g := open(t, client, server, o)
			go func() { _, _ = f.Write(make([]byte, 100<<20)) }() // until the session ends
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := g.Read(buf)
					if err != nil {
						return
					}
					mu.Lock()
					got[name] += n
					mu.Unlock()
				}
			}()
		}
		for range 9 {
			flood("greedy", OpenOptions{Owner: "greedy"})
		}
		flood("modest", OpenOptions{Owner: "modest", Weight: 12})
		flood("light", OpenOptions{Owner: "modest", Weight: 4})
		time.Sleep(20 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		near := func(what string, x, y int) {
			if x > y*11/10 || y > x*11/10 || x == 0 {
				t.Errorf("%s: %d and %d", what, x, y)
			}
		}
		near("owners", got["greedy"], got["modest"]+got["light"])
		near("weights", got["modest"], 3*got["light"])
	})
}

// Join is what the relay does: everything passes from one session to another.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		c, d := newPipe(time.Millisecond, unlimited)
		left, relay1 := pair(t, a, b, Config{})
		right, relay2 := pair(t, c, d, Config{})
		joined := func(o OpenOptions) (x, y *Stream, done chan error) {
			x, m := open(t, left, relay1, o)
			n, y := open(t, relay2, right, o)
			done = make(chan error, 1)
			go func() {
				_, _, err := Join(m, n)
				done <- err
			}()
			return x, y, done
		}
		x, y, done := joined(OpenOptions{Datagrams: true})
		if err := x.SendDatagram([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		if got, err := y.ReceiveDatagram(t.Context()); err != nil || string(got) != "ping" {
			t.Fatalf("%q, %v", got, err)
		}
		both(t, x, y, 5<<20)
		if err := <-done; err != nil {
			t.Error(err)
		}
		x, y, done = joined(OpenOptions{})
		x.Reset(CodeWrongDevice)
		var r *ResetError
		if _, err := y.Read(make([]byte, 1)); !errors.As(err, &r) || r.Code != CodeWrongDevice {
			t.Error(err)
		}
		if err := <-done; !errors.As(err, &r) || r.Code != CodeWrongDevice {
			t.Error(err)
		}
		x, y, done = joined(OpenOptions{})
		y.CloseRead(CodeTryLater)
		if _, err := x.Write(make([]byte, 100<<20)); !errors.As(err, &r) || r.Code != CodeTryLater {
			t.Error(err)
		}
		go func() {
			_, _ = y.Write([]byte("goes on")) // the other direction
			_ = y.CloseWrite()
		}()
		if got, err := io.ReadAll(x); err != nil || string(got) != "goes on" {
			t.Errorf("%q, %v", got, err)
		}
		<-done
		for _, s := range []*Session{left, right, relay1, relay2} {
			gone(t, s)
		}
	})
}
