package main

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/sharedport"
)

// plainBackend is a server in clear that says its name and echoes, the PROXY protocol's header included.
func plainBackend(t *testing.T, name string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return echoes(t, ln, name+" ")
}

// own is the daemon's address in these tests, with a port.
func own(port int) string {
	pid := os.Getpid()
	return fmt.Sprintf("127.77.%d.%d:%d", pid>>8&255, pid&255, port)
}

// said connects, over TLS if conf is not nil, sends a text, and returns what comes until something is as long as want.
func said(t *testing.T, addr string, conf *tls.Config, text, want string) (string, error) {
	t.Helper()
	dialer := net.Dialer{Timeout: time.Minute}
	c, err := dialer.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if conf != nil {
		c = tls.Client(c, conf)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	b := make([]byte, len(want))
	n, err := io.ReadFull(c, b)
	return string(b[:n]), err
}

const optionsRequest = "OPTIONS sip:example.org SIP/2.0\r\nVia: SIP/2.0/%s 127.0.0.1;branch=z9hG4bK1\r\nMax-Forwards: 0\r\nFrom: <sip:a@example.org>;tag=1\r\n" +
	"To: <sip:a@example.org>\r\nCall-ID: 1\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"

// TestOnePort: SIP in each of its transports, H.323, T.120 and forwards on one port, at the same time.
func TestOnePort(t *testing.T) {
	dir := t.TempDir()
	writeTestCertificate(t, dir, "edge", "edge.example.org", time.Now().Add(time.Hour))
	writeTestCertificate(t, dir, "web", "web.example.org", time.Now().Add(time.Hour))
	site, groove, rest, web := plainBackend(t, "site"), plainBackend(t, "groove"), plainBackend(t, "rest"), backend(t, dir, "web", nil)
	d := startDaemon(t, sipAt(t.TempDir(), fmt.Sprintf("tls: {certificates: [{cert: %s/edge.pem, key: %[1]s/edge.key}]}\n"+
		"sip: {listen: ['tls://inside:5061', 'tcp://inside:5061', 'wss://inside:5061']}\n"+
		"h323: {listen: ['tcp://inside:5061']}\nt120: {listen: ['tcp://inside:5061']}\n"+
		"turn: {listen: ['tls://inside:5061', 'tcp://inside:5061'], realm: example.org, users: {alice: secret}}\n"+
		"msturn: {listen: ['tcp://inside:5061'], users: {alice: secret}}\nforwards:\n"+
		"  - {name: site, listen: 'tcp://inside:5061', classes: [tls/http, connect], to: '%s', allow: [127.0.0.0/8]}\n"+
		"  - {name: groove, listen: 'tcp://inside:5061', classes: [groove], proxy_protocol: true, to: '%s', allow: [127.0.0.0/8]}\n"+
		"  - {name: rest, listen: 'tcp://inside:5061', classes: [unknown], to: '%s', allow: [127.0.0.0/8]}\n"+
		"  - {name: web, listen: 'tcp://inside:5061', sni: [web.example.org], to: '%s', allow: [127.0.0.0/8]}\n"+
		"shared: [{listen: 'tcp://inside:5061', off: [socks], per_source: 100, first_bytes: 30s, handshake: 30s}]\n", dir, site, groove, rest, web)))
	addr, secure := own(5061), &tls.Config{ServerName: "edge.example.org", RootCAs: pool(t, dir, "edge")}
	binding := "\x00\x01\x00\x00\x21\x12\xa4\x42abcdefghijkl"
	pseudo := "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01" + strings.Repeat("r", 32) + "\x00\x00\x02\x00\x18\x01\x00"
	connect := "\x01\x00\x40\x01\x05\x00dpp://relay.example.org"
	var open sync.WaitGroup
	for _, tc := range []struct {
		name       string
		conf       *tls.Config
		text, want string // want: what the answer begins with; "" = a reset
	}{
		{"sip over tls", secure, fmt.Sprintf(optionsRequest, "TLS"), "SIP/2.0 "},
		{"sip in clear", nil, fmt.Sprintf(optionsRequest, "TCP"), "SIP/2.0 "},
		{"a page", secure, "GET / HTTP/1.1\r\n\r\n", "site GET / HTTP/1.1\r\n\r\n"},
		{"a page in clear", nil, "GET / HTTP/1.1\r\n\r\n", ""},
		{"connect", nil, "CONNECT a.example.org:443 HTTP/1.1\r\n\r\n", "site CONNECT a.example.org:443 HTTP/1.1\r\n\r\n"},
		{"groove", nil, connect, "groove \r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"},
		{"something", nil, "HELO example.org\r\n", "rest HELO example.org\r\n"},
		{"something inside", secure, "HELO example.org\r\n", "rest HELO example.org\r\n"},
		{"tls of another", &tls.Config{ServerName: "web.example.org", RootCAs: pool(t, dir, "web")}, "hello", "web\nhello"},
		{"socks, switched off", nil, "\x05\x01\x00", ""},
		{"stun", nil, binding, "\x01\x01"},
		{"stun over tls", secure, binding, "\x01\x01"},
		{"pseudo-tls", nil, pseudo, "\x16\x03\x01\x00\x4e\x02\x00\x00\x46\x03\x01"},
		{"rdp, not served", nil, "\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00", ""},
	} {
		open.Go(func() {
			got, err := said(t, addr, tc.conf, tc.text, cmp.Or(tc.want, " "))
			if tc.want == "" && err != nil && got == "" {
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("%s: %q, %v; want %q", tc.name, got, err, tc.want)
			}
		})
	}
	open.Wait()
	sipOverWebSocket(t, addr, secure)
	// H.323 and T.120 say nothing to what is no call; it is theirs all the same.
	for _, conf := range []*tls.Config{nil, secure} {
		for _, first := range []string{"\x03\x00\x00\x08\x08\x02\x00\x01", "\x03\x00\x00\x0b\x06\xe0\x00\x00\x00\x01\x00"} {
			if _, err := said(t, addr, conf, first, ""); err != nil {
				t.Error(err)
			}
		}
	}
	until(t, "all are counted", func() bool {
		body, err := d.get(t.Context(), "/metrics")
		all := err == nil && strings.Contains(string(body), `edged_mux_rejected_total{reason="not_served"} 2`+"\n")
		for _, kind := range []string{`class="t120",outer="tcp"`, `class="t120",outer="tls"`, `class="h225",outer="tcp"`, `class="h225",outer="tls"`} {
			all = all && strings.Contains(string(body), "edged_mux_connections_total{"+kind+"} 1\n")
		}
		return all
	})
}

// sipOverWebSocket has an OPTIONS answered over wss.
func sipOverWebSocket(t *testing.T, addr string, secure *tls.Config) {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	tc := tls.Client(c, secure)
	io.WriteString(tc, "GET / HTTP/1.1\r\nHost: edge.example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\r\n")
	line, err := bufio.NewReader(tc).ReadString('\n')
	if err != nil || !strings.Contains(line, " 101 ") {
		t.Errorf("the upgrade was answered %q, %v", line, err)
	}
}

// TestCertificatesBesideOthers: SIP demands certificates, others on its port cannot have any.
func TestCertificatesBesideOthers(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"edge", "peer"} {
		writeTestCertificate(t, dir, n, n+".example.org", time.Now().Add(time.Hour))
	}
	peer, err := tls.LoadX509KeyPair(filepath.Join(dir, "peer.pem"), filepath.Join(dir, "peer.key"))
	if err != nil {
		t.Fatal(err)
	}
	anybody := &tls.Config{ServerName: "edge.example.org", RootCAs: pool(t, dir, "edge")}
	known := anybody.Clone()
	known.Certificates = []tls.Certificate{peer}
	base := "tls: {certificates: [{cert: %s/edge.pem, key: %[1]s/edge.key}], client_ca: %[1]s/peer.pem}\n" +
		"sip: {listen: ['tls://inside:5061'], client_certificates: [inside]}\nshared: [{listen: 'tcp://inside:5061'}]\n"
	request, site := fmt.Sprintf(optionsRequest, "TLS"), plainBackend(t, "site")
	for name, text := range map[string]string{
		"alone":  fmt.Sprintf(base, dir),
		"beside": fmt.Sprintf(base, dir) + fmt.Sprintf("forwards: [{name: site, listen: 'tcp://inside:5061', classes: [tls/http], to: '%s', allow: [127.0.0.0/8]}]\n", site),
	} {
		t.Run(name, func(t *testing.T) {
			startDaemon(t, sipAt(t.TempDir(), text))
			if got, err := said(t, own(5061), known, request, "SIP/2.0 "); got != "SIP/2.0 " {
				t.Errorf("who has a certificate: %q, %v", got, err)
			}
			if got, err := said(t, own(5061), anybody, request, "SIP/2.0 "); err == nil {
				t.Errorf("who has none: %q", got)
			}
			got, err := said(t, own(5061), anybody, "GET / HTTP/1.1\r\n\r\n", "site GET")
			if beside := name == "beside"; beside != (got == "site GET") {
				t.Errorf("a page without a certificate: %q, %v", got, err)
			}
		})
	}
}

