//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"testing"
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
}

// setting says what is special about a pair.
type setting struct {
	Office OfficeConfig
	Turned bool // server and bob inside, alice outside
	TLS    bool // everywhere
	Edge   EdgeConfig
	NoEdge bool
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
	p.gate = netip.AddrPortFrom(p.rig.GW.IPOn(h1.Side, 4), sipPort(proto))
	if !c.NoEdge {
		c.Edge.Domains += fmt.Sprintf("example.org: {network: %s, server: \"%s:%v\"}\n", sides[0], proto, p.office.Addr)
		p.edge = p.rig.Edge(t, c.Edge)
	}
	p.bob = h2.Messenger(t, "bob", p.office.Addr, proto)
	p.alice = h1.messenger(t, "alice", p.gate, proto)
	if !c.NoEdge {
		p.alice.wants(t, "signed-on")
	}
	return p
}

// TestMessengerSignOn: sign on and instant messages both ways, with every version of the signature, with TLS, with a
// server on either side.
func TestMessengerSignOn(t *testing.T) {
	for _, version := range signing {
		for _, tls := range []bool{false, true} {
			for _, turned := range []bool{false, true} {
				t.Run(fmt.Sprintf("signing-%d-%s-%s", version, map[bool]string{false: "tcp", true: "tls"}[tls], map[bool]string{false: "out", true: "in"}[turned]), func(t *testing.T) {
					p := newPair(t, setting{Office: OfficeConfig{Signing: version, GRUU: version == 4}, TLS: tls, Turned: turned})
					p.alice.talks(t, p.bob)
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
