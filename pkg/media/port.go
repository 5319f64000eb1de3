package media

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// maxChannels bounds the channels of a port: each packet of its peers is looked for among them. A client with
// more is served by whoever reads the port.
const maxChannels = 256

// clientPort is a UDP port that a client owns (pinhole.Port).
type clientPort struct {
	conn
	relay *Relay
	id    uint64
	req   pinhole.PortRequest
	local pinhole.Local
	// opened is when it was opened.
	opened time.Time
	// The following are guarded by the relay's mutex.
	pool *pool
	next *Socket
	// bound are the channels in the order of their binding.
	bound []*binding
	// from counts what came from the client, and from peers.
	from [2]Counters
}

// binding is a channel of a port.
type binding struct {
	port  *clientPort
	front *front
	key   channelKey
	c     pinhole.Channel
	// forth is the flow from the client, back the one from the peer.
	forth, back *Flow
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
	var socks [2]*Socket
	pool := r.poolLocked(bound, false, PortRange{req.Ports[0], req.Ports[1]})
	number, err := pool.take(time.Now(), count, func(number uint16) (err error) {
		if req.Even && number%2 != 0 {
			return syscall.EADDRINUSE // look further
		}
		socks, err = r.bindPortsLocked(netip.AddrPortFrom(bound, number), count)
		return err
	})
	if err != nil {
		return nil, err
	}
	p, err := r.newPortLocked(req, socks[0], pool, public)
	if err != nil {
		closeSocket(socks[1])
		pool.release(number, count, time.Now())
		return nil, err
	}
	p.next = socks[1]
	return p, nil
}

func (r *Relay) bindPortsLocked(at netip.AddrPort, count uint16) ([2]*Socket, error) {
	r.nextID++
	e := &end{bound: at.Addr(), count: count}
	err := e.bindUDP(at.Port(), r.nextID, r.cfg.DSCP)
	return e.socks, err
}

// newPortLocked has the path read the socket, or closes it.
func (r *Relay) newPortLocked(req pinhole.PortRequest, s *Socket, pool *pool, public netip.Addr) (*clientPort, error) {
	r.nextID++
	p := &clientPort{relay: r, id: r.nextID, req: req, pool: pool, opened: time.Now()}
	p.local.Addr = netip.AddrPortFrom(public, s.Local.Port())
	for i := range p.from {
		p.from[i].epoch = &r.epoch
	}
	p.open(s, portInbox, &p.from[pinhole.Far])
	if err := r.path.Set(s, p.strays()); err != nil {
		closeSocket(s)
		return nil, resourceError(err)
	}
	r.ports[p] = struct{}{}
	r.owners[req.Owner]++
	return p, nil
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
	n, err := r.newPortLocked(p.req, p.next, p.pool, p.local.Addr.Addr())
	if err != nil {
		p.pool.release(p.next.Local.Port(), 1, time.Now())
		p.next = nil
		return nil, fmt.Errorf("next port: %w", err)
	}
	p.next = nil
	return n, nil
}

// Bind has the path move what a channel carries.
func (p *clientPort) Bind(c pinhole.Channel) error {
	c.Client, c.Peer = unmap(c.Client), unmap(c.Peer)
	r := p.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := c.Front.(*front)
	switch {
	case p.isClosed():
		return fmt.Errorf("bind channel: %w", pinhole.ErrClosed)
	case !ok || f.relay != r || f.isClosed() || c.Client.Addr().Is4() != f.sock.Local.Addr().Is4():
		return fmt.Errorf("bind channel: %w", pinhole.ErrNotCarried)
	case c.Number>>14 != 1:
		return fmt.Errorf("bind channel: the number %#x: %w", c.Number, pinhole.ErrNotCarried)
	case c.Peer.Port() == 0 || c.Peer.Addr().Is4() != p.sock.Local.Addr().Is4():
		return fmt.Errorf("bind channel: peer %s at %s: %w", c.Peer, p.sock.Local, pinhole.ErrNetwork)
	}
	for _, b := range slices.Clone(p.bound) {
		if b.c.Number == c.Number || b.c.Peer == c.Peer {
			p.unbindLocked(b)
		}
	}
	if len(p.bound) >= maxChannels {
		return fmt.Errorf("bind channel: %d are bound: %w", maxChannels, pinhole.ErrLimit)
	}
	p.bindLocked(f, c)
	return nil
}

