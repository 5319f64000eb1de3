package sipalg

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// ring begins a call and lets it ring; the answer is the test's.
func ring(alice, bob *phone, offer string, extra ...string) (a, b *peer, req, got *msg) {
	alice.w.t.Helper()
	a = alice.dial("sip:bob@example.com")
	req = a.send("INVITE", offer, extra...)
	got = bob.expect("INVITE")
	return a, bob.answered(got), req, got
}

// ends checks where a pinhole's two ends are.
func ends(t *testing.T, l pinhole.Lease, near, far string) {
	t.Helper()
	type remote interface {
		Remote(pinhole.Side) pinhole.Remote
	}
	r := l.(remote)
	if n, f := r.Remote(pinhole.Near).Addr, r.Remote(pinhole.Far).Addr; n != ap(near) || f != ap(far) {
		t.Errorf("pinhole %v - %v, want %s - %s", n, f, near, far)
	}
}

// TestLateOffer: the offer is in the 200 and the answer in the ACK.
func TestLateOffer(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, "")
	if w.opener.Count() != 0 {
		t.Errorf("%d pinholes before any offer", w.opener.Count())
	}
	for range 2 { // the 200 is repeated until the ACK comes
		bob.reply(got, b, 200, bob.sdp(6000))
		ok := alice.expect("200")
		if mediaPort(ok) != "50000" || !strings.Contains(ok.body, "c=IN IP4 10.0.0.1") {
			t.Errorf("offer as alice sees it:\n%s", ok.body)
		}
		a.learn(ok)
	}
	a.send("ACK", alice.sdp(4000))
	if ack := bob.expect("ACK"); mediaPort(ack) != "50000" || !strings.Contains(ack.body, "c=IN IP4 198.51.100.1") {
		t.Errorf("answer as bob sees it:\n%s", ack.body)
	}
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	// A re-INVITE without an offer, likewise.
	a.send("INVITE", "")
	bob.reply(bob.expect("INVITE"), b, 200, bob.sdp(6002))
	alice.expect("200")
	a.send("ACK", alice.sdp(4002))
	bob.expect("ACK")
	ends(t, w.openLease(), "10.0.0.5:4002", "198.51.100.20:6002")
	if n := len(w.opener.Leases()); n != 1 {
		t.Errorf("%d pinholes were opened", n)
	}
	b.bye(a)
	w.clean()
}

// TestPrack: the answer is in the reliable 183; PRACK and its answer change the session once more.
func TestPrack(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000), "Require: 100rel")
	bob.reply(got, b, 183, bob.sdp(6000), "RSeq: 1", "Require: 100rel")
	a.learn(alice.expect("183"))
	a.send("PRACK", alice.sdp(4010), "RAck: 1 1 INVITE")
	prack := bob.expect("PRACK")
	bob.reply(prack, nil, 200, bob.sdp(6010))
	if ok := alice.expect("200"); ok.cseq() != "2 PRACK" || mediaPort(ok) != "50000" {
		t.Errorf("%s", ok.raw)
	}
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6010")
	bob.reply(got, b, 200, "")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6010")
	a.bye(b)
	w.clean()
}

// TestPrackAnswers: the offer is in the reliable 183, the answer in the PRACK.
func TestPrackAnswers(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, "", "Require: 100rel")
	bob.reply(got, b, 183, bob.sdp(6000), "RSeq: 1", "Require: 100rel")
	a.learn(alice.expect("183"))
	a.send("PRACK", alice.sdp(4000), "RAck: 1 1 INVITE")
	prack := bob.expect("PRACK")
	bob.reply(prack, nil, 200, "")
	alice.expect("200")
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	bob.reply(got, b, 200, "")
	alice.expect("200")
	a.send("ACK", "")
	bob.expect("ACK")
	b.bye(a)
	w.clean()
}

