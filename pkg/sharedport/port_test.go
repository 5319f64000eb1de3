package sharedport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

// shared is a port with three services, each of which answers with its name and what it has read.
type shared struct {
	addr   string
	count  *Counters
	logged *observer.ObservedLogs
	stop   func() error
}

func share(t *testing.T, wait time.Duration) *shared {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.InfoLevel)
	s := &shared{addr: ln.Addr().String(), count: NewCounters(), logged: logged}
	p := New(ln, 4, s.count, zap.New(core))
	p.wait = wait
	for name, m := range map[string]Match{
		"web": {TLS, []string{"web.example.org", "*.meet.example.org"}}, "sip": {Class: TLS}, "conf": {Class: TPKT},
	} {
		part, err := p.Listener(m)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { part.Close() })
		go answer(part, name)
	}
	if _, err := p.Listener(Match{Class: TLS}); err == nil {
		t.Error("two defaults were taken")
	}
	if _, err := p.Listener(Match{TLS, []string{"web.example.org"}}); err == nil {
		t.Error("a name was taken twice")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx) }()
	s.stop = func() error {
		cancel()
		return <-ended
	}
	return s
}

// value returns a counter: of connections by class, or of refused ones by class and reason.
func (s *shared) value(t *testing.T, labels ...string) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s.count)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var got []string
			for _, l := range m.GetLabel() {
				got = append(got, l.GetValue())
			}
			if slices.Equal(got, labels) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func answer(ln net.Listener, name string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b, _ := io.ReadAll(c)
			io.WriteString(c, name+" "+string(b))
		}()
	}
}

// ask sends pieces, ends, and returns the answer; "reset" if there is none.
func (s *shared) ask(t *testing.T, pieces ...string) string {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	for _, p := range pieces {
		if _, err := io.WriteString(conn, p); err != nil {
			return "reset"
		}
	}
	conn.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(conn)
	if errors.Is(err, syscall.ECONNRESET) {
		return "reset"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPort(t *testing.T) {
	s := share(t, patience)
	web, other := string(hello(t, "web.example.org")), string(hello(t, "other.example.org"))
	meet, deep := string(hello(t, "a.meet.example.org")), string(hello(t, "a.b.meet.example.org"))
	none := string(hello(t, ""))
	tpkt := "\x03\x00\x00\x0b\x06\xe0\x00\x00"
	for _, tc := range []struct{ name, in, want string }{
		{"by name", web, "web"},
		{"by parent", meet, "web"},
		{"one label only", deep, "sip"},
		{"the rest", other, "sip"},
		{"no name", none, "sip"},
		{"another class", tpkt, "conf"},
		{"not served", pseudo(), "reset"},
		{"nothing at all", "", "reset"},
		{"too little", web[:100], "reset"},
	} {
		want := tc.want
		if want != "reset" {
			want += " " + tc.in + "more"
			tc.in += "more"
		}
		if got := s.ask(t, tc.in); got != want {
			t.Errorf("%s: %.40q, want %.40q", tc.name, got, want)
		}
	}
	if got := s.ask(t, strings.Split(web, "")...); got != "web "+web {
		t.Errorf("bytes one by one: %.40q", got)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if n := s.value(t, "tls"); n != 6 {
		t.Errorf("%v TLS connections counted", n)
	}
	for labels, want := range map[string]float64{"pseudo_tls not_served": 1, "unknown ended": 2} {
		class, why, _ := strings.Cut(labels, " ")
		if n := s.value(t, class, why); n != want {
			t.Errorf("%s: %v, want %v", labels, n, want)
		}
	}
	if n := s.logged.FilterMessage("connection refused").Len(); n != 1 {
		t.Errorf("%d log lines for one source within a minute", n)
	}
}

// TestSilent: who says nothing is reset after the wait, and does not keep others out.
func TestSilent(t *testing.T) {
	s := share(t, 50*time.Millisecond)
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if n := s.value(t, "unknown", "silent"); n != 1 {
		t.Errorf("%v silent ones counted", n)
	}
}

// TestPending: one source may have a few connections that have not said what they are.
func TestPending(t *testing.T) {
	s := share(t, patience)
	for range 4 {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for end := time.Now().Add(patience); s.value(t, "unknown", "limit") == 0; {
		if time.Now().After(end) {
			t.Fatal("there is no limit")
		}
		conn, err := net.Dial("tcp", s.addr)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if err == nil {
			conn.SetDeadline(time.Now().Add(patience))
			conn.Read(make([]byte, 1))
			conn.Close()
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// TestHandshake: a real handshake passes through a shared port.
func TestHandshake(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := New(ln, 0, NewCounters(), zap.NewNop())
	part, err := p.Listener(Match{Class: TLS})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx) }()
	done := make(chan string, 1)
	go func() {
		c, err := part.Accept()
		if err != nil {
			done <- err.Error()
			return
		}
		defer c.Close()
		name := ""
		tc := tls.Server(c, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name = h.ServerName
			return nil, errors.New("seen")
		}})
		tc.Handshake()
		done <- name
	}()
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: "edge.example.org"})
	if err == nil {
		conn.Close()
	}
	if got := <-done; got != "edge.example.org" {
		t.Errorf("the service saw %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
