package h323

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/pinhole"
)

// The pinholes of a call. A session is what a sessionID names: both directions of audio, of video, of data.
//
//	address in a message of X ─► X receives there ─► Declare(X), and Y is told the edge's end at Y
//
// RTP and RTCP are declared each on its own. Peers need not send from where they receive.

// The bounds of one call.
const (
	maxChannels = 64
	maxSessions = 16
	maxLeases   = 4 // of one session: the addresses that alternatives of a proposal may name
	maxControls = 4 // H.245 addresses
	// quietTime is how long a connection of H.245 or T.120 may stand still.
	quietTime = 24 * time.Hour
)

var errTooMany = errors.New("too many channels")

// channelKey names a logical channel: who sends its media, and the number that this side gave it.
type channelKey struct {
	opener pinhole.Side
	number uint16
}

// channel is an open logical channel.
type channel struct {
	session *session
	// data is the T.120 connection, nil if none.
	data pinhole.Lease
}

// session is what one sessionID names.
type session struct {
	id     uint8 // 0 until the master has chosen
	leases []*stream
	// tags are what packets to a side begin with at a shared port, if they are tagged.
	tags   [2]uint32
	tagged [2]bool
}

// stream is a pinhole for RTP and RTCP, and what the parties have said of it.
type stream struct {
	lease     pinhole.Lease
	rtp, rtcp [2]netip.AddrPort
}

// control is a pinhole for H.245, opened for the address that a side has named.
type control struct {
	side  pinhole.Side
	addr  netip.AddrPort
	lease pinhole.Lease
}

// request is what all pinholes of a call have in common.
func (x *exchange) request(kind pinhole.Kind, label string, named netip.Addr) pinhole.Request {
	k := x.call
	r := pinhole.Request{
		Owner: k.owner.String(), Label: fmt.Sprintf("h323 %s %s", k.id, label), Kind: kind, Networks: k.nets,
		// Whether a silent call is over is for its signalling to say.
		OnIdle: func(bool) {},
	}
	r.Families[x.from] = pinhole.FamilyOf(named)
	r.Families[x.from.Other()] = pinhole.FamilyOf(k.host[x.from.Other()])
	return r
}

// remote is what a side says of itself.
func (x *exchange) remote(s pinhole.Side, rtp, rtcp netip.AddrPort) pinhole.Remote {
	k := x.call
	if k.traverses[s] {
		rtp, rtcp = x.behind(s, rtp), x.behind(s, rtcp)
	}
	return pinhole.Remote{
		Addr: rtp, RTCP: rtcp, Source: k.host[s], Asymmetric: !k.traverses[s], Trusted: k.trusted[s] && x.others(rtp) && x.others(rtcp),
	}
}

// others tells whether a gatekeeper may name an address that is not its own: an endpoint's, never the edge or a
// service.
func (x *exchange) others(a netip.AddrPort) bool {
	host := a.Addr()
	return !a.IsValid() || !host.IsLoopback() && !host.IsLinkLocalUnicast() && !x.core.nets.Own(host) && (a.Port() >= 1024 || a.Port() == 9)
}

// controlAddress opens the way to a side's H.245 listener. An address that is named again gets the same one.
func (x *exchange) controlAddress(a h245.Address) error {
	k := x.call
	for _, h := range k.controls {
		if h.side == x.from && h.addr == a.AddrPort {
			return x.set(a, h.lease.Local(x.from.Other()).Addr)
		}
		if h.lease.Local(x.from).Addr == a.AddrPort {
			return x.set(a, h.addr) // an echo of what it was told
		}
	}
	if len(k.controls) >= maxControls {
		return errTooMany
	}
	req := x.request(pinhole.TCP, "h245", a.AddrPort.Addr())
	req.Idle = quietTime
	req.Serve = x.core.serve(k)
	listens := a.AddrPort
	if x.unreachable(listens) {
		listens = netip.AddrPortFrom(k.host[x.from], 9)
	}
	lease, err := x.join(req, listens)
	if err != nil {
		return err
	}
	if listens != a.AddrPort {
		k.inviting = lease.Local(x.from).Addr
	}
	k.controls = append(k.controls, &control{x.from, a.AddrPort, lease})
	return x.set(a, lease.Local(x.from.Other()).Addr)
}

