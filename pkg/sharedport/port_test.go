package sharedport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

// shared is a port with services, each of which answers with its name, the address that it sees, and what it has read.
type shared struct {
	port   *Port
	addr   string
	count  *Counters
	logged *observer.ObservedLogs
	stop   func() error
}

// patient is a configuration under which nobody is slow.
func patient() Config {
	return Config{FirstBytes: patience, Handshake: patience, PerSource: 1 << 10}
}

// certified is a certificate for edge.example.org.
func certified(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"edge.example.org"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// share opens a port with a listener for each item of services: its name, and what it wants.
func share(t *testing.T, cfg Config, end *tls.Config, services map[string][]Match) *shared {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.InfoLevel)
	s := &shared{addr: ln.Addr().String(), count: NewCounters(), logged: logged}
	deps := Deps{Count: s.count}
	if end != nil {
		deps.TLS = func(bool) *tls.Config { return end }
	}
	s.port = New(ln, cfg, deps, zap.New(core))
	for name, list := range services {
		part, err := s.port.Listener(list...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { part.Close() })
		go answer(part, name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.port.Serve(ctx) }()
	s.stop = func() error {
		cancel()
		return <-ended
	}
	return s
}

func over(outer Outer, c Class, names ...string) Match { return Match{Kind{outer, c}, names} }

// value returns a counter by the values of its labels, in the order of their names.
func (s *shared) value(t *testing.T, metric string, labels ...string) float64 {
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
			if f.GetName() == metric && slices.Equal(got, labels) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func (s *shared) rejected(t *testing.T, why string) float64 {
	return s.value(t, "edged_mux_rejected_total", why)
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
			from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprintf(c, "%s %s %s", name, from, b)
		}()
	}
}

