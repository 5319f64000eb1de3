package proxydial

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// fakeProxy answers requests by a function; a CONNECT that it answers with 200 echoes from then on.
type fakeProxy struct {
	answer func(n int, r *http.Request) string // n counts requests of one connection, from 0

	mu       sync.Mutex
	conns    int
	requests []string // the values of Proxy-Authorization
}

func (f *fakeProxy) start(t *testing.T) string {
	t.Helper()
	return listen(t, f.serve)
}

// listen serves each connection on loopback by a goroutine until the test ends.
func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func (f *fakeProxy) serve(c net.Conn) {
	f.mu.Lock()
	f.conns++
	f.mu.Unlock()
	br := bufio.NewReader(c)
	for n := 0; ; n++ {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		f.mu.Lock()
		f.requests = append(f.requests, r.Header.Get("Proxy-Authorization"))
		f.mu.Unlock()
		answer := f.answer(n, r)
		if _, err := io.WriteString(c, answer); err != nil || strings.Contains(answer, "close\r\n") {
			return
		}
		if r.Method == http.MethodConnect && strings.HasPrefix(answer, "HTTP/1.1 200") {
			_, _ = io.Copy(c, br)
			return
		}
	}
}

func (f *fakeProxy) seen() (conns int, requests []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.conns, append([]string(nil), f.requests...)
}

// ask is a 407 with a body.
func ask(challenges ...string) string {
	s := "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 5\r\n"
	for _, c := range challenges {
		s += "Proxy-Authenticate: " + c + "\r\n"
	}
	return s + "\r\nlogin"
}

const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// dialer has a user alice with the password secret1.
func dialer(t *testing.T, change func(*Config)) (*Dialer, *observer.ObservedLogs) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := Config{User: "alice", PasswordFile: file}
	if change != nil {
		change(&cfg)
	}
	core, logs := observer.New(zap.DebugLevel)
	d, err := New(cfg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	d.Getenv = func(string) string { return "" }
	return d, logs
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// wantEcho checks that c leads to the echo.
func wantEcho(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	var b [5]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestConnect(t *testing.T) {
	basicValue := "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:secret1"))
	ntlmType2 := base64.StdEncoding.EncodeToString(ntlmChallenge())
	ntlmLegs := func(n int, r *http.Request) string {
		v := r.Header.Get("Proxy-Authorization")
		switch {
		case strings.HasPrefix(v, "NTLM TlRMTVNTUAAB"):
			return ask("NTLM " + ntlmType2)
		case strings.HasPrefix(v, "NTLM TlRMTVNTUAAD") && n > 0:
			return established
		}
		return ask("Basic realm=x", "NTLM")
	}
	for _, c := range []struct {
		name          string
		answer        func(n int, r *http.Request) string
		login         string
		conns, asked  int
		lastHasPrefix string
	}{
		{"open", func(int, *http.Request) string { return established }, "none", 1, 1, ""},
		{"basic", func(_ int, r *http.Request) string {
			if r.Header.Get("Proxy-Authorization") == basicValue {
				return established
			}
			return ask("Basic realm=x")
		}, "basic", 1, 2, basicValue},
		{"digest before basic", func(_ int, r *http.Request) string {
			if strings.HasPrefix(r.Header.Get("Proxy-Authorization"), `Digest username="alice"`) {
				return established
			}
			return ask("Basic realm=x", `Digest realm="x", nonce="n", qop="auth", algorithm=SHA-256`)
		}, "digest", 1, 2, "Digest "},
		{"digest, stale", func(_ int, r *http.Request) string {
			v := r.Header.Get("Proxy-Authorization")
			switch {
			case strings.Contains(v, `nonce="new"`):
				return established
			case v != "":
				return ask(`Digest realm="x", nonce="new", stale=true`)
			}
			return ask(`Digest realm="x", nonce="old"`)
		}, "digest", 1, 3, "Digest "},
		{"ntlm, all legs on one connection", ntlmLegs, "ntlm", 1, 3, "NTLM TlRMTVNTUAAD"},
		{"ntlm after a closed connection", func(n int, r *http.Request) string {
			if r.Header.Get("Proxy-Authorization") == "" {
				return strings.Replace(ask("NTLM"), "Content", "Proxy-Connection: close\r\nContent", 1)
			}
			return ntlmLegs(n, r)
		}, "ntlm", 2, 3, "NTLM TlRMTVNTUAAD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeProxy{answer: c.answer}
			d, logs := dialer(t, func(cfg *Config) { cfg.AllowBasic = true })
			got, err := d.Dial(within(t), Proxy{Scheme: HTTP, Address: f.start(t)}, "relay.example.org:443")
			if err != nil {
				t.Fatal(err)
			}
			defer got.Conn.Close()
			wantEcho(t, got.Conn)
			conns, requests := f.seen()
			if got.Login != c.login || conns != c.conns || len(requests) != c.asked || !strings.HasPrefix(requests[len(requests)-1], c.lastHasPrefix) {
				t.Errorf("login %s by %d connections and %q", got.Login, conns, requests)
			}
			if _, ok := got.Conn.(*net.TCPConn); !ok {
				t.Errorf("a %T, which cannot be spliced", got.Conn)
			}
			wantNoSecret(t, logs)
		})
	}
}

