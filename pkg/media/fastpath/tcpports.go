package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// restTime is how long a port is not used again after its connection's last packet: as long as the target
	// may remember the connection (Linux: TIME_WAIT, 60 s).
	restTime = time.Minute
	// firstPorts is how many ports a rule reserves at first; then twice as many each time.
	firstPorts = 64
	// unseenTime is how long a port may be taken without a connection that has it.
	unseenTime = 3 * time.Second
)

// ports are the source ports of one rule, each held by a socket that is bound, and does nothing else: so
// nobody else on this machine can have it. A port goes round:
//
//	reserved ─► ring ─► (the program takes it) ─► out ─► (the connection has ended) ─► resting ─► ring
type ports struct {
	addr    netip.Addr
	most    int
	sockets map[uint16]int
	// ring is what tcp_ports holds; given were put there, seen of those found to be taken.
	ring        []uint16
	given, seen uint64
	// out says when a taken port was last seen in a connection, or taken. Times are the program's, in ns.
	out     map[uint16]uint64
	resting []resting // in the order of their ends
}

type resting struct {
	port  uint16
	until uint64
}

func newPorts(addr netip.Addr, most, ring int) *ports {
	return &ports{addr: addr, most: most, sockets: make(map[uint16]int), ring: make([]uint16, ring), out: make(map[uint16]uint64)}
}

func (p *ports) close() {
	for _, fd := range p.sockets {
		_ = unix.Close(fd)
	}
	clear(p.sockets)
}

// reserve holds a port: any if it is 0.
func (p *ports) reserve(port uint16) (uint16, error) {
	family := unix.AF_INET6
	if p.addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("reserve a port: %w", err)
	}
	if err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(p.addr, port))); err == nil {
		port, err = boundPort(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("reserve a port of %s: %w", p.addr, err)
	}
	p.sockets[port] = fd
	return port, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func boundPort(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), err
	case *unix.SockaddrInet6:
		return uint16(sa.Port), err
	}
	return 0, err
}

// take follows what the program has taken out of the ring.
func (p *ports) take(taken, now uint64) {
	for ; p.seen < taken && p.seen < p.given; p.seen++ {
		p.out[p.ring[p.seen&uint64(len(p.ring)-1)]] = now
	}
}

// rest keeps a port from use for a while after its connection's last packet.
func (p *ports) rest(port uint16, last, now uint64) {
	if _, ok := p.out[port]; !ok {
		return
	}
	delete(p.out, port)
	until := max(last+uint64(restTime), now+uint64(time.Second))
	if n := len(p.resting); n > 0 {
		until = max(until, p.resting[n-1].until)
	}
	p.resting = append(p.resting, resting{port, until})
}

// lost returns the ports that were taken, but that no connection has: the program could not make one.
func (p *ports) lost(now uint64) (list []uint16) {
	for port, at := range p.out {
		if now > at && now-at > uint64(unseenTime) {
			list = append(list, port)
		}
	}
	return list
}

// next returns the ports that can be put into the ring: those that have rested, and new ones if less than half are left
// of what was reserved.
func (p *ports) next(taken, now uint64) (list []uint16, err error) {
	n := 0
	for ; n < len(p.resting) && p.resting[n].until <= now; n++ {
		port := p.resting[n].port
		if len(p.sockets) <= p.most {
			list = append(list, port)
		} else if fd, ok := p.sockets[port]; ok { // an earlier rule allowed for more
			_ = unix.Close(fd)
			delete(p.sockets, port)
		}
	}
	p.resting = append(p.resting[:0], p.resting[n:]...)
	free := int(p.given-min(taken, p.given)) + len(list)
	if free > len(p.sockets)/2 {
		return list, nil
	}
	for want := min(max(firstPorts, len(p.sockets)), p.most-len(p.sockets)); want > 0; want-- {
		port, err := p.reserve(0)
		if err != nil {
			return list, err
		}
		list = append(list, port)
	}
	return list, nil
}

// give notes that a port is in the ring, and returns its place. The ring has room for all ports.
func (p *ports) give(port uint16) (place uint32) {
	place = uint32(p.given & uint64(len(p.ring)-1))
	p.ring[place] = port
	p.given++
	return place
}

// hostPort undoes port.
func hostPort(p uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, p))
}
