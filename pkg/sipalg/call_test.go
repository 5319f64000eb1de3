package sipalg

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// register registers a phone with the registrar, which grants an hour, and returns what the phone got.
func (p *phone) register(registrar *phone, extra ...string) *msg {
	p.w.t.Helper()
	d := p.dial("sip:example.com")
	d.remote, d.local = "<sip:"+p.name+"@example.com>", "<sip:"+p.name+"@example.com>;tag="+p.name+"-r"
	if len(extra) == 0 {
		extra = []string{"Contact: " + p.contact(), "Expires: 3600"}
	}
	d.send("REGISTER", "", extra...)
	req := registrar.expect("REGISTER")
	registrar.reply(req, nil, 200, "", "Contact: "+req.get("Contact")+";expires=3600")
	return p.expect("200")
}

func TestCallOut(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	if w.opener.Count() != 1 {
		t.Fatalf("%d pinholes", w.opener.Count())
	}
	l := w.opener.Leases()[0]
	if got := l.Remote(pinhole.Near).Addr; got != ap("10.0.0.5:4000") {
		t.Errorf("caller's media at %v", got)
	}
	if got := l.Remote(pinhole.Far).Addr; got != ap("198.51.100.20:6000") {
		t.Errorf("callee's media at %v", got)
	}
	a.bye(b)
	w.golden("call-out")
	w.clean()
	if len(w.records) != 1 || w.records[0].Status != 200 || w.records[0].Reason != "normal" {
		t.Errorf("records %+v", w.records)
	}
}

func TestCallIn(t *testing.T) {
	w := newWorld(t, nil)
	alice, server := w.alice(), w.bob()
	got := alice.register(server)
	if c := got.get("Contact"); c != alice.contact()+";expires=3600" {
		t.Errorf("alice's Contact came back as %s", c)
	}
	// The registrar sends the call to the Contact that it knows.
	var contact string
	for _, e := range w.log {
		if m := parseMsg(e.raw); e.toWho && m.method == "REGISTER" {
			contact = uriOf(m.get("Contact"))
		}
	}
	b, a := server.call(contact, alice, server.sdp(6000), alice.sdp(4000))
	a.bye(b)
	w.golden("call-in")
	w.clean()
}

// everyTransport is a table of both sides' transports and families.
var everyTransport = []struct {
	name                 string
	proto                flow.Proto
	addr, edge           string
	farProto             flow.Proto
	farAddr, farEdge     string
	near, far            string // media addresses
	serverText, wantNear string
}{
	{name: "udp-udp", proto: flow.UDP, addr: "10.0.0.5:5062", edge: "10.0.0.1:5060", farProto: flow.UDP, farAddr: "198.51.100.20:5060", farEdge: "198.51.100.1:5060", serverText: "udp:198.51.100.20:5060"},
	{name: "tcp-udp", proto: flow.TCP, addr: "10.0.0.5:45062", edge: "10.0.0.1:5060", farProto: flow.UDP, farAddr: "198.51.100.20:5060", farEdge: "198.51.100.1:5060", serverText: "udp:198.51.100.20:5060"},
	{name: "udp-tcp", proto: flow.UDP, addr: "10.0.0.5:5062", edge: "10.0.0.1:5060", farProto: flow.TCP, farAddr: "198.51.100.20:5060", farEdge: "198.51.100.1:5060", serverText: "tcp:198.51.100.20:5060"},
	{name: "tls-tls", proto: flow.TLS, addr: "10.0.0.5:45062", edge: "10.0.0.1:5061", farProto: flow.TLS, farAddr: "198.51.100.20:5061", farEdge: "198.51.100.1:5061", serverText: "tls:198.51.100.20:5061"},
	{name: "ws-tls", proto: flow.WS, addr: "10.0.0.5:45062", edge: "10.0.0.1:8080", farProto: flow.TLS, farAddr: "198.51.100.20:5061", farEdge: "198.51.100.1:5061", serverText: "tls:198.51.100.20:5061"},
	{name: "v4-v6", proto: flow.UDP, addr: "10.0.0.5:5062", edge: "10.0.0.1:5060", farProto: flow.UDP, farAddr: "[2001:db8::20]:5060", farEdge: "[2001:db8::1]:5060", serverText: "udp:[2001:db8::20]:5060"},
	{name: "v6-v4", proto: flow.UDP, addr: "[fd00::5]:5062", edge: "[fd00::1]:5060", farProto: flow.UDP, farAddr: "198.51.100.20:5060", farEdge: "198.51.100.1:5060", serverText: "udp:198.51.100.20:5060"},
	{name: "v6-v6-tcp", proto: flow.TCP, addr: "[fd00::5]:45062", edge: "[fd00::1]:5060", farProto: flow.TCP, farAddr: "[2001:db8::20]:5060", farEdge: "[2001:db8::1]:5060", serverText: "tcp:[2001:db8::20]:5060"},
}

