package forwardproxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
)

// echo is a target: what comes over TCP or UDP goes back, after a greeting on TCP if it has one.
type echo struct {
	at netip.AddrPort
}

func newEcho(t *testing.T, greeting string) echo {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		pc.Close()
	})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, greeting)
				io.Copy(c, c)
			}()
		}
	}()
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(b[:n], from)
		}
	}()
	return echo{pinhole.AddrPortOf(ln.Addr())}
}

// house is a proxy that serves HTTP and SOCKS on loopback.
type house struct {
	*Server
	http, socks string
	stop        func() error
}

// testConfig allows loopback, to loopback, without names.
func testConfig(t *testing.T) Config {
	cfg := DefaultConfig()
	cfg.Allow = targets(t, "127.0.0.1:*", "udp/127.0.0.1:*")
	cfg.Private = prefixList("127.0.0.1/32")
	cfg.Anonymous = prefixList("127.0.0.0/8")
	return cfg
}

func newHouse(t *testing.T, cfg Config, users string) *house {
	t.Helper()
	return newHouseWith(t, cfg, users, NewDialer(cfg, Surroundings{}).Dial)
}

func newHouseWith(t *testing.T, cfg Config, users string, dial DialFunc) *house {
	t.Helper()
	j, err := splice.New(1)
	if err != nil {
		t.Fatal(err)
	}
	deps := Deps{Dial: dial, Joiner: j, ListenPacket: func(_ context.Context, at netip.AddrPort) (net.PacketConn, error) {
		return net.ListenPacket("udp", at.String())
	}}
	if users != "" {
		if deps.Users, err = ParseUsers(users); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(cfg, deps, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	go func() { ended <- j.Serve(ctx) }()
	h := &house{Server: s}
	for _, x := range []struct {
		proto string
		at    *string
	}{{HTTP, &h.http}, {SOCKS5, &h.socks}} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		*x.at = ln.Addr().String()
		go func() { ended <- s.ServeListener(ctx, x.proto, ln) }()
	}
	h.stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-ended, <-ended, <-ended)
	})
	t.Cleanup(func() { h.stop() })
	return h
}

func dialTest(t *testing.T, at string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// ask sends a request and returns the answer, and what reads on from there.
func ask(t *testing.T, c net.Conn, r *bufio.Reader, format string, a ...any) *http.Response {
	t.Helper()
	if _, err := fmt.Fprintf(c, format, a...); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK { // of a CONNECT that failed there is a body, which ReadResponse leaves
		if _, err := io.CopyN(io.Discard, r, resp.ContentLength); err != nil {
			t.Fatal(err)
		}
	}
	return resp
}

func echoes(t *testing.T, c net.Conn, r io.Reader, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != text {
		t.Fatalf("%q, %v", b, err)
	}
}

func basic(login string) string {
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(login)) + "\r\n"
}

func (h *house) results(proto, result string) uint64 {
	h.count.mu.Lock()
	defer h.count.mu.Unlock()
	return h.count.requests[[2]string{proto, result}]
}

func TestHTTP(t *testing.T) {
	to := newEcho(t, "")
	h := newHouse(t, testConfig(t), "")
	c := dialTest(t, h.http)
	r := bufio.NewReader(c)
	// What is said before the answer arrives, too, and first.
	resp := ask(t, c, r, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\nearly", to.at)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "early" {
		t.Fatalf("%q, %v", b, err)
	}
	echoes(t, c, r, "hello")
	list := h.Connections()
	if len(list) != 1 || list[0].Target != to.at.String() || list[0].Protocol != HTTP || list[0].FromClient != 10 || list[0].FromTarget != 10 {
		t.Errorf("%+v", list)
	}
	c.CloseWrite()
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	until(t, "the end", func() bool { return h.Open() == 0 })
	if bytes, _ := h.totals(); bytes != [2]uint64{10, 10} {
		t.Errorf("%v octets", bytes)
	}
	if err := h.stop(); err != nil {
		t.Error(err)
	}
}