// join opens a TCP pinhole to where a side listens; the other side only dials.
func (x *exchange) join(req pinhole.Request, listens netip.AddrPort) (pinhole.Lease, error) {
	k, other := x.call, x.from.Other()
	lease, err := x.core.opener.Open(context.Background(), req)
	if err != nil {
		return nil, err
	}
	err = lease.Declare(x.from, x.remote(x.from, listens, netip.AddrPort{}))
	if err == nil {
		err = lease.Declare(other, x.remote(other, netip.AddrPortFrom(k.dialer[other], 9), netip.AddrPort{}))
	}
	if err != nil {
		lease.Close()
		return nil, err
	}
	return lease, nil
}

// named returns the session of an id.
func (k *call) named(id uint8) *session {
	for _, s := range k.sessions {
		if s.id == id && id != 0 {
			return s
		}
	}
	return nil
}

// session returns that of an id or, where the master has still to choose one, of a channel.
func (x *exchange) session(id uint8, key channelKey) (*session, error) {
	k := x.call
	s := k.named(id)
	// The addresses of a channel's session are known to the parties already: it stays the channel's.
	if ch := k.channels[key]; ch != nil && ch.session != nil && (ch.session.id == 0 || ch.session.id == id || id == 0) {
		if s == nil && id != 0 {
			ch.session.id = id
		}
		return ch.session, nil
	}
	if s != nil {
		return s, nil
	}
	if len(k.sessions) >= maxSessions {
		return nil, errTooMany
	}
	s = &session{id: id}
	k.sessions = append(k.sessions, s)
	return s, nil
}

// stream returns the pinhole of a session that fits what the side names, opened if need be.
func (x *exchange) stream(s *session, rtp, rtcp netip.AddrPort) (*stream, error) {
	for _, m := range s.leases {
		if !x.offer || !rtp.IsValid() || !m.rtp[x.from].IsValid() || m.rtp[x.from] == rtp {
			return m, nil
		}
	}
	if len(s.leases) >= maxLeases {
		return nil, errTooMany
	}
	named := rtcp.Addr()
	if rtp.IsValid() {
		named = rtp.Addr()
	}
	lease, err := x.openRTP(x.request(pinhole.RTP, fmt.Sprintf("session %d", s.id), named))
	if err != nil {
		return nil, err
	}
	m := &stream{lease: lease}
	s.leases = append(s.leases, m)
	return m, nil
}

// openRTP opens a pinhole for RTP, at the shared port of sides that can have that. Of a proposal, whose alternatives are
// told apart by their ports, each has its own.
func (x *exchange) openRTP(r pinhole.Request) (pinhole.Lease, error) {
	shared := r
	for s, can := range x.call.multiplexes {
		if can && !x.offer {
			shared.Shared[s] = x.core.cfg.MultiplexPort
		}
	}
	if shared.Shared == r.Shared {
		return x.core.opener.Open(context.Background(), r)
	}
	lease, err := x.core.opener.Open(context.Background(), shared)
	if err == nil || errors.Is(err, pinhole.ErrLimit) {
		return lease, err
	}
	x.core.log.Warn("no pinhole at the port of multiplexed media", zap.String("call", x.call.id), zap.Error(err))
	return x.core.opener.Open(context.Background(), r)
}

// media edits the addresses of one direction of a channel.
func (x *exchange) media(s *session, rtp, rtcp h245.Address) error {
	toRTP, toRTCP, err := x.place(s, usable(rtp), usable(rtcp))
	if err != nil {
		return err
	}
	if err := x.set(rtp, toRTP); err != nil {
		return err
	}
	return x.set(rtcp, toRTCP)
}

// place returns what the other side is told in the place of two addresses. Both are where the sender of the
// message receives, or what it was told before and repeats. What is not valid stays so.
func (x *exchange) place(s *session, rtp, rtcp netip.AddrPort) (toRTP, toRTCP netip.AddrPort, err error) {
	if !rtp.IsValid() && !rtcp.IsValid() {
		return rtp, rtcp, nil
	}
	if m := s.told(x.from, rtp, rtcp); m != nil {
		return x.echo(s, m, rtp, rtcp)
	}
	m, err := x.stream(s, rtp, rtcp)
	if err == nil {
		err = x.declare(s, m, rtp, rtcp)
	}
	if err != nil {
		return rtp, rtcp, err
	}
	local := m.lease.Local(x.from.Other())
	if rtp.IsValid() {
		toRTP = local.Addr
	}
	if rtcp.IsValid() {
		toRTCP = local.RTCP
	}
	return toRTP, toRTCP, nil
}

