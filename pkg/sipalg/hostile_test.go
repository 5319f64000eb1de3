package sipalg

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// forbidden are places to which nobody may lead the edge: its own services, other hosts, the link.
var forbidden = []string{
	"10.0.0.9:5060", "10.0.0.9:445;transport=tcp", "127.0.0.1:9060;transport=tcp", "127.0.0.1:5060",
	"198.51.100.1:9060;transport=tcp", "10.0.0.1:9060;transport=tcp", "169.254.169.254:80;transport=tcp",
	"0.0.0.0:5060", "224.0.1.75:5060", "255.255.255.255:5060", "[::1]:5060", "[fe80::1]:5060", "[fd00::9]:5060",
	"[::ffff:127.0.0.1]:5060", "198.51.100.77:5060;maddr=127.0.0.1", "198.51.100.77:5060;maddr=10.0.0.9",
}

// ledAstray fails the test if the edge has sent anything to a forbidden place.
func (w *world) ledAstray(what string, since int) {
	w.t.Helper()
	for _, e := range w.log[since:] {
		if !e.toWho || w.friend(e.who) {
			continue
		}
		w.t.Errorf("%s: the edge sent to %s by %s:\n%s", what, e.who, e.proto, e.raw)
		return
	}
}

func (w *world) friend(who string) bool {
	for _, n := range w.nodes {
		if n.label() == who {
			return true
		}
	}
	return false
}

// TestHostileContactOfCallee: an outside callee's Contact leads the caller's ACK and BYE nowhere but
// to the outside.
func TestHostileContactOfCallee(t *testing.T) {
	for _, place := range forbidden {
		w := newWorld(t, nil)
		w.showsIn = true
		alice, bob := w.alice(), w.bob()
		a := alice.dial("sip:bob@example.com")
		a.send("INVITE", alice.sdp(4000))
		inv := bob.expect("INVITE")
		n := len(w.log)
		bob.reply(inv, bob.answered(inv), 200, bob.sdp(6000), "Contact: <sip:x@"+place+">")
		if len(alice.inbox) == 0 {
			continue // not even passed on
		}
		a.learn(alice.expect("200"))
		a.send("ACK", "")
		a.send("BYE", "")
		w.after(time.Minute)
		w.ledAstray("Contact "+place, n)
	}
}

// TestHostileContactOfCaller: the same with a caller behind a proxy, so that its Contact's own address
// is the way.
func TestHostileContactOfCaller(t *testing.T) {
	for _, place := range forbidden {
		w := newWorld(t, nil)
		w.showsIn = true
		alice, bob := w.alice(), w.bob()
		alice.register(bob)
		d := bob.dial(registeredAs(w))
		n := len(w.log)
		raw := d.text("INVITE", bob.sdp(6000), "Contact: <sip:x@"+place+">")
		d.raw(strings.Replace(raw, "\r\nFrom:", "\r\nVia: SIP/2.0/UDP 203.0.113.9;branch=z9hG4bKx\r\nFrom:", 1))
		inv := alice.expect("INVITE")
		a := alice.answered(inv)
		alice.reply(inv, a, 200, alice.sdp(4000))
		a.send("BYE", "")
		w.after(time.Minute)
		w.ledAstray("Contact "+place, n)
	}
}

// TestHostileRouteWithToken: the token that a stranger gets for a subscription opens no way to other
// hosts by a second Route value.
func TestHostileRouteWithToken(t *testing.T) {
	for _, place := range forbidden {
		w := newWorld(t, nil)
		w.showsIn = true
		alice, bob := w.alice(), w.bob()
		mallory := w.phone("mallory", flow.UDP, "198.51.100.66:5060", "198.51.100.1:5060")
		alice.register(bob)
		d := mallory.dial(registeredAs(w))
		d.send("SUBSCRIBE", "", "Event: presence", "Expires: 600")
		sub := alice.expect("SUBSCRIBE")
		alice.reply(sub, alice.answered(sub), 200, "", "Expires: 600")
		d.learn(mallory.expect("200"))
		if len(d.routes) != 1 {
			t.Fatalf("routes %q", d.routes)
		}
		n := len(w.log)
		own, target := d.routes[0], d.target
		for _, dd := range []struct {
			target string
			routes []string
		}{{target, []string{own, "<sip:" + place + ";lr>"}}, {"sip:x@" + place, []string{own}}, {"sip:x@" + place, []string{own, "<sip:" + place + ";lr>"}}} {
			d.target, d.routes = dd.target, dd.routes
			d.send("MESSAGE", "")
			d.send("NOTIFY", "")
		}
		alice.inbox = nil
		w.after(time.Minute)
		w.ledAstray("Route "+place, n)
	}
}