// TestUpdate: an offer in UPDATE, before and after the answer, from both sides, and refused.
func TestUpdate(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000))
	bob.reply(got, b, 183, bob.sdp(6000), "RSeq: 1", "Require: 100rel")
	a.learn(alice.expect("183"))
	update := func(x, y *peer, offer, answer string) {
		t.Helper()
		x.send("UPDATE", offer)
		y.p.reply(y.p.expect("UPDATE"), y, 200, answer)
		if ok := x.p.expect("200"); mediaPort(ok) != "50000" {
			t.Errorf("%s", ok.raw)
		}
	}
	update(a, b, alice.sdp(4010), bob.sdp(6000))
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6000")
	update(b, a, bob.sdp(6010), alice.sdp(4010))
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6010")
	bob.reply(got, b, 200, "")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	update(b, a, bob.sdp(6020), alice.sdp(4010))
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6020")
	a.send("UPDATE", alice.sdp(4030))
	bob.reply(bob.expect("UPDATE"), nil, 504, "")
	alice.expect("504")
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6020")
	a.bye(b)
	w.clean()
}

// TestHold: hold and resume, by direction and by 0.0.0.0, keep ports and addresses; silence of who is on
// hold is no fault.
func TestHold(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("rfc2543=%v", old), func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
			hold := alice.sdp(4000) + "a=sendonly\r\n"
			if old {
				hold = strings.Replace(alice.sdp(4000), "c=IN IP4 10.0.0.5", "c=IN IP4 0.0.0.0", 1)
			}
			reinvite(a, b, hold, bob.sdp(6000)+"a=recvonly\r\n")
			l := w.openLease()
			ends(t, l, "10.0.0.5:4000", "198.51.100.20:6000")
			if !l.Remote(pinhole.Far).Quiet {
				t.Error("silence of the one on hold is counted")
			}
			reinvite(a, b, alice.sdp(4000), bob.sdp(6000))
			ends(t, l, "10.0.0.5:4000", "198.51.100.20:6000")
			if l.Remote(pinhole.Far).Quiet || l.Remote(pinhole.Near).Quiet {
				t.Error("silence is not counted after the resumption")
			}
			var ports []string
			for _, e := range w.log {
				if m := parseMsg(e.raw); e.toWho && m.body != "" {
					ports = append(ports, mediaPort(m))
				}
			}
			if fmt.Sprint(ports) != "[50000 50000 50000 50000 50000 50000]" {
				t.Errorf("ports %v", ports)
			}
			a.bye(b)
			w.clean()
		})
	}
}

// TestGlare: both sides re-INVITE at once, both get 491, and nothing has moved.
func TestGlare(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	ra := a.send("INVITE", alice.sdp(4010))
	rb := b.send("INVITE", bob.sdp(6010))
	toBob, toAlice := bob.expect("INVITE"), alice.expect("INVITE")
	bob.reply(toBob, b, 491, "")
	bob.expect("ACK")
	a.ackFail(ra, alice.expect("491"))
	alice.reply(toAlice, a, 491, "")
	alice.expect("ACK")
	b.ackFail(rb, bob.expect("491"))
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	reinvite(b, a, bob.sdp(6010), alice.sdp(4000))
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6010")
	a.bye(b)
	w.clean()
}

// TestTransfer: alice (inside) sends bob to carol, who is outside like him: REFER, NOTIFY, and a
// Refer-To that leads him to her.
func TestTransfer(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	carol := w.phone("carol", flow.UDP, "198.51.100.88:5060", "198.51.100.1:5060")
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	ac, c := alice.call("sip:carol@198.51.100.88", carol, alice.sdp(4002), carol.sdp(8000))
	replaces := fmt.Sprintf("%s%%3Bto-tag%%3D%s%%3Bfrom-tag%%3D%s", ac.callID, tagOf(ac.remote), tagOf(ac.local))
	a.send("REFER", "", "Refer-To: <"+ac.target+"?Replaces="+replaces+">", "Referred-By: <sip:alice@example.com>")
	refer := bob.expect("REFER")
	if got, want := refer.get("Refer-To"), "<sip:carol@198.51.100.88:5060?Replaces="+replaces+">"; got != want {
		t.Errorf("Refer-To is %s, want %s", got, want)
	}
	bob.reply(refer, b, 202, "")
	alice.expect("202")
	b.send("NOTIFY", "", "Event: refer", "Subscription-State: active;expires=60")
	alice.reply(alice.expect("NOTIFY"), a, 200, "")
	bob.expect("200")
	a.bye(b)
	ac.bye(c)
	w.after(2 * time.Hour)
	w.clean()
}