// gone tells whether err is what a client sees whom the port has refused.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// ask sends pieces over TCP or TLS, ends, and returns the answer; "reset" if there is none.
func (s *shared) ask(t *testing.T, secure *tls.Config, pieces ...string) string {
	t.Helper()
	tcp, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer tcp.Close()
	tcp.SetDeadline(time.Now().Add(patience))
	conn := tcp
	if secure != nil {
		conn = tls.Client(tcp, secure)
	}
	for _, p := range pieces {
		if _, err := io.WriteString(conn, p); err != nil {
			return "reset"
		}
	}
	// the end may already be a write to a connection that was reset, and then reading says nothing of it
	ended := conn.(interface{ CloseWrite() error }).CloseWrite()
	b, err := io.ReadAll(conn)
	if gone(err) || gone(ended) {
		return "reset"
	}
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func (s *shared) end(t *testing.T) {
	t.Helper()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

// TestNames: a port at which no TLS ends hands hellos out by server name.
func TestNames(t *testing.T) {
	s := share(t, patient(), nil, map[string][]Match{
		"web": {over(OverTCP, TLS, "web.example.org", "*.meet.example.org")}, "sip": {over(OverTCP, TLS)}, "conf": {over(OverTCP, T120)},
	})
	if _, err := s.port.Listener(over("", TLS)); err == nil {
		t.Error("two defaults were taken")
	}
	if _, err := s.port.Listener(over(OverTCP, TLS, "web.example.org")); err == nil {
		t.Error("a name was taken twice")
	}
	if _, err := s.port.Listener(over(OverTLS, SIP)); err == nil {
		t.Error("what is inside TLS was promised where no TLS ends")
	}
	web := string(hello(t, "web.example.org"))
	for _, tc := range []struct{ name, in, want string }{
		{"by name", web, "web"},
		{"by parent", string(hello(t, "a.meet.example.org")), "web"},
		{"one label only", string(hello(t, "a.b.meet.example.org")), "sip"},
		{"the rest", string(hello(t, "other.example.org")), "sip"},
		{"no name", string(hello(t, "")), "sip"},
		{"another class", unhex(t, "0300 000b 06e0 0000"), "conf"},
		{"not served", pseudo(), "reset"},
		{"nothing at all", "", "reset"},
		{"too little", web[:100], "reset"},
	} {
		want := tc.want
		if want != "reset" {
			want += " 127.0.0.1 " + tc.in + "more"
			tc.in += "more"
		}
		if got := s.ask(t, nil, tc.in); got != want {
			t.Errorf("%s: %.40q, want %.40q", tc.name, got, want)
		}
	}
	if got := s.ask(t, nil, strings.Split(web, "")...); got != "web 127.0.0.1 "+web {
		t.Errorf("bytes one by one: %.40q", got)
	}
	s.end(t)
	if n := s.value(t, "edged_mux_connections_total", "tls", "tcp"); n != 6 {
		t.Errorf("%v TLS connections counted", n)
	}
	if s.rejected(t, "not_served") != 1 || s.rejected(t, "ended") != 2 {
		t.Errorf("%v not served, %v ended", s.rejected(t, "not_served"), s.rejected(t, "ended"))
	}
	if n := s.logged.FilterMessage("connection refused").Len(); n != 1 {
		t.Errorf("%d log lines for one source within a minute", n)
	}
}

// opening is what a client of a class says first.
type opening struct {
	name  string
	class Class
	text  string
}

// openings are all classes of which bytes tell, with what their clients begin with.
func openings(t *testing.T) []opening {
	ws := "GET /ws HTTP/1.1\r\nHost: edge.example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
	return []opening{
		{"ssl 2", SSL2, "\x80\x2e\x01\x03\x01"},
		{"google", SSLTCP, google()},
		{"pseudo-tls", PseudoTLS, pseudo()},
		{"ms-turn control", MSTURN, unhex(t, "0200 0024 0003 0010")},
		{"stun", STUN, unhex(t, "0001 0000 2112a442 000102030405060708090a0b")},
		{"t.120", T120, unhex(t, "0300 000b 06e0 0000 0001 00")},
		{"rdp", RDP, unhex(t, "0300 0013 0ee0 0000 0001 00 0100 0800 0300 0000")},
		{"h.225", H225, unhex(t, "0300 0040 0802 0001")},
		{"get", HTTP, "GET / HTTP/1.1\r\nHost: edge.example.org\r\n\r\n"},
		{"post", HTTP, "POST /x HTTP/1.1\r\nHost: edge.example.org\r\n\r\n"},
		{"h2", HTTP, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{"http options", HTTP, "OPTIONS * HTTP/1.1\r\n\r\n"},
		{"websocket", WebSocket, ws},
		{"connect", Connect, "CONNECT a.example.org:443 HTTP/1.1\r\n\r\n"},
		{"sstp", SSTP, "SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\n\r\n"},
		{"rdg", RPC, "RDG_IN_DATA /remoteDesktopGateway/ HTTP/1.1\r\n\r\n"},
		{"rpc", RPC, "RPC_OUT_DATA /rpc/rpcproxy.dll HTTP/1.1\r\n\r\n"},
		{"register", SIP, "REGISTER sip:example.org SIP/2.0\r\nVia: x\r\n\r\n"},
		{"invite", SIP, "INVITE sip:a@example.org SIP/2.0\r\nVia: x\r\n\r\n"},
		{"sip options", SIP, "OPTIONS sip:example.org SIP/2.0\r\n\r\n"},
		{"keep-alive", SIP, "\r\n\r\n"},
		{"socks 5", SOCKS, "\x05\x01\x00"},
		{"socks 4", SOCKS, "\x04\x01\x00\x50"},
		{"groove", Groove, unhex(t, "01 0040 010500") + "dpp://relay.example.org"},
		{"else", Unknown, "HELO example.org\r\n"},
	}
}

// everything is a service for each class, outside and inside of TLS, but for TLS itself, which ends at the port.
func everything() map[string][]Match {
	all := map[string][]Match{"named": {over(OverTCP, TLS, "web.example.org")}}
	for _, c := range classes() {
		if c != TLS {
			all[Kind{OverTCP, c}.String()] = []Match{over(OverTCP, c)}
			all[Kind{OverTLS, c}.String()] = []Match{over(OverTLS, c)}
		}
	}
	return all
}

// TestEveryClass: all of them at the same time, in one piece and byte by byte (segments, and records of TLS), over TCP and over
// TLS: each reaches its service, with every byte of it.
func TestEveryClass(t *testing.T) {
	s := share(t, patient(), certified(t), everything())
	secure := &tls.Config{ServerName: "edge.example.org", InsecureSkipVerify: true}
	var open sync.WaitGroup
	for _, o := range openings(t) {
		text := o.text + "and more"
		for outer, conf := range map[Outer]*tls.Config{OverTCP: nil, OverTLS: secure} {
			for how, pieces := range map[string][]string{"one piece": {text}, "byte by byte": strings.SplitAfter(text, "")} {
				open.Go(func() {
					want := fmt.Sprintf("%s 127.0.0.1 %s", Kind{outer, o.class}, text)
					if got := s.ask(t, conf, pieces...); got != want {
						t.Errorf("%s over %s, %s: %.60q, want %.60q", o.name, outer, how, got, want)
					}
				})
			}
		}
	}
	open.Go(func() {
		web := string(hello(t, "web.example.org"))
		if got := s.ask(t, nil, web); got != "named 127.0.0.1 "+web {
			t.Errorf("a name that is not for the port: %.60q", got)
		}
	})
	open.Wait()
	s.end(t)
	if n := s.value(t, "edged_mux_connections_total", "stun", "tls"); n != 2 {
		t.Errorf("%v STUN inside TLS counted", n)
	}
}

// TestSilent: who says nothing is reset after the wait where nobody is named for it, and handed over where somebody is.
func TestSilent(t *testing.T) {
	cfg := patient()
	cfg.FirstBytes = 100 * time.Millisecond
	s := share(t, cfg, certified(t), map[string][]Match{"sip": {over(OverTLS, SIP), over(OverTLS, Silent, "sip.example.org", "*.sip.example.org")}})
	for _, tc := range []struct {
		name string
		conf *tls.Config
		want bool
	}{
		{"no TLS", nil, false},
		{"no name", &tls.Config{InsecureSkipVerify: true}, false},
		{"another name", &tls.Config{InsecureSkipVerify: true, ServerName: "edge.example.org"}, false},
		{"the name", &tls.Config{InsecureSkipVerify: true, ServerName: "sip.example.org"}, true},
		{"one below", &tls.Config{InsecureSkipVerify: true, ServerName: "a.sip.example.org"}, true},
	} {
		tcp, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		tcp.SetDeadline(time.Now().Add(patience))
		conn := tcp
		if tc.conf != nil {
			conn = tls.Client(tcp, tc.conf)
			if err := conn.(*tls.Conn).Handshake(); err != nil {
				t.Fatal(err)
			}
		}
		if !tc.want {
			if _, err := conn.Read(make([]byte, 1)); !gone(err) {
				t.Errorf("%s: %v, want a reset", tc.name, err)
			}
			continue
		}
		for before := s.value(t, "edged_mux_connections_total", "silent", "tls"); s.value(t, "edged_mux_connections_total", "silent", "tls") == before; {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatal("not counted as silent")
			}
		}
		io.WriteString(conn, "hello")
		conn.(*tls.Conn).CloseWrite()
		if b, err := io.ReadAll(conn); string(b) != "sip 127.0.0.1 hello" {
			t.Errorf("%s: %q, %v", tc.name, b, err)
		}
	}
	s.end(t)
	if n := s.rejected(t, "silent"); n != 3 {
		t.Errorf("%v silent ones counted", n)
	}
}

// TestSlow: who sends a little and no more is reset, before, in and after the handshake, and gets not one byte of an answer
// that is not TLS's.
func TestSlow(t *testing.T) {
	cfg := patient()
	cfg.FirstBytes, cfg.Handshake = 100*time.Millisecond, 100*time.Millisecond
	s := share(t, cfg, certified(t), everything())
	for _, tc := range []struct{ text, why string }{
		{string(hello(t, "edge.example.org"))[:60], "slow"}, {"REGISTER sip:exa", "slow"}, {"GET / HTTP/1.1\r\nX: ", "slow"}, {string(hello(t, "edge.example.org")), "handshake"},
	} {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		io.WriteString(conn, tc.text)
		b, err := io.ReadAll(conn)
		if tc.why == "slow" && (!gone(err) || len(b) > 0) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.20q: %d bytes, %v; want a reset", tc.text, len(b), err)
		}
	}
	conf := &tls.Config{InsecureSkipVerify: true}
	conn, err := tls.Dial("tcp", s.addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, "REGISTER sip:exa")
	if b, err := io.ReadAll(conn); !gone(err) || len(b) > 0 {
		t.Errorf("slow inside: %q, %v", b, err)
	}
	s.end(t)
	if s.rejected(t, "slow") != 4 || s.rejected(t, "handshake") != 1 {
		t.Errorf("%v slow, %v handshakes", s.rejected(t, "slow"), s.rejected(t, "handshake"))
	}
}

// TestOff: a class that is switched off is nobody's, on the side that is named.
func TestOff(t *testing.T) {
	cfg := patient()
	cfg.Off = []Kind{{"", SOCKS}, {OverTCP, SIP}}
	s := share(t, cfg, certified(t), everything())
	secure := &tls.Config{InsecureSkipVerify: true}
	register := "REGISTER sip:example.org SIP/2.0\r\n"
	for _, tc := range []struct {
		conf     *tls.Config
		in, want string
	}{
		{nil, "\x05\x01\x00", "reset"}, {secure, "\x05\x01\x00", "reset"}, {nil, register, "reset"},
		{secure, register, "tls/sip 127.0.0.1 " + register},
	} {
		if got := s.ask(t, tc.conf, tc.in); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.in, got, tc.want)
		}
	}
	cfg.Off = []Kind{{OverTCP, TLS}}
	s.port.Configure(cfg)
	if got := s.ask(t, secure, register); got != "reset" {
		t.Errorf("TLS that is off: %q", got)
	}
	s.end(t)
	if n := s.rejected(t, "off"); n != 4 {
		t.Errorf("%v counted", n)
	}
}