func TestHTTPLogin(t *testing.T) {
	to := newEcho(t, "")
	cfg := testConfig(t)
	cfg.Anonymous = nil
	h := newHouse(t, cfg, "alice:secret\n")
	c := dialTest(t, h.http)
	r := bufio.NewReader(c)
	for _, login := range []string{"", basic("alice:wrong"), "Proxy-Authorization: Negotiate YWJj\r\n"} {
		resp := ask(t, c, r, "CONNECT %s HTTP/1.1\r\n%s\r\n", to.at, login)
		if resp.StatusCode != http.StatusProxyAuthRequired || !strings.HasPrefix(resp.Header.Get("Proxy-Authenticate"), "Basic realm=") {
			t.Fatalf("%q: %s %v", login, resp.Status, resp.Header)
		}
	}
	if resp := ask(t, c, r, "CONNECT %s HTTP/1.1\r\n%s\r\n", to.at, basic("alice:secret")); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	echoes(t, c, r, "hello")
	if list := h.Connections(); len(list) != 1 || list[0].User != "alice" {
		t.Errorf("%+v", list)
	}
	old := dialTest(t, h.http)
	ro := bufio.NewReader(old)
	if resp := ask(t, old, ro, "CONNECT %s HTTP/1.0\r\n\r\n", to.at); resp.StatusCode != http.StatusProxyAuthRequired {
		t.Error(resp.Status)
	}
	if _, err := ro.ReadByte(); err == nil {
		t.Error("a client of HTTP/1.0 that has not said keep-alive waits for the end")
	}
}