// TestHostileContactAfterHangUp: a connection that named another inside host's address and went away
// leaves no way to that host.
func TestHostileContactAfterHangUp(t *testing.T) {
	for _, place := range forbidden {
		w := newWorld(t, nil)
		w.showsIn = true
		evil := w.phone("evil", flow.TCP, "10.0.0.66:40000", "10.0.0.1:5060")
		bob := w.bob()
		a := evil.dial("sip:bob@example.com")
		a.send("INVITE", evil.sdp(4000), "Contact: <sip:x@"+place+">")
		inv := bob.expect("INVITE")
		b := bob.answered(inv)
		bob.reply(inv, b, 200, bob.sdp(6000))
		n := len(w.log)
		w.hangUp(evil.addr)
		b.send("BYE", "")
		d := bob.dial(b.target)
		d.send("INVITE", bob.sdp(6000))
		d = bob.dial(b.target)
		d.send("MESSAGE", "")
		w.after(time.Minute)
		w.ledAstray("Contact "+place, n)
	}
}

// TestHostileRedirect: a 302 from inside leads strangers to no other host of the inside, unless that
// one is registered itself.
func TestHostileRedirect(t *testing.T) {
	for _, place := range forbidden {
		w := newWorld(t, nil)
		w.showsIn = true
		alice, bob := w.alice(), w.bob()
		alice.register(bob)
		d := bob.dial(registeredAs(w))
		d.send("INVITE", bob.sdp(6000))
		inv := alice.expect("INVITE")
		alice.reply(inv, nil, 302, "", "Contact: <sip:x@"+place+">")
		m := bob.expect("302")
		n := len(w.log)
		d = bob.dial(uriOf(m.get("Contact")))
		d.send("INVITE", bob.sdp(6000))
		d = bob.dial(uriOf(m.get("Contact")))
		d.send("MESSAGE", "")
		w.after(time.Minute)
		w.ledAstray("302 "+place, n)
	}
}

// TestHostileName: a name that leads to a forbidden place leads nowhere.
func TestHostileName(t *testing.T) {
	for _, place := range []string{"127.0.0.1:9060", "10.0.0.9:445", "198.51.100.1:9060", "169.254.169.254:80"} {
		w := newWorld(t, nil)
		w.showsIn = true
		alice, bob := w.alice(), w.bob()
		w.dns["evil.example.net"] = []flow.Target{{Network: "outside", Proto: flow.TCP, Addr: ap(place)}}
		a := alice.dial("sip:bob@example.com")
		a.send("INVITE", alice.sdp(4000))
		inv := bob.expect("INVITE")
		n := len(w.log)
		rr := []string{"Contact: <sip:x@evil.example.net>", "Record-Route: <sip:evil.example.net;lr>"}
		for _, r := range inv.all("Record-Route") {
			rr = append(rr, "Record-Route: "+r)
		}
		for i, l := range inv.lines {
			if name(l) == "record-route" {
				inv.lines[i] = "X: y"
			}
		}
		bob.reply(inv, bob.answered(inv), 200, bob.sdp(6000), rr...)
		a.learn(alice.expect("200"))
		a.send("ACK", "")
		a.send("BYE", "")
		w.after(time.Minute)
		w.ledAstray("name of "+place, n)
	}
}

