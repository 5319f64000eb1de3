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
	w.drops("answer_unsigned", 4)
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
