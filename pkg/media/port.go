package media

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// clientPort is a UDP port that a client owns (pinhole.Port).
type clientPort struct {
	*net.UDPConn
	relay *Relay
	req   pinhole.PortRequest
	local pinhole.Local
	// The following are guarded by the relay's mutex.
	pool   *pool
	number uint16
	next   *net.UDPConn
	// from counts what came from the client, and from peers.
	from [2]Counters
}

var (
	_ pinhole.Port       = (*clientPort)(nil)
	_ pinhole.PortOpener = (*Relay)(nil)
)

// OpenPort binds the port of a client.
func (r *Relay) OpenPort(ctx context.Context, req pinhole.PortRequest) (pinhole.Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open port: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := r.openPortLocked(req)
	if err != nil {
		r.totals.refuse(err)
		return nil, fmt.Errorf("open port: %w", err)
	}
	return p, nil
}

// Front returns conn: its channels are not carried.
func (*Relay) Front(conn net.PacketConn) (net.PacketConn, error) { return conn, nil }

// mayOpenLocked tells why an owner may not have one more.
func (r *Relay) mayOpenLocked(owner string) error {
	if r.closed {
		return pinhole.ErrClosed
	}
	if n := r.owners[owner]; n >= r.pin.PerOwner {
		return fmt.Errorf("owner %q has %d: %w", owner, n, pinhole.ErrLimit)
	}
	return nil
}

// disownLocked takes one from what an owner has.
func (r *Relay) disownLocked(owner string) {
	if r.owners[owner]--; r.owners[owner] == 0 {
		delete(r.owners, owner)
	}
}

func (r *Relay) openPortLocked(req pinhole.PortRequest) (*clientPort, error) {
	if err := r.mayOpenLocked(req.Owner); err != nil {
		return nil, err
	}
	bound, public, err := r.nets.Local(req.Network, req.Family)
	if err != nil {
		return nil, err
	}
	count := uint16(1)
	if req.Pair {
		count = 2
	}
	var socks [2]*net.UDPConn
	pool := r.poolLocked(bound, false, PortRange{})
	number, err := pool.take(time.Now(), count, func(number uint16) (err error) {
		if req.Even && number%2 != 0 {
			return syscall.EADDRINUSE // look further
		}
		socks, err = listenPorts(netip.AddrPortFrom(bound, number), count)
		return err
	})
	if err != nil {
		return nil, err
	}
	p := r.newPortLocked(req, socks[0], pool, number, public)
	p.next = socks[1]
	return p, nil
}

func listenPorts(at netip.AddrPort, count uint16) (socks [2]*net.UDPConn, err error) {
	for i := range count {
		socks[i], err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), at.Port()+i)))
		if err != nil {
			if i == 1 {
				socks[0].Close()
			}
			return socks, resourceError(err)
		}
	}
	return socks, nil
}

func (r *Relay) newPortLocked(req pinhole.PortRequest, sock *net.UDPConn, pool *pool, number uint16, public netip.Addr) *clientPort {
	p := &clientPort{UDPConn: sock, relay: r, req: req, pool: pool, number: number}
	p.local.Addr = netip.AddrPortFrom(public, number)
	for i := range p.from {
		p.from[i].epoch = r.epoch
	}
	r.ports[p] = struct{}{}
	r.owners[req.Owner]++
	return p
}

// Local returns the address to write into messages.
func (p *clientPort) Local() pinhole.Local { return p.local }

// Next returns the port that is held beside this one.
func (p *clientPort) Next(ctx context.Context) (pinhole.Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("next port: %w", err)
	}
	r := p.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.next == nil {
		return nil, fmt.Errorf("next port: none is held: %w", pinhole.ErrExhausted)
	}
	if err := r.mayOpenLocked(p.req.Owner); err != nil {
		r.totals.refuse(err)
		return nil, fmt.Errorf("next port: %w", err)
	}
	n := r.newPortLocked(p.req, p.next, p.pool, p.number+1, p.local.Addr.Addr())
	p.next = nil
	return n, nil
}

// Bind refuses: its caller moves what channels carry.
func (*clientPort) Bind(pinhole.Channel) error { return pinhole.ErrNotCarried }

// Unbind has nothing to end.
func (*clientPort) Unbind(uint16) {}

// ReadFrom reads what a peer has sent.
func (p *clientPort) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.UDPConn.ReadFrom(b)
	if err == nil {
		p.from[pinhole.Far].Receive(time.Now(), b[:n])
	}
	return n, from, err
}

// WriteTo sends to a peer.
func (p *clientPort) WriteTo(b []byte, to net.Addr) (int, error) {
	p.from[pinhole.Near].Receive(time.Now(), b)
	n, err := p.UDPConn.WriteTo(b, to)
	if err != nil {
		p.from[pinhole.Near].Drop(SendError, 1)
	}
	return n, err
}

// Stats counts what came from the client, and from peers.
func (p *clientPort) Stats() (st [2]pinhole.StreamStats) {
	for i := range p.from {
		c := &p.from[i]
		st[i] = pinhole.StreamStats{Packets: c.packets.Load(), Bytes: c.bytes.Load(), Dropped: c.totalDropped()}
	}
	return st
}

// Close releases the port, and the one that is held.
func (p *clientPort) Close() error {
	r := p.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	return p.closeLocked()
}

func (p *clientPort) closeLocked() error {
	r := p.relay
	if _, open := r.ports[p]; !open {
		return net.ErrClosed
	}
	delete(r.ports, p)
	r.disownLocked(p.req.Owner)
	until := time.Now().Add(r.pin.Quarantine)
	if p.next != nil {
		p.next.Close()
		p.pool.release(p.number+1, 1, until)
		p.next = nil
	}
	p.pool.release(p.number, 1, until)
	r.totals.addPort(p)
	return p.UDPConn.Close()
}