// usable returns an address that can be opened: unicast, with host and port.
func usable(a h245.Address) netip.AddrPort {
	if !a.Valid() || a.Multicast || a.AddrPort.Port() == 0 || a.AddrPort.Addr().IsUnspecified() || a.AddrPort.Addr().IsMulticast() {
		return netip.AddrPort{}
	}
	return a.AddrPort
}

// told returns the stream of which a side was told one of the addresses.
func (s *session) told(side pinhole.Side, rtp, rtcp netip.AddrPort) *stream {
	for _, m := range s.leases {
		if local := m.lease.Local(side); rtp == local.Addr || rtcp == local.RTCP {
			return m
		}
	}
	return nil
}

// echo puts the other side's addresses back where this side repeats what it was told: an answer to a proposal
// may do that. Beside the address of RTP it may name one of its own for RTCP.
func (x *exchange) echo(s *session, m *stream, rtp, rtcp netip.AddrPort) (toRTP, toRTCP netip.AddrPort, err error) {
	o, local := x.from.Other(), m.lease.Local(x.from)
	own := [2]netip.AddrPort{rtp, rtcp}
	if rtp == local.Addr {
		toRTP, own[0] = m.rtp[o], netip.AddrPort{}
	}
	if rtcp == local.RTCP {
		toRTCP, own[1] = m.rtcp[o], netip.AddrPort{}
	}
	if own[0].IsValid() || own[1].IsValid() {
		if err := x.declare(s, m, own[0], own[1]); err != nil {
			return rtp, rtcp, err
		}
	}
	if own[0].IsValid() {
		toRTP = m.lease.Local(o).Addr
	}
	if own[1].IsValid() {
		toRTCP = m.lease.Local(o).RTCP
	}
	return toRTP, toRTCP, nil
}

// declare tells the pinholes of a session where the side receives. Only the side that proposes names
// several addresses; the answer counts for all of them.
func (x *exchange) declare(s *session, m *stream, rtp, rtcp netip.AddrPort) error {
	streams := s.leases
	if x.offer {
		streams = []*stream{m}
	}
	for _, m := range streams {
		if rtp.IsValid() {
			m.rtp[x.from] = rtp
		}
		if rtcp.IsValid() {
			m.rtcp[x.from] = rtcp
		}
		at := m.rtp[x.from]
		if !at.IsValid() {
			// It has only said where it takes RTCP: RTP will come from this host.
			at = netip.AddrPortFrom(rtcp.Addr(), max(rtcp.Port(), 2)-1)
		}
		r := x.remote(x.from, at, m.rtcp[x.from])
		r.Tag, r.Tagged = s.tags[x.from], s.tagged[x.from]
		if err := m.lease.Declare(x.from, r); err != nil {
			return err
		}
	}
	return nil
}

// closeChannel ends a logical channel, and the pinholes of its session if it was the last one there.
func (c *Core) closeChannel(k *call, key channelKey) {
	ch := k.channels[key]
	if ch == nil {
		return
	}
	delete(k.channels, key)
	if ch.data != nil {
		k.streams = append(k.streams, Stream{pinhole.TCP, ch.data.Close()})
	}
	if ch.session == nil {
		return
	}
	for _, other := range k.channels {
		if other.session == ch.session {
			return
		}
	}
	for i, s := range k.sessions {
		if s == ch.session {
			k.sessions = append(k.sessions[:i], k.sessions[i+1:]...)
			k.closeSession(s)
			return
		}
	}
}

func (k *call) closeSession(s *session) {
	for _, m := range s.leases {
		k.streams = append(k.streams, Stream{pinhole.RTP, m.lease.Close()})
	}
}

// closeLeases closes everything that the call has open.
func (c *Core) closeLeases(k *call) {
	for _, s := range k.sessions {
		k.closeSession(s)
	}
	for _, ch := range k.channels {
		if ch.data != nil {
			k.streams = append(k.streams, Stream{pinhole.TCP, ch.data.Close()})
		}
	}
	for _, h := range k.controls {
		h.lease.Close()
	}
	k.sessions, k.channels, k.controls = nil, nil, nil
}