// TestTransferToInside: server (outside) sends alice to carol, whom it knows by the edge's name for her.
func TestTransferToInside(t *testing.T) {
	w := newWorld(t, nil)
	alice, server := w.alice(), w.bob()
	carol := w.phone("carol", flow.UDP, "10.0.0.8:5060", "10.0.0.1:5060")
	carol.register(server)
	carolAs := registeredAs(w)
	a, b := alice.call("sip:bob@example.com", server, alice.sdp(4000), server.sdp(6000))
	b.send("REFER", "", "Refer-To: <"+carolAs+"?Replaces=x%3Bto-tag%3D1%3Bfrom-tag%3D2>")
	refer := alice.expect("REFER")
	alice.reply(refer, a, 202, "")
	server.expect("202")
	target, params, _ := strings.Cut(uriOf(refer.get("Refer-To")), "?")
	if addr, _ := hostOf(t, target); addr != alice.first || params != "Replaces=x%3Bto-tag%3D1%3Bfrom-tag%3D2" {
		t.Fatalf("alice is sent to %s", refer.get("Refer-To"))
	}
	ac, c := alice.call(target, carol, alice.sdp(4002), carol.sdp(8000))
	ac.bye(c)
	a.bye(b)
	w.after(2 * time.Hour)
	w.clean()
}

// TestSubscribe: SUBSCRIBE makes a dialog without a call: NOTIFY and refreshes find their way in both
// directions for longer than any address is remembered by itself.
func TestSubscribe(t *testing.T) {
	for _, by := range []string{"inside", "outside"} {
		t.Run(by, func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			sub, not := alice, bob
			uri := "sip:bob@example.com"
			if by == "outside" {
				alice.register(bob)
				sub, not, uri = bob, alice, registeredAs(w)
			}
			s := sub.dial(uri)
			s.send("SUBSCRIBE", "", "Event: dialog", "Expires: 3600")
			req := not.expect("SUBSCRIBE")
			n := not.answered(req)
			not.reply(req, n, 200, "", "Expires: 3600")
			s.learn(sub.expect("200"))
			for range 3 {
				n.send("NOTIFY", "", "Event: dialog", "Subscription-State: active;expires=3600")
				sub.reply(sub.expect("NOTIFY"), s, 200, "")
				not.expect("200")
				w.after(50 * time.Minute)
				s.send("SUBSCRIBE", "", "Event: dialog", "Expires: 3600")
				not.reply(not.expect("SUBSCRIBE"), n, 200, "", "Expires: 3600")
				sub.expect("200")
			}
			if len(w.core.sessions) != 0 || len(w.opener.Leases()) != 0 {
				t.Error("a subscription is no call")
			}
			w.after(3 * time.Hour)
			w.clean()
		})
	}
}

// TestSubscribeThroughInsideProxy: the proxy inside stays in the subscription's dialog.
func TestSubscribeThroughInsideProxy(t *testing.T) {
	for _, hide := range []bool{true, false} {
		w, alice, bob := insideProxy(t, hide, true)
		s := alice.dial("sip:bob@example.com")
		s.send("SUBSCRIBE", "", "Event: dialog", "Expires: 3600")
		req := bob.expect("SUBSCRIBE")
		n := bob.answered(req)
		bob.reply(req, n, 200, "", "Expires: 3600")
		s.learn(alice.expect("200"))
		n.send("NOTIFY", "", "Event: dialog", "Subscription-State: active")
		alice.reply(alice.expect("NOTIFY"), s, 200, "")
		bob.expect("200")
		s.send("SUBSCRIBE", "", "Event: dialog", "Expires: 3600")
		bob.reply(bob.expect("SUBSCRIBE"), n, 200, "", "Expires: 3600")
		alice.expect("200")
		w.after(2 * time.Hour)
		w.clean()
	}
}

func TestOutOfDialog(t *testing.T) {
	for _, method := range []string{"MESSAGE", "PUBLISH", "OPTIONS", "INFO", "X-UNKNOWN", "SERVICE"} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		raw := alice.dial("sip:bob@example.com").text(method, "")
		w.put(flow.UDP, alice.addr, alice.first, raw)
		req := bob.expect(method)
		bob.reply(req, nil, 200, "")
		alice.expect("200")
		w.put(flow.UDP, alice.addr, alice.first, raw) // a retransmission gets the same answer
		alice.expect("200")
		bob.nothing()
		w.clean()
	}
}

