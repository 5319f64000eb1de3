package sipalg

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
)

// TestDomainInside: the domain's server is inside; strangers outside reach its users, and only them.
func TestDomainInside(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains = map[string]Domain{"example.com": {Network: "inside", Server: "tcp:10.0.0.20:5060"}}
	})
	pbx := w.phone("pbx", flow.TCP, "10.0.0.20:5060", "10.0.0.1:5060")
	home := w.phone("home", flow.TLS, "203.0.113.7:40000", "198.51.100.1:5061")
	w.opener.Allow("inside", netip.MustParsePrefix("10.0.0.20/32"))
	h, p := home.call("sip:sales@example.com", pbx, home.sdp(6000), pbx.sdp(4000))
	reinvite(p, h, pbx.sdp(4002), home.sdp(6000))
	p.bye(h)
	// The other way: the user registers through the edge and is called by the server.
	d := home.signUp()
	d.send("REGISTER", "", "Contact: "+home.contact(), "Expires: 600")
	req := pbx.expect("REGISTER")
	pbx.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=600")
	home.expect("200")
	w.showsIn = true // the test's server writes the Contact into To
	p, h = pbx.call(uriOf(req.get("Contact")), home, pbx.sdp(4000), home.sdp(6000))
	h.bye(p)
	w.clean()
}

// TestOwnAddressIsTheServer: a client that takes the edge for its server reaches the server for all
// others, which finds itself in the Request-URI.
func TestOwnAddressIsTheServer(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains = map[string]Domain{"*": {Network: "outside", Server: "udp:198.51.100.20:5070"}}
	})
	alice := w.alice()
	server := w.phone("server", flow.UDP, "198.51.100.20:5070", "198.51.100.1:5060")
	d := alice.dial("sip:bob@10.0.0.1:5060;user=phone")
	w.showsIn = true // alice writes the edge's inside address into To herself
	d.send("INVITE", alice.sdp(4000))
	got := server.expect("INVITE")
	if got.ruri() != "sip:bob@198.51.100.20:5070;user=phone" {
		t.Errorf("Request-URI %s", got.ruri())
	}
	server.reply(got, nil, 486, "")
	alice.expect("486")
	server.expect("ACK")
	alice.dial("tel:+4930123").send("INVITE", alice.sdp(4000))
	if got := server.expect("INVITE"); got.ruri() != "tel:+4930123" {
		t.Errorf("Request-URI %s", got.ruri())
	}
	w.clean()
}

func TestAccess(t *testing.T) {
	pfx := netip.MustParsePrefix
	w := newWorld(t, func(c *Config) {
		c.Access = map[string]Access{"outside": {Allow: []netip.Prefix{pfx("203.0.113.0/24"), pfx("198.51.100.20/32")}, Deny: []netip.Prefix{pfx("203.0.113.128/25")}}}
	})
	for addr, ok := range map[string]bool{"203.0.113.7:5060": true, "203.0.113.200:5060": false, "192.0.2.7:5060": false} {
		p := w.phone("p", flow.UDP, addr, "198.51.100.1:5060")
		p.dial("sip:198.51.100.1").send("OPTIONS", "")
		if got := len(p.inbox) == 1; got != ok {
			t.Errorf("%s is answered: %v", addr, got)
		}
	}
	w.drops("access_denied", 2)
	alice := w.alice()
	alice.dial("sip:10.0.0.1").send("OPTIONS", "")
	alice.expect("200")
}

