package mux

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipe is a connection in memory: bytes arrive after a delay, in order, and
// nobody waits for the reader. It can go silent.
type pipe struct {
	net.Conn // addresses
	in       *lane
	out      *lane
}

// lane is one direction.
type lane struct {
	delay time.Duration

	mu    sync.Mutex
	cond  sync.Cond
	queue []parcelAt
	size  int
	limit int // bytes under way
	mute  bool
	over  bool
	rdl   time.Time // of the reader
	wdl   time.Time // of the writer
}

type parcelAt struct {
	at time.Time
	b  []byte
}

func newPipe(delay time.Duration, limit int) (a, b *pipe) {
	one := func() *lane {
		l := &lane{delay: delay, limit: limit}
		l.cond.L = &l.mu
		return l
	}
	x, y := one(), one()
	return &pipe{in: x, out: y}, &pipe{in: y, out: x}
}

func (l *lane) wake(t time.Time) {
	if t.IsZero() {
		return
	}
	time.AfterFunc(time.Until(t), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.cond.Broadcast()
	})
}

func overdue(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) Write(b []byte) (int, error) {
	l := p.out
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.size >= l.limit && !l.over && !overdue(l.wdl) {
		l.cond.Wait()
	}
	switch {
	case l.over:
		return 0, io.ErrClosedPipe
	case overdue(l.wdl):
		return 0, context.DeadlineExceeded
	case l.mute:
		return len(b), nil
	}
	at := time.Now().Add(l.delay)
	l.queue = append(l.queue, parcelAt{at, append([]byte(nil), b...)})
	l.size += len(b)
	l.wake(at)
	l.cond.Broadcast()
	return len(b), nil
}

func (p *pipe) Read(b []byte) (int, error) {
	l := p.in
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case overdue(l.rdl):
			return 0, context.DeadlineExceeded
		case len(l.queue) > 0 && overdue(l.queue[0].at):
			n := copy(b, l.queue[0].b)
			if l.queue[0].b = l.queue[0].b[n:]; len(l.queue[0].b) == 0 {
				l.queue = l.queue[1:]
			}
			l.size -= n
			l.cond.Broadcast()
			return n, nil
		case l.over && len(l.queue) == 0:
			return 0, io.EOF
		}
		l.cond.Wait()
	}
}

func (p *pipe) Close() error {
	for _, l := range []*lane{p.in, p.out} {
		l.mu.Lock()
		l.over = true
		l.cond.Broadcast()
		l.mu.Unlock()
	}
	return nil
}

// mute swallows everything from now on, both ways.
func (p *pipe) mute() {
	for _, l := range []*lane{p.in, p.out} {
		l.mu.Lock()
		l.mute, l.queue, l.size = true, nil, 0
		l.mu.Unlock()
	}
}

func (p *pipe) SetDeadline(t time.Time) error {
	p.SetReadDeadline(t)
	p.SetWriteDeadline(t)
	return nil
}

func (p *pipe) SetReadDeadline(t time.Time) error {
	set(p.in, &p.in.rdl, t)
	return nil
}

func (p *pipe) SetWriteDeadline(t time.Time) error {
	set(p.out, &p.out.wdl, t)
	return nil
}

func set(l *lane, d *time.Time, t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*d = t
	l.wake(t)
	l.cond.Broadcast()
}

// block lets nobody write.
func (l *lane) block() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = 0
}

const unlimited = 1 << 40

// Something is outstanding and nothing comes: the carrier is given up after
// DeadAfter, at both ends if both wait; after Linger the session.
func TestBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		time.Sleep(time.Second)
		a.mute()
		start := time.Now()
		if _, err := x.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		<-client.Lost()
		if d := time.Since(start); d != 6*time.Second {
			t.Errorf("noticed after %v", d)
		}
		if client.Stats().Attached {
			t.Error("still attached")
		}
		_, err := x.Read(make([]byte, 1))
		var f *SessionError
		if d := time.Since(start); !errors.As(err, &f) || f.Code != CodeLingered || d != 126*time.Second {
			t.Errorf("%v after %v", err, d)
		}
		<-server.Done() // which notices by its own PING
		if _, err := y.Write([]byte("x")); !errors.As(err, &f) {
			t.Error(err)
		}
	})
}

