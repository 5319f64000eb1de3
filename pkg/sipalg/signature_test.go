package sipalg

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// signatureOf returns a message's Microsoft signature and what it covers ([MS-SIPAE], version 4), read without the
// codec; "" if it has none.
func signatureOf(m *msg) (sig, covered string) {
	for _, l := range m.lines {
		switch name(l) {
		case "authorization", "proxy-authorization", "authentication-info", "proxy-authentication-info":
		default:
			continue
		}
		for _, key := range []string{`response="`, `rspauth="`} {
			if _, v, ok := strings.Cut(l, key); ok {
				sig, _, _ = strings.Cut(v, `"`)
				covered = l
			}
		}
	}
	if sig == "" {
		return "", ""
	}
	for _, h := range []string{"Call-ID", "CSeq", "Expires", "P-Asserted-Identity", "P-Preferred-Identity"} {
		covered += "<" + m.get(h) + ">"
	}
	for _, h := range []string{"From", "To"} {
		covered += "<" + uriOf(m.get(h)) + "><" + tagOf(m.get(h)) + ">"
	}
	if m.status != 0 {
		covered += fmt.Sprint(m.status)
	}
	return sig, covered
}

// checkSignature holds for every message of the edge: what is signed is as it came, and is sent once.
func (w *world) checkSignature(f flow.Flow, raw string) {
	w.t.Helper()
	sig, covered := signatureOf(parseMsg(raw))
	if sig == "" {
		return
	}
	if was := w.signed[sig]; was != covered {
		w.t.Errorf("signed\n%s\nsent as\n%s", was, covered)
	}
	once := fmt.Sprint(f.Conn, " ", sig)
	if f.Conn != 0 && w.resent[once] {
		w.t.Errorf("a signed message is sent twice by one connection:\n%s", raw)
	}
	w.resent[once] = true
}

// TestSignedNotAnswered: a client that has signed on would ignore the edge's own refusals: they are withheld and
// counted. Answers to REGISTER are not, nor those to who does not sign.
func TestSignedNotAnswered(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:198.51.100.20:5060"}
		c.EarlyRefresh = true
	})
	alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
	old := w.phone("old", flow.UDP, "10.0.0.6:5060", "10.0.0.1:5060")
	w.refused[flow.Target{Network: "outside", Proto: flow.TCP, Addr: ap("198.51.100.20:5060")}] = true
	for _, p := range []*phone{alice, old} {
		d := p.dial("sip:bob@example.com")
		d.raw(d.text("INVITE", p.sdp(4000), sign("i-"+p.name)))
		d = p.dial("sip:nobody@10.0.0.1")
		d.raw(d.text("MESSAGE", "", sign("m-"+p.name)))
		w.after(time.Minute)
		p.nothing()
	}
	d := alice.signUp()
	d.raw(d.text("REGISTER", "", sign("r1"), "Contact: <sip:10.0.0.5:45062;transport=tcp>"))
	alice.expect("503")
	alice.dial("sip:bob@example.com").send("MESSAGE", "", `Authorization: Digest username="alice", response="00"`)
	alice.expect("503")
	d = alice.dial("sip:bob@example.com")
	d.raw(d.text("MESSAGE", "", `Authorization: Digest username="alice", response="00"`, sign("m2")))
	alice.nothing()
	w.drops("answer_unsigned", 5)
	w.clean()
}

// TestSignedRefreshPasses: the edge does not answer a signed refresh in the registrar's stead, whose signature and
// parameters the client waits for.
func TestSignedRefreshPasses(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.EarlyRefresh = true })
	alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	d := alice.signUp()
	for i := range 3 {
		d.raw(d.text("REGISTER", "", sign(fmt.Sprint("r", i)), "Contact: <sip:10.0.0.5:45062;transport=tcp>"))
		req := bob.expect("REGISTER")
		bob.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600")
		alice.expect("200")
	}
	w.clean()
}