// TestHostileRate: a To tag does not lift the limit of a stranger's requests.
func TestHostileRate(t *testing.T) {
	for _, method := range []string{"INVITE", "MESSAGE", "SUBSCRIBE", "CANCEL"} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		mallory := w.phone("mallory", flow.UDP, "198.51.100.66:5060", "198.51.100.1:5060")
		alice.register(bob)
		contact := registeredAs(w)
		for i := range 1000 {
			d := mallory.dial(contact)
			d.remote += fmt.Sprintf(";tag=%d", i)
			d.raw(d.text(method, ""))
		}
		if n := len(alice.inbox); n > 100 {
			t.Errorf("%d of 1000 %s passed in no time", n, method)
		}
		if n := len(mallory.inbox); n > 250 {
			t.Errorf("%d answers to 1000 %s", n, method)
		}
		if n := len(w.core.client); n > 110 {
			t.Errorf("%d transactions after 1000 %s", n, method)
		}
	}
}

// TestHostileContacts: one message cannot fill the table of aliases.
func TestHostileContacts(t *testing.T) {
	w := newWorld(t, nil)
	w.showsIn = true
	alice, bob := w.alice(), w.bob()
	alice.register(bob)
	mallory := w.phone("mallory", flow.TCP, "198.51.100.66:50600", "198.51.100.1:5060")
	d := mallory.dial(registeredAs(w))
	var lines []string
	for i := range 3000 {
		lines = append(lines, fmt.Sprintf("m:<sip:%d@x>", i))
	}
	before := len(w.core.aliases)
	d.send("INVITE", "", lines...)
	d = mallory.dial(d.target)
	d.send("INVITE", "", "Contact: <sip:"+strings.Repeat("x", 60000)+"@x>")
	if n := len(w.core.aliases) - before; n > 64 {
		t.Errorf("%d aliases of two messages", n)
	}
	size := 0
	for k, a := range w.core.aliases {
		size += len(k) + len(a.uri)
	}
	if size > 40000 {
		t.Errorf("%d bytes of aliases of two messages", size)
	}
}

// TestHostileRegistrar: an inside host binds another user's address-of-record by no registrar but that
// of the domain, and takes nobody's registration away.
func TestHostileRegistrar(t *testing.T) {
	w := newWorld(t, nil)
	w.showsIn = true
	alice, bob := w.alice(), w.bob()
	alice.register(bob)
	mallory := w.phone("mallory", flow.UDP, "10.0.0.66:5060", "10.0.0.1:5060")
	accomplice := w.phone("accomplice", flow.UDP, "198.51.100.66:5060", "198.51.100.1:5060")
	for _, target := range []string{"sip:198.51.100.66", "sip:example.com@198.51.100.66", "sip:198.51.100.66;maddr=198.51.100.66"} {
		d := mallory.dial(target)
		d.remote, d.local = "<sip:alice@example.com>", "<sip:alice@example.com>;tag=m"
		d.send("REGISTER", "", "Contact: "+mallory.contact(), "Expires: 3600")
		req := accomplice.expect("REGISTER")
		accomplice.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=3600")
		mallory.expect("200")
		d.send("REGISTER", "", "Contact: *", "Expires: 0")
		if len(accomplice.inbox) > 0 {
			accomplice.reply(accomplice.expect("REGISTER"), nil, 200, "")
		}
		mallory.inbox = nil
	}
	w.after(time.Second)
	caller := w.phone("caller", flow.UDP, "198.51.100.88:5060", "198.51.100.1:5060")
	for _, uri := range []string{"sip:alice@example.com", "sip:alice@198.51.100.1"} {
		d := caller.dial(uri)
		d.send("MESSAGE", "")
		if len(mallory.inbox) > 0 || len(alice.inbox) != 1 {
			t.Errorf("%s: alice got %d, mallory %d", uri, len(alice.inbox), len(mallory.inbox))
		}
		alice.inbox, mallory.inbox = nil, nil
	}
}

