package media

import (
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
	pool        *pool
	port, count uint16
	bound       netip.Addr
	local       pinhole.Local
	socks       [2]*Socket
	tcp         *listener
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
	e := &end{pool: r.poolLocked(bind, req.Kind == pinhole.TCP), count: 1, bound: bind}
	open := func(port uint16) error { return e.bindUDP(port, id, r.cfg.DSCP) }
	switch req.Kind {
	case pinhole.RTP:
		e.count = 2
	case pinhole.TCP:
		open = func(port uint16) error { return r.listen(e, port) }
	}
	if e.port, err = e.pool.take(time.Now(), e.count, open); err != nil {
		return nil, err
	}
	e.local.Addr = netip.AddrPortFrom(public, e.port)
	if e.count == 2 {
		e.local.RTCP = netip.AddrPortFrom(public, e.port+1)
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

// releaseEndLocked closes the sockets and returns the ports, which then rest.
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
	if e.tcp != nil {
		e.tcp.close()
	}
	e.pool.release(e.port, e.count, time.Now().Add(r.pin.Quarantine))
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