// TestSilentClients: who says nothing inside TLS is SIP's where it is alone or named for it, and nobody's else.
func TestSilentClients(t *testing.T) {
	dir := t.TempDir()
	writeTestCertificate(t, dir, "edge", "edge.example.org", time.Now().Add(time.Hour))
	site := plainBackend(t, "site")
	forward := fmt.Sprintf("forwards: [{name: site, listen: 'tcp://inside:5061', classes: [tls/http], to: '%s', allow: [127.0.0.0/8]}]\n", site)
	for name, tc := range map[string]struct {
		shared, more string
		want         bool
	}{
		"alone":         {"", "", true},
		"alone none":    {", silent: none", "", false},
		"beside":        {"", forward, false},
		"beside sip":    {", silent: sip", forward, true},
		"beside a name": {", silent_names: [edge.example.org]", forward, true},
		"another name":  {", silent_names: [sip.example.org]", forward, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t, sipAt(t.TempDir(), fmt.Sprintf("tls: {certificates: [{cert: %s/edge.pem, key: %[1]s/edge.key}]}\n"+
				"sip: {listen: ['tls://inside:5061']}\nshared: [{listen: 'tcp://inside:5061', first_bytes: 300ms%s}]\n%s", dir, tc.shared, tc.more)))
			c, err := tls.Dial("tcp", own(5061), &tls.Config{ServerName: "edge.example.org", RootCAs: pool(t, dir, "edge")})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			if !tc.want {
				if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%v, want a reset", err)
				}
				return
			}
			until(t, "it is counted as silent", func() bool {
				body, err := d.get(t.Context(), "/metrics")
				return err == nil && strings.Contains(string(body), `edged_mux_connections_total{class="silent",outer="tls"} 1`)
			})
			io.WriteString(c, fmt.Sprintf(optionsRequest, "TLS"))
			b := make([]byte, 8)
			if _, err := io.ReadFull(c, b); string(b) != "SIP/2.0 " {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
}

// TestProtocolNames: clients with any names of ALPN, or none, are let in, and old ones where the port says so.
func TestProtocolNames(t *testing.T) {
	dir := t.TempDir()
	writeTestCertificate(t, dir, "edge", "edge.example.org", time.Now().Add(time.Hour))
	config := func(legacy bool) string {
		return sipAt(t.TempDir(), fmt.Sprintf("tls: {certificates: [{cert: %s/edge.pem, key: %[1]s/edge.key}]}\n"+
			"sip: {listen: ['tls://inside:5061']}\nshared: [{listen: 'tcp://inside:5061', legacy: %v}]\n", dir, legacy))
	}
	d := startDaemon(t, config(false))
	conf := &tls.Config{ServerName: "edge.example.org", RootCAs: pool(t, dir, "edge")}
	agreed := func(conf *tls.Config) string {
		t.Helper()
		c, err := tls.Dial("tcp", own(5061), conf)
		if err != nil {
			return "!"
		}
		defer c.Close()
		return c.ConnectionState().NegotiatedProtocol
	}
	for offered, want := range map[string]string{"": "", "h2 http/1.1": "http/1.1", "stun.turn": "stun.turn", "h2": "", "acme-tls/1 x": "", "sip/2": "sip/2"} {
		with := conf.Clone()
		with.NextProtos = strings.Fields(offered)
		if got := agreed(with); got != want {
			t.Errorf("%q: agreed on %q, want %q", offered, got, want)
		}
	}
	old := conf.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if agreed(old) != "!" {
		t.Error("TLS 1.1 was accepted")
	}
	d.write(config(true))
	d.reload()
	if agreed(old) == "!" {
		t.Error("TLS 1.1 was not accepted where legacy is on")
	}
}

// TestSharedClaims: a section that says nothing of a port leaves it as 443 is by itself.
func TestSharedClaims(t *testing.T) {
	cfg, err := parseConfig("x.yaml", []byte("networks: {inside: {addresses: [10.0.0.1]}}\nh323: {listen: ['tcp://inside:443']}\nt120: {listen: ['tcp://inside:1503']}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(cfg.sharedListens()); n != 0 {
		t.Errorf("%d ports are shared, though nobody speaks TLS", n)
	}
	if s, i := cfg.sharedSection(cfg.H323.Listen[0]); i != -1 || s.Completed().PerSource != sharedport.DefaultPerSource {
		t.Errorf("%+v", s)
	}
}