// TestProxied: who is trusted tells whom the connection comes from; nobody else can.
func TestProxied(t *testing.T) {
	cfg := patient()
	cfg.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s := share(t, cfg, certified(t), everything())
	v1, v2 := "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n", string(ProxyHeader(netip.MustParseAddrPort("[2001:db8::7]:4711"), netip.MustParseAddrPort("[2001:db8::1]:443")))
	register := "REGISTER sip:example.org SIP/2.0\r\n"
	for _, tc := range []struct{ in, want string }{
		{v1 + register, "tcp/sip 192.0.2.7 " + register},
		{v2 + register, "tcp/sip 2001:db8::7 " + register},
		{"PROXY UNKNOWN\r\n" + register, "tcp/sip 127.0.0.1 " + register},
		{register, "tcp/sip 127.0.0.1 " + register},
		{"\r\n\r\n" + register, "tcp/sip 127.0.0.1 \r\n\r\n" + register},
		{v1 + v1, "tcp/unknown 192.0.2.7 " + v1},
		{"PROXY TCP4 nobody\r\n" + register, "reset"},
	} {
		for _, pieces := range [][]string{{tc.in}, strings.SplitAfter(tc.in, "")} {
			if got := s.ask(t, nil, pieces...); got != tc.want {
				t.Errorf("%q in %d: %q, want %q", tc.in, len(pieces), got, tc.want)
			}
		}
	}
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, v1)
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	io.WriteString(secure, register)
	secure.CloseWrite()
	if b, err := io.ReadAll(secure); string(b) != "tls/sip 192.0.2.7 "+register {
		t.Errorf("TLS behind a balancer: %q, %v", b, err)
	}
	cfg.Trusted = nil
	s.port.Configure(cfg)
	if got := s.ask(t, nil, v1+register); got != "tcp/unknown 127.0.0.1 "+v1+register {
		t.Errorf("a header of nobody who is trusted: %q", got)
	}
	s.end(t)
	if n := s.rejected(t, "proxy"); n != 2 {
		t.Errorf("%v bad headers counted", n)
	}
}