func (p *clientPort) bindLocked(f *front, c pinhole.Channel) {
	client, peer := SockaddrOf(c.Client), SockaddrOf(c.Peer)
	b := &binding{port: p, front: f, key: channelKeyOf(&client, c.Number), c: c}
	if old := f.bound[b.key]; old != nil {
		old.port.unbindLocked(old) // the port of an earlier allocation, that the client has forgotten
	}
	b.forth = &Flow{From: client, To: peer, Out: p.sock, Counters: &p.from[pinhole.Near]}
	b.back = &Flow{From: peer, To: client, Out: f.sock, Counters: &p.from[pinhole.Far], Channel: c.Number}
	p.bound = append(p.bound, b)
	p.publishLocked()
	f.bound[b.key] = b
	f.clients.set(b.key, b.forth)
	if carrier, ok := p.relay.path.(channelCarrier); ok {
		carrier.BindChannel(f.sock, c.Number, b.forth)
		carrier.BindChannel(p.sock, 0, b.back)
	}
}

// publishLocked says which peers have a channel.
func (p *clientPort) publishLocked() {
	flows := make([]*Flow, len(p.bound))
	for i, b := range p.bound {
		flows[i] = b.back
	}
	p.peers.Store(&flows)
}

func (p *clientPort) unbindLocked(b *binding) {
	if carrier, ok := p.relay.path.(channelCarrier); ok {
		carrier.UnbindChannel(b.forth)
		carrier.UnbindChannel(b.back)
	}
	b.front.clients.set(b.key, nil)
	delete(b.front.bound, b.key)
	p.bound = slices.DeleteFunc(p.bound, func(o *binding) bool { return o == b })
	p.publishLocked()
}

// Unbind leaves what the channel carries to who reads the port and the front.
func (p *clientPort) Unbind(number uint16) {
	r := p.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range slices.Clone(p.bound) {
		if b.c.Number == number {
			p.unbindLocked(b)
		}
	}
}

// ReadFrom reads what a peer has sent that has no channel.
func (p *clientPort) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := p.conn.ReadFrom(b)
	if err == nil {
		p.from[pinhole.Far].Receive(time.Now(), b[:n])
	}
	return n, from, err
}

// WriteTo sends to a peer.
func (p *clientPort) WriteTo(b []byte, to net.Addr) (int, error) {
	p.from[pinhole.Near].Receive(time.Now(), b)
	n, err := p.conn.WriteTo(b, to)
	if err != nil {
		p.from[pinhole.Near].Drop(SendError, 1)
	}
	return n, err
}

// clientNetwork returns the client's network, the port's own if the client is of none.
func (p *clientPort) clientNetwork() string {
	return cmp.Or(p.relay.nets.Of(p.req.Client.Addr()), p.req.Network)
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
	if !p.end() {
		return net.ErrClosed
	}
	r, until := p.relay, time.Now().Add(p.relay.pin.Quarantine)
	for _, b := range slices.Clone(p.bound) {
		p.unbindLocked(b)
	}
	if p.next != nil {
		closeSocket(p.next)
		p.pool.release(p.next.Local.Port(), 1, until)
		p.next = nil
	}
	r.path.Delete(p.sock)
	p.pool.release(p.sock.Local.Port(), 1, until)
	delete(r.ports, p)
	r.disownLocked(p.req.Owner)
	r.totals.addPort(p)
	return nil
}
