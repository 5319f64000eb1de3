package h323

import (
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/gatekeeper"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
)

// The edge as traversal server (H.460.18, H.460.19) for endpoints behind a NAT of their own, which have registered with
// the built-in gatekeeper:
//
//	Setup for it ──► SCI to where it asks from ──► it connects, Facility(callIdentifier) ──► Setup on that connection
//	its h245Address ──► Facility(startH245, the edge's) to it ──► it connects, and says whose call it is
//	OpenLogicalChannel to it ──► with a keepAliveChannel, so that its NAT learns the way of media
//
// Media is sent to where it comes from. Media of several channels on one port (multiplexID) is not offered.

const (
	// ringEvery is how often an endpoint is told of a call that it does not connect for; ringTime how long.
	ringEvery = 2 * time.Second
	ringTime  = 20 * time.Second
	maxRings  = 4096
	// mediaTraversal is the feature of H.460.19, traversalServer its parameter that says which end this is.
	mediaTraversal  = 19
	traversalServer = 2
	// keepAliveInterval is how often an endpoint sends something on a channel on which it only receives.
	keepAliveInterval = 15 * time.Second
	// keepAlivePayload is the RTP payload type of that.
	keepAlivePayload = 127
	// controlTraversal is the indication by which an endpoint says for which call its H.245 connection is.
	controlTraversal = "0.0.8.460.18.0.1"
)

// ring is an endpoint that has been told of a call.
type ring struct {
	call    *call
	leg     *leg // until it connects, without a connection
	action  Action
	next    time.Time
	expires time.Time
}

// ring tells an endpoint behind a NAT of a call, and returns what will be its connection; nil if that cannot be.
func (c *Core) ring(now time.Time, k *call, network string, at netip.AddrPort, out *Output) *leg {
	if !k.hasID || len(c.rings) >= maxRings || c.rings[k.guid] != nil {
		return nil
	}
	c.seq++
	b, err := gatekeeper.Incoming(c.seq, c.own(network, at.Addr()), k.guid)
	if err != nil {
		c.log.Error("indication not built", zap.Error(err))
		return nil
	}
	c.last = max(c.last, firstDialed) + 1
	l := &leg{id: c.last, network: network, remote: at, calls: make(map[callKey]*call)}
	c.legs[l.id] = l
	r := &ring{
		call: k, leg: l, action: Action{Kind: Ring, Network: network, Target: at, Data: b}, next: now.Add(ringEvery), expires: now.Add(ringTime),
	}
	c.rings[k.guid] = r
	out.Actions = append(out.Actions, r.action)
	return l
}

// ringAgain tells those again that have not connected, and gives up on them in the end.
func (c *Core) ringAgain(now time.Time, out *Output) {
	for id, r := range c.rings {
		switch {
		case !now.Before(r.expires):
			delete(c.rings, id)
			delete(c.legs, r.leg.id)
			r.call.legs[pinhole.Far] = nil
			c.refuse(now, r.call, refusedDial, out)
		case !now.Before(r.next):
			r.next = now.Add(ringEvery)
			out.Actions = append(out.Actions, r.action)
		}
	}
}

// meet takes a connection for the call for which it was made; false if it is not for one (H.460.18 §8).
func (c *Core) meet(l *leg, m *h225.Message, out *Output) bool {
	id, ok := m.CallID()
	r := c.rings[id]
	if !ok || r == nil || m.Type != q931.Facility || len(l.calls) > 0 || l.remote.Addr() != r.leg.remote.Addr() {
		return false
	}
	delete(c.rings, id)
	delete(c.legs, r.leg.id)
	w := r.leg
	w.id, w.local, w.remote, w.up = l.id, l.local, l.remote, true
	c.legs[l.id] = w
	for _, b := range w.queued {
		out.send(w.id, b)
	}
	w.queued = nil
	return true
}

// unring forgets an endpoint that was told of a call that has ended.
func (c *Core) unring(k *call) {
	if r := c.rings[k.guid]; r != nil && r.call == k {
		delete(c.rings, k.guid)
		delete(c.legs, r.leg.id)
	}
}

// traverses tells whether a host has an endpoint behind a NAT that the edge helps.
func (c *Core) traverses(host netip.Addr) bool {
	return c.gatekeeper != nil && c.gatekeeper.Traverses(host)
}

// offerTraversal says in a Setup to such an endpoint that the edge is a traversal server of media.
func (x *exchange) offerTraversal(m *h225.Message) error {
	if m.Body != h225.Setup || !x.call.traverses[x.from.Other()] {
		return nil
	}
	feature := h225.GenericData(mediaTraversal, per.Fields(per.F("id", per.Alternative("standard", per.Number(traversalServer)))))
	for _, f := range h225.Features(nil, m.Tree) {
		if f.ID == mediaTraversal {
			return nil
		}
	}
	if list := m.Tree.Child(m.BodyRef(), "supportedFeatures"); list != per.None {
		return x.editor.Append(list, feature)
	}
	return x.editor.Add(m.BodyRef(), "supportedFeatures", per.Elements(feature))
}

// keepAlive says in an OpenLogicalChannel to such an endpoint where it sends something now and then, so that what is
// sent to it finds the way (H.460.19 §7.2).
func (x *exchange) keepAlive(s *session, ch h245.Channel) error {
	if !x.call.traverses[x.from.Other()] || ch.Forward.Media == h245.None || len(s.leases) == 0 || h245.TraversalAt(x.tree, ch.Ref) != per.None {
		return nil
	}
	b, err := h245.Traversal{
		KeepAliveChannel: s.leases[0].lease.Local(x.from.Other()).Addr, KeepAliveInterval: keepAliveInterval,
		KeepAlivePayload: keepAlivePayload, KeepAlive: true,
	}.Append(nil)
	if err != nil {
		return err
	}
	info := h245.GenericInformation(h245.TraversalOID, 1, b)
	if list := x.tree.Child(ch.Ref, "genericInformation"); list != per.None {
		return x.editor.Append(list, info)
	}
	return x.editor.Add(ch.Ref, "genericInformation", per.Elements(info))
}

// unreachable tells whether a side's listener is behind its NAT, so that the side must connect itself.
func (x *exchange) unreachable(at netip.AddrPort) bool {
	return x.call.traverses[x.from] && at.Addr() != x.call.host[x.from]
}

// invite tells a side behind a NAT to connect to the edge for H.245 (H.460.18 §9).
func (c *Core) invite(k *call, side pinhole.Side, at netip.AddrPort, out *Output) {
	b, err := h225.Build(nil, q931.Facility, k.ref, side == pinhole.Near, nil, h225.Info(h225.Facility, per.Fields(
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("reason", per.Alternative("startH245", per.Nothing())),
		per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(k.guid[:])))), per.F("h245Address", h245.CallAddress(at)),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)))))
	if err != nil {
		c.log.Error("startH245 not built", zap.Error(err))
		return
	}
	c.sendTo(k.legs[side], b, out)
}