// pend opens connections that say nothing, and ends when one of them was refused for that reason.
func (s *shared) pend(t *testing.T, why string, first string) int {
	t.Helper()
	n := 0
	for end := time.Now().Add(patience); s.rejected(t, why) == 0; n++ {
		if time.Now().After(end) {
			t.Fatal("there is no limit")
		}
		conn, err := net.Dial("tcp", s.addr)
		if err != nil && !gone(err) {
			t.Fatal(err)
		}
		if err != nil {
			continue
		}
		t.Cleanup(func() { conn.Close() })
		io.WriteString(conn, first)
		if n >= 4 { // one of those must be refused: wait for it
			conn.SetDeadline(time.Now().Add(time.Second))
			conn.Read(make([]byte, 1))
		}
	}
	return n
}

// TestPending: one source, and all together, may have so many connections that have not said what they are.
func TestPending(t *testing.T) {
	for why, cfg := range map[string]Config{"per_source": {PerSource: 4}, "max_pending": {MaxPending: 4, PerSource: 1000}} {
		cfg.FirstBytes = patience
		s := share(t, cfg, nil, map[string][]Match{"sip": {over(OverTCP, SIP)}})
		if n := s.pend(t, why, ""); n < 5 {
			t.Errorf("%s: one of %d was refused", why, n)
		}
		s.end(t)
	}
}