// TestAdvertise: behind a 1:1 NAT the public address is written into messages, the bound one is used.
func TestAdvertise(t *testing.T) {
	nets := testNetworks()
	out := nets["outside"]
	out.Advertise = netip.MustParseAddr("203.0.113.5")
	nets["outside"] = out
	core := newTestCore(testConfig(nil), nets, pinholetest.New(nets, 50000), zap.NewNop())
	w := newWorld(t, nil)
	alice := w.alice()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var o Output
	core.Begin(now, &o)
	o.reset()
	raw := alice.dial("sip:bob@example.com").text("INVITE", alice.sdp(4000))
	core.Receive(now, flow.Flow{Network: "inside", Proto: flow.UDP, Local: ap("10.0.0.1:5060"), Remote: alice.addr}, []byte(raw), &o)
	if len(o.items) != 2 {
		t.Fatalf("%d messages", len(o.items))
	}
	inv := parseMsg(string(o.bytes(1)))
	if o.items[1].flow.Local != ap("198.51.100.1:5060") {
		t.Errorf("leaves from %v", o.items[1].flow.Local)
	}
	if strings.Contains(inv.raw, "198.51.100.1") || strings.Count(inv.raw, "203.0.113.5") != 5 {
		t.Errorf("public address in Via, Record-Route, Contact, o= and c=:\n%s", inv.raw)
	}
	// The answer comes back, and what it leads to is understood as the edge's own.
	resp := "SIP/2.0 200 OK\r\nVia: " + inv.all("Via")[0] + "\r\nRecord-Route: " + inv.get("Record-Route") + "\r\nFrom: " + inv.get("From") +
		"\r\nTo: " + inv.get("To") + ";tag=b\r\nCall-ID: " + inv.get("Call-ID") + "\r\nCSeq: 1 INVITE\r\nContact: <sip:bob@198.51.100.20>\r\nContent-Length: 0\r\n\r\n"
	server := flow.Flow{Network: "outside", Proto: flow.UDP, Local: ap("198.51.100.1:5060"), Remote: ap("198.51.100.20:5060")}
	o.reset()
	core.Receive(now, server, []byte(resp), &o)
	bye := withBody("BYE "+uriOf(inv.get("Contact"))+" SIP/2.0\nVia: SIP/2.0/UDP 198.51.100.20:5060;branch=z9hG4bKb\nRoute: "+inv.get("Record-Route")+
		"\nFrom: "+inv.get("To")+";tag=b\nTo: "+inv.get("From")+"\nCall-ID: "+inv.get("Call-ID")+"\nCSeq: 1 BYE\n", "")
	o.reset()
	core.Receive(now, server, []byte(bye), &o)
	if len(o.items) != 1 || o.items[0].flow.Remote != alice.addr {
		t.Errorf("BYE is not passed: %d messages", len(o.items))
	}
}

// TestConfigureLive: new domains count at once, and calls go on.
func TestConfigureLive(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Probe = 10 * time.Second })
	alice, bob := w.alice(), w.bob()
	other := w.phone("bob", flow.UDP, "198.51.100.30:5060", "198.51.100.1:5060")
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	cfg := testConfig(func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "udp:198.51.100.30:5060"}
	})
	w.do(func() {
		w.core.Configure(cfg, w.core.limits)
		w.core.Begin(w.now, &w.out)
	})
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	other.reply(other.expect("MESSAGE"), nil, 200, "")
	alice.expect("200")
	bob.inbox = nil
	w.after(time.Minute)
	bob.nothing() // no more probes
	reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
	a.bye(b)
	w.clean()
}

// TestServerByName: a configured server's name is resolved at the start, and again by probes until it has addresses.
func TestServerByName(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:sip.example.org:5060"}
	})
	w.answer(flow.Target{Network: "outside", Proto: flow.TCP, Addr: ap("198.51.100.20:5060")})
	bob := w.phone("bob", flow.TCP, "198.51.100.20:5060", "198.51.100.1:5060")
	alice := w.alice()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	b.bye(a)
	if len(w.queries) != 0 {
		t.Errorf("the edge asks again: %v", w.queries)
	}
	w.dns["sip.example.org"] = []flow.Target{{Network: "outside", Proto: flow.TCP, Addr: ap("198.51.100.20:5060")}}
	w.clean()
}

// TestReuse: requests to a server over TCP go down the connection that is there, and so do the server's own.
func TestReuse(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:198.51.100.20:5060"}
	})
	bob := w.phone("bob", flow.TCP, "198.51.100.20:5060", "198.51.100.1:5060")
	alice := w.alice()
	for range 3 {
		a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
		reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
		b.bye(a)
	}
	if n := len(w.ends); n != 1 {
		t.Errorf("%d connections", n)
	}
	w.clean()
}

// TestRecord: one record at the end of a call, with its times, ends and pinholes.
func TestRecord(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000))
	w.after(5 * time.Second)
	if c := w.core.Calls(); len(c) != 1 || c[0].State != "ringing" || c[0].Pinholes != 1 {
		t.Errorf("%+v", c)
	}
	bob.reply(got, b, 200, bob.sdp(6000))
	alice.inbox = alice.inbox[len(alice.inbox)-1:]
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	w.after(60 * time.Second)
	if c := w.core.Calls(); len(c) != 1 || c[0].State != "up" || c[0].Callee != "198.51.100.20:5060" {
		t.Errorf("%+v", c)
	}
	w.openLease().SetStats(pinhole.Near, pinhole.StreamStats{Packets: 7})
	bob.inbox = nil
	a.bye(b)
	if len(w.records) != 1 {
		t.Fatalf("%d records", len(w.records))
	}
	r := w.records[0]
	if r.Seconds != 60 || r.Status != 200 || r.From != "sip:alice@example.com" || r.To != "sip:bob@example.com" || r.Caller != "10.0.0.5:5062" ||
		r.Callee != "198.51.100.20:5060" || r.Networks != [2]string{"inside", "outside"} || len(r.Streams) != 1 || r.Streams[0].Received[pinhole.Near].Packets != 7 {
		t.Errorf("%+v", r)
	}
	w.clean()
}
