package groove

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/splice"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

// site is a server with a published relay that echoes, and a tunnel that does.
type site struct {
	s    *Server
	http net.Listener
	raw  net.Listener
}

func newSite(t *testing.T, change func(*Config, *Deps)) *site {
	t.Helper()
	back := listen(t)
	go accept(back, func(c net.Conn) { io.Copy(c, c) })
	at := back.Addr().(*net.TCPAddr)
	cfg := Config{Polling: true, Relays: map[string]Backend{"relay.example.org": {"127.0.0.1", uint16(at.Port)}}}
	deps := Deps{Tunnel: "tunnel.example.org", Joiner: splice.Copier{}, Virtual: func(_ context.Context, c *Conn) { io.Copy(c, c) }}
	if change != nil {
		change(&cfg, &deps)
	}
	virtual := deps.Virtual
	deps.Virtual = func(ctx context.Context, c *Conn) {
		defer c.Close()
		virtual(ctx, c)
	}
	s, err := New(cfg, deps, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	x := &site{s, listen(t), listen(t)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	go func() { ended <- s.Run(ctx) }()
	go func() { ended <- s.ServeListener(ctx, x.http) }()
	go func() { ended <- s.ServeRaw(ctx, x.raw) }()
	t.Cleanup(func() {
		cancel()
		for range 3 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if n := s.Open(); n != 0 {
			t.Errorf("%d connections outlive the server", n)
		}
	})
	return x
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func accept(ln net.Listener, serve func(net.Conn)) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

func to(addr string) DialFunc {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
}

func (x *site) dial(t *testing.T, m Mode, relay string) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	addr := x.http.Addr().String()
	c, err := Dial(ctx, m, Target{Relay: relay, Host: addr}, to(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// counted returns the value of a counter with that label.
func (s *Server) counted(t *testing.T, name, label string) (sum float64) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// echoed sends b and wants it back, both at once.
func echoed(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		wrote <- err
	}()
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(b) {
		t.Fatal("other octets came back")
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// inMode runs a test in each mode. Polling is the last: how its clients end is not heard for a while.
func inMode(t *testing.T, f func(*testing.T, Mode)) {
	for _, m := range []Mode{LongLived, KeepAlive, Polling} {
		t.Run(m.String(), func(t *testing.T) { f(t, m) })
	}
}

func sizeOf(m Mode) int {
	return map[Mode]int{LongLived: 3 << 20, KeepAlive: 1 << 20, Polling: 256 << 10}[m]
}

func TestModes(t *testing.T) {
	x := newSite(t, nil)
	inMode(t, func(t *testing.T, m Mode) {
		for _, relay := range []string{"relay.example.org", "tunnel.example.org"} {
			c := x.dial(t, m, relay)
			echoed(t, c, []byte("hello"))
			echoed(t, c, noise(sizeOf(m)))
			if n := x.s.counted(t, "edged_groove_connections", m.String()); n < 1 {
				t.Errorf("%v are open", n)
			}
			if c.Close(); m != Polling {
				until(t, "the end", func() bool { return x.s.Open() == 0 })
			}
		}
	})
}

// TestFarEnd: what was written before the far end has closed arrives, then its end.
func TestFarEnd(t *testing.T) {
	said := noise(100_000)
	x := newSite(t, func(_ *Config, d *Deps) { d.Virtual = func(_ context.Context, c *Conn) { c.Write(said) } })
	inMode(t, func(t *testing.T, m Mode) {
		got, err := io.ReadAll(x.dial(t, m, "tunnel.example.org"))
		if err != nil || !bytes.Equal(got, said) {
			t.Fatalf("%d octets, %v", len(got), err)
		}
	})
}

// TestNearEnd: what was written before Close arrives, then its end.
func TestNearEnd(t *testing.T) {
	said, heard := noise(100_000), make(chan []byte, 1)
	x := newSite(t, func(_ *Config, d *Deps) {
		d.Virtual = func(_ context.Context, c *Conn) {
			b, _ := io.ReadAll(c)
			heard <- b
		}
	})
	for _, m := range []Mode{LongLived, KeepAlive} {
		t.Run(m.String(), func(t *testing.T) {
			c := x.dial(t, m, "tunnel.example.org")
			if _, err := c.Write(said); err != nil {
				t.Fatal(err)
			}
			c.Close()
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("a closed connection can be read")
			}
			if _, err := c.Write([]byte("x")); err == nil {
				t.Error("a closed connection can be written")
			}
			if got := <-heard; !bytes.Equal(got, said) {
				t.Fatalf("%d octets of %d", len(got), len(said))
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	x := newSite(t, func(_ *Config, d *Deps) { d.Virtual = func(ctx context.Context, _ *Conn) { <-ctx.Done() } })
	inMode(t, func(t *testing.T, m Mode) {
		c := x.dial(t, m, "tunnel.example.org")
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		for {
			if _, err := c.Write(make([]byte, 1<<20)); err != nil { // nobody reads
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				break
			}
		}
		unblocked := make(chan error, 1)
		c.SetDeadline(time.Time{})
		go func() {
			_, err := c.Read(make([]byte, 1))
			unblocked <- err
		}()
		c.Close()
		if err := <-unblocked; err == nil {
			t.Error("Close did not end Read")
		}
	})
}

// TestHandler: beside other handlers of a server of HTTP, and with the requests of others on the raw port.
func TestHandler(t *testing.T) {
	x := newSite(t, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("/other", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "other") })
	mux.Handle("/", x.s)
	h := httptest.NewServer(mux)
	defer h.Close()
	addr := strings.TrimPrefix(h.URL, "http://")
	inMode(t, func(t *testing.T, m Mode) {
		c, err := Dial(t.Context(), m, Target{Relay: "relay.example.org", Host: addr}, to(addr))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		echoed(t, c, noise(sizeOf(m)/4))
	})
	if got := get(t, h.URL+"/none"); got != "404 404 page not found\n" {
		t.Errorf("%q", got)
	}
	if got := get(t, h.URL+"/other"); got != "200 other" {
		t.Errorf("%q", got)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.Status[:4] + string(b)
}

// handOver is a listener of what comes to Deps.Other.
type handOver struct {
	net.Listener
	c chan net.Conn
}

func (h handOver) Accept() (net.Conn, error) {
	if c, ok := <-h.c; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func TestOther(t *testing.T) {
	others := handOver{listen(t), make(chan net.Conn)}
	defer close(others.c)
	go http.Serve(others, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }))
	x := newSite(t, func(_ *Config, d *Deps) { d.Other = func(c net.Conn) { others.c <- c } })
	if got := get(t, "http://"+x.http.Addr().String()+"/a"); got != "200 /a" {
		t.Errorf("%q", got)
	}
	// A proxy may send it after a request of ours.
	c, err := net.Dial("tcp", x.http.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	guid := newToken(guidLen)
	io.WriteString(c, "POST /2.0/relay.example.org/"+guid+",ConnType=KeepAlive HTTP/1.1\r\nContent-Length: 22\r\n\r\n"+echo)
	want := "HTTP/1.0 200 OK\r\n"
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Fatalf("%q, %v", b, err)
	}
	io.WriteString(c, "GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	rest, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(rest), "HTTP/1.1 200 OK") || !strings.HasSuffix(string(rest), "/b") {
		t.Errorf("%q, %v", rest, err)
	}
}
