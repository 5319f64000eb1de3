//go:build lab

package lab

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
)

// mrasRequest asks for credentials as Communicator's like does ([MS-AVEDGEA]).
const mrasRequest = `<request requestID="7" from="sip:alice@example.org" version="1.0" to="sip:mras@example.org" xmlns="http://schemas.microsoft.com/2006/09/sip/mrasp">` +
	`<credentialsRequest credentialsRequestID="9"><identity>sip:alice@example.org</identity><location>internet</location><duration>480</duration></credentialsRequest></request>`

// askRelay sends the request on a connection, and returns the answer.
func askRelay(t *testing.T, c net.Conn, proto string) *Message {
	t.Helper()
	must(t, "deadline", c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err := fmt.Fprintf(c, "SERVICE sip:mras@example.org SIP/2.0\r\nVia: SIP/2.0/%s %s;branch=z9hG4bK%s\r\nFrom: <sip:alice@example.org>;tag=%s\r\nTo: <sip:mras@example.org>\r\n"+
		"Call-ID: %s\r\nCSeq: 1 SERVICE\r\nMax-Forwards: 70\r\nContent-Type: application/msrtc-media-relay-auth+xml\r\nContent-Length: %d\r\n\r\n%s",
		proto, c.LocalAddr(), random(8), random(4), random(8), len(mrasRequest), mrasRequest)
	must(t, "send", err)
	for r := bufio.NewReader(c); ; {
		m, err := parseMessage(r, false)
		must(t, "answer to SERVICE", err)
		if m.Status() >= 200 {
			return m
		}
	}
}

// relayLogin reads the credentials of an answer, and what relay it names.
func relayLogin(t *testing.T, m *Message) (user, password, host string) {
	t.Helper()
	get := func(element string) string {
		found := regexp.MustCompile("<" + element + ">([^<]*)</" + element + ">").FindStringSubmatch(m.Body)
		if found == nil {
			t.Fatalf("no %s in %s\n%s", element, m.Start, m.Body)
		}
		return found[1]
	}
	decode := func(text string) string {
		b, err := base64.StdEncoding.DecodeString(text)
		must(t, "credentials", err)
		return string(b)
	}
	return decode(get("username")), decode(get("password")), get("hostName")
}

// mrasSection is MS-TURN that hands out credentials.
func mrasSection(r *Rig, more string) string {
	return fmt.Sprintf("msturn:\n  listen: [\"udp://outside:3478\", \"tcp://outside:443\"]\n  realm: example.org\n  secrets: [\"the secret of the relay\"]\n"+
		"  mras: {host: %q%s}\n  peers: {allow: [%s0/24]}\n", r.GW.IPOn(outside, 4), more, nets4[inside])
}

// relayedBy has a user outside reach a host inside with credentials.
func relayedBy(t *testing.T, r *Rig, user, password string) {
	t.Helper()
	a := r.Outside("user").NiceRelayed(t, "user", "udp", r.GW.IPOn(outside, 4), 3478, user, password).gathered(t)
	if len(a.relayed()) == 0 {
		t.Fatalf("no relayed candidate: %q", a.lines("cand "))
	}
	b := r.Inside("host").Nice(t, "host", "udp").gathered(t)
	meet(a, b)
	a.exchange(t, b)
}

// TestMRAS: the front end asks on 5062, with its certificate, and what it gets lets a client use the relay. From outside nobody gets
// any.
func TestMRAS(t *testing.T) {
	r := niceLab(t)
	ca := newAuthority(t, r.Dir)
	certs := ca.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4))
	frontEnd := ca.issue(t, "fe", []string{"fe.example.org"}).config(t, "edge.example.org")
	r.Edge(t, EdgeConfig{TLS: certs, Listen: []string{"tls://inside:5062"}, SIP: "client_certificates: [inside]", More: mrasSection(r, "")})
	fe := r.Inside("fe")
	at := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 5062)
	connect := func(h *Host, at netip.AddrPort, conf *tls.Config) (c *tls.Conn) {
		t.Helper()
		must(t, "connect", h.Do(func() (err error) {
			c, err = tls.Dial("tcp4", at.String(), conf)
			return err
		}))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	m := askRelay(t, connect(fe, at, frontEnd), "TLS")
	user, password, host := relayLogin(t, m)
	if m.Status() != 200 || host != r.GW.IPOn(outside, 4).String() || !strings.HasSuffix(user, ":alice@example.org") {
		t.Errorf("%s: %q at %s", m.Start, user, host)
	}
	relayedBy(t, r, user, password)
	stranger := frontEnd.Clone()
	stranger.Certificates = nil
	m = askRelay(t, connect(r.Outside("stranger"), netip.AddrPortFrom(r.GW.IPOn(outside, 4), 5061), stranger), "TLS")
	if m.Status() < 400 || strings.Contains(m.Body, "password") {
		t.Errorf("a stranger gets %s\n%s", m.Start, m.Body)
	}
}

