package sipalg

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

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
