//go:build lab

package lab

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// port443 is an edge all of whose services are on 443 outside, a web server inside and a user outside.
type port443 struct {
	*Rig
	edge      *Edge
	user      *Host
	certs     *Certificates
	at        netip.AddrPort
	toService *tls.Config
}

// newPort443 opens the port; more are lines of its item under "shared".
func newPort443(t *testing.T, more string) *port443 {
	r := lab(t)
	onlyEdged(t, "the reference shares no port")
	for _, name := range []string{"curl", "openssl", "turnutils_uclient", "turnutils_peer"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: %v (Debian packages: lab/packages.txt)", err)
		}
	}
	p := &port443{Rig: r, user: r.Outside("user"), at: netip.AddrPortFrom(r.GW.IPOn(outside, 4), 443)}
	ca := newAuthority(t, r.Dir)
	p.certs = ca.issue(t, "edge", []string{"edge.example.org"}, p.at.Addr())
	p.toService = p.certs.config(t, "edge.example.org")
	p.toService.Certificates = nil
	web := r.Inside("web")
	web.page(t, 8080, "the site\n")
	p.edge = r.Edge(t, EdgeConfig{TLS: p.certs, Listen: []string{"tls://outside:443", "tcp://outside:443", "wss://outside:443"}, More: fmt.Sprintf(
		"turn: {listen: [\"tls://outside:443\", \"tcp://outside:443\"], realm: example.org, users: {alice: secret}, peers: {allow: [198.51.100.0/24]}}\n"+
			"msturn: {listen: [\"tcp://outside:443\"], realm: example.org, users: {alice: secret}}\n"+
			"forwards: [{name: site, listen: \"tcp://outside:443\", classes: [tls/http], to: \"%v:8080\", allow: [198.51.100.0/24]}]\n"+
			"shared: [{listen: \"tcp://outside:443\"%s}]\n", web.IP, more)})
	return p
}

// page is a web server that says the same to whoever comes.
func (h *Host) page(t *testing.T, port uint16, text string) {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp", h.Addr(4, port).String())
		return err
	}))
	s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })}
	t.Cleanup(func() { s.Close() })
	go s.Serve(ln)
}

// run runs a program at the user's and returns what it prints.
func (p *port443) run(t *testing.T, name, stdin string, argv ...string) (string, error) {
	t.Helper()
	x := p.user.Start(t, name, argv...)
	io.WriteString(x.stdin, stdin)
	err := x.Wait(60 * time.Second)
	b, _ := os.ReadFile(x.Log)
	return string(b), err
}

// probes are real clients, each with what shows that it reached its service; an error says that it did not.
func (p *port443) probes(t *testing.T) map[string]func() error {
	curl := func(name string, args ...string) func() error {
		return func() error {
			args := append([]string{"curl", "-sS", "--max-time", "20", "--cacert", p.certs.CA, "--resolve", "edge.example.org:443:" + p.at.Addr().String()}, args...)
			out, err := p.run(t, name, "", append(args, "https://edge.example.org/")...)
			if err == nil && !strings.Contains(out, "the site\n") {
				err = fmt.Errorf("no page")
			}
			return err
		}
	}
	return map[string]func() error{
		"curl":         curl("curl"),
		"curl-no-alpn": curl("curl-no-alpn", "--no-alpn"),
		"curl-tls12":   curl("curl-tls12", "--tls-max", "1.2"),
		"sip-openssl": func() error {
			out, err := p.run(t, "openssl", options(), "timeout", "10", "openssl", "s_client", "-quiet", "-servername", "edge.example.org", "-CAfile", p.certs.CA, "-verify_return_error", "-connect", p.at.String())
			if strings.Contains(out, "SIP/2.0 ") {
				return nil
			}
			return fmt.Errorf("no answer: %w", err)
		},
		"sip-tls":    func() error { return p.user.says("tcp", p.at, p.toService, options(), "SIP/2.0 ") },
		"sip-tcp":    func() error { return p.user.says("tcp", p.at, nil, options(), "SIP/2.0 ") },
		"sip-wss":    func() error { return p.user.says("tcp", p.at, p.toService, upgrade(), "HTTP/1.1 101 ") },
		"turn-tcp":   func() error { return p.relayed(t, "turn-tcp", "-t") },
		"turn-tls":   func() error { return p.relayed(t, "turn-tls", "-t", "-S") },
		"msturn-tls": func() error { return p.user.says("tcp", p.at, nil, pseudoHello(), "\x16\x03\x01\x00\x4e\x02") },
	}
}

func upgrade() string {
	return "GET / HTTP/1.1\r\nHost: edge.example.org\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
}

func pseudoHello() string {
	return "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01" + strings.Repeat("r", 32) + "\x00\x00\x02\x00\x18\x01\x00"
}

// relayed has coturn's client send to coturn's peer, and wants all of it back.
func (p *port443) relayed(t *testing.T, name string, args ...string) error {
	tr := &turnRig{Rig: p.Rig, client: p.user, peer: p.user}
	sent, received, out := tr.uclient(t, name, p.at.Addr(), p.user.IP, "443", append([]string{"-c"}, args...)...)
	if sent == 0 || sent != received {
		return fmt.Errorf("%d sent, %d received: %s", sent, received, out)
	}
	return nil
}

// TestPort443: real clients of all services reach theirs on one port, one after the other and beside clients that drip.
func TestPort443(t *testing.T) {
	p := newPort443(t, "")
	peer := p.user.Start(t, "peer", "turnutils_peer", "-L", p.user.IP.String(), "-p", "3480")
	eventually(t, 10*time.Second, "the peer listens", func() bool { return p.user.listens(t, 3480) || !peer.Alive() })
	for range 8 { // half open, and staying so
		c, err := p.user.dial("tcp", p.at)
		must(t, "dial", err)
		t.Cleanup(func() { c.Close() })
		io.WriteString(c, "\x16\x03\x01")
	}
	for name, probe := range p.probes(t) {
		if err := probe(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := p.user.dropped("tcp", p.at, "HELO example.org\r\n"); err != nil {
		t.Errorf("what is nobody's: %v", err)
	}
	if n := p.edge.Metric("edged_mux_connections_total", `class="stun"`, `outer="tls"`); n == 0 {
		t.Error("TURN inside TLS is not counted")
	}
}

// TestPort443Control: where the classes are switched off the same clients reach nothing.
func TestPort443Control(t *testing.T) {
	p := newPort443(t, ", off: [http, sip, sip_websocket, stun, pseudo_tls]")
	peer := p.user.Start(t, "peer", "turnutils_peer", "-L", p.user.IP.String(), "-p", "3480")
	eventually(t, 10*time.Second, "the peer listens", func() bool { return p.user.listens(t, 3480) || !peer.Alive() })
	for name, probe := range p.probes(t) {
		if strings.HasPrefix(name, "turn-") { // coturn's client tries again for minutes
			continue
		}
		if err := probe(); err == nil {
			t.Errorf("%s has reached a service", name)
		}
	}
	if n := p.edge.Metric("edged_mux_rejected_total", "off"); n < 8 {
		t.Errorf("%v refused because they are off", n)
	}
}