// wantNoSecret checks that no line of the log has the password in any form.
func wantNoSecret(t *testing.T, logs *observer.ObservedLogs) {
	t.Helper()
	for _, e := range logs.All() {
		line := fmt.Sprint(e.Message, e.ContextMap())
		if strings.Contains(line, "secret1") || strings.Contains(line, base64.StdEncoding.EncodeToString([]byte("alice:secret1"))) {
			t.Errorf("the log has the password: %s", line)
		}
	}
}

func TestRefusedLoginIsHeld(t *testing.T) {
	f := &fakeProxy{answer: func(int, *http.Request) string { return ask("Basic realm=x") }}
	d, logs := dialer(t, func(cfg *Config) { cfg.AllowBasic = true; cfg.Hold = time.Hour })
	p := Proxy{Scheme: HTTP, Address: f.start(t)}
	if _, err := d.Dial(within(t), p, "relay.example.org:443"); !errors.Is(err, ErrRefused) {
		t.Fatalf("first: %v", err)
	}
	if _, err := d.Dial(within(t), p, "relay.example.org:443"); !errors.Is(err, ErrHeld) {
		t.Fatalf("second: %v", err)
	}
	_, requests := f.seen()
	logins := 0
	for _, r := range requests {
		if r != "" {
			logins++
		}
	}
	if logins != 1 {
		t.Errorf("%d logins: an account would be locked", logins)
	}
	wantNoSecret(t, logs)
}

