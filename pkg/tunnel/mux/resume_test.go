package mux

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// wire is what a torture test's carriers run over: it can be cut in the
// middle of a frame, or go silent.
type wire struct {
	net.Conn
	left  atomic.Int64 // bytes to be written before the end comes
	kind  int
	black atomic.Bool
}

// The ways in which a carrier ends.
const (
	endFIN = iota
	endRST
	endBlackHole
	ends
)

// Write writes up to the byte at which the carrier is to end.
func (w *wire) Write(b []byte) (int, error) {
	left := w.left.Add(-int64(len(b)))
	if left >= 0 {
		return w.Conn.Write(b)
	}
	if n := left + int64(len(b)); n > 0 {
		if _, err := w.Conn.Write(b[:n]); err != nil {
			return 0, err
		}
	}
	switch w.kind {
	case endBlackHole:
		w.black.Store(true)
		return len(b), nil // and nothing arrives any more
	case endRST:
		_ = w.Conn.(*net.TCPConn).SetLinger(0) // then Close is a reset
	}
	w.Conn.Close()
	return 0, net.ErrClosed
}

// Read reads nothing out of a black hole.
func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	for n > 0 && err == nil && w.black.Load() {
		n, err = w.Conn.Read(b)
	}
	return n, err
}

// selfSigned returns the TLS configurations of both ends.
func selfSigned(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"relay.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
	return server, &tls.Config{RootCAs: pool, ServerName: "relay.example.org", MinVersion: tls.VersionTLS13}
}

// roads gives a client new carriers and answers them as the server.
type roads struct {
	t           testing.TB
	cfg         Config
	tlsS, tlsC  *tls.Config
	lastWith    func() int64 // after how many bytes the next carrier ends
	mu          sync.Mutex
	server      *Session
	count       int
	connections sync.WaitGroup
}

// dial returns a new carrier's end, the other one is the server's.
func (r *roads) dial() net.Conn {
	a, b := loopback(r.t)
	r.mu.Lock()
	r.count++
	kind := mrand.IntN(ends)
	r.mu.Unlock()
	wa := &wire{Conn: a, kind: kind}
	wb := &wire{Conn: b, kind: kind}
	wa.left.Store(1 << 60)
	wb.left.Store(1 << 60)
	if mrand.IntN(2) == 0 {
		wa.left.Store(r.lastWith())
	} else {
		wb.left.Store(r.lastWith())
	}
	r.connections.Go(func() { r.serve(wb) })
	if r.tlsC == nil {
		return wa
	}
	return tls.Client(wa, r.tlsC)
}

func (r *roads) serve(conn net.Conn) {
	if r.tlsS != nil {
		conn = tls.Server(conn, r.tlsS)
	}
	s, resumed, err := Server(context.Background(), conn, r.find, r.cfg)
	if err != nil {
		r.t.Logf("server: %v", err)
		return
	}
	if !resumed {
		r.mu.Lock()
		r.server = s
		r.mu.Unlock()
	}
}

func (r *roads) find(id ID) *Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil && r.server.ID() == id {
		return r.server
	}
	return nil
}

// follow resumes the session each time that its carrier is lost.
func (r *roads) follow(ctx context.Context, s *Session) {
	for {
		select {
		case <-s.Lost():
			if err := s.Resume(ctx, r.dial()); err != nil {
				r.t.Logf("resume: %v", err)
			}
		case <-s.Done():
			return
		}
	}
}

// Carriers end at random bytes, by FIN, RST or silence, at either end, while
// both directions of several streams are full. No stream notices.
func TestTorture(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) { torture(t, secure) })
	}
}