// TestNonInviteTimeout: Timer E repeats it, Timer F ends it without a useless 408 (RFC 4320).
func TestNonInviteTimeout(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	w.after(40 * time.Second)
	if n := len(bob.inbox); n != 11 {
		t.Errorf("MESSAGE was sent %d times, not 11", n)
	}
	alice.nothing()
	w.clean()
}

func TestOptionsToEdge(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	for _, p := range []*phone{alice, bob} {
		p.dial("sip:"+p.first.String()).send("OPTIONS", "")
		p.expect("200")
		d := p.dial("sip:" + p.first.String())
		w.put(flow.UDP, p.addr, p.first, strings.Replace(d.text("OPTIONS", ""), "Max-Forwards: 70", "Max-Forwards: 0", 1))
		p.expect("200")
	}
	w.core.draining = true
	alice.dial("sip:10.0.0.1").send("OPTIONS", "")
	alice.expect("503")
	w.clean()
}

func TestDraining(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	w.core.draining = true
	alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4002))
	if got := alice.expect("503"); got.get("Retry-After") == "" {
		t.Errorf("%s", got.raw)
	}
	reinvite(a, b, alice.sdp(4004), bob.sdp(6000))
	a.bye(b)
	w.clean()
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name, uri, line string
		edit            [2]string
		want            string
	}{
		{name: "hops", uri: "sip:bob@example.com", edit: [2]string{"Max-Forwards: 70", "Max-Forwards: 0"}, want: "483"},
		{name: "extension", uri: "sip:bob@example.com", line: "Proxy-Require: privacy, ms-benotify, foo", want: "420"},
		{name: "scheme", uri: "mailto:bob@example.com", want: "416"},
		{name: "own address", uri: "sip:nobody@10.0.0.1", want: "404"},
		{name: "tel without a server for all", uri: "tel:+4930123", want: "404"},
		{name: "loop", uri: "sip:bob@example.com", want: "482"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a := alice.dial(tt.uri)
			var extra []string
			if tt.line != "" {
				extra = append(extra, tt.line)
			}
			raw := a.text("INVITE", alice.sdp(4000), extra...)
			if tt.edit[0] != "" {
				raw = strings.Replace(raw, tt.edit[0], tt.edit[1], 1)
			}
			w.put(flow.UDP, alice.addr, alice.first, raw)
			if tt.name == "loop" {
				// The server sends the very same request back: it has gone round.
				again := bob.expect("INVITE").raw
				again = strings.Replace(again, "\r\nVia: ", "\r\nVia: SIP/2.0/UDP 198.51.100.20:5060;branch=z9hG4bKloop\r\nVia: ", 1)
				w.core.nets["outside"] = func() pinhole.Network { n := w.core.nets["outside"]; n.Trusted = true; return n }()
				w.put(flow.UDP, bob.addr, bob.first, again)
				bob.expect("482")
				return
			}
			got := alice.expect(tt.want)
			if tt.want == "420" && got.get("Unsupported") != "privacy,foo" {
				t.Errorf("Unsupported: %s", got.get("Unsupported"))
			}
			if v := got.all("Via")[0]; !strings.Contains(v, "received=10.0.0.5") || !strings.Contains(v, "rport=5062") {
				t.Errorf("Via: %s", v)
			}
			if tagOf(got.get("To")) == "" {
				t.Error("no tag in To")
			}
			bob.nothing()
			w.clean()
		})
	}
}

// TestSpiral: a call that an outside server sends back in, to another inside phone, is two sessions.
func TestSpiral(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.alice()
	carol := w.phone("carol", flow.UDP, "10.0.0.8:5060", "10.0.0.1:5060")
	server := w.bob()
	carol.register(server)
	carolAs := registeredAs(w)
	p := w.proxy("server", "198.51.100.20:5060", true)
	p.next = ap("198.51.100.1:5060")
	rewrite := &rewriter{proxy: p, user: "carol", uri: carolAs}
	w.nodes[p.addr] = rewrite
	a, c := alice.call("sip:carol@example.com", carol, alice.sdp(4000), carol.sdp(8000))
	if w.opener.Count() != 2 || len(w.core.sessions) != 2 {
		t.Errorf("%d pinholes, %d sessions", w.opener.Count(), len(w.core.sessions))
	}
	reinvite(c, a, carol.sdp(8002), alice.sdp(4000))
	reinvite(a, c, alice.sdp(4002), carol.sdp(8002))
	c.bye(a)
	if w.opener.Count() != 0 || len(w.core.sessions) != 0 {
		t.Errorf("%d pinholes, %d sessions after the BYE", w.opener.Count(), len(w.core.sessions))
	}
	w.clean()
}