// An end that only receives notices as soon, though nothing of it is outstanding.
func TestBlackHoleWhileReceiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		go func() { _, _ = io.Copy(io.Discard, x) }() // until the session ends
		for range 100 {
			if _, err := y.Write(make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		a.mute()
		start := time.Now()
		<-client.Lost()
		if d := time.Since(start); d > 8*time.Second+time.Millisecond {
			t.Errorf("noticed after %v", d)
		}
	})
}

// An idle session pings every 25 s, more or less, and lives on.
func TestPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(20*time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		time.Sleep(time.Hour)
		for _, s := range []*Session{client, server} {
			if v := s.Stats(); !v.Attached || v.RTT != 40*time.Millisecond {
				t.Errorf("%+v", v)
			}
		}
		a.mute() // found out by the next PING
		start := time.Now()
		<-client.Lost()
		if d := time.Since(start); d > 36*time.Second+time.Millisecond {
			t.Errorf("noticed after %v", d)
		}
	})
}

// A session goes on where it was, on another carrier.
func TestResumeInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		a.mute()
		go both(t, x, y, 10<<20)
		<-client.Lost()
		time.Sleep(100 * time.Second)
		c, d := newPipe(time.Millisecond, unlimited)
		go func() {
			s, resumed, err := Server(t.Context(), d, func(ID) *Session { return server }, Config{})
			if s != server || !resumed || err != nil {
				t.Errorf("%v %v", resumed, err)
			}
		}()
		if err := client.Resume(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		gone(t, client)
		time.Sleep(time.Hour)
		if client.Err() != nil || server.Err() != nil {
			t.Error(client.Err(), server.Err())
		}
	})
}

// Without a peer that answers, HELLO does not take for ever.
func TestHelloDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		start := time.Now()
		if _, err := Client(t.Context(), a, Config{}); err == nil || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c, d := newPipe(time.Millisecond, unlimited)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, _, err := Server(ctx, d, nil, Config{}); err == nil || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		b.Close()
		c.Close()
	})
}

// Deadlines of streams end Read and Write, and both go on after new ones.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		start := time.Now()
		x.SetDeadline(start.Add(3 * time.Second))
		_, err := x.Read(make([]byte, 1))
		var n net.Error
		if !errors.As(err, &n) || !n.Timeout() || time.Since(start) != 3*time.Second {
			t.Errorf("read: %v after %v", err, time.Since(start))
		}
		x.SetWriteDeadline(time.Now().Add(time.Second))
		wrote, err := x.Write(make([]byte, 1<<20)) // nobody reads
		if !errors.As(err, &n) || !n.Timeout() || time.Since(start) != 4*time.Second || wrote != 256<<10 {
			t.Errorf("write: %d, %v after %v", wrote, err, time.Since(start))
		}
		x.SetDeadline(time.Time{})
		if err := x.CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.Copy(io.Discard, y); got != 256<<10 || err != nil {
			t.Error(got, err)
		}
		y.Close()
		gone(t, client)
	})
}

// A window opens so far that a path of 40 ms is full: after the first second
// the reader gets what the path takes.
func TestWindowGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(20*time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		time.Sleep(time.Second) // for the first PONG
		go func() {
			buf := make([]byte, 64<<10)
			for {
				if _, err := x.Write(buf); err != nil {
					return
				}
			}
		}()
		var total int
		buf := make([]byte, 64<<10)
		read := func(d time.Duration) (n int) {
			for end := time.Now().Add(d); time.Now().Before(end); {
				m, err := y.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				n += m
			}
			return n
		}
		read(time.Second)
		total = read(time.Second)
		// 16 MiB each 40 ms, less what the acknowledgement of 20 ms costs.
		if total < 250<<20 {
			t.Errorf("%d MiB/s at 40 ms", total>>20)
		}
		t.Logf("%d MiB/s at 40 ms, window %d KiB", total>>20, server.Stats().Window>>10)
		x.Reset(CodeCanceled)
	})
}