func torture(t *testing.T, secure bool) {
	size, kills := 24<<20, 40
	if testing.Short() {
		size, kills = 8<<20, 12
	}
	cfg := Config{DeadAfter: 300 * time.Millisecond, Ring: 1 << 20}
	r := &roads{t: t, cfg: cfg}
	per := int64(4 * size / kills) // four directions share the kills
	r.lastWith = func() int64 {
		if r.count > kills {
			return 1 << 60
		}
		return 4096 + mrand.Int64N(per)
	}
	if secure {
		r.tlsS, r.tlsC = selfSigned(t)
	}
	client := first(t, r)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var following sync.WaitGroup
	following.Go(func() { r.follow(ctx, client) })

	var wg sync.WaitGroup
	for i := range 2 {
		from, to := client, r.server
		if i == 1 {
			from, to = to, from
		}
		a, b := open(t, from, to, OpenOptions{})
		wg.Go(func() { both(t, a, b, size) })
	}
	wg.Wait()
	gone(t, client)
	gone(t, r.server)
	v := client.Stats()
	t.Logf("%d carriers, %d MiB sent again", v.Epoch, v.Replayed>>20)
	if v.Epoch < 5 {
		t.Errorf("only %d carriers", v.Epoch)
	}
	client.Close(CodeClosed)
	r.server.Close(CodeClosed)
	following.Wait()
	r.connections.Wait()
}

// first starts the session of r's client.
func first(t *testing.T, r *roads) *Session {
	t.Helper()
	for range 20 {
		client, err := Client(t.Context(), r.dial(), r.cfg)
		if err == nil {
			until(t, "server's session", func() bool { return r.find(client.ID()) != nil })
			return client
		}
		t.Logf("client: %v", err)
	}
	t.Fatal("no session")
	return nil
}

// A HELLO of an epoch that is over is refused, and so is one that begins a
// session which exists, or goes on with one that does not.
func TestReplayedHello(t *testing.T) {
	r := &roads{t: t, lastWith: func() int64 { return 1 << 60 }}
	client := first(t, r)
	defer client.Close(CodeCanceled)
	defer func() { r.server.Close(CodeCanceled) }()
	if err := client.Resume(t.Context(), r.dial()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		hello hello
		want  Code
	}{
		{"old epoch", hello{epoch: 1, id: client.ID()}, CodeCrossedConnections},
		{"same epoch", hello{epoch: 2, id: client.ID()}, CodeCrossedConnections},
		{"begins again", hello{epoch: 3, id: client.ID(), flags: flagNew}, CodeCrossedConnections},
		{"unknown", hello{epoch: 1, id: ID{1}}, CodeEmptySession},
		{"version", hello{version: 2, epoch: 3, id: client.ID()}, CodeNewVersionRequired},
		{"epoch 0", hello{epoch: 0, id: client.ID()}, CodeProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.hello.version == 0 {
				c.hello.version = version
			}
			a, b := loopback(t)
			defer a.Close()
			r.connections.Go(func() { r.serve(b) })
			if _, err := a.Write(c.hello.frame()); err != nil {
				t.Fatal(err)
			}
			_, err := readHello(a)
			var f *SessionError
			if !errors.As(err, &f) || f.Code != c.want || !f.Remote {
				t.Fatalf("%v", err)
			}
		})
	}
	a, b := open(t, client, r.server, OpenOptions{}) // the session is still well
	both(t, a, b, 1000)
	r.connections.Wait()
}

// A session that the server does not know any more ends at the client, which begins another on the same connection.
func TestForgotten(t *testing.T) {
	r := &roads{t: t, lastWith: func() int64 { return 1 << 60 }}
	client := first(t, r)
	a, _ := open(t, client, r.server, OpenOptions{})
	old := r.server
	r.mu.Lock()
	r.server = nil
	r.mu.Unlock()
	conn := r.dial()
	err := client.Resume(t.Context(), conn)
	var f *SessionError
	if !errors.As(err, &f) || f.Code != CodeEmptySession || !errors.Is(err, ErrForgotten) {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); !errors.As(err, &f) || f.Code != CodeEmptySession {
		t.Fatal(err)
	}
	<-client.Done()
	old.Close(CodeCanceled)
	client.Close(CodeClosed)
	next, err := Client(t.Context(), conn, Config{})
	if err != nil {
		t.Fatal(err)
	}
	r.connections.Wait()
	r.mu.Lock()
	server := r.server
	r.mu.Unlock()
	c, d := open(t, next, server, OpenOptions{})
	both(t, c, d, 1000)
	next.Close(CodeClosed)
	server.Close(CodeClosed)
}