// rewriter is a proxy that knows a user's Contact, as a registrar's proxy does.
type rewriter struct {
	*proxy
	user, uri string
}

func (r *rewriter) receive(raw string) {
	if m := parseMsg(raw); m.method != "" && userOf(m.ruri()) == r.user {
		raw = strings.Replace(raw, m.ruri(), r.uri, 1)
	}
	r.proxy.receive(raw)
}

// TestRedirect: the Contact of a 302 leads to the new place through the edge.
func TestRedirect(t *testing.T) {
	for _, target := range []string{"sip:carol@198.51.100.88:5070", "sip:carol@example.com", "sip:carol@other.example.org"} {
		w := newWorld(t, nil)
		w.dns["other.example.org"] = []flow.Target{{Network: "outside", Proto: flow.UDP, Addr: ap("198.51.100.88:5070")}}
		alice, bob := w.alice(), w.bob()
		carol := w.phone("carol", flow.UDP, "198.51.100.88:5070", "198.51.100.1:5060")
		if target == "sip:carol@example.com" {
			carol = bob
		}
		a, _, req, got := ring(alice, bob, alice.sdp(4000))
		bob.reply(got, nil, 302, "", "Contact: <"+target+">;q=0.5")
		moved := alice.expect("302")
		a.ackFail(req, moved)
		bob.expect("ACK")
		a.target = uriOf(moved.get("Contact"))
		if !strings.HasSuffix(moved.get("Contact"), ";q=0.5") {
			t.Errorf("Contact: %s", moved.get("Contact"))
		}
		if strings.Contains(target, "198.51") {
			if addr, _ := hostOf(t, a.target); addr != alice.first {
				t.Fatalf("alice is sent to %s", a.target)
			}
		}
		a.send("INVITE", alice.sdp(4000))
		got = carol.expect("INVITE")
		if got.ruri() != target {
			t.Errorf("Request-URI %s, want %s", got.ruri(), target)
		}
		c := carol.answered(got)
		carol.reply(got, c, 200, carol.sdp(8000))
		a.learn(alice.expect("200"))
		a.send("ACK", "")
		carol.expect("ACK")
		c.bye(a)
		w.clean()
	}
}

func withBackup(c *Config) {
	c.Domains["example.com"] = Domain{Network: "outside", Server: "udp:198.51.100.20:5060", Backups: []string{"udp:198.51.100.21:5060"}}
}

func TestFailover(t *testing.T) {
	for _, how := range []string{"timeout", "503"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, withBackup)
			alice, first := w.alice(), w.bob()
			second := w.phone("bob", flow.UDP, "198.51.100.21:5060", "198.51.100.1:5060")
			a := alice.dial("sip:bob@example.com")
			a.send("INVITE", alice.sdp(4000))
			got := first.expect("INVITE")
			if how == "503" {
				first.reply(got, nil, 503, "")
				first.expect("ACK")
			} else {
				w.after(32*time.Second + 100*time.Millisecond)
			}
			got = second.expect("INVITE")
			b := second.answered(got)
			second.reply(got, b, 200, second.sdp(6000))
			a.learn(alice.expect("200"))
			a.send("ACK", "")
			second.expect("ACK")
			a.bye(b)
			// The first one is left alone for a while.
			d := alice.dial("sip:bob@example.com")
			d.send("MESSAGE", "")
			second.reply(second.expect("MESSAGE"), nil, 200, "")
			alice.expect("200")
			w.after(time.Minute)
			first.inbox = nil
			alice.dial("sip:bob@example.com").send("MESSAGE", "")
			first.expect("MESSAGE")
			w.clean()
		})
	}
}

// TestAllFail: when no server answers, the last one's answer is the caller's.
func TestAllFail(t *testing.T) {
	w := newWorld(t, withBackup)
	alice, first := w.alice(), w.bob()
	second := w.phone("bob", flow.UDP, "198.51.100.21:5060", "198.51.100.1:5060")
	alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000))
	first.reply(first.expect("INVITE"), nil, 503, "")
	second.reply(second.expect("INVITE"), nil, 503, "", "Retry-After: 7")
	if got := alice.expect("503"); got.get("Retry-After") != "7" {
		t.Errorf("%s", got.raw)
	}
	w.clean()
}