// TestHostileSources: forged senders from the outside neither share an allowance with the inside nor
// take the pinholes of honest strangers.
func TestHostileSources(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	raw := "OPTIONS sip:nobody@198.51.100.1 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;rport\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:a@b>\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
	for i := range maxSources + 1000 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, byte(i >> 16), byte(i >> 8), byte(i)}), 5060)
		f := flow.Flow{Network: "outside", Proto: flow.UDP, Local: ap("198.51.100.1:5060"), Remote: from}
		w.out.reset()
		w.core.Receive(w.now, f, []byte(raw), &w.out)
	}
	if n := len(w.core.sources); n > maxSources+1 {
		t.Errorf("%d sources", n)
	}
	for i := range 3 {
		alice.call("sip:bob@example.com", bob, alice.sdp(4000+2*i), bob.sdp(6000+2*i))
	}
	for _, l := range w.opener.Leases() {
		if !strings.Contains(l.Request.Owner, "10.0.0.5") {
			t.Errorf("pinhole of %q", l.Request.Owner)
		}
	}
	// A host roams in its /64 for nothing.
	w = newWorld(t, nil)
	for i := range 1000 {
		a := netip.MustParseAddr("2001:db8:1:2::").As16()
		a[14], a[15] = byte(i>>8), byte(i)
		f := flow.Flow{Network: "outside", Proto: flow.UDP, Local: ap("[2001:db8::1]:5060"), Remote: netip.AddrPortFrom(netip.AddrFrom16(a), 5060)}
		w.out.reset()
		w.core.Receive(w.now, f, []byte(raw), &w.out)
	}
	if n := len(w.core.sources); n > 1 {
		t.Errorf("%d sources in one /64", n)
	}
}

// TestHostileRefusedOffer: a refused re-INVITE leaves every stream as it was, also those that it moved
// before the fault was found, and those that it did not touch.
func TestHostileRefusedOffer(t *testing.T) {
	two := func(addr1 string, p1 int, addr2 string, p2 int) string {
		return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 10.0.0.5\r\ns=-\r\nt=0 0\r\nm=audio %d RTP/AVP 0\r\nc=IN IP4 %s\r\nm=video %d RTP/AVP 31\r\nc=IN IP4 %s\r\n", p1, addr1, p2, addr2)
	}
	const in, out = "10.0.0.5", "198.51.100.20"
	w := newWorld(t, nil)
	w.showsIn = true
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, two(in, 4000, in, 4002), two(out, 6000, out, 6002))
	reinvite(a, b, two(in, 4010, in, 4012), two(out, 6000, out, 6002))
	check := func(when string, want ...string) {
		t.Helper()
		for i, l := range w.opener.Leases() {
			if got := l.Remote(pinhole.Near).Addr.String(); got != want[i] {
				t.Errorf("%s: stream %d at %s, want %s", when, i, got, want[i])
			}
		}
	}
	check("moved", "10.0.0.5:4010", "10.0.0.5:4012")
	inv := a.send("INVITE", two(in, 4020, "10.0.0.9", 445))
	a.ackFail(inv, alice.expect("488"))
	check("refused by the edge", "10.0.0.5:4010", "10.0.0.5:4012")
	// Only the first stream is offered anew, the second one is disabled; the callee refuses.
	inv = a.send("INVITE", two(in, 4030, in, 0))
	req := bob.expect("INVITE")
	bob.reply(req, nil, 488, "")
	a.ackFail(inv, alice.expect("488"))
	bob.inbox = nil
	check("refused by the callee", "10.0.0.5:4010", "10.0.0.5:4012")
	a.bye(b)
}

// TestHostileCapabilities: what a party says of its capabilities moves no media.
func TestHostileCapabilities(t *testing.T) {
	w := newWorld(t, nil)
	w.showsIn = true
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	for _, method := range []string{"OPTIONS", "INFO", "MESSAGE"} {
		a.send(method, alice.sdp(9))
		req := bob.expect(method)
		bob.reply(req, nil, 200, bob.sdp(9))
		alice.expect("200")
		l := w.opener.Leases()[0]
		if l.Remote(pinhole.Near).Addr.Port() != 4000 || l.Remote(pinhole.Far).Addr.Port() != 6000 {
			t.Errorf("%s moved the media to %v and %v", method, l.Remote(pinhole.Near).Addr, l.Remote(pinhole.Far).Addr)
		}
	}
	a.bye(b)
}

// TestHostileAnswerInACK: an answer that cannot be relayed ends the call instead of leaving it silent.
func TestHostileAnswerInACK(t *testing.T) {
	w := newWorld(t, nil)
	w.showsIn = true
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", "")
	inv := bob.expect("INVITE")
	bob.reply(inv, bob.answered(inv), 200, bob.sdp(6000))
	a.learn(alice.expect("200"))
	a.send("ACK", sdpOf("10.0.0.9", 445))
	bob.expect("BYE")
	alice.expect("BYE")
	w.clean()
}