// TestPendingBehindBalancer: a balancer is no source, whom it tells of is.
func TestPendingBehindBalancer(t *testing.T) {
	cfg := Config{PerSource: 4, FirstBytes: patience, Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	s := share(t, cfg, nil, map[string][]Match{"sip": {over(OverTCP, SIP)}})
	s.pend(t, "per_source", "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n")
	register := "REGISTER sip:example.org SIP/2.0\r\n"
	if got := s.ask(t, nil, "PROXY TCP4 192.0.2.8 198.51.100.1 4711 443\r\n"+register); got != "sip 192.0.2.8 "+register {
		t.Errorf("another client of the balancer: %q", got)
	}
	s.end(t)
}

// TestTunnel: a hello of the tunnel is for who serves it, unread, and TLS like any other where nobody does.
func TestTunnel(t *testing.T) {
	of := string(hello(t, "web.example.org", TunnelProtocol))
	with := share(t, patient(), nil, map[string][]Match{"web": {over(OverTCP, TLS)}, "tunnel": {over(OverTCP, Tunnel)}})
	if got := with.ask(t, nil, of); got != "tunnel 127.0.0.1 "+of {
		t.Errorf("served: %.30q", got)
	}
	if got := with.ask(t, nil, string(hello(t, "web.example.org", "h2"))); !strings.HasPrefix(got, "web ") {
		t.Errorf("of the web: %.30q", got)
	}
	with.end(t)
	without := share(t, patient(), nil, map[string][]Match{"web": {over(OverTCP, TLS, "web.example.org")}})
	if got := without.ask(t, nil, of); !strings.HasPrefix(got, "web ") {
		t.Errorf("not served: %.30q", got)
	}
	without.end(t)
}