// TestEveryTransport makes a call out, ended by the callee, and a call in, ended by the caller, each
// with a re-INVITE from the other side.
func TestEveryTransport(t *testing.T) {
	for _, tt := range everyTransport {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Domains["example.com"] = Domain{Network: "outside", Server: tt.serverText} })
			alice := w.phone("alice", tt.proto, tt.addr, tt.edge)
			server := w.phone("bob", tt.farProto, tt.farAddr, tt.farEdge)
			alice.register(server)
			contact := registeredAs(w)
			a, b := alice.call("sip:bob@example.com", server, alice.sdp(4000), server.sdp(6000))
			reinvite(b, a, server.sdp(6002), alice.sdp(4000))
			b.bye(a)
			b, a = server.call(contact, alice, server.sdp(6004), alice.sdp(4004))
			reinvite(a, b, alice.sdp(4004), server.sdp(6004))
			b.bye(a)
			for _, l := range w.opener.Leases() {
				near, far := l.Local(pinhole.Near).Addr, l.Local(pinhole.Far).Addr
				if near.Addr().Is4() != addrOf(l.Request.Networks[0], tt.addr, tt.farAddr).Is4() || far.Addr().Is4() != addrOf(l.Request.Networks[1], tt.addr, tt.farAddr).Is4() {
					t.Errorf("pinhole %v - %v is of the wrong family", near, far)
				}
			}
			w.clean()
		})
	}
}

func addrOf(network, in, out string) netip.Addr {
	if network == "inside" {
		return ap(in).Addr()
	}
	return ap(out).Addr()
}

// registeredAs is the Contact that the registrar saw last.
func registeredAs(w *world) string {
	w.t.Helper()
	for i := len(w.log) - 1; i >= 0; i-- {
		if m := parseMsg(w.log[i].raw); w.log[i].toWho && m.method == "REGISTER" {
			return uriOf(m.get("Contact"))
		}
	}
	w.t.Fatal("nobody has registered")
	return ""
}

// reinvite makes a re-INVITE from a to b up to the ACK.
func reinvite(a, b *peer, offer, answer string) {
	a.p.w.t.Helper()
	a.send("INVITE", offer)
	req := b.p.expect("INVITE")
	b.p.reply(req, b, 200, answer)
	a.retarget(a.p.expect("200"))
	a.send("ACK", "")
	b.p.expect("ACK")
}

// insideProxy is alice behind a proxy of her own that records itself.
func insideProxy(t *testing.T, hide bool, record bool) (w *world, alice, bob *phone) {
	w = newWorld(t, func(c *Config) { c.HideTopology = hide })
	w.showsIn = !hide
	p := w.proxy("pbx", "10.0.0.10:5060", record)
	p.next = ap("10.0.0.1:5060")
	p.to["alice"] = ap("10.0.0.5:5062")
	alice = w.phone("alice", flow.UDP, "10.0.0.5:5062", "10.0.0.10:5060")
	// The proxy speaks for others.
	w.opener.Allow("inside", netip.MustParsePrefix("10.0.0.0/24"))
	return w, alice, w.bob()
}

