//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// signing are the versions of the message signature; 0 is none.
var signing = []int{0, 2, 3, 4}

// TestMessengerDirect proves the harness: two clients and their server on one network, nothing in between.
func TestMessengerDirect(t *testing.T) {
	for _, version := range signing {
		t.Run(fmt.Sprintf("signing-%d", version), func(t *testing.T) {
			r := messengerLab(t)
			o := r.Outside("office").Office(t, OfficeConfig{Signing: version})
			alice := r.Outside("out1").Messenger(t, "alice", o.Addr, "tcp")
			bob := r.Outside("out2").Messenger(t, "bob", o.Addr, "tcp")
			alice.talks(t, bob)
			o.wantSigned(t)
		})
	}
}

// pair is the usual cast: the server and bob outside, alice inside, who knows nothing but the edge. Or all of it the
// other way round: a server inside, whose users are also elsewhere.
type pair struct {
	rig        *Rig
	edge       *Edge
	office     *Office
	alice, bob *Messenger
	gate       netip.AddrPort // the edge, for alice
	lan, wan   *Capture
}

// setting says what is special about a pair.
type setting struct {
	Office  OfficeConfig
	Turned  bool // server and bob inside, alice outside
	TLS     bool // everywhere
	Edge    EdgeConfig
	NoEdge  bool
	Taken   bool // alice is told of the server, and the edge takes that on its way
	Public  bool // alice has an address that her client takes for public
	Capture bool // judge by wantNoLeaks what passes the gateway
}

// newPair starts server and edge.
func newPair(t *testing.T, c setting) *pair {
	t.Helper()
	p := &pair{rig: messengerLab(t)}
	near, far := p.rig.Inside, p.rig.Outside
	sides := [2]string{"outside", "inside"}
	if c.Turned {
		near, far, sides = far, near, [2]string{"inside", "outside"}
	}
	server, proto := far("office"), "tcp"
	if c.TLS {
		a := newAuthority(t, p.rig.Dir)
		c.Office.TLS = a.issue(t, "office", []string{"example.org"}, server.IP)
		c.Edge.TLS = a.issue(t, "edge", []string{"edge.example.org"}, p.rig.GW.IPOn(inside, 4), p.rig.GW.IPOn(outside, 4))
		proto = "tls"
	}
	p.office = server.Office(t, c.Office)
	h1, h2 := near("near"), far("far")
	if c.Public {
		h1.Renumber(t, p.rig)
	}
	p.gate = netip.AddrPortFrom(p.rig.GW.IPOn(h1.Side, 4), sipPort(proto))
	if c.Taken {
		p.gate = p.office.Addr
	}
	if !c.NoEdge {
		c.Edge.Domains += fmt.Sprintf("example.org: {network: %s, server: \"%s:%v\"}\n", sides[0], proto, p.office.Addr)
		p.edge = p.rig.Edge(t, c.Edge)
	}
	if c.Capture {
		p.lan, p.wan = p.rig.Capture("lan"), p.rig.Capture("wan")
	}
	p.bob = h2.Messenger(t, "bob", p.office.Addr, proto)
	p.alice = h1.messenger(t, "alice", p.gate, proto)
	if !c.NoEdge {
		p.alice.wants(t, "signed-on")
	}
	return p
}

// wantNoLeaks fails the test if an inside address left, or an outside target came in.
func (p *pair) wantNoLeaks(t *testing.T) {
	t.Helper()
	wantNoLeaks(t, p.rig, p.lan.Stop(t), p.wan.Stop(t))
}

// TestMessengerSignOn: sign on and instant messages both ways, with every version of the signature, with TLS, with a
// server on either side.
func TestMessengerSignOn(t *testing.T) {
	for _, version := range signing {
		for _, tls := range []bool{false, true} {
			for _, turned := range []bool{false, true} {
				t.Run(fmt.Sprintf("signing-%d-%s-%s", version, map[bool]string{false: "tcp", true: "tls"}[tls], map[bool]string{false: "out", true: "in"}[turned]), func(t *testing.T) {
					p := newPair(t, setting{Office: OfficeConfig{Signing: version, GRUU: version == 4}, TLS: tls, Turned: turned, Capture: true})
					p.alice.talks(t, p.bob)
					p.wantNoLeaks(t)
					p.office.wantSigned(t)
					if from, _ := p.office.Registered("alice@example.org"); from.Addr() == p.alice.Host.IP {
						t.Errorf("the server sees alice at %v, her own address", from)
					}
				})
			}
		}
	}
}