// TestMRASRewrite: a client outside asks the service of another edge, behind this one: the answer names this relay, which takes
// the credentials.
func TestMRASRewrite(t *testing.T) {
	r := niceLab(t)
	server := r.Inside("mras")
	coded := base64.StdEncoding.EncodeToString
	name, secret := "\x01\x00 a blob of the other edge's\xff", "\x02 its password"
	body := `<response requestID="7" reasonPhrase="OK" xmlns="http://schemas.microsoft.com/2006/09/sip/mrasp"><credentialsResponse credentialsRequestID="9"><credentials><username>` +
		coded([]byte(name)) + `</username><password>` + coded([]byte(secret)) + `</password><duration>480</duration></credentials><mediaRelayList><mediaRelay><location>internet</location>` +
		`<hostName>av.example.net</hostName><udpPort>1</udpPort><tcpPort>2</tcpPort></mediaRelay></mediaRelayList></credentialsResponse></response>`
	server.answers(t, 5060, body)
	r.Edge(t, EdgeConfig{Domains: fmt.Sprintf("example.org: {network: inside, server: \"tcp:%s:5060\"}\n", server.IP), More: mrasSection(r, ", rewrite: true")})
	var c net.Conn
	must(t, "connect", r.Outside("asker").Do(func() (err error) {
		c, err = net.Dial("tcp4", netip.AddrPortFrom(r.GW.IPOn(outside, 4), 5060).String())
		return err
	}))
	defer c.Close()
	m := askRelay(t, c, "TCP")
	user, password, host := relayLogin(t, m)
	want := strings.NewReplacer("av.example.net", r.GW.IPOn(outside, 4).String(), "<udpPort>1<", "<udpPort>3478<", "<tcpPort>2<", "<tcpPort>443<").Replace(body)
	if m.Body != want || user != name || password != secret {
		t.Fatalf("%s from %s\n%s\nwant\n%s", m.Start, host, m.Body, want)
	}
	relayedBy(t, r, user, password)
}

// answers is a server of SIP over TCP that gives every request the same answer.
func (h *Host) answers(t *testing.T, port uint16, body string) {
	t.Helper()
	var ln net.Listener
	must(t, "listen", h.Do(func() (err error) {
		ln, err = net.Listen("tcp4", h.Addr(4, port).String())
		return err
	}))
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			answerAll(c, body)
		}
	}()
}

// answerAll serves one connection until it ends: the edge keeps one.
func answerAll(c net.Conn, body string) {
	defer c.Close()
	for r := bufio.NewReader(c); ; {
		m, err := parseMessage(r, false)
		if err != nil {
			return
		}
		a := m.answer("200 OK", Field{"Content-Type", "application/msrtc-media-relay-auth+xml"})
		if m.Method() == "SERVICE" {
			a.Body = body
		}
		if _, err := c.Write(a.octets()); err != nil {
			return
		}
	}
}