// TestSignedCancel: a CANCEL takes its signature along, and the server's own answer to it comes back.
func TestSignedCancel(t *testing.T) {
	for _, hide := range []bool{true, false} {
		w := newWorld(t, func(c *Config) { c.HideTopology = hide })
		w.showsIn = !hide
		alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
		d := alice.dial("sip:bob@example.com")
		raw := d.text("INVITE", alice.sdp(4000), sign("i1"))
		d.raw(raw)
		inv := bob.expect("INVITE")
		bob.reply(inv, bob.answered(inv), 180, "")
		alice.expect("180")
		req := parseMsg(raw)
		num, _, _ := strings.Cut(req.cseq(), " ")
		cancel := fmt.Sprintf("CANCEL %s SIP/2.0\nVia: %s\nFrom: %s\nTo: %s\nCall-ID: %s\nCSeq: %s CANCEL\n%s\nMax-Forwards: 70\n",
			req.ruri(), req.all("Via")[0], req.get("From"), req.get("To"), req.get("Call-ID"), num, sign("c1"))
		d.raw(withBody(cancel, ""))
		alice.nothing()
		got := bob.expect("CANCEL")
		if !hasLine(got, sign("c1")) || len(got.all("Via")) != 1 || got.all("Via")[0] != inv.all("Via")[0] {
			t.Errorf("%s", got.raw)
		}
		const answer = `Authentication-Info: NTLM rspauth="c2", srand="01", snum="1"`
		bob.reply(got, nil, 200, "", answer)
		ok := alice.expect("200")
		if !hasLine(ok, answer) || len(ok.all("Via")) != 1 || !strings.HasPrefix(ok.all("Via")[0], strings.SplitN(req.all("Via")[0], ";rport", 2)[0]) {
			t.Errorf("%s", ok.raw)
		}
		bob.reply(inv, nil, 487, "", `Authentication-Info: NTLM rspauth="i2", srand="01", snum="2"`)
		bob.expect("ACK")
		alice.expect("487")
		w.clean()
	}
}

// TestSignedOnce: a repeated signed request on a connection gets no second copy of its signed answer.
func TestSignedOnce(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	d := alice.dial("sip:bob@example.com")
	raw := d.text("SERVICE", "", sign("s1"))
	d.raw(raw)
	bob.reply(bob.expect("SERVICE"), nil, 200, "", `Authentication-Info: NTLM rspauth="s2", srand="01", snum="1"`)
	alice.expect("200")
	d.raw(raw)
	bob.nothing()
	alice.nothing()
	w.drops("signed_again", 1)
	w.clean()
}

// signature makes a header line that signs one message of p.
func (p *phone) signature() string {
	if p.signs == "" {
		return ""
	}
	p.n++
	key := map[bool]string{true: "rspauth", false: "response"}[strings.HasSuffix(p.signs, "Info")]
	return fmt.Sprintf("%s: NTLM qop=\"auth\", %s=\"%s-%d\", snum=\"%d\"\n", p.signs, key, p.name, p.n, p.n)
}

