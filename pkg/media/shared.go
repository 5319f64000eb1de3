package media

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Shared ends: leases that have no ports of their own at a side (pinhole.Request.Shared). Packets there begin with four
// octets that say whose they are (H.460.19 §7.3):
//
//	client ─► tag of the edge's, RTP ─► Shared.Pick ─► flow ─► RTP ─► the other end's peer
//	client ◄─ tag of the client's, RTP ◄─ Flow.Prefix ◄─ flow ◄─ RTP ◄─ the other end's peer
//
// A tag holds the number of a slot, and above it what tells the leases apart that have used the slot: a late packet
// of the last one is nobody's.

const (
	// TagLen is how many octets a tag takes.
	TagLen = 4
	// slotBits bounds the leases at one port: 1<<slotBits.
	slotBits = 14
	slots    = 1 << slotBits
)

// Shared finds the flow of a packet at a socket that leases share.
type Shared struct {
	flows [slots]atomic.Pointer[Flow]
	// strays counts what belongs to no lease.
	strays *Flow
}

// Pick returns the flow of packet b that came from src at time now, and the packet without its tag. It returns nil, and has
// counted the drop, if it belongs to no lease or if nobody there may be heard.
func (s *Shared) Pick(b []byte, src *Sockaddr, now time.Time) (*Flow, []byte) {
	if len(b) <= TagLen {
		s.strays.Counters.Drop(UnknownSource, 1)
		return nil, nil
	}
	tag := binary.BigEndian.Uint32(b)
	f := s.flows[tag%slots].Load()
	if f == nil || f.tag != tag {
		s.strays.Counters.Drop(UnknownSource, 1)
		return nil, nil
	}
	if !f.From.Equal(src) {
		one := [1]*Flow{f}
		f = admit(one[:], src.AddrPort(), now, b[TagLen:])
	}
	return f, b[TagLen:]
}

// sharedPorts are a pair of ports that leases share. It is guarded by the relay's mutex; once bound it stays so, since
// clients' firewalls and NATs know the ports.
type sharedPorts struct {
	socks [2]*Socket
	// next is the slot to try first: the one that was used least lately.
	next, used uint32
	taken      [slots]bool
}

// openSharedLocked returns an end at the pair of ports that begins with port.
func (r *Relay) openSharedLocked(req pinhole.Request, bound, public netip.Addr, port uint16) (*end, error) {
	if req.Kind != pinhole.RTP || port%2 != 0 {
		return nil, fmt.Errorf("kind %s at the shared port %d: %w", req.Kind, port, pinhole.ErrNetwork)
	}
	at := netip.AddrPortFrom(bound, port)
	p := r.shared[at]
	if p == nil {
		var err error
		if p, err = r.bindSharedLocked(at); err != nil {
			return nil, err
		}
	}
	tag, ok := p.take()
	if !ok {
		return nil, fmt.Errorf("%d leases share port %d: %w", slots, port, pinhole.ErrExhausted)
	}
	e := &end{bound: bound, socks: p.socks, port: port, count: 2, shared: p, tag: tag}
	e.local = pinhole.Local{Addr: netip.AddrPortFrom(public, port), RTCP: netip.AddrPortFrom(public, port+1), Tag: tag}
	return e, nil
}

func (r *Relay) bindSharedLocked(at netip.AddrPort) (*sharedPorts, error) {
	r.nextID++
	e := &end{bound: at.Addr(), count: 2}
	if err := e.bindUDP(at.Port(), r.nextID, r.cfg.DSCP); err != nil {
		return nil, fmt.Errorf("shared port %d: %w", at.Port(), err)
	}
	for i, s := range e.socks {
		s.Shared = &Shared{strays: &Flow{Counters: &Counters{epoch: &r.epoch}, Out: s}}
		if err := r.path.Set(s, []*Flow{s.Shared.strays}); err != nil {
			for _, s := range e.socks[:i+1] {
				r.path.Delete(s)
			}
			for _, s := range e.socks[i+1:] {
				closeSocket(s)
			}
			return nil, resourceError(err)
		}
	}
	p := &sharedPorts{socks: e.socks}
	r.shared[at] = p
	r.watchPorts(false, at, 2, true)
	return p, nil
}

// take returns the tag of a slot that is free.
func (p *sharedPorts) take() (tag uint32, ok bool) {
	if p.used == slots {
		return 0, false
	}
	for p.taken[p.next%slots] {
		p.next++
	}
	slot := p.next % slots
	p.next++
	p.used++
	p.taken[slot] = true
	// Never 0, which is no tag.
	return (1+rand.Uint32N(1<<(32-slotBits)-1))<<slotBits | slot, true
}

// publish says which flows arrive at the end.
func (e *end) publish(legs *[2]*leg) {
	for c, s := range e.socks {
		s.Shared.flows[e.tag%slots].Store(legs[c].flow)
	}
}

// leave gives the slot of an end back.
func (p *sharedPorts) leave(tag uint32) {
	for _, s := range p.socks {
		s.Shared.flows[tag%slots].Store(nil)
	}
	p.taken[tag%slots] = false
	p.used--
}

// closeSharedLocked closes the shared ports. No lease may be left.
func (r *Relay) closeSharedLocked() {
	for at, p := range r.shared {
		for _, s := range p.socks {
			r.path.Delete(s)
		}
		delete(r.shared, at)
		r.watchPorts(false, at, 2, false)
	}
}

// tags fills in with what packets of the leg begin, and with what they leave.
func (g *leg) tagsLocked(f *Flow) {
	l, o := g.lease, g.side.Other()
	f.tag = l.ends[g.side].tag
	if r := l.remote[o]; l.ends[o].shared != nil && r.Tagged {
		f.Prefixed = true
		binary.BigEndian.PutUint32(f.Prefix[:], r.Tag)
	}
}
