package media

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/pion/stun/v4"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// The lite half of ICE (RFC 8445 §2.5): a peer that signalling says speaks ICE proves by STUN, with the credentials that
// signalling gave it, where it is. Its check that nominates (USE-CANDIDATE) confirms the source, and a later one moves it.
//
//	peer ── Binding request, USERNAME, MESSAGE-INTEGRITY, USE-CANDIDATE ──► checks.answer ─► consent ─► Path.Set
//	peer ◄─ Binding response, XOR-MAPPED-ADDRESS, MESSAGE-INTEGRITY ◄──────────────┘
//
// What is not authentic gets no answer, so that nobody can have strangers answered. The peer's checks go on for the
// length of the call, which is its consent to what it is sent (RFC 7675): without them its source is confirmed no longer.

const (
	// consentTime is how long a check is good for (RFC 7675 §5.1); browsers make one every 2.5-5 s.
	consentTime = 30 * time.Second
	// stunHeader is the length of STUN's header, maxCheck that of the longest request that is read: a browser's has some 120 octets.
	stunHeader = 20
	maxCheck   = 1200
)

// isSTUN tells whether a packet at a media port is STUN (RFC 7983): it begins with 0-3, and has the cookie.
func isSTUN(b []byte) bool {
	return len(b) >= stunHeader && b[0] <= 3 && bytes.Equal(b[4:8], []byte{0x21, 0x12, 0xa4, 0x42})
}

// checks are what a flow's peer may prove itself with. They never change.
type checks struct {
	leg  *leg
	sock *Socket
	// credentials are the ones in use, and those before, nil if there were none.
	credentials [2]*pinhole.ICE
	// control is where RTCP goes of a peer that has it at RTP's port (RFC 5761), nil: where RTP goes.
	control *Flow
}

// checksLocked returns the checks of a leg whose peer speaks ICE, nil at one where it sends nothing: RTP's port is that of RTCP too.
func (g *leg) checksLocked() *checks {
	l := g.lease
	r := &l.remote[g.side]
	muxes := r.RTCP == r.Addr
	if r.ICE == nil || g.socket == rtcp && muxes {
		return nil
	}
	c := &checks{leg: g, sock: l.ends[g.side].socks[g.socket], credentials: [2]*pinhole.ICE{r.ICE}}
	if before := g.flow.checks(); before != nil {
		if c.credentials[1] = before.credentials[1]; *before.credentials[0] != *r.ICE {
			c.credentials[1] = before.credentials[0]
		}
	}
	if other := &l.remote[g.side.Other()]; muxes && other.RTCP != other.Addr {
		out, to := l.targetLocked(g.side.Other(), rtcp)
		c.control = &Flow{Counters: &g.Counters, leg: g, Out: out, To: SockaddrOf(to)}
	}
	return c
}

// offerCheck gives a STUN packet to the flow that it is for. It tells whether it was for one of them.
func offerCheck(flows []*Flow, src netip.AddrPort, now time.Time, b []byte) bool {
	var first *Flow
	for _, f := range flows {
		checks := f.checks()
		if checks == nil {
			continue
		}
		if checks.answer(src, now, b) {
			return true
		}
		if first == nil {
			first = f
		}
	}
	if first == nil {
		return false
	}
	first.Counters.Drop(BadCheck, 1)
	return true
}

// answer answers a Binding request, and tells whether the packet was the peer's: authentic, or an indication, which needs no answer.
func (c *checks) answer(src netip.AddrPort, now time.Time, b []byte) bool {
	if len(b) > maxCheck {
		return false
	}
	m := new(stun.Message)
	if stun.Decode(b, m) != nil {
		return false
	}
	if m.Type == stun.NewType(stun.MethodBinding, stun.ClassIndication) {
		return true // keeps NATs open (RFC 8445 §11)
	}
	own := c.authentic(m)
	if own == nil {
		return false
	}
	reply, err := respond(m, src, own.Pwd)
	if err == nil && reply.Type == stun.BindingSuccess {
		c.leg.consent(src, now, m.Contains(stun.AttrUseCandidate))
	}
	if to := SockaddrOf(src); err != nil || sendTo(c.sock.FD, reply.Raw, &to) != nil {
		c.leg.Drop(SendError, 1) // the peer asks again
	}
	return true
}