// TestMessengerControl: without edged nobody signs on through the gateway.
func TestMessengerControl(t *testing.T) {
	p := newPair(t, setting{NoEdge: true})
	p.alice.wants(t, "error")
	if p.alice.count("signed-on") != 0 {
		t.Error("alice has signed on")
	}
}

// talks sends an instant message each way, and the answer to each.
func (m *Messenger) talks(t testing.TB, peer *Messenger) {
	t.Helper()
	n := m.count("im-sent") + peer.count("im-sent")
	m.says(t, peer, fmt.Sprint("is anybody there ", n))
	peer.says(t, m, fmt.Sprint("yes and you ", n))
	m.says(t, peer, fmt.Sprint("so am I ", n))
}

// wantSigned checks that signatures were made if they were to be; that none was bad is checked when the server ends.
func (o *Office) wantSigned(t testing.TB) {
	t.Helper()
	if n := o.Verified(); (n > 0) != (o.Signing > 0) {
		t.Errorf("%d signatures were good", n)
	}
}

// TestMessengerSameSecond: clients that start in the same second have the same Call-ID, tag and branch (pidgin-sipe seeds
// its dice with the clock). Both must work, with bob and with each other.
func TestMessengerSameSecond(t *testing.T) {
	for _, version := range []int{0, 4} {
		t.Run(fmt.Sprintf("signing-%d", version), func(t *testing.T) {
			p := newPair(t, setting{Office: OfficeConfig{Signing: version}})
			h1, h2 := p.rig.Inside("twin1"), p.rig.Inside("twin2")
			for i := range 10 {
				pass(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
				a := h1.messenger(t, fmt.Sprint("romulus", i), p.gate, "tcp")
				b := h2.messenger(t, fmt.Sprint("remus", i), p.gate, "tcp")
				a.wants(t, "signed-on")
				b.wants(t, "signed-on")
				if p.office.callID(a.User) != p.office.callID(b.User) {
					continue
				}
				a.Do("im sip:bob@example.org I am first")
				b.Do("im sip:bob@example.org I am first")
				for _, m := range []*Messenger{a, b} {
					p.bob.wants(t, "im-recv sip:"+m.User, "I am first")
					p.bob.talks(t, m)
				}
				a.talks(t, b)
				p.office.wantSigned(t)
				return
			}
			t.Error("no two clients were the same within ten attempts")
		})
	}
}

// TestMessengerKamailio: Kamailio as the server that the edge knows, which is also the registrar.
func TestMessengerKamailio(t *testing.T) {
	r := messengerLab(t)
	server := r.Outside("registrar").MessengerRegistrar(t)
	h1, h2 := r.Inside("in1"), r.Outside("out1")
	e := r.Edge(t, EdgeConfig{Domains: fmt.Sprintf("example.org: {network: outside, server: \"tcp:%v\"}\n", server)})
	alice := h1.Messenger(t, "alice", netip.AddrPortFrom(r.GW.IPOn(inside, 4), 5060), "tcp")
	bob := h2.Messenger(t, "bob", server, "tcp")
	alice.talks(t, bob)
	bob.talks(t, alice)
	if n := e.Count("registrations"); n != 1 {
		t.Errorf("%d registrations at the edge, want 1", n)
	}
}

// TestMessengerRestart: the edge dies in the middle, and again with a reset in between. The clients come back, to the
// edge and not past it, sign on again and go on.
func TestMessengerRestart(t *testing.T) {
	for _, version := range []int{0, 4} {
		t.Run(fmt.Sprintf("signing-%d", version), func(t *testing.T) {
			p := newPair(t, setting{Office: OfficeConfig{Signing: version}, Capture: true})
			p.alice.talks(t, p.bob)
			p.edge.Kill()
			p.alice.wants(t, "signed-off")
			p.edge.Start(t)
			if !p.alice.counts(2, "signed-on") {
				t.Fatalf("alice does not sign on again: %q", p.alice.events(""))
			}
			p.alice.talks(t, p.bob)
			p.bob.talks(t, p.alice)
			p.office.wantSigned(t)
			if p.bob.count("signed-off") != 0 {
				t.Error("bob, who is not behind the edge, signed off")
			}
			lan := p.lan.Stop(t)
			p.alice.Host.wantOnly(t, lan, p.gate)
			wantNoLeaks(t, p.rig, lan, p.wan.Stop(t))
		})
	}
}

// TestMessengerRedirect: the server that the edge knows sends alice to another one, her home (301). She dials what
// she is told, which must be the edge, and has signed on at her home.
func TestMessengerRedirect(t *testing.T) {
	for _, version := range []int{0, 4} {
		t.Run(fmt.Sprintf("signing-%d", version), func(t *testing.T) {
			r := messengerLab(t)
			home := r.Outside("home").Office(t, OfficeConfig{Signing: version})
			front := r.Outside("front").Office(t, OfficeConfig{Home: home.Addr})
			r.Edge(t, EdgeConfig{Domains: fmt.Sprintf("example.org: {network: outside, server: \"tcp:%v\"}\n", front.Addr)})
			lan, wan := r.Capture("lan"), r.Capture("wan")
			h := r.Inside("near")
			gate := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 5060)
			alice := h.Messenger(t, "alice", gate, "tcp")
			bob := r.Outside("far").Messenger(t, "bob", home.Addr, "tcp")
			alice.talks(t, bob)
			bob.talks(t, alice)
			home.wantSigned(t)
			if _, on := home.Registered("alice@example.org"); !on {
				t.Error("alice is not at home")
			}
			packets := lan.Stop(t)
			h.wantOnly(t, packets, gate)
			wantNoLeaks(t, r, packets, wan.Stop(t))
		})
	}
}

