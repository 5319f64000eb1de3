package sipalg

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// TestInsideProxyCalledFromOutside: a phone registers through a proxy of its own, and is called through
// it, whether or not the proxy stays in the dialog.
func TestInsideProxyCalledFromOutside(t *testing.T) {
	for _, record := range []bool{true, false} {
		for _, hide := range []bool{true, false} {
			w, alice, server := insideProxy(t, hide, record)
			alice.register(server)
			contact := registeredAs(w)
			b, a := server.call(contact, alice, server.sdp(6000), alice.sdp(4000))
			if hide && len(b.routes) != 1 {
				t.Errorf("the outside sees the route set %q", b.routes)
			}
			reinvite(b, a, server.sdp(6002), alice.sdp(4000))
			reinvite(a, b, alice.sdp(4002), server.sdp(6002))
			b.bye(a)
			// Cancelled while it rings.
			c := server.dial(contact)
			req := c.send("INVITE", server.sdp(6000))
			got := alice.expect("INVITE")
			alice.reply(got, alice.answered(got), 180, "")
			server.expect("180")
			c.cancel(req)
			server.expect("200")
			cancel := alice.expect("CANCEL")
			alice.reply(cancel, nil, 200, "")
			alice.reply(got, nil, 487, "")
			alice.expect("ACK")
			c.ackFail(req, server.expect("487"))
			w.after(20 * time.Second)
			server.nothing()
			w.clean()
		}
	}
}

// TestProxiesOnBothSides: each side's requests carry its own proxies' route, and never the other's.
func TestProxiesOnBothSides(t *testing.T) {
	w, alice, _ := insideProxy(t, true, true)
	out := w.proxy("server", "198.51.100.20:5060", true)
	bob := w.phone("bob", flow.UDP, "198.51.100.77:5066", "198.51.100.20:5060")
	out.to["bob"] = bob.addr
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4002))
	a.send("INFO", "")
	bob.reply(bob.expect("INFO"), nil, 200, "")
	alice.expect("200")
	b.send("INFO", "")
	alice.reply(alice.expect("INFO"), nil, 200, "")
	bob.expect("200")
	w.golden("proxies-on-both-sides")
	w.openLease().Idle()
	for _, x := range []*peer{a, b} {
		bye := x.p.expect("BYE")
		if bye.get("From") != x.remote || bye.get("To") != x.local {
			t.Errorf("%s", bye.raw)
		}
		x.p.reply(bye, nil, 200, "")
	}
	w.clean()
}

// TestViaWithoutRport: a phone that listens on another port than it sends from gets its answers there.
func TestViaWithoutRport(t *testing.T) {
	w := newWorld(t, nil)
	bob := w.bob()
	listens := w.phone("alice", flow.UDP, "10.0.0.5:5062", "10.0.0.1:5060")
	sends := ap("10.0.0.5:49152")
	a := listens.dial("sip:bob@example.com")
	raw := strings.Replace(a.text("INVITE", listens.sdp(4000)), ";rport", "", 1)
	w.put(flow.UDP, sends, listens.first, raw)
	got := bob.expect("INVITE")
	b := bob.answered(got)
	bob.reply(got, b, 200, bob.sdp(6000))
	a.learn(listens.expect("200"))
	w.put(flow.UDP, sends, listens.first, strings.Replace(a.text("ACK", ""), ";rport", "", 1))
	bob.expect("ACK")
	b.bye(a)
	w.clean()
}

// TestNATedCaller: an outside phone behind a NAT calls in: its private Contact and media address are not
// where it is.
func TestNATedCaller(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains = map[string]Domain{"example.com": {Network: "inside", Server: "udp:10.0.0.20:5060"}}
	})
	w.opener.Allow("inside", netip.MustParsePrefix("10.0.0.20/32"))
	pbx := w.phone("pbx", flow.UDP, "10.0.0.20:5060", "10.0.0.1:5060")
	home := w.phone("home", flow.UDP, "203.0.113.7:33333", "198.51.100.1:5060")
	home.extra = []string{"Contact: <sip:home@192.168.1.4:5060>"}
	h, p := home.call("sip:sales@example.com", pbx, sdpOf("192.168.1.4", 6000), pbx.sdp(4000))
	if r := w.openLease().Remote(pinhole.Near); r.Addr != ap("192.168.1.4:6000") || r.Source != home.addr.Addr() {
		t.Errorf("the relay was told %+v", r)
	}
	reinvite(p, h, pbx.sdp(4002), sdpOf("192.168.1.4", 6000))
	// The NAT gives it another port; the dialog follows.
	moved := w.phone("home", flow.UDP, "203.0.113.7:44444", "198.51.100.1:5060")
	moved.extra = home.extra
	w.dead[home.addr] = true
	h.p = moved
	reinvite(h, p, sdpOf("192.168.1.4", 6000), pbx.sdp(4002))
	p.bye(h)
	w.clean()
}

// TestGoneConnection: a BYE that cannot reach a phone whose connection is gone still ends the call.
func TestGoneConnection(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.phone("alice", flow.WS, "10.0.0.5:45062", "10.0.0.1:8080")
	alice.extra = []string{"Contact: <sip:alice@x7f3.invalid;transport=ws>"}
	bob := w.bob()
	_, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	w.hangUp(alice.addr)
	b.send("BYE", "")
	for len(w.queries) > 0 {
		w.answer()
	}
	if len(bob.inbox) != 1 || bob.inbox[0].status < 400 {
		t.Errorf("bob got %d messages", len(bob.inbox))
	}
	if w.opener.Count() != 0 || len(w.core.sessions) != 0 {
		t.Errorf("%d pinholes, %d sessions", w.opener.Count(), len(w.core.sessions))
	}
	w.clean()
}

// TestWebSocketPhone: a name that nobody can resolve in Contact and Via is no hindrance (RFC 7118 §5).
func TestWebSocketPhone(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.phone("alice", flow.WS, "10.0.0.5:45062", "10.0.0.1:8080")
	alice.extra = []string{"Contact: <sip:alice@x7f3.invalid;transport=ws>;reg-id=1"}
	bob := w.bob()
	d := alice.signUp()
	d.send("REGISTER", "", "Expires: 600")
	req := bob.expect("REGISTER")
	bob.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600")
	alice.expect("200")
	b, a := bob.call(uriOf(req.get("Contact")), alice, bob.sdp(6000), alice.sdp(4000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
	a.bye(b)
	if len(w.queries) != 0 {
		t.Errorf("the edge asks for %v", w.queries)
	}
	w.clean()
}
