package sipalg

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// The habits of Windows Messenger, LCS and Communicator (docs/protocols/sip.md).

// TestMicrosoftNoBranch: requests without a branch are matched by Call-ID, From tag and CSeq.
func TestMicrosoftNoBranch(t *testing.T) {
	for _, proto := range []flow.Proto{flow.UDP, flow.TCP} {
		w := newWorld(t, nil)
		alice := w.phone("alice", proto, "10.0.0.5:5062", "10.0.0.1:5060")
		bob := w.bob()
		alice.old = true
		a := alice.dial("sip:bob@example.com")
		raw := a.text("INVITE", alice.sdp(4000))
		a.raw(raw)
		got := bob.expect("INVITE")
		a.raw(raw)
		bob.nothing() // a retransmission, no second call
		b := bob.answered(got)
		bob.reply(got, b, 180, "")
		alice.expect("180")
		bob.reply(got, b, 200, bob.sdp(6000))
		a.learn(alice.expect("200"))
		a.send("ACK", "")
		bob.expect("ACK")
		reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
		reinvite(b, a, bob.sdp(6002), alice.sdp(4002))
		for i := range 3 {
			a.send("MESSAGE", "")
			req := bob.expect("MESSAGE")
			if want := fmt.Sprintf("%d MESSAGE", 3+i); req.cseq() != want {
				t.Errorf("%s, want %s", req.cseq(), want)
			}
			bob.reply(req, nil, 200, "")
			alice.expect("200")
		}
		a.bye(b)
		// Cancelled.
		a = alice.dial("sip:bob@example.com")
		req := a.send("INVITE", alice.sdp(4000))
		got = bob.expect("INVITE")
		bob.reply(got, bob.answered(got), 180, "")
		alice.expect("180")
		a.cancel(req)
		alice.expect("200")
		bob.reply(bob.expect("CANCEL"), nil, 200, "")
		bob.reply(got, nil, 487, "")
		bob.expect("ACK")
		a.ackFail(req, alice.expect("487"))
		w.after(10 * time.Second)
		alice.nothing()
		w.clean()
	}
}

// TestMicrosoftTwins: two clients started in one second have the same Call-ID, From tag and branch; the
// connection keeps them apart.
func TestMicrosoftTwins(t *testing.T) {
	w := newWorld(t, nil)
	server := w.bob()
	one := w.phone("one", flow.TCP, "10.0.0.5:45001", "10.0.0.1:5060")
	two := w.phone("two", flow.TCP, "10.0.0.5:45002", "10.0.0.1:5060")
	text := func(p *phone) string {
		return withBody(fmt.Sprintf(`
REGISTER sip:example.com SIP/2.0
Via: SIP/2.0/TCP 10.0.0.5:5060;branch=z9hG4bKsame
From: <sip:%s@example.com>;tag=same;epid=01010101
To: <sip:%s@example.com>
Call-ID: same
CSeq: 1 REGISTER
Contact: <sip:10.0.0.5:%d;transport=tcp;ms-opaque=abc>;methods="INVITE, MESSAGE";proxy=replace;+sip.instance="<urn:uuid:1>"
`, p.name, p.name, p.addr.Port()), "")
	}
	var reqs []*msg
	for _, p := range []*phone{one, two} {
		w.put(flow.TCP, p.addr, p.first, text(p))
		reqs = append(reqs, server.expect("REGISTER"))
	}
	for i, p := range []*phone{two, one} {
		req := reqs[1-i]
		server.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600", "Expires: 600")
		got := p.expect("200")
		if !strings.Contains(got.get("To"), p.name) {
			t.Errorf("%s got\n%s", p.name, got.raw)
		}
		if want := fmt.Sprintf("<sip:10.0.0.5:%d;transport=tcp;ms-opaque=abc>", p.addr.Port()); !strings.HasPrefix(got.get("Contact"), want) {
			t.Errorf("%s has Contact %s", p.name, got.get("Contact"))
		}
		one.nothing()
		two.nothing()
	}
	// Nothing listens on the port of the Contact: calls come down the connection of the registration.
	for i, p := range []*phone{one, two} {
		p.extra = []string{fmt.Sprintf("Contact: <sip:10.0.0.5:%d;transport=tcp;ms-opaque=abc>;proxy=replace", p.addr.Port())}
		b, a := server.call(uriOf(reqs[i].get("Contact")), p, server.sdp(6000), p.sdp(4000))
		a.bye(b)
	}
	w.clean()
}

// TestMicrosoftMaddr: in-dialog requests follow the connection, not the domain in the Contact.
func TestMicrosoftMaddr(t *testing.T) {
	w := newWorld(t, nil)
	bob := w.bob()
	alice := w.phone("alice", flow.TLS, "10.0.0.5:45062", "10.0.0.1:5061")
	alice.extra = []string{"Contact: <sip:alice@example.com:45062;maddr=10.0.0.5;transport=tls>;proxy=replace"}
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
	var last *msg
	for _, e := range w.log {
		if m := parseMsg(e.raw); e.toWho && e.who == "alice" && m.method == "INVITE" {
			last = m
		}
	}
	if last == nil || last.ruri() != "sip:alice@example.com:45062;maddr=10.0.0.5;transport=tls" {
		t.Errorf("Request-URI at alice: %v", last)
	}
	b.bye(a)
	if len(w.queries) != 0 {
		t.Errorf("the edge asks for %v", w.queries)
	}
	w.clean()
}