// wantOnly fails the test if the host opened a TCP connection to anything but one address.
func (h *Host) wantOnly(t *testing.T, lan []Packet, to netip.AddrPort) {
	t.Helper()
	for _, k := range lan {
		if k.TCP && k.Src.Addr() == h.IP && k.Dst != to {
			t.Fatalf("%s went to %v", h.Name, k.Dst)
		}
	}
}

// TestMessengerLinks: links in instant messages, the first of which rides in an INVITE. Defused ones arrive so; a
// blocked one does not, its sender is told where the edge may refuse and else the receiver; the conversation goes on.
func TestMessengerLinks(t *testing.T) {
	for _, mode := range []string{"defuse", "block"} {
		for _, version := range []int{0, 4} {
			t.Run(fmt.Sprintf("%s-signing-%d", mode, version), func(t *testing.T) {
				p := newPair(t, setting{Office: OfficeConfig{Signing: version}, Edge: EdgeConfig{SIP: "im_urls: {mode: " + mode + ", allow: [example.org]}\n"}})
				for i, where := range []string{"INVITE", "MESSAGE"} {
					p.alice.Do("im sip:bob@example.org %d see http://example.com/%s", i, where)
					switch {
					case mode == "defuse":
						p.bob.wants(t, "im-recv", "_http://example.com/"+where)
					case version == 0:
						if !p.alice.counts(i+1, "im-error") {
							t.Fatalf("alice is not told: %q", p.alice.events(""))
						}
					default:
						if !p.bob.counts(i+1, "im-recv", "link was removed") {
							t.Fatalf("bob is not told: %q", p.bob.events(""))
						}
					}
					p.alice.says(t, p.bob, "see http://www.example.org/"+where)
				}
				p.bob.says(t, p.alice, "thank you")
				if n := p.bob.count("im-recv", " http://example.com") + p.bob.count("im-recv", ">http://example.com"); n != 0 {
					t.Errorf("%d links reached bob: %q", n, p.bob.events("im-recv"))
				}
				p.office.wantSigned(t)
			})
		}
	}
}