// authentic returns the credentials that a Binding request bears (RFC 8445 §7.3, RFC 8489 §9.1.3), nil if it bears none of the peer's.
// What stands behind MESSAGE-INTEGRITY, and so is not authentic, the decoder has left out.
func (c *checks) authentic(m *stun.Message) *pinhole.ICE {
	if m.Type != stun.BindingRequest {
		return nil
	}
	name, err := m.Get(stun.AttrUsername)
	if err != nil || stun.Fingerprint.Check(m) != nil {
		return nil
	}
	for _, own := range c.credentials {
		if own != nil && string(name) == own.Ufrag+":"+own.Peer && stun.NewShortTermIntegrity(own.Pwd).Check(m) == nil {
			return own
		}
	}
	return nil
}

// respond returns the response to an authentic request: with an error where the peer takes the edge's role, or demands what is not
// known here (RFC 8445 §7.3.1.1, RFC 8489 §6.3.1).
func respond(m *stun.Message, src netip.AddrPort, pwd string) (*stun.Message, error) {
	seal := []stun.Setter{stun.NewShortTermIntegrity(pwd), stun.Fingerprint}
	what := []stun.Setter{stun.NewTransactionIDSetter(m.TransactionID)}
	var unknown stun.UnknownAttributes
	for _, a := range m.Attributes {
		if a.Type.Required() && !known(a.Type) {
			unknown = append(unknown, a.Type)
		}
	}
	failed := stun.NewType(stun.MethodBinding, stun.ClassErrorResponse)
	switch {
	case len(unknown) > 0:
		what = append(what, failed, stun.CodeUnknownAttribute, unknown)
	case m.Contains(stun.AttrICEControlled): // a lite agent never controls
		what = append(what, failed, stun.CodeRoleConflict)
	default:
		what = append(what, stun.BindingSuccess, &stun.XORMappedAddress{IP: src.Addr().AsSlice(), Port: int(src.Port())})
	}
	return stun.Build(append(what, seal...)...)
}

// known tells whether a check may have the attribute.
func known(t stun.AttrType) bool {
	switch t {
	case stun.AttrUsername, stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256, stun.AttrPriority, stun.AttrUseCandidate:
		return true
	}
	return false
}

// consent takes an authentic check that came from src at time now: there the peer is if it nominates, and it goes on to be there if
// it has been before.
func (g *leg) consent(src netip.AddrPort, now time.Time, nominates bool) {
	r := g.lease.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.lease.closed || g.lease.remote[g.side].ICE == nil || g.latched != src && !nominates {
		return
	}
	g.consented = now.Sub(r.epoch)
	if g.latched == src {
		return
	}
	g.latched = src
	if guard := g.guardLocked(); guard != nil && guard.association != nil {
		guard.association.aim(src)
	}
	if err := g.lease.publishLocked(); err != nil {
		r.log.Error("media path refused a flow", zap.String("label", g.lease.req.Label), zap.Error(err))
	}
	r.log.Debug("media source nominated", zap.String("label", g.lease.req.Label), zap.Stringer("source", src))
}

// expireLocked forgets the sources of peers that have not consented for too long.
func (l *lease) expireLocked(now time.Time) {
	for s := range l.legs {
		if l.remote[s].ICE == nil {
			continue
		}
		for _, g := range l.legs[s] {
			if g == nil || !g.latched.IsValid() || now.Sub(l.relay.epoch)-g.consented < consentTime {
				continue
			}
			l.relay.log.Info("media peer has ceased to consent", zap.String("label", l.req.Label), zap.Stringer("source", g.latched))
			g.latched = netip.AddrPort{}
			if err := l.publishLocked(); err != nil {
				l.relay.log.Error("media path refused a flow", zap.String("label", l.req.Label), zap.Error(err))
			}
		}
	}
}