// TestHostileAfterRestart: after a restart a client is found again as soon as it speaks, and until then
// its Contact leads to nobody else.
func TestHostileAfterRestart(t *testing.T) {
	for _, tt := range []struct {
		proto   flow.Proto
		contact string
		first   string // what a caller gets before the client has spoken again
	}{
		{flow.UDP, "<sip:alice@10.0.0.5:5062>", "INVITE"},
		{flow.UDP, "<sip:alice@192.168.7.7:5062>", "INVITE"},
		{flow.TCP, "<sip:alice@10.0.0.5:5062;transport=tcp>", "INVITE"}, // it may listen there
		{flow.TCP, "<sip:alice@10.0.0.5:445;transport=tcp>", "480"},
		{flow.TCP, "<sip:alice@10.0.0.9:5062;transport=tcp>", "480"},
		{flow.TCP, "<sip:alice@client.example.org;transport=tcp>", "480"},
		{flow.TCP, "<sip:alice@example.com:5062;maddr=10.0.0.5;transport=tcp>;proxy=replace", "480"},
	} {
		w := newWorld(t, nil)
		w.showsIn = true
		alice, bob := w.phone("alice", tt.proto, "10.0.0.5:5062", "10.0.0.1:5060"), w.bob()
		alice.register(bob, "Contact: "+tt.contact, "Expires: 3600")
		contact := registeredAs(w)
		var journal strings.Builder
		if err := w.core.Snapshot(&journal); err != nil {
			t.Fatal(err)
		}
		w.hangUp(alice.addr)
		w.core = newTestCore(testConfig(nil), testNetworks(), w.opener, w.core.log)
		w.do(func() {
			if err := w.core.Restore(w.now, strings.NewReader(journal.String()), &w.out); err != nil {
				t.Fatal(err)
			}
		})
		n := len(w.log)
		d := bob.dial(contact)
		d.send("INVITE", bob.sdp(6000))
		if tt.first == "480" {
			bob.expect("480")
			alice.nothing()
		} else {
			alice.expect(tt.first)
		}
		w.ledAstray("after a restart "+tt.contact, n)
		alice.inbox, bob.inbox = nil, nil
		alice.register(bob, "Contact: "+tt.contact, "Expires: 3600")
		if registeredAs(w) != contact {
			t.Errorf("%s has another token after the restart", tt.contact)
		}
		d = bob.dial(contact)
		d.send("INVITE", bob.sdp(6000))
		alice.expect("INVITE")
	}
}

// TestHostileCallID: many calls with one Call-ID do not make a list that every request walks.
func TestHostileCallID(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:198.51.100.20:5060"}
	})
	alice := w.phone("alice", flow.TCP, "10.0.0.5:40000", "10.0.0.1:5060")
	w.phone("bob", flow.TCP, "198.51.100.20:5060", "198.51.100.1:5060")
	for range 90 {
		d := alice.dial("sip:bob@example.com")
		d.callID = "the same"
		d.send("INVITE", "")
	}
	if n := len(w.core.sessions); n != maxSameCallID {
		t.Errorf("%d sessions with one Call-ID", n)
	}
	w.clean()
	if c := w.core; len(c.carried) != 0 || c.held != 0 {
		t.Errorf("%d connections carry, %d bytes are held", len(c.carried), c.held)
	}
}

// TestHostileCrowd: when strangers have filled their part, they get 503 and the inside still calls.
func TestHostileCrowd(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	alice.register(bob)
	mallory := w.phone("mallory", flow.UDP, "198.51.100.66:5060", "198.51.100.1:5060")
	w.core.held += maxHeld * 3 / 4
	mallory.dial(registeredAs(w)).send("MESSAGE", "")
	mallory.expect("503")
	alice.nothing()
	alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	w.core.held += maxHeld / 4
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	alice.expect("503")
	w.drops("busy", 2)
}

