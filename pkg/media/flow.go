package media

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"
)

// Flow says what happens to the packets that arrive at a socket from one source. It never changes:
// a new state is a new Flow with the same Counters.
type Flow struct {
	// From is the confirmed source, not valid as long as none was confirmed.
	From Sockaddr
	// To is where the packets go, from the socket Out. Not valid: they are counted and dropped.
	To  Sockaddr
	Out *Socket
	// Counters counts what arrives from this source.
	Counters *Counters
	// Prefix goes before each packet that leaves, if Prefixed.
	Prefix   [TagLen]byte
	Prefixed bool
	// tapped: the lease's tap is shown the packets.
	tapped bool
	// Channel, if it is not 0, is the channel of TURN that the packets leave by: its number and the length of each go before
	// it (ChannelData, RFC 8656 §12.4).
	Channel uint16

	leg *leg
	// tag is what packets begin with that arrive at a shared socket.
	tag uint32
	// peer is where this flow's own peer is sent to.
	peer Sockaddr
	// wanted says who may confirm the source, nil once it is confirmed or if nobody may. With ICE it stays.
	wanted *wanted
}

// wanted describes the source of a flow before it is confirmed.
type wanted struct {
	// declared is the address that signalling named, hosts are the hosts that may be heard.
	declared netip.AddrPort
	hosts    [2]netip.Addr
	// barred is the source before the last re-arming, until the given time: its late packets must not
	// confirm it again.
	barred netip.AddrPort
	until  time.Time
	// checks, if not nil, are the only way to confirm the source.
	checks *checks
}

// Path moves packets between sockets. Its methods may be called concurrently, also by the path's own
// goroutines within [Pick], and do not block.
type Path interface {
	// Set says which flows arrive at the socket; it replaces what was said before. The first Set of a
	// socket starts its reading. An error leaves the socket as it was.
	Set(s *Socket, flows []*Flow) error
	// Delete ends the reading and takes the socket over: the path closes it as soon as none of its
	// goroutines uses it, also as the Out of another socket's old flow. A socket that was never Set
	// may be deleted.
	Delete(s *Socket)
	// Serve moves packets until ctx ends, and returns nil then.
	Serve(ctx context.Context) error
}

// Pick returns the flow of packet b that came from src at time now. A source that is confirmed by it is
// published by Path.Set before Pick returns. It returns nil, and has counted the drop, if nobody
// there may be heard, or if the packet was for the edge itself. flows is what was last Set; it is never empty.
func Pick(flows []*Flow, src *Sockaddr, now time.Time, b []byte) *Flow {
	for _, f := range flows {
		if f.From.Equal(src) {
			return f
		}
	}
	return admit(flows, src.AddrPort(), now, b)
}

// admit confirms src for the flow that it fits best. Where the peer has keys, its packet must bear them.
func admit(flows []*Flow, src netip.AddrPort, now time.Time, b []byte) *Flow {
	if isSTUN(b) && offerCheck(flows, src, now, b) {
		return nil
	}
	var best *Flow
	bestRank, reason := 0, UnknownSource
	for _, f := range flows {
		r := f.rank(src, now)
		if r <= bestRank {
			continue
		}
		switch f.greet(src, b) {
		case stranger:
			reason = BadSRTP
		case handshake:
			return nil
		case friend:
			best, bestRank = f, r
		}
	}
	if best != nil {
		if f := best.leg.latch(src, now); f != nil {
			return f
		}
	}
	flows[0].Counters.Drop(reason, 1)
	return nil
}

// rank tells how well an unconfirmed flow fits src, 0 if it must not be heard. Several forks may
// share a host (a NAT, a server); NATs like to keep the port, so an equal port goes first.
func (f *Flow) rank(src netip.AddrPort, now time.Time) int {
	w := f.wanted
	if w == nil || w.checks != nil || !src.IsValid() {
		return 0
	}
	if src == w.barred && src != w.declared && now.Before(w.until) {
		return 0
	}
	switch host := src.Addr(); {
	case src == w.declared:
		return 5
	case host == w.hosts[0] && host == w.declared.Addr():
		return 4
	case (host == w.hosts[0] || host == w.hosts[1]) && src.Port() == w.declared.Port():
		return 3
	case host == w.hosts[0] || host == w.hosts[1]:
		return 2
	}
	return 0
}

// Header returns what goes before a packet of n bytes that leaves, and whether there is anything.
func (f *Flow) Header(n int) (h [TagLen]byte, ok bool) {
	if f.Channel != 0 {
		binary.BigEndian.PutUint16(h[:], f.Channel)
		binary.BigEndian.PutUint16(h[2:], uint16(n))
		return h, true
	}
	return f.Prefix, f.Prefixed
}

// checks returns what answers the checks of the flow's peer, nil if it has to make none.
func (f *Flow) checks() *checks {
	if f == nil || f.wanted == nil {
		return nil
	}
	return f.wanted.checks
}

// Owns tells whether an ICMP error about a packet to dst concerns this flow's peer.
func (f *Flow) Owns(dst *Sockaddr) bool {
	return f.peer.Valid() && f.peer.Equal(dst)
}
