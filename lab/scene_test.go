//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// scene is a rig with one agent on each side, edged between them, and a voice at each.
type scene struct {
	*testing.T
	rig                    *Rig
	edge                   *Edge
	alice, bob             *Agent // inside, outside
	va, vb                 *Voice
	inGate, outGate        netip.AddrPort // edged's listeners for alice and bob
	inHost, outHost        *Host
	proto, peerProto       string
	family, peerFamily     int
	authority              *authority
	insideCert, outsideCer *Certificates
}

// plan says what is special about a scene; the zero value is UDP over IPv4 on both sides.
type plan struct {
	InProto, OutProto   string // udp, tcp, tls
	InFamily, OutFamily int
	Edge                EdgeConfig
	NoEdge              bool // the gateway does nothing
	PlainNAT            bool // the gateway is a NAT router without an ALG
}

// newScene builds rig, edge, agents (port 5060) and voices.
func newScene(t *testing.T, p plan) *scene {
	t.Helper()
	return newSceneOn(t, lab(t), p)
}

// newSceneOn builds a scene on a rig that may have more already.
func newSceneOn(t *testing.T, r *Rig, p plan) *scene {
	t.Helper()
	s := &scene{T: t, rig: r}
	s.proto, s.peerProto = or(p.InProto, "udp"), or(p.OutProto, "udp")
	s.family, s.peerFamily = or(p.InFamily, 4), or(p.OutFamily, 4)
	s.inHost, s.outHost = s.rig.Inside("in1"), s.rig.Outside("out1")
	s.certificates(&p)
	s.alice = s.agent(s.inHost, "alice", s.proto, s.family, s.insideCert)
	s.bob = s.agent(s.outHost, "bob", s.peerProto, s.peerFamily, s.outsideCer)
	s.va = s.inHost.Voice(t, s.inHost.Addr(s.family, 30000), 440)
	s.vb = s.outHost.Voice(t, s.outHost.Addr(s.peerFamily, 30000), 1000)
	s.inGate = netip.AddrPortFrom(s.rig.GW.IPOn(inside, s.family), sipPort(s.proto))
	s.outGate = netip.AddrPortFrom(s.rig.GW.IPOn(outside, s.peerFamily), sipPort(s.peerProto))
	switch {
	case p.NoEdge:
	case p.PlainNAT:
		s.rig.PlainNAT()
	default:
		p.Edge.Domains += fmt.Sprintf("example.org: {network: outside, server: \"%s:%v\"}\ninside.example.org: {network: inside, server: \"%s:%v\"}\n",
			s.peerProto, s.bob.Addr, s.proto, s.alice.Addr)
		s.edge = s.rig.Edge(t, p.Edge)
	}
	return s
}

// certificates issues one for the gateway and one for each side if anybody speaks TLS.
func (s *scene) certificates(p *plan) {
	if s.proto != "tls" && s.peerProto != "tls" {
		return
	}
	gw := s.rig.GW
	s.authority = newAuthority(s, s.rig.Dir)
	p.Edge.TLS = s.authority.issue(s, "edge", []string{"edge.example.org"}, gw.IPOn(inside, 4), gw.IPOn(inside, 6), gw.IPOn(outside, 4), gw.IPOn(outside, 6))
	s.insideCert = s.authority.issue(s, "inside", []string{"inside.example.org"}, s.inHost.IP, s.inHost.IP6)
	s.outsideCer = s.authority.issue(s, "outside", []string{"example.org"}, s.outHost.IP, s.outHost.IP6)
}

func (s *scene) agent(h *Host, name, proto string, family int, c *Certificates) *Agent {
	if proto != "tls" {
		return h.Agent(s, name, proto, h.Addr(family, 5060), nil)
	}
	return h.Agent(s, name, proto, h.Addr(family, 5061), c.config(s, "edge.example.org"))
}

// invite sends alice's call to bob and returns both views once bob has the INVITE.
func (s *scene) invite(from, to *Agent, uri string, offer Offer) (*Dialog, *Message) {
	s.Helper()
	d := from.Invite(s.gate(from), uri, offer.String())
	req := to.Expect("INVITE "+d.ID, 8*time.Second, func(m *Message) bool {
		return m.Method() == "INVITE" && m.Status() == 0 && m.CallID() == d.ID
	})
	return d, req
}

// gate returns the address of the edge for an agent.
func (s *scene) gate(a *Agent) netip.AddrPort {
	if a.Host.Side == inside {
		return netip.AddrPortFrom(s.inGate.Addr(), sipPort(a.Proto))
	}
	return netip.AddrPortFrom(s.outGate.Addr(), sipPort(a.Proto))
}

// answer takes the call: to's voice speaks to where the offer says, the answer says where to listens,
// from's voice speaks there, and the ACK arrives.
func (s *scene) answer(d *Dialog, to *Agent, req *Message, from, voice *Voice) *Dialog {
	s.Helper()
	s.aim(voice, req.Body)
	to.Reply(req, 180, "Ringing", "")
	peer := to.Reply(req, 200, "OK", Offer{Addr: voice.Addr}.String())
	s.confirm(d, to, from)
	return peer
}

// confirm takes the 200 at the caller, aims its voice and sees the ACK arrive.
func (s *scene) confirm(d *Dialog, to *Agent, from *Voice) *Message {
	s.Helper()
	ok := d.Await("INVITE", 200, 299)
	s.aim(from, ok.Body)
	d.Send("ACK", "")
	return to.Expect("ACK of "+d.ID, 8*time.Second, func(m *Message) bool {
		return m.Method() == "ACK" && m.CallID() == d.ID
	})
}

// aim makes the voice speak to the first media address of a session description.
func (s *scene) aim(v *Voice, sdp string) {
	s.Helper()
	to, err := mediaAddr(sdp, 0)
	must(s, "session description", err)
	v.Talk(to)
}

// call makes a whole call from alice to bob up to the ACK.
func (s *scene) call() (a, b *Dialog) {
	s.Helper()
	a, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	return a, s.answer(a, s.bob, req, s.va, s.vb)
}

// callIn makes a whole call from bob to alice up to the ACK.
func (s *scene) callIn() (b, a *Dialog) {
	s.Helper()
	b, req := s.invite(s.bob, s.alice, "sip:alice@inside.example.org", Offer{Addr: s.vb.Addr})
	return b, s.answer(b, s.alice, req, s.vb, s.va)
}

// hearEachOther checks that both voices hear the other for d.
func (s *scene) hearEachOther(d time.Duration) {
	s.Helper()
	s.va.Forget()
	s.vb.Forget()
	wantVoice(s, "alice", s.va, s.vb.Hz, d)
	wantVoice(s, "bob", s.vb, s.va.Hz, d)
}

// capture begins to record both interfaces; the function returned ends it and checks that nothing
// leaks. The reference hides nothing, so with it the check is left out.
func (s *scene) capture() (check func()) {
	s.Helper()
	lan, wan := s.rig.Capture("lan"), s.rig.Capture("wan")
	return func() {
		s.Helper()
		if l, w := lan.Stop(s), wan.Stop(s); !s.edge.isRef {
			wantNoLeaks(s, s.rig, l, w)
		}
	}
}

// onlyEdged skips a case that the reference cannot pass, with the reason.
func onlyEdged(t *testing.T, why string) {
	t.Helper()
	if reference() {
		t.Skip("SKIPPED with the reference edge: " + why)
	}
}