// TestProbe: OPTIONS find out that a server is down, and that it is back.
func TestProbe(t *testing.T) {
	w := newWorld(t, func(c *Config) { withBackup(c); c.Probe = 10 * time.Second })
	alice, first := w.alice(), w.bob()
	second := w.phone("bob", flow.UDP, "198.51.100.21:5060", "198.51.100.1:5060")
	w.after(10 * time.Second)
	second.reply(second.expect("OPTIONS"), nil, 200, "")
	first.expect("OPTIONS")
	w.dead[first.addr] = true
	w.after(33 * time.Second)
	second.inbox = nil
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	second.expect("MESSAGE")
	w.dead[first.addr] = false
	w.after(10 * time.Second)
	for _, m := range first.inbox {
		first.reply(m, nil, 200, "")
	}
	first.inbox = nil
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	first.expect("MESSAGE")
}

// TestDNS: a name is resolved on the side; the request waits, is tried at each address, and can be
// cancelled meanwhile.
func TestDNS(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.alice()
	bob := w.phone("bob", flow.UDP, "198.51.100.78:5060", "198.51.100.1:5060")
	a := alice.dial("sip:bob@sip.example.org")
	req := a.send("INVITE", alice.sdp(4000))
	a.cancel(req)
	if got := alice.expect("200"); got.cseq() != "1 CANCEL" {
		t.Errorf("%s", got.raw)
	}
	a.ackFail(req, alice.expect("487"))
	to := func(s string) flow.Target { return flow.Target{Network: "outside", Proto: flow.UDP, Addr: ap(s)} }
	w.answer(to("198.51.100.78:5060"))
	bob.nothing()

	a = alice.dial("sip:bob@sip.example.org")
	a.send("INVITE", alice.sdp(4000))
	w.answer(to("198.51.100.79:5060"), to("198.51.100.78:5060"))
	w.after(32*time.Second + 100*time.Millisecond)
	got := bob.expect("INVITE")
	b := bob.answered(got)
	bob.reply(got, b, 200, bob.sdp(6000))
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	b.bye(a)
	w.clean()
}

// TestSessionTimer: a call that nobody refreshes is ended on both sides (RFC 4028).
func TestSessionTimer(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000))
	bob.reply(got, b, 200, bob.sdp(6000), "Session-Expires: 90;refresher=uac")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	w.after(80 * time.Second)
	a.send("UPDATE", "", "Session-Expires: 90;refresher=uac")
	bob.reply(bob.expect("UPDATE"), b, 200, "", "Session-Expires: 90;refresher=uac")
	alice.expect("200")
	w.after(100 * time.Second)
	alice.nothing()
	w.after(22*time.Second + 100*time.Millisecond)
	bothBye(t, a, b)
	w.clean()
}

// bothBye checks that both sides of a call were told that it is over, each within its own dialog.
func bothBye(t *testing.T, a, b *peer) {
	t.Helper()
	for _, x := range []*peer{a, b} {
		bye := x.p.expect("BYE")
		other := a
		if x == a {
			other = b
		}
		if bye.get("From") != x.remote || bye.get("To") != x.local || bye.get("Call-ID") != x.callID {
			t.Errorf("BYE to %s is of another dialog:\n%s", x.p.name, bye.raw)
		}
		if want := fmt.Sprintf("%d BYE", other.cseq+1); bye.cseq() != want {
			t.Errorf("BYE to %s has CSeq %s, not %s", x.p.name, bye.cseq(), want)
		}
		if addr, _ := hostOf(t, bye.ruri()); addr != x.p.addr {
			t.Errorf("BYE to %s has the Request-URI %s", x.p.name, bye.ruri())
		}
		x.p.reply(bye, nil, 200, "")
		x.p.nothing()
	}
}