// TestSignatureCheck: the check of all these tests sees what breaks a signature, as measured with pidgin-sipe, and
// nothing else.
func TestSignatureCheck(t *testing.T) {
	const request = "INVITE sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/TCP 10.0.0.5:1\r\nRecord-Route: <sip:10.0.0.9;lr>\r\nMax-Forwards: 70\r\n" +
		"From: \"Alice\" <sip:alice@example.com>;tag=1;epid=01\r\nTo: <sip:bob@example.com>;tag=2\r\nCall-ID: c1\r\nCSeq: 1 INVITE\r\n" +
		"Contact: <sip:alice@example.com:1;maddr=10.0.0.5>;proxy=replace\r\nUser-Agent: RTC/1.3\r\nExpires: 60\r\nP-Asserted-Identity: <sip:alice@example.com>\r\n" +
		"Authorization: NTLM response=\"s1\"\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
	_, covered := signatureOf(parseMsg(request))
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"Call-ID: c1", "Call-ID: c2", false}, {"CSeq: 1", "CSeq: 2", false}, {"<sip:alice@example.com>;tag", "<sip:al@example.com>;tag", false},
		{"tag=1", "tag=3", false}, {"tag=2", "tag=3", false}, {"To: <sip:bob@", "To: <sip:bobby@", false}, {"Expires: 60", "Expires: 30", false},
		{"Expires: 60\r\n", "", false}, {"Identity: <sip:alice@", "Identity: <sip:al@", false}, {"response=\"s1\"", "response=\"s2\"", false},
		{"\r\n\r\nhi", "\r\n\r\nho", true}, {"text/plain", "text/html", true}, {"10.0.0.5:1\r\n", "10.0.0.5:1;received=10.0.0.5\r\n", true},
		{"Record-Route: <sip:10.0.0.9;lr>", "X: y", true}, {"RTC/1.3", "x", true}, {"Forwards: 70", "Forwards: 69", true}, {"INVITE sip:bob", "INVITE sip:~x", true},
		{"maddr=10.0.0.5", "maddr=10.0.0.1", true}, {"\"Alice\"", "\"A\"", true},
	} {
		if _, got := signatureOf(parseMsg(strings.Replace(request, c.from, c.to, 1))); (got == covered) != c.ok {
			t.Errorf("%q for %q: %v", c.to, c.from, got == covered)
		}
	}
	_, ok := signatureOf(parseMsg("SIP/2.0 200 OK\r\nAuthentication-Info: NTLM rspauth=\"s\"\r\n\r\n"))
	if _, not := signatureOf(parseMsg("SIP/2.0 202 OK\r\nAuthentication-Info: NTLM rspauth=\"s\"\r\n\r\n")); ok == not {
		t.Error("another status is not seen")
	}
}

// TestSignedScenario: with everything that edits messages switched on, a client that signs and a server that signs
// exchange all that Messenger does. The world checks each message; the client is inside or outside.
func TestSignedScenario(t *testing.T) {
	for _, inside := range []bool{true, false} {
		w := newWorld(t, func(c *Config) {
			c.EarlyRefresh, c.Keepalive, c.ICE = true, 25*time.Second, "relay"
			c.IMURLs.Mode = "defuse"
			if !inside {
				c.Domains["example.com"] = Domain{Network: "inside", Server: "tcp:10.0.0.20:5060"}
			}
		})
		e := w.withEditor(func(c Content) Verdict { return Verdict{Body: append([]byte("edited "), c.Body...)} })
		alice, server := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.phone("bob", flow.UDP, "198.51.100.20:5060", "198.51.100.1:5060")
		if !inside {
			alice, server = w.phone("alice", flow.TCP, "198.51.100.5:45062", "198.51.100.1:5060"), w.phone("bob", flow.TCP, "10.0.0.20:5060", "10.0.0.1:5060")
		}
		alice.signs, server.signs = "Proxy-Authorization", "Proxy-Authentication-Info"
		alice.extra = []string{"P-Preferred-Identity: <sip:alice@example.com>, <tel:+4930123>", "User-Agent: RTC/1.3"}
		server.extra = []string{"P-Asserted-Identity: \"Bob\" <sip:bob@example.com>, <tel:+4930124>"}
		signedScenario(w, alice, server)
		seen := map[string]bool{}
		for _, c := range e.take() {
			seen[fmt.Sprint(c.Method, c.Status, c.Header)] = true
			if !c.Signed {
				t.Errorf("%s of %s is not known as signed", c.Method, c.From)
			}
		}
		if len(seen) != 4 {
			t.Errorf("contents: %v", seen)
		}
		if w.core.drops["im_url_defused"] != 3 {
			t.Errorf("%v", w.core.drops)
		}
		if len(w.resent) < 30 {
			t.Errorf("only %d signed messages", len(w.resent))
		}
	}
}

