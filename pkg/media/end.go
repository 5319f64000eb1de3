package media

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// The two sockets of an end. Kind UDP has only the first.
const (
	rtp  = 0
	rtcp = 1
)

// end is the ports of one side. The Far end of forked leases is shared. It is guarded by the
// relay's mutex.
type end struct {
	// pool is nil where the end has no port of its own (any more).
	pool        *pool
	port, count uint16
	bound       netip.Addr
	local       pinhole.Local
	socks       [2]*Socket
	tcp         *listener
	// asked says that the port is of a range that the request named: it does not rest.
	asked bool
	// members are the leases that use it, in the order of their opening.
	members []*lease
	idled   bool
	// shared are the ports of an end that has none of its own, tag is what its packets begin with.
	shared *sharedPorts
	tag    uint32
}

// openEndLocked binds the ports of one side.
func (r *Relay) openEndLocked(req pinhole.Request, s pinhole.Side, id uint64) (*end, error) {
	bind, public, err := r.nets.Local(req.Networks[s], req.Families[s])
	if err != nil {
		return nil, err
	}
	if port := req.Shared[s]; port != 0 {
		return r.openSharedLocked(req, bind, public, port)
	}
	var asked PortRange
	if req.Kind == pinhole.TCP {
		asked = PortRange{req.Ports[0], req.Ports[1]}
		if req.Listen[s.Other()] && !req.Listen[s] {
			return &end{bound: bind, local: pinhole.Local{Addr: netip.AddrPortFrom(public, 0)}}, nil
		}
	}
	for _, addr := range r.addresses(req.Networks[s], bind, asked) {
		var e *end
		if e, err = r.bindEndLocked(req, addr, asked, id); !errors.Is(err, pinhole.ErrExhausted) {
			if err == nil {
				e.local.Addr = netip.AddrPortFrom(r.nets[req.Networks[s]].Public(addr), e.port)
				if e.count == 2 {
					e.local.RTCP = netip.AddrPortFrom(e.local.Addr.Addr(), e.port+1)
				}
			}
			return e, err
		}
	}
	return nil, err
}

// addresses returns those of the network that may be bound, in order. Several are of use only where the range
// is small, and each is known by an address of its own.
func (r *Relay) addresses(network string, first netip.Addr, asked PortRange) []netip.Addr {
	nw := r.nets[network]
	if (asked == PortRange{}) || nw.Public(first) != first {
		return []netip.Addr{first}
	}
	return slices.DeleteFunc(slices.Clone(nw.Addresses), func(a netip.Addr) bool {
		return pinhole.FamilyOf(a) != pinhole.FamilyOf(first)
	})
}

// bindEndLocked takes the ports of an end from the pool of an address.
func (r *Relay) bindEndLocked(req pinhole.Request, addr netip.Addr, asked PortRange, id uint64) (*end, error) {
	e := &end{pool: r.poolLocked(addr, req.Kind == pinhole.TCP, asked), asked: asked != PortRange{}, count: 1, bound: addr}
	open := func(port uint16) error { return e.bindUDP(port, id, r.cfg.DSCP) }
	switch req.Kind {
	case pinhole.RTP:
		e.count = 2
	case pinhole.TCP:
		open = func(port uint16) error { return r.listen(e, port) }
	}
	var err error
	if e.port, err = e.pool.take(time.Now(), e.count, open); err != nil {
		return nil, err
	}
	return e, nil
}

// bindUDP binds all sockets of the end, or none.
func (e *end) bindUDP(port uint16, id uint64, dscp int) error {
	for i := range e.count {
		local := netip.AddrPortFrom(e.bound, port+i)
		fd, err := bindUDP(local, dscp)
		if err != nil {
			closeSocket(e.socks[0])
			e.socks = [2]*Socket{}
			return err
		}
		e.socks[i] = &Socket{FD: fd, Local: local, Lease: id}
	}
	return nil
}

// releaseEndLocked closes the sockets and returns the ports.
func (r *Relay) releaseEndLocked(e *end) {
	if e.shared != nil {
		e.shared.leave(e.tag)
		return
	}
	for _, s := range e.socks {
		if s != nil {
			r.path.Delete(s)
		}
	}
	r.freeEndLocked(e)
}

// freeEndLocked ends the listener and returns the ports. What was done before is not done again.
func (r *Relay) freeEndLocked(e *end) {
	if e.tcp != nil {
		e.tcp.close()
		e.tcp = nil
	}
	switch {
	case e.pool == nil:
	case e.asked:
		e.pool.giveBack(e.port)
	default:
		e.pool.release(e.port, e.count, time.Now().Add(r.pin.Quarantine))
	}
	e.pool = nil
}

// setLocked tells the path the flows of all leases that use the end.
func (e *end) setLocked(p Path, s pinhole.Side) error {
	if e.shared != nil {
		e.publish(&e.members[0].legs[s])
		return nil
	}
	for c, sock := range e.socks {
		if sock == nil {
			continue
		}
		flows := make([]*Flow, 0, len(e.members))
		for _, l := range e.members {
			flows = append(flows, l.legs[s][c].flow)
		}
		if err := p.Set(sock, flows); err != nil {
			return err
		}
	}
	return nil
}

// idleLocked tells whether every lease that uses the end is idle: the branches of a forked call
// live and end together.
func (e *end) idleLocked(now time.Time) bool {
	return !slices.ContainsFunc(e.members, func(l *lease) bool { return !l.idleLocked(now) })
}

// membersLocked returns a copy, so that they can be closed one by one.
func (e *end) membersLocked() []*lease { return slices.Clone(e.members) }