func TestInsideProxy(t *testing.T) {
	for _, hide := range []bool{true, false} {
		name := map[bool]string{true: "hidden", false: "shown"}[hide]
		t.Run(name, func(t *testing.T) {
			w, alice, bob := insideProxy(t, hide, true)
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
			if len(a.routes) != 2 {
				t.Errorf("alice's route set is %q", a.routes)
			}
			reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
			reinvite(b, a, bob.sdp(6002), alice.sdp(4002))
			w.golden("inside-proxy-" + name)
			b.bye(a)
			w.clean()
		})
	}
}

// TestLongCall: what names a party is not forgotten while the call lasts, however quiet it is.
func TestLongCall(t *testing.T) {
	for _, by := range []string{"caller", "callee"} {
		t.Run(by, func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
			w.after(3 * time.Hour)
			if by == "caller" {
				a, b = b, a
			}
			reinvite(b, a, b.p.sdp(7000), a.p.sdp(7000))
			w.after(3 * time.Hour)
			b.bye(a)
			w.clean()
		})
	}
}

// TestServerWithoutRecordRoute: the ACK and what follows go to the Contact, not to a proxy that stays
// out of the dialog (RFC 3261 §12.2.1.1).
func TestServerWithoutRecordRoute(t *testing.T) {
	w := newWorld(t, nil)
	p := w.proxy("server", "198.51.100.20:5060", false)
	bob := w.phone("bob", flow.UDP, "198.51.100.77:5066", "198.51.100.1:5060")
	p.to["bob"] = bob.addr
	alice := w.alice()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	n := p.n
	reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4002))
	a.bye(b)
	if p.n != n {
		t.Errorf("%d requests in the dialog went to the server", p.n-n)
	}
	w.clean()
}

// TestServerWithRecordRoute: with a recording server all goes through it.
func TestServerWithRecordRoute(t *testing.T) {
	w := newWorld(t, nil)
	p := w.proxy("server", "198.51.100.20:5060", true)
	bob := w.phone("bob", flow.UDP, "198.51.100.77:5066", "198.51.100.20:5060")
	p.to["bob"] = bob.addr
	alice := w.alice()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	n := p.n
	reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4002))
	b.bye(a)
	if p.n != n+5 {
		t.Errorf("%d requests in the dialog went through the server, not 5", p.n-n)
	}
	w.golden("server-records")
	w.clean()
}

// TestUnknownDialog: a re-INVITE or UPDATE that belongs to no call opens nothing and is not passed
// on with media that nobody relays.
func TestUnknownDialog(t *testing.T) {
	for _, method := range []string{"INVITE", "UPDATE", "BYE"} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		d := alice.dial("sip:bob@example.com")
		d.remote += ";tag=gone"
		d.target = "sip:bob~aaaaaaaaaaaaa@10.0.0.1:5060"
		d.send(method, alice.sdp(4000))
		alice.expect("481")
		bob.nothing()
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes", w.opener.Count())
		}
		w.clean()
	}
}

// TestDialogFromOutsideReachesNobodyElse: the Record-Route that the edge gave for one dialog opens no
// way to other hosts inside, and it cannot be guessed.
func TestDialogFromOutsideReachesNobodyElse(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	victim := w.phone("victim", flow.UDP, "10.0.0.9:5060", "10.0.0.1:5060")
	_, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	target, routes := b.target, b.routes
	b.target = "sip:victim@10.0.0.9:5060"
	b.send("MESSAGE", "")
	victim.nothing()
	b.target = target
	b.routes = append(routes[:1:1], "<sip:10.0.0.9:5060;lr>")
	b.send("MESSAGE", "")
	victim.nothing()
	// Without any dialog: the token of a network is no constant.
	d := bob.dial("sip:victim@10.0.0.9:5060")
	d.remote = "<sip:victim@example.com>;tag=x"
	for _, n := range []string{string(appendHex32(nil, 0x6b0ad7a5)), "00000000", "inside"} {
		d.routes = []string{"<sip:198.51.100.1:5060;lr;n=" + n + ">"}
		d.send("MESSAGE", "")
	}
	victim.nothing()
	alice.nothing()
}

func hasLine(m *msg, want string) bool {
	for _, l := range m.lines {
		if strings.EqualFold(l, want) {
			return true
		}
	}
	return false
}