func TestConnectFaults(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		basic        bool
		want         func(error) bool
	}{
		{"403", "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", true, func(err error) bool { var s StatusError; return errors.As(err, &s) && s.Code == 403 }},
		{"basic is not allowed", ask("Basic realm=x"), false, func(err error) bool { return errors.Is(err, errNoScheme) }},
		{"401 to a login is a refusal only then", "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", true, func(err error) bool { return errors.Is(err, StatusError{401}) }},
		{"unknown scheme", ask("Bearer realm=x"), true, func(err error) bool { return errors.Is(err, errNoScheme) }},
		{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 400), true, func(err error) bool { return err != nil }},
		{"not HTTP", "SSH-2.0-x\r\n\r\n", true, func(err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeProxy{answer: func(int, *http.Request) string { return c.answer }}
			d, _ := dialer(t, func(cfg *Config) { cfg.AllowBasic = c.basic })
			got, err := d.Dial(within(t), Proxy{Scheme: HTTP, Address: f.start(t)}, "relay.example.org:443")
			if err == nil {
				got.Conn.Close()
			}
			if !c.want(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestConnectKeepsEarlyBytes(t *testing.T) {
	f := &fakeProxy{answer: func(int, *http.Request) string { return established + "SSH-2.0-early\r\n" }}
	d, _ := dialer(t, nil)
	got, err := d.Dial(within(t), Proxy{Scheme: HTTP, Address: f.start(t)}, "relay.example.org:22")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Conn.Close()
	b := make([]byte, len("SSH-2.0-early\r\n"))
	if _, err := io.ReadFull(got.Conn, b); err != nil || string(b) != "SSH-2.0-early\r\n" {
		t.Fatalf("%q, %v", b, err)
	}
	wantEcho(t, got.Conn)
}

func TestContextEndsSilentProxy(t *testing.T) {
	for _, scheme := range []Scheme{HTTP, SOCKS5} {
		heard := make(chan struct{})
		addr := listen(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			close(heard)
			_, _ = io.Copy(io.Discard, c)
		})
		d, _ := dialer(t, nil)
		ctx, cancel := context.WithCancel(within(t))
		go func() { <-heard; cancel() }()
		if _, err := d.Dial(ctx, Proxy{Scheme: scheme, Address: addr}, "relay.example.org:443"); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

func TestWeb(t *testing.T) {
	ok := "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
	for _, c := range []struct {
		name, challenge string
		perRequest      bool
	}{{"none", "", false}, {"basic", "Basic realm=x", true}, {"digest", `Digest realm="x", nonce="n", qop=auth`, true}} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeProxy{answer: func(_ int, r *http.Request) string {
				switch {
				case !strings.HasPrefix(r.RequestURI, "http://relay.example.org:80/"):
					return "HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n"
				case c.challenge != "" && r.Header.Get("Proxy-Authorization") == "":
					return ask(c.challenge)
				}
				return ok
			}}
			d, _ := dialer(t, func(cfg *Config) { cfg.AllowBasic = true })
			w, err := d.Web(within(t), Proxy{Scheme: HTTP, Address: f.start(t)}, "relay.example.org:80", "/x")
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if got := w.Authorize("POST", w.URI("/y")); (got != "") != c.perRequest {
				t.Errorf("authorize: %q", got)
			}
			for range 2 {
				conn, err := w.Dial(within(t))
				if err != nil {
					t.Fatal(err)
				}
				conn.Close()
			}
			if conns, _ := f.seen(); conns > 4 {
				t.Errorf("%d connections", conns)
			}
		})
	}
}

// TestHTTPSProxy speaks TLS with the proxy itself, and only with one that the authorities know.
func TestHTTPSProxy(t *testing.T) {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	cert := s.TLS.Certificates[0]
	s.Close()
	f := &fakeProxy{answer: func(int, *http.Request) string { return established }}
	addr := listen(t, func(c net.Conn) { f.serve(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})) })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := Proxy{Scheme: HTTPS, Address: addr}
	d, _ := dialer(t, func(cfg *Config) { cfg.CAFile = ca })
	got, err := d.Dial(within(t), p, "relay.example.org:443")
	if err != nil {
		t.Fatal(err)
	}
	defer got.Conn.Close()
	wantEcho(t, got.Conn)
	stranger, _ := dialer(t, nil)
	if c, err := stranger.Dial(within(t), p, "relay.example.org:443"); err == nil {
		c.Conn.Close()
		t.Error("a proxy whose certificate nobody has signed was taken")
	}
}

// TestWebRenewsNonces has a proxy that takes each nonce 50 times, as squid does: no request of 300 may meet a stale one.
func TestWebRenewsNonces(t *testing.T) {
	var mu sync.Mutex
	uses := map[string]int{}
	f := &fakeProxy{answer: func(_ int, r *http.Request) string {
		mu.Lock()
		defer mu.Unlock()
		c := parseChallenges([]string{r.Header.Get("Proxy-Authorization")})
		if len(c) == 0 {
			return ask(fmt.Sprintf(`Digest realm="x", nonce="n%d", qop=auth`, len(uses)))
		}
		n := c[0].params["nonce"]
		if uses[n]++; uses[n] > 50 || c[0].params["nc"] != fmt.Sprintf("%08x", uses[n]) {
			return ask(`Digest realm="x", nonce="late", qop=auth, stale=true`)
		}
		return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
	}}
	d, _ := dialer(t, nil)
	w, err := d.Web(within(t), Proxy{Scheme: HTTP, Address: f.start(t)}, "relay.example.org:80", "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	conn, err := w.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	br := bufio.NewReader(conn)
	for i := range 300 {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nProxy-Authorization: %s\r\n\r\n", w.URI("/y"), w.Authorize("GET", w.URI("/y")))
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusNotFound {
			t.Fatalf("request %d: %v, %v", i, resp, err)
		}
	}
}