func signedScenario(w *world, alice, server *phone) {
	w.t.Helper()
	exchange := func(d *peer, to *phone, method, body string, extra ...string) *msg {
		w.t.Helper()
		raw := d.text(method, "", extra...)
		if body != "" {
			raw = withType(strings.Replace(raw, "Content-Length: 0\r\n\r\n", "", 1), "text/plain", body)
		}
		d.raw(raw)
		req := to.expect(method)
		to.reply(req, nil, 200, "", "Expires: 300")
		d.p.expect("200")
		return req
	}
	contact := fmt.Sprintf("Contact: <sip:%s;transport=tcp;ms-opaque=1>;proxy=replace", alice.addr)
	reg := alice.signUp()
	for range 2 {
		reg.send("REGISTER", "", contact, "ms-keep-alive: UAC;hop-hop=yes")
		req := server.expect("REGISTER")
		server.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600", "ms-keep-alive: UAS; hop-hop=yes; timeout=300")
		alice.expect("200")
	}
	alice.old = true
	sub := alice.dial("sip:alice@example.com")
	sub.send("SUBSCRIBE", "", "Event: presence", "Expires: 0", "Proxy-Require: ms-benotify")
	req := server.expect("SUBSCRIBE")
	n := server.answered(req)
	server.reply(req, n, 200, "", "Expires: 28800")
	sub.learn(alice.expect("200"))
	n.send("BENOTIFY", "", "Event: presence")
	alice.expect("BENOTIFY")
	exchange(n, alice, "NOTIFY", "")
	exchange(alice.dial("sip:alice@example.com"), server, "SERVICE", "")
	exchange(alice.dial("sip:bob@example.com"), server, "MESSAGE", "see http://evil.example/")

	a := alice.dial("sip:bob@example.com")
	a.raw(a.text("INVITE", alice.sdp(4000), contact, "Expires: 60", "ms-text-format: text/plain;ms-body=aHR0cDovL2V2aWwuZXhhbXBsZQ=="))
	inv := server.expect("INVITE")
	b := server.answered(inv)
	server.reply(inv, b, 180, "")
	alice.expect("180")
	server.reply(inv, b, 200, server.sdp(6000), "ms-text-format: text/plain;ms-body=aGk=")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	server.expect("ACK")
	exchange(a, server, "MESSAGE", "hello")
	exchange(b, alice, "MESSAGE", "www.evil.example")
	exchange(a, server, "INFO", "typing")
	reinvite(b, a, server.sdp(6002), alice.sdp(4000))
	b.bye(a)

	reg.send("REGISTER", "", contact, "Expires: 0")
	server.reply(server.expect("REGISTER"), nil, 200, "", "Expires: 0")
	alice.expect("200")
	w.after(40 * time.Second)
	alice.nothing()
	server.nothing()
}

// TestSignedKeepalive: a client behind a NAT that signs is kept open by CRLFs: it would not answer OPTIONS.
func TestSignedKeepalive(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Keepalive = 25 * time.Second
		c.Domains["example.com"] = Domain{Network: "inside", Server: "udp:10.0.0.20:5060"}
	})
	alice, server := w.phone("alice", flow.UDP, "203.0.113.9:40000", "198.51.100.1:5060"), w.phone("server", flow.UDP, "10.0.0.20:5060", "10.0.0.1:5060")
	alice.signs, server.signs = "Authorization", "Authentication-Info"
	alice.signUp().send("REGISTER", "", "Contact: <sip:192.168.1.5:5060>;proxy=replace")
	req := server.expect("REGISTER")
	server.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600")
	alice.expect("200")
	w.after(60 * time.Second)
	alice.nothing()
	if len(w.pings) != 2 || w.pings[0].who != "alice" {
		t.Errorf("pings: %v", w.pings)
	}
	w.clean()
}
