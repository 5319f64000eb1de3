package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// loopback returns the two ends of a TCP connection.
func loopback(t testing.TB) (*net.TCPConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a.(*net.TCPConn), b.(*net.TCPConn)
}

// pair starts a session over the two ends of a connection.
func pair(t testing.TB, a, b net.Conn, cfg Config) (client, server *Session) {
	t.Helper()
	ctx := t.Context()
	var wg sync.WaitGroup
	var serr, cerr error
	wg.Go(func() {
		server, _, serr = Server(ctx, b, func(ID) *Session { return nil }, cfg)
	})
	wg.Go(func() { client, cerr = Client(ctx, a, cfg) })
	wg.Wait()
	if err := errors.Join(serr, cerr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close(CodeCanceled)
		server.Close(CodeCanceled)
	})
	return client, server
}

func tcpPair(t testing.TB, cfg Config) (client, server *Session) {
	a, b := loopback(t)
	return pair(t, a, b, cfg)
}

// open opens a stream and returns both of its ends.
func open(t testing.TB, from, to *Session, o OpenOptions) (ours, theirs *Stream) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		in, err := to.Accept(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		if string(in.Header) != "header" || in.Datagrams != o.Datagrams {
			t.Errorf("header %q, datagrams %v", in.Header, in.Datagrams)
		}
		theirs = in.Accept()
	})
	ours, err := from.Open(context.Background(), []byte("header"), o)
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	return ours, theirs
}

func TestEcho(t *testing.T) {
	client, server := tcpPair(t, Config{})
	for _, from := range []*Session{client, server} {
		to := server
		if from == server {
			to = client
		}
		a, b := open(t, from, to, OpenOptions{})
		for _, text := range []string{"one", "two"} {
			if _, err := a.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 3)
			if _, err := io.ReadFull(b, got); err != nil || string(got) != text {
				t.Fatalf("%q, %v", got, err)
			}
			if _, err := b.Write(got); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(a, got); err != nil || string(got) != text {
				t.Fatalf("%q, %v", got, err)
			}
		}
	}
}

// pour writes n random bytes to w, in writes of random sizes, and returns their sum.
func pour(w io.Writer, n int, seed uint64) ([]byte, error) {
	src := rand.NewChaCha8([32]byte{byte(seed)})
	rnd := rand.New(rand.NewPCG(seed, 1))
	h := sha256.New()
	buf := make([]byte, 100<<10)
	for n > 0 {
		b := buf[:min(n, 1+rnd.IntN(len(buf)))]
		_, _ = src.Read(b)
		h.Write(b)
		if _, err := w.Write(b); err != nil {
			return nil, err
		}
		n -= len(b)
	}
	return h.Sum(nil), nil
}

// both sends n bytes in each direction, each ended by a half-close, and
// compares the sums.
func both(t testing.TB, a, b *Stream, n int) {
	t.Helper()
	var wg sync.WaitGroup
	var sent, got [2][]byte
	for i, ends := range [][2]*Stream{{a, b}, {b, a}} {
		wg.Go(func() {
			var err error
			if sent[i], err = pour(ends[0], n, uint64(i)); err == nil {
				err = ends[0].CloseWrite()
			}
			if err != nil {
				t.Errorf("direction %d: write: %v", i, err)
			}
		})
		wg.Go(func() {
			h := sha256.New()
			if m, err := io.Copy(h, ends[1]); err != nil || m != int64(n) {
				t.Errorf("direction %d: read %d of %d bytes: %v", i, m, n, err)
			}
			got[i] = h.Sum(nil)
		})
	}
	wg.Wait()
	for i := range sent {
		if !bytes.Equal(sent[i], got[i]) {
			t.Errorf("direction %d: sums differ", i)
		}
	}
}

func TestTransfer(t *testing.T) {
	client, server := tcpPair(t, Config{})
	a, b := open(t, client, server, OpenOptions{})
	both(t, a, b, 64<<20)
	gone(t, client)
	gone(t, server)
}

func TestManyStreams(t *testing.T) {
	client, server := tcpPair(t, Config{})
	var wg sync.WaitGroup
	for range 50 {
		a, b := open(t, client, server, OpenOptions{})
		wg.Go(func() { both(t, a, b, 1<<20) })
	}
	wg.Wait()
	gone(t, client)
	gone(t, server)
}

// until polls for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// gone waits until s has no streams, and nothing in its ring or of its windows.
func gone(t testing.TB, s *Session) {
	t.Helper()
	until(t, "no streams, nothing kept", func() bool {
		v := s.Stats()
		s.mu.Lock()
		defer s.mu.Unlock()
		return v.Streams == 0 && v.Unacked == 0 && v.Window == 0 && len(s.ring.chunks) == 0
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.recvCredit + s.toReturn; got != int64(s.cfg.SessionWindow) {
		t.Errorf("session window of %d, %d left", s.cfg.SessionWindow, got)
	}
	if s.unreadDatagrams != 0 {
		t.Errorf("%d bytes of datagrams", s.unreadDatagrams)
	}
}

func TestRefuse(t *testing.T) {
	client, server := tcpPair(t, Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		in, err := server.Accept(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		in.Refuse(CodeNoSuchService)
	}()
	_, err := client.Open(t.Context(), nil, OpenOptions{})
	<-done
	var r *ResetError
	if !errors.As(err, &r) || r.Code != CodeNoSuchService {
		t.Fatalf("%v", err)
	}
	gone(t, client)
	gone(t, server)
}

func TestReset(t *testing.T) {
	client, server := tcpPair(t, Config{})
	a, b := open(t, client, server, OpenOptions{})
	if _, err := a.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	a.Reset(CodeHostNotReachable)
	until(t, "reset at the other end", func() bool {
		_, err := b.Write([]byte("x"))
		var r *ResetError
		return errors.As(err, &r) && r.Code == CodeHostNotReachable
	})
	if _, err := b.Read(make([]byte, 1)); !errors.As(err, new(*ResetError)) {
		t.Fatal(err)
	}
	gone(t, client)
	gone(t, server)
}

// What was written before Close arrives, and the peer cannot write any more.
func TestClose(t *testing.T) {
	client, server := tcpPair(t, Config{})
	a, b := open(t, client, server, OpenOptions{})
	data := make([]byte, 200<<10)
	if _, err := a.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(b); err != nil || len(got) != len(data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	until(t, "no more writes", func() bool {
		_, err := b.Write([]byte("x"))
		var r *ResetError
		return errors.As(err, &r) && r.Code == CodeClosed
	})
	gone(t, client)
	gone(t, server)
}