// A reader that does not read holds one window and no more, and holds nobody else up.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		var stuck sync.WaitGroup
		stuck.Go(func() {
			if _, err := x.Write(make([]byte, 10<<20)); !errors.As(err, new(*ResetError)) {
				t.Error(err)
			}
		})
		x2, y2 := open(t, client, server, OpenOptions{})
		both(t, x2, y2, 20<<20)
		server.mu.Lock()
		if y.recv.size != 256<<10 || len(y.recv.pieces) > 2*256/16 {
			t.Errorf("%d bytes in %d pieces", y.recv.size, len(y.recv.pieces))
		}
		server.mu.Unlock()
		y.Reset(CodeTryLater)
		stuck.Wait()
		gone(t, client)
		gone(t, server)
	})
}

// GoAway reaches the peer; what is open stays, nothing new is opened.
func TestGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		x, y := open(t, client, server, OpenOptions{})
		server.GoAway(90 * time.Second)
		<-client.Away()
		if client.RetryAfter() != 90*time.Second {
			t.Error(client.RetryAfter())
		}
		if _, err := client.Open(t.Context(), nil, OpenOptions{}); !errors.Is(err, ErrGoAway) {
			t.Error(err)
		}
		both(t, x, y, 1000)
	})
}

// Open gives up with its context, and the peer forgets the stream.
func TestOpenCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Open(ctx, nil, OpenOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		gone(t, server)
		if _, err := server.Accept(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// At the peer's limit of streams Open waits until one is over.
func TestStreamLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{MaxStreams: 2})
		x, y := open(t, client, server, OpenOptions{})
		open(t, client, server, OpenOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Open(ctx, nil, OpenOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		go func() {
			time.Sleep(time.Second)
			x.Close()
			y.Close()
		}()
		x, y = open(t, client, server, OpenOptions{})
		both(t, x, y, 1000)
	})
}

// An Open that is not to wait for ever gives up soon after the peer is found to be away; one that waits is served when it
// comes back.
func TestOpenWhileAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		time.Sleep(time.Second)
		a.mute()
		start := time.Now()
		_, err := client.Open(t.Context(), nil, OpenOptions{Away: 3 * time.Second})
		if d := time.Since(start); !errors.Is(err, ErrAway) || d != 9*time.Second {
			t.Errorf("%v after %v", err, d)
		}
		start = time.Now()
		if _, err := client.Open(t.Context(), nil, OpenOptions{Away: 3 * time.Second}); !errors.Is(err, ErrAway) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if _, err := client.Open(t.Context(), nil, OpenOptions{Away: 13 * time.Second}); !errors.Is(err, ErrAway) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		client.Close(CodeCanceled)
		server.Close(CodeCanceled)
	})
}

// Serve takes the streams that wait and those that come, and hears of the end, with nobody in Accept.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe(time.Millisecond, unlimited)
		client, server := pair(t, a, b, Config{})
		heads := make(chan string, 2)
		over := make(chan struct{})
		go func() { _, _ = client.Open(t.Context(), []byte("early"), OpenOptions{}) }()
		time.Sleep(time.Second)
		server.Serve(func(in *Incoming) {
			heads <- string(in.Header)
			in.Accept()
		}, func() { close(over) })
		if _, err := client.Open(t.Context(), []byte("late"), OpenOptions{}); err != nil {
			t.Error(err)
		}
		if first, second := <-heads, <-heads; first != "early" || second != "late" {
			t.Errorf("%q, %q", first, second)
		}
		client.Close(CodeClosed)
		<-over
		server.WaitServed()
		again := make(chan struct{})
		server.Serve(nil, func() { close(again) }) // too late: it hears so
		<-again
	})
}