func TestMediaIdle(t *testing.T) {
	for _, tt := range []string{"plain", "proxies"} {
		t.Run(tt, func(t *testing.T) {
			w, alice, bob := newWorld(t, nil), (*phone)(nil), (*phone)(nil)
			if tt == "plain" {
				alice, bob = w.alice(), w.bob()
			} else {
				w, alice, bob = insideProxy(t, true, true)
			}
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n", bob.sdp(6000)+"m=video 6020 RTP/AVP 31\r\n")
			reinvite(b, a, bob.sdp(6000)+"m=video 6020 RTP/AVP 31\r\n", alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n")
			l := w.opener.Leases()
			l[1].Idle()
			alice.nothing() // one stream is alive
			l[0].Idle()
			bothBye(t, a, b)
			if len(w.records) != 1 || w.records[0].Reason != "media timeout" {
				t.Errorf("records %+v", w.records)
			}
			w.clean()
		})
	}
}

// TestSlipstreaming: a description that names another host opens nothing, and is counted.
func TestSlipstreaming(t *testing.T) {
	for _, body := range []string{sdpOf("10.0.0.9", 445), sdpOf("127.0.0.1", 80), sdpOf("198.51.100.1", 5060), sdpOf("224.0.0.1", 4000),
		strings.Replace(sdpOf("10.0.0.5", 4000), "m=audio 4000 RTP/AVP 0\r\n", "m=audio 4000 RTP/AVP 0\r\na=rtcp:22 IN IP4 10.0.0.9\r\n", 1)} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		alice.dial("sip:bob@example.com").send("INVITE", body)
		alice.expect("488")
		bob.nothing()
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes for\n%s", w.opener.Count(), body)
		}
		w.drops("target_refused", 1)
		// In the answer: the callee is told that the call is over, and the caller gets no one-way audio.
		alice.register(bob)
		d := bob.dial(registeredAs(w))
		d.send("INVITE", bob.sdp(6000))
		got := alice.expect("INVITE")
		alice.reply(got, alice.answered(got), 200, body)
		bob.expect("488")
		alice.expect("ACK")
		alice.reply(alice.expect("BYE"), nil, 200, "")
		w.drops("target_refused", 2)
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes after the answer", w.opener.Count())
		}
		w.clean()
	}
}

// TestContactOfAnotherHost: a Contact that names another inside host leads back to its sender, and is counted.
func TestContactOfAnotherHost(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	victim := w.phone("victim", flow.UDP, "10.0.0.9:5060", "10.0.0.1:5060")
	alice.extra = []string{"Contact: <sip:x@10.0.0.9:5060>"}
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
	victim.nothing()
	if w.core.drops["contact_of_another_host"] == 0 {
		t.Errorf("not counted: %v", w.core.drops)
	}
	a.bye(b)
	w.clean()
}

// TestFM14: scanners are banned, honest users are not.
func TestFM14Scanner(t *testing.T) {
	w := newWorld(t, nil)
	evil := w.phone("evil", flow.UDP, "203.0.113.66:5060", "198.51.100.1:5060")
	evil.dial("sip:100@198.51.100.1").send("OPTIONS", "", "User-Agent: friendly-scanner 1.0")
	evil.nothing()
	evil.dial("sip:198.51.100.1").send("OPTIONS", "", "User-Agent: honest")
	evil.nothing()
	w.drops("scanner", 1)
	w.drops("banned", 1)
	w.after(11 * time.Minute)
	evil.dial("sip:198.51.100.1").send("OPTIONS", "", "User-Agent: honest")
	evil.expect("200")
	// The same words from the inside, or from the configured server, ban nobody.
	alice, bob := w.alice(), w.bob()
	for _, p := range []*phone{alice, bob} {
		p.dial("sip:"+p.first.String()).send("OPTIONS", "", "User-Agent: sipsak 0.9")
		p.expect("200")
	}
	w.clean()
}

func TestFM14Sweep(t *testing.T) {
	w := newWorld(t, nil)
	evil := w.phone("evil", flow.UDP, "203.0.113.66:5060", "198.51.100.1:5060")
	answered := 0
	for i := range 40 {
		evil.dial(fmt.Sprintf("sip:%d@198.51.100.1", 100+i)).send("INVITE", "")
		for _, m := range evil.inbox {
			if m.status == 404 {
				answered++
			}
		}
		evil.inbox = nil
		w.after(time.Second)
	}
	if answered != sweepMisses {
		t.Errorf("%d of 40 were answered", answered)
	}
	if w.core.drops["banned"] != uint64(40-sweepMisses) {
		t.Errorf("%v", w.core.drops)
	}
}

