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
//	and if it can and multiplex_port is set ──► with a multiplexID and the port that all sessions share
//
// Media is sent to where it comes from.

const (
	// ringEvery is how often an endpoint is told of a call that it does not connect for; ringTime how long.
	ringEvery = 2 * time.Second
	ringTime  = 20 * time.Second
	maxRings  = 4096
	// mediaTraversal is the feature of H.460.19; of its parameters, traversalServer says which end this is, and
	// transmitMultiplexed that it can send several channels to one port.
	mediaTraversal      = 19
	transmitMultiplexed = 1
	traversalServer     = 2
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

// multiplexing notes that the sender's media may share a port with that of others: it is behind a NAT, and says that it
// can send so.
func (x *exchange) multiplexing() {
	k := x.call
	if x.core.cfg.MultiplexPort == 0 || !k.traverses[x.from] || k.multiplexes[x.from] {
		return
	}
	for _, f := range h225.Features(nil, x.tree) {
		if f.ID == mediaTraversal && f.Has(x.tree, transmitMultiplexed) {
			k.multiplexes[x.from] = true
		}
	}
}

// offerTraversal says in a Setup to such an endpoint, or in the answers to its own, that the edge is a traversal server
// of media.
func (x *exchange) offerTraversal(m *h225.Message) error {
	in := m.BodyRef()
	switch m.Body {
	case h225.Setup, h225.CallProceeding, h225.Alerting, h225.Connect:
	default:
		return nil
	}
	if !x.call.traverses[x.from.Other()] {
		return nil
	}
	for _, f := range h225.Features(nil, m.Tree) {
		if f.ID == mediaTraversal {
			return nil // the other end's own
		}
	}
	list := per.Elements(x.serverFeature())
	if m.Body != h225.Setup {
		set := m.Tree.Child(in, "featureSet")
		if set == per.None {
			return x.editor.Add(in, "featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)), per.F("supportedFeatures", list)))
		}
		in = set
	}
	if there := m.Tree.Child(in, "supportedFeatures"); there != per.None {
		return x.editor.Append(there, x.serverFeature())
	}
	return x.editor.Add(in, "supportedFeatures", list)
}

// serverFeature is what the edge says of itself.
func (x *exchange) serverFeature() per.Value {
	parameter := func(id int64) per.Value {
		return per.Fields(per.F("id", per.Alternative("standard", per.Number(id))))
	}
	if x.core.cfg.MultiplexPort == 0 {
		return h225.GenericData(mediaTraversal, parameter(traversalServer))
	}
	return h225.GenericData(mediaTraversal, parameter(traversalServer), parameter(transmitMultiplexed))
}

// shared tells whether the media of a session, if there are pinholes for it yet, comes to the shared port at a side.
func (s *session) shared(side pinhole.Side) bool {
	for _, m := range s.leases {
		if m.lease.Local(side).Tag == 0 {
			return false
		}
	}
	return true
}

// toServer returns what an endpoint that the edge helps says to it, and notes with what its packets shall begin.
func (x *exchange) toServer(s *session, ch h245.Channel) (h245.Traversal, error) {
	at := h245.TraversalAt(x.tree, ch.Ref)
	if at == per.None || !x.call.traverses[x.from] {
		return h245.Traversal{}, nil
	}
	v, err := h245.DecodeTraversal(x.tree.Octets(at))
	if err != nil {
		return v, err
	}
	v.Multiplexed = v.Multiplexed && x.call.multiplexes[x.from]
	if v.Multiplexed {
		s.tags[x.from], s.tagged[x.from] = v.MultiplexID, true
	}
	for _, a := range []*netip.AddrPort{&v.MediaChannel, &v.MediaControlChannel} {
		if *a = usable(h245.Address{AddrPort: *a}); !a.IsValid() {
			*a = netip.AddrPort{}
		}
	}
	return v, nil
}

// traversal edits what an OpenLogicalChannel or its Ack says of H.460.19: what is said to the edge ends here, to
// an endpoint that it helps it says its own, and what two endpoints tell each other gets the pinhole's addresses.
func (x *exchange) traversal(s *session, ch h245.Channel, ack bool) error {
	at := h245.TraversalAt(x.tree, ch.Ref)
	v, says := x.fromServer(s, ch, ack)
	switch {
	case at == per.None && !says:
		return nil
	case at != per.None && !x.call.traverses[x.from]:
		return x.betweenEndpoints(s, at)
	case !says:
		return x.editor.Drop(h245.GenericOf(x.tree, at))
	}
	b, err := v.Append(nil)
	if err != nil {
		return err
	}
	if at != per.None {
		return x.editor.SetOctets(at, b)
	}
	info := h245.GenericInformation(h245.TraversalOID, 1, b)
	if list := x.tree.Child(ch.Ref, "genericInformation"); list != per.None {
		return x.editor.Append(list, info)
	}
	return x.editor.Add(ch.Ref, "genericInformation", per.Elements(info))
}

// fromServer is what the edge says of a channel to an endpoint behind a NAT: in an OpenLogicalChannel where to send something
// now and then, so that what is sent to it finds the way (H.460.19 §7.2); and of a shared port, with what its packets
// must begin.
func (x *exchange) fromServer(s *session, ch h245.Channel, ack bool) (v h245.Traversal, says bool) {
	o := x.from.Other()
	if !x.call.traverses[o] || len(s.leases) == 0 {
		return v, false
	}
	local := s.leases[0].lease.Local(o)
	if s.shared(o) {
		v, says = h245.Traversal{MediaChannel: local.Addr, MediaControlChannel: local.RTCP, MultiplexID: local.Tag, Multiplexed: true}, true
	}
	if !ack && ch.Forward.Media != h245.None {
		v.KeepAliveChannel, v.KeepAliveInterval, v.KeepAlivePayload, v.KeepAlive = local.Addr, keepAliveInterval, keepAlivePayload, true
		says = true
	}
	return v, says
}

// betweenEndpoints edits the addresses of H.460.19 that two endpoints tell each other: keep-alives, and media that share
// one port by a multiplexID, come to the session's pinhole too.
func (x *exchange) betweenEndpoints(s *session, at per.Ref) error {
	v, err := h245.DecodeTraversal(x.tree.Octets(at))
	if err != nil {
		return err
	}
	was := v
	if v.MediaChannel, v.MediaControlChannel, err = x.place(s, v.MediaChannel, v.MediaControlChannel); err != nil {
		return err
	}
	if v.KeepAliveChannel.IsValid() {
		if len(s.leases) == 0 {
			if v.KeepAliveChannel, _, err = x.place(s, v.KeepAliveChannel, netip.AddrPort{}); err != nil {
				return err
			}
		} else {
			v.KeepAliveChannel = s.leases[0].lease.Local(x.from.Other()).Addr
		}
	}
	if v == was {
		return nil
	}
	b, err := v.Append(nil)
	if err != nil {
		return err
	}
	return x.editor.SetOctets(at, b)
}

// behind returns what is to be known of an address that an endpoint behind a NAT names: if it would be that of a host of
// the edge's networks, which it only resembles, it is taken for one at the NAT.
func (x *exchange) behind(s pinhole.Side, a netip.AddrPort) netip.AddrPort {
	c, host := x.core, x.call.host[s]
	if at := c.nets.Of(a.Addr()); a.IsValid() && (c.nets.Own(a.Addr()) || at != "" && at != x.call.nets[s]) {
		return netip.AddrPortFrom(host, a.Port())
	}
	return a
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