// TestHostileStaleServer: a server's name is looked up again, and its old address loses its rights.
func TestHostileStaleServer(t *testing.T) {
	for _, probe := range []time.Duration{0, 30 * time.Second} {
		old := []flow.Target{{Network: "outside", Proto: flow.UDP, Addr: ap("198.51.100.20:5060")}}
		w := newWorld(t, func(c *Config) {
			c.Probe = probe
			c.Domains["example.com"] = Domain{Network: "outside", Server: "udp:sip.example.com"}
		})
		w.answer(old...)
		alice, bob := w.alice(), w.bob()
		alice.dial("sip:bob@example.com").send("MESSAGE", "")
		bob.expect("MESSAGE")
		w.dns["sip.example.com"] = []flow.Target{{Network: "outside", Proto: flow.UDP, Addr: ap("198.51.100.30:5060")}}
		w.dead[bob.addr] = true
		w.after(2 * time.Minute)
		moved := w.phone("moved", flow.UDP, "198.51.100.30:5060", "198.51.100.1:5060")
		alice.dial("sip:bob@example.com").send("MESSAGE", "")
		for len(moved.inbox) > 0 && moved.inbox[0].method == "OPTIONS" {
			moved.inbox = moved.inbox[1:]
		}
		moved.expect("MESSAGE")
		if w.core.servers[bob.addr.Addr()] || !w.core.servers[moved.addr.Addr()] {
			t.Errorf("servers %v", w.core.servers)
		}
	}
}

// TestHostileReanswer: an answer to a re-INVITE that cannot be relayed ends the call on both sides.
func TestHostileReanswer(t *testing.T) {
	w := newWorld(t, nil)
	w.showsIn = true
	alice, bob := w.alice(), w.bob()
	_, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	b.send("INVITE", bob.sdp(6000))
	inv := alice.expect("INVITE")
	alice.reply(inv, nil, 200, sdpOf("10.0.0.9", 4000), "Contact: "+alice.contact())
	alice.expect("ACK")
	alice.expect("BYE")
	if m := bob.inbox[len(bob.inbox)-1]; m.method != "BYE" && (len(bob.inbox) < 2 || bob.inbox[0].method != "BYE") {
		t.Errorf("bob got no BYE but %s", m.start)
	}
	w.clean()
}

// TestHostilePort: a stranger does not choose the port of a configured domain's host.
func TestHostilePort(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Domains["pbx.example.org"] = Domain{Network: "inside"} })
	w.bob().dial("sip:x@pbx.example.org:22;transport=tcp").send("MESSAGE", "")
	if len(w.queries) != 1 || w.queries[0].server.Port != 0 || w.queries[0].network != "inside" {
		t.Errorf("queries %+v", w.queries)
	}
}

// TestHostileAnswerContacts: an answer with more Contacts than the edge keeps gets the caller a 503 and
// ends the callee's call; nobody waits for the other.
func TestHostileAnswerContacts(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	for _, status := range []int{200, 302} {
		inv := alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000))
		req := bob.expect("INVITE")
		var contacts []string
		for i := range maxContacts + 1 {
			contacts = append(contacts, fmt.Sprintf("Contact: <sip:bob%d@198.51.100.20>", i))
		}
		bob.reply(req, bob.answered(req), status, bob.sdp(6000), contacts...)
		alice.expect("503")
		bob.expect("ACK")
		if status == 200 {
			bob.expect("BYE")
		}
		bob.nothing()
		_ = inv
	}
	w.clean()
}

// TestHostileForgedScanner: datagrams in the name of an honest peer do not shut it out; a connection's
// address cannot be forged.
func TestHostileForgedScanner(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	alice.register(bob)
	contact := registeredAs(w)
	for _, proto := range []flow.Proto{flow.UDP, flow.TCP} {
		peer := w.phone("peer", proto, "198.51.100.90:5060", "198.51.100.1:5060")
		peer.name = "peer" + proto.String()
		a, b := peer.call(contact, alice, peer.sdp(6000), alice.sdp(4000))
		for range 40 {
			peer.dial(contact).send("OPTIONS", "", "User-Agent: friendly-scanner")
		}
		peer.inbox, alice.inbox = nil, nil
		a.send("BYE", "")
		if n, want := len(alice.inbox), map[flow.Proto]int{flow.UDP: 1}[proto]; n != want {
			t.Errorf("%v: %d BYE arrived, want %d", proto, n, want)
		}
		_ = b
		alice.inbox, peer.inbox = nil, nil
	}
}