// TestFM14ChallengeNeverBans: 401 to every registration is the normal case.
func TestFM14ChallengeNeverBans(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains = map[string]Domain{"example.com": {Network: "inside", Server: "udp:10.0.0.20:5060"}}
	})
	r := w.phone("registrar", flow.UDP, "10.0.0.20:5060", "10.0.0.1:5060")
	home := w.phone("home", flow.UDP, "203.0.113.7:5060", "198.51.100.1:5060")
	for range 60 {
		home.signUp().send("REGISTER", "", "Contact: "+home.contact())
		r.reply(r.expect("REGISTER"), nil, 401, "")
		home.expect("401")
		w.after(500 * time.Millisecond)
	}
	home.signUp().send("REGISTER", "", "Contact: "+home.contact())
	r.expect("REGISTER")
}

func TestFM14RateLimit(t *testing.T) {
	w := newWorld(t, nil)
	w.core.limits.MessagesPerSecond = 10
	home := w.phone("home", flow.UDP, "203.0.113.7:5060", "198.51.100.1:5060")
	for range 50 {
		home.dial("sip:198.51.100.1").send("OPTIONS", "")
	}
	n := len(home.inbox)
	if n < 9 || n > 10 {
		t.Errorf("%d of 50 were answered", n)
	}
	w.drops("rate_limited", uint64(50-n))
	w.after(time.Second)
	home.inbox = nil
	home.dial("sip:198.51.100.1").send("OPTIONS", "")
	home.expect("200")
	// The configured server is exempt.
	bob := w.bob()
	for range 50 {
		bob.dial("sip:198.51.100.1").send("OPTIONS", "")
		bob.expect("200")
	}
	w.clean()
}

func TestFM14Relaying(t *testing.T) {
	w := newWorld(t, nil)
	evil := w.phone("evil", flow.UDP, "203.0.113.66:5060", "198.51.100.1:5060")
	for _, uri := range []string{"sip:x@203.0.113.99", "sip:x@10.0.0.9", "sip:x@elsewhere.example.org"} {
		w.showsIn = true
		evil.dial(uri).send("INVITE", evil.sdp(6000))
		evil.expect("403")
	}
	if len(w.opener.Leases()) != 0 || len(w.queries) != 0 {
		t.Error("strangers are relayed")
	}
}

// TestFM15Exhausted: no port left means 503, on the offer, on a late offer, never one-way audio.
func TestFM15Exhausted(t *testing.T) {
	t.Run("offer", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		w.opener.Fail(pinhole.ErrExhausted)
		alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000))
		alice.expect("503")
		bob.nothing()
		w.clean()
	})
	t.Run("second stream", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		w.opener.Limit(1)
		alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n")
		alice.expect("503")
		bob.nothing()
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes", w.opener.Count())
		}
		w.clean()
	})
	t.Run("late offer", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		_, b, _, got := ring(alice, bob, "")
		w.opener.Fail(pinhole.ErrExhausted)
		bob.reply(got, b, 200, bob.sdp(6000))
		alice.expect("503")
		if ack := bob.expect("ACK"); ack.ruri() != "sip:bob@198.51.100.20:5060" || ack.cseq() != "1 ACK" || ack.get("To") != b.local {
			t.Errorf("%s", ack.raw)
		}
		bye := bob.expect("BYE")
		if bye.cseq() != "2 BYE" || bye.get("To") != b.local || bye.get("From") != b.remote {
			t.Errorf("%s", bye.raw)
		}
		bob.reply(bye, nil, 200, "")
		w.clean()
	})
	t.Run("re-INVITE", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
		w.opener.Fail(pinhole.ErrExhausted)
		req := a.send("INVITE", alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n")
		a.ackFail(req, alice.expect("503"))
		bob.nothing()
		ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
		reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
		a.bye(b)
		w.clean()
	})
	t.Run("fork", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		a, b, _, got := ring(alice, bob, alice.sdp(4000))
		bob.reply(got, b, 183, bob.sdp(6000))
		alice.expect("183")
		w.opener.Fail(pinhole.ErrExhausted)
		b2 := bob.answered(got)
		bob.reply(got, b2, 183, bob.sdp(6002)) // its early media cannot be relayed
		alice.nothing()
		bob.reply(got, b, 200, bob.sdp(6000)) // but the first branch can
		a.learn(alice.expect("200"))
		a.send("ACK", "")
		bob.expect("ACK")
		a.bye(b)
		w.clean()
	})
}