func TestHTTPRefused(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	h := newHouse(t, testConfig(t), "")
	for _, tc := range []struct {
		request string
		status  int
		reason  string
	}{
		{"CONNECT 127.0.0.2:443 HTTP/1.1\r\n\r\n", 403, notListed},
		{"CONNECT " + closed.Addr().String() + " HTTP/1.1\r\n\r\n", 502, "refused"},
		{"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n", 405, "command"},
		{"CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n", 400, "host"},
		{"HELO example.org\r\n\r\n", 400, "malformed"},
		{"CONNECT a:1 HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead), 431, "malformed"},
	} {
		before := h.results(HTTP, tc.reason)
		c := dialTest(t, h.http)
		resp := ask(t, c, bufio.NewReader(c), "%s", tc.request)
		if resp.StatusCode != tc.status {
			t.Errorf("%.40q: %s", tc.request, resp.Status)
		}
		until(t, "it is counted as "+tc.reason, func() bool { return h.results(HTTP, tc.reason) == before+1 })
	}
}

func TestGuessing(t *testing.T) {
	cfg := testConfig(t)
	cfg.Anonymous = nil
	h := newHouse(t, cfg, "alice:secret\n")
	status := 0
	for range maxWrong + 1 {
		c := dialTest(t, h.http)
		status = ask(t, c, bufio.NewReader(c), "CONNECT 127.0.0.1:1 HTTP/1.1\r\n%sConnection: close\r\n\r\n", basic("alice:wrong")).StatusCode
	}
	if status != http.StatusTooManyRequests {
		t.Errorf("after %d wrong passwords: %d", maxWrong, status)
	}
}

// socks says a greeting and a request and returns the reply's code; a login is NAME/PASSWORD or "".
func socks(t *testing.T, c net.Conn, login string, command byte, at netip.AddrPort) (code byte, bound netip.AddrPort) {
	t.Helper()
	method := byte(methodNone)
	if login != "" {
		method = methodPassword
	}
	c.Write([]byte{5, 1, method})
	b := make([]byte, 10)
	if _, err := io.ReadFull(c, b[:2]); err != nil || b[1] != method {
		t.Fatalf("%v, %v", b[:2], err)
	}
	if name, password, ok := strings.Cut(login, "/"); ok {
		c.Write(append(append(append([]byte{1, byte(len(name))}, name...), byte(len(password))), password...))
		if _, err := io.ReadFull(c, b[:2]); err != nil {
			t.Fatal(err)
		}
		if b[1] != 0 {
			return 255, bound
		}
	}
	c.Write(appendSOCKS([]byte{5, command, 0}, at))
	if _, err := io.ReadFull(c, b); err != nil || b[3] != typeIPv4 {
		t.Fatalf("%v, %v", b, err)
	}
	a, _ := netip.AddrFromSlice(b[4:8])
	return b[1], netip.AddrPortFrom(a, uint16(b[8])<<8|uint16(b[9]))
}

func TestSOCKS(t *testing.T) {
	to := newEcho(t, "welcome ")
	cfg := testConfig(t)
	h := newHouse(t, cfg, "alice:secret\n")
	for _, login := range []string{"", "alice/secret"} {
		c := dialTest(t, h.socks)
		if code, _ := socks(t, c, login, commandConnect, to.at); code != replyOK {
			t.Fatalf("%q: %d", login, code)
		}
		b := make([]byte, 8)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "welcome " {
			t.Fatalf("%q, %v", b, err)
		}
		echoes(t, c, c, "hello")
		c.Close()
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, tc := range []struct {
		login   string
		command byte
		at      netip.AddrPort
		want    byte
	}{
		{"alice/wrong", commandConnect, to.at, 255},
		{"bob/secret", commandConnect, to.at, 255},
		{"", commandConnect, netip.MustParseAddrPort("192.0.2.1:80"), replyNotAllowed},
		{"", commandConnect, pinhole.AddrPortOf(closed.Addr()), replyRefused},
		{"", 2, to.at, replyCommand},
		{"", commandConnect, netip.AddrPortFrom(to.at.Addr(), 0), replyFailure},
	} {
		if code, _ := socks(t, dialTest(t, h.socks), tc.login, tc.command, tc.at); code != tc.want {
			t.Errorf("%q, %d to %s: %d", tc.login, tc.command, tc.at, code)
		}
	}
	old := dialTest(t, h.socks)
	old.Write([]byte{4, 1, 0, 80, 127, 0, 0, 1, 0})
	if b, _ := io.ReadAll(old); len(b) != 8 || b[1] != 91 {
		t.Errorf("SOCKS 4 is told %v", b)
	}
}

// TestSOCKSMethods: without a method that is good for the client it is told so.
func TestSOCKSMethods(t *testing.T) {
	cfg := testConfig(t)
	cfg.Anonymous = nil
	for users, methods := range map[string]string{"alice:secret\n": "\x00", "": "\x00\x02"} {
		h := newHouse(t, cfg, users)
		c := dialTest(t, h.socks)
		fmt.Fprintf(c, "\x05%c%s", len(methods), methods)
		if b, err := io.ReadAll(c); err != nil || string(b) != "\x05\xff" {
			t.Errorf("users %q, methods %q: %q, %v", users, methods, b, err)
		}
	}
}

func TestAssociate(t *testing.T) {
	to := newEcho(t, "")
	h := newHouse(t, testConfig(t), "")
	c := dialTest(t, h.socks)
	code, at := socks(t, c, "", commandAssociate, netip.AddrPort{})
	if code != replyOK || at.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Fatalf("%d, %s", code, at)
	}
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 1500)
	sent := append(appendSOCKS([]byte{0, 0, 0}, to.at), "hello"...)
	for range 3 {
		u.Write(sent)
		if n, err := u.Read(b); err != nil || string(b[:n]) != string(sent) {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	// A stranger's port, a fragment, and a destination that is not allowed.
	stranger, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.Write(sent)
	u.Write(append([]byte{0, 0, 1}, sent[3:]...))
	u.Write(append(appendSOCKS([]byte{0, 0, 0}, netip.MustParseAddrPort("127.0.0.2:9")), "hello"...))
	for _, reason := range []string{dropSource, "fragment", notListed} {
		until(t, reason, func() bool { return h.dropped(reason) == 1 })
	}
	until(t, "octets are counted", func() bool { // those of an answer after it has been sent
		list := h.Connections()
		return len(list) == 1 && list[0].UDP && list[0].FromClient == 15 && list[0].FromTarget == 15
	})
	c.Close()
	until(t, "the end", func() bool { return h.Open() == 0 })
	until(t, "the socket is closed", func() bool {
		u.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		u.Write(sent)
		_, err := u.Read(b)
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if n := h.peers.Load(); n != 0 {
		t.Errorf("%d peers are left", n)
	}
	if err := h.stop(); err != nil {
		t.Error(err)
	}
}

func (h *house) dropped(reason string) uint64 {
	h.count.mu.Lock()
	defer h.count.mu.Unlock()
	return h.count.dropped[reason]
}

func TestAssociationLimits(t *testing.T) {
	cfg := testConfig(t)
	cfg.Associations = 1
	h := newHouse(t, cfg, "")
	c := dialTest(t, h.socks)
	if code, _ := socks(t, c, "", commandAssociate, netip.AddrPort{}); code != replyOK {
		t.Fatal(code)
	}
	if code, _ := socks(t, dialTest(t, h.socks), "", commandAssociate, netip.AddrPort{}); code != replyNotAllowed {
		t.Errorf("a second association: %d", code)
	}
	c.Close()
	until(t, "the end", func() bool { return h.Open() == 0 })
	c = dialTest(t, h.socks)
	code, at := socks(t, c, "", commandAssociate, netip.AddrPort{})
	if code != replyOK {
		t.Fatalf("after the end of the first: %d", code)
	}
	u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for port := range uint16(maxPeers + 1) {
		u.Write(append(appendSOCKS([]byte{0, 0, 0}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 20000+port)), 'x'))
		until(t, "it is taken or dropped", func() bool { return int(h.peers.Load()) == int(port)+1 || h.dropped(dropPeers) > 0 })
	}
	until(t, "one too many", func() bool { return h.dropped(dropPeers) == 1 })
}

// pipeDial leads names to others than this host's network does.
func pipeDial(_ context.Context, network, host string, port uint16) (net.Conn, error) {
	if host != "printer" || network != "tcp" {
		return nil, fmt.Errorf("%s: %w", host, ErrNotAllowed)
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		io.Copy(far, far)
	}()
	return near, nil
}

func TestOtherDial(t *testing.T) {
	h := newHouseWith(t, testConfig(t), "", pipeDial)
	c := dialTest(t, h.http)
	r := bufio.NewReader(c)
	if resp := ask(t, c, r, "CONNECT printer:9100 HTTP/1.1\r\n\r\n"); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	echoes(t, c, r, "hello")
	c = dialTest(t, h.http)
	if resp := ask(t, c, bufio.NewReader(c), "CONNECT scanner:9100 HTTP/1.1\r\n\r\n"); resp.StatusCode != http.StatusForbidden {
		t.Error(resp.Status)
	}
	if err := h.stop(); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	to := newEcho(t, "")
	cfg := testConfig(t)
	cfg.PerSource = 1
	h := newHouse(t, cfg, "")
	c := dialTest(t, h.http)
	r := bufio.NewReader(c)
	if resp := ask(t, c, r, "CONNECT %s HTTP/1.1\r\n\r\n", to.at); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	second := dialTest(t, h.http)
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("a second connection is served")
	}
	h.Configure(cfg, nil, 0)
	cfg.PerSource = 0
	h.Configure(cfg, nil, 0)
	third := dialTest(t, h.http)
	if resp := ask(t, third, bufio.NewReader(third), "CONNECT %s HTTP/1.1\r\n\r\n", to.at); resp.StatusCode != http.StatusOK {
		t.Error(resp.Status)
	}
	h.Drain()
	if _, err := dialTest(t, h.http).Read(make([]byte, 1)); err == nil {
		t.Error("one is served while draining")
	}
	echoes(t, c, r, "hello")
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(h.Collector())
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	refused := map[string]float64{}
	for _, f := range families {
		if f.GetName() != "edged_proxy_refused_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			refused[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
		}
	}
	if refused["connections"] != 1 || refused["draining"] != 1 {
		t.Errorf("%v", refused)
	}
}

func TestIdleEnds(t *testing.T) {
	to := newEcho(t, "")
	cfg := testConfig(t)
	cfg.Idle = time.Second
	h := newHouse(t, cfg, "")
	c := dialTest(t, h.http)
	if resp := ask(t, c, bufio.NewReader(c), "CONNECT %s HTTP/1.1\r\n\r\n", to.at); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	nets := pinhole.Networks{"inside": {}}
	good := testConfig(t)
	good.Listen = []Listen{{Proto: HTTP, Network: "inside", Port: 3128}, {Proto: SOCKS5, Network: "inside", Port: 1080}}
	if err := good.Validate(nets); err != nil {
		t.Error(err)
	}
	for key, change := range map[string]func(*Config){
		"listen[0]":       func(c *Config) { c.Listen[0].Network = "nowhere" },
		"listen[1]":       func(c *Config) { c.Listen[1] = c.Listen[0] },
		"users_file":      func(c *Config) { c.Anonymous = nil },
		"allow":           func(c *Config) { c.Allow = nil },
		"anonymous[0]":    func(c *Config) { c.Anonymous = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} },
		"private[0]":      func(c *Config) { c.Private = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} },
		"max_connections": func(c *Config) { c.MaxConnections = 0 },
		"per_source":      func(c *Config) { c.PerSource = -1 },
		"associations":    func(c *Config) { c.Associations = 1025 },
		"idle":            func(c *Config) { c.Idle = time.Millisecond },
	} {
		c := good
		c.Listen = append([]Listen(nil), good.Listen...)
		change(&c)
		if err := c.Validate(nets); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s: %v", key, err)
		}
	}
}