// TestMicrosoftMaddrFromServer: a server's Contact is reached at its maddr.
func TestMicrosoftMaddrFromServer(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.alice()
	bob := w.bob()
	bob.extra = []string{"Contact: <sip:bob@pool.example.org:5060;maddr=198.51.100.20>;proxy=replace"}
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
	a.bye(b)
	if len(w.queries) != 0 {
		t.Errorf("the edge asks for %v", w.queries)
	}
	w.clean()
}

// TestMicrosoftBenotify: BENOTIFY is passed once, never answered and never waited for.
func TestMicrosoftBenotify(t *testing.T) {
	for _, proto := range []flow.Proto{flow.UDP, flow.TCP} {
		w := newWorld(t, nil)
		alice := w.phone("alice", proto, "10.0.0.5:5062", "10.0.0.1:5060")
		bob := w.bob()
		s := alice.dial("sip:bob@example.com")
		s.send("SUBSCRIBE", "", "Event: vnd-microsoft-roaming-contacts", "Supported: ms-benotify", "Proxy-Require: ms-benotify")
		req := bob.expect("SUBSCRIBE")
		n := bob.answered(req)
		bob.reply(req, n, 200, "", "Expires: 600", "Supported: ms-benotify")
		s.learn(alice.expect("200"))
		w.after(40 * time.Second)
		n.send("BENOTIFY", "", "Event: vnd-microsoft-roaming-contacts", "Subscription-State: active")
		note := alice.expect("BENOTIFY")
		if len(w.core.client)+len(w.core.server) != 0 {
			t.Errorf("%d transactions wait", len(w.core.client))
		}
		w.after(40 * time.Second)
		alice.nothing()
		bob.nothing()
		alice.reply(note, nil, 200, "") // it should not, and nobody hears it
		bob.nothing()
		w.after(2 * time.Hour)
		w.clean()
	}
	// Not even an error: there is nobody to send it to.
	w := newWorld(t, nil)
	bob := w.bob()
	d := bob.dial("sip:nobody@198.51.100.1")
	d.send("BENOTIFY", "")
	bob.nothing()
	w.clean()
}

// TestMicrosoftSignedFields: what NTLM and Kerberos signatures cover is passed byte for byte, and so is
// the signature; the edge adds no Expires.
func TestMicrosoftSignedFields(t *testing.T) {
	w := newWorld(t, nil)
	alice, server := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060"), w.bob()
	d := alice.signUp()
	d.local = `"Alice" <sip:alice@example.com>;tag=1f2e;epid=0123456789`
	sign := `Proxy-Authorization: NTLM qop="auth", realm="SIP Communications Service", opaque="A1", targetname="srv", crand="89abcdef", cnum="1", response="0100000000000000d8a1"`
	d.send("REGISTER", "", "Contact: <sip:10.0.0.5:45062;transport=tcp>;proxy=replace", sign, "ms-keep-alive: UAC;hop-hop=yes", "Event: registration")
	req := server.expect("REGISTER")
	if !hasLine(req, sign) || req.get("From") != d.local || req.get("Expires") != "" {
		t.Errorf("%s", req.raw)
	}
	answer := []string{
		"Contact: " + req.get("Contact") + ";expires=600", "Expires: 600",
		`Authentication-Info: NTLM rspauth="01000000", srand="01", snum="1", opaque="A1", qop="auth", targetname="srv", realm="SIP Communications Service"`,
		"ms-keep-alive: UAS; tcp=no; hop-hop=yes; end-end=no; timeout=300", "presence-state: register-action=\"added\"",
	}
	server.reply(req, nil, 200, "", answer...)
	got := alice.expect("200")
	for _, l := range answer[1:] {
		if !hasLine(got, l) {
			t.Errorf("%s is missing in\n%s", l, got.raw)
		}
	}
	for _, method := range []string{"SERVICE", "INFO"} {
		d := alice.dial("sip:alice@example.com")
		signed := func(l string) string { return strings.Replace(l, `="01000000`, `="`+method, 1) }
		d.send(method, "", signed(sign))
		req := server.expect(method)
		server.reply(req, nil, 200, "", signed(answer[2]))
		if got := alice.expect("200"); !hasLine(got, signed(answer[2])) {
			t.Errorf("%s", got.raw)
		}
	}
	w.golden("microsoft-register")
	w.clean()
}

// TestMicrosoftCompression: compression is refused at this hop, also with Max-Forwards 0 and before anybody
// has registered; nothing of it reaches the server.
func TestMicrosoftCompression(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.phone("alice", flow.TLS, "10.0.0.5:45062", "10.0.0.1:5061"), w.bob()
	d := alice.dial("sip:127.0.0.1:5061")
	d.raw(strings.Replace(d.text("NEGOTIATE", "", "Compression: LZ77-64K", "Supported: NewNegotiate,OCSNative"), "Max-Forwards: 70", "Max-Forwards: 0", 1))
	if got := alice.expect("405"); got.get("Allow") == "" || got.get("Compression") != "" {
		t.Errorf("%s", got.raw)
	}
	bob.nothing()
	w.clean()
}
