package forwardproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// maxDatagram bounds datagrams with their header: more than any real-time application sends.
	maxDatagram = 8 << 10
	// maxPeers bounds the peers of one association, allPeers those of all: each has a socket and a buffer.
	maxPeers = 64
	allPeers = 8192
	// maxQueue bounds the datagrams that wait for a name to be looked up.
	maxQueue = 8
	// peerIdle is how long a peer may answer after the last datagram to or from it (RFC 4787 REQ-5), peerRest how long one that
	// could not be had is not tried again.
	peerIdle = 2 * time.Minute
	peerRest = 10 * time.Second
)

// Why datagrams are dropped, as the reason label of metrics; beside these are the reasons of dialling.
const (
	dropSource  = "source" // not the client's
	dropLong    = "too_long"
	dropPeers   = "peers"
	dropQueue   = "queue"
	dropRefused = "refused_peer"
	dropWrite   = "write"
)

// association relays datagrams of one client (RFC 1928 §7) as long as its connection lives.
type association struct {
	c    *client
	sock net.PacketConn
	work sync.WaitGroup

	mu    sync.Mutex     // guards what follows
	from  netip.AddrPort // the client's port, once known
	peers map[string]*peer
}

// peer is a destination of an association.
type peer struct {
	to string // as the client writes it

	mu      sync.Mutex // guards what follows
	conn    net.Conn   // nil until it is dialled
	queue   [][]byte
	used    time.Time
	refused bool
}

// associate answers UDP ASSOCIATE, and relays until the client's connection ends.
func (c *client) associate(ctx context.Context, q socksRequest) error {
	if !c.s.enter(c.source.Addr(), c.now.cfg.Associations) {
		c.tell(socksReply(replyNotAllowed, netip.AddrPort{}))
		return errLimit
	}
	defer c.s.exit(c.source.Addr())
	local := pinhole.AddrPortOf(c.conn.LocalAddr())
	sock, err := c.s.deps.ListenPacket(ctx, netip.AddrPortFrom(local.Addr(), 0))
	if err != nil {
		c.tell(socksReply(replyFailure, netip.AddrPort{}))
		return fmt.Errorf("%w: %w", errSocket, err)
	}
	c.mu.Lock()
	c.udp = true
	c.mu.Unlock()
	a := &association{c: c, sock: sock, peers: make(map[string]*peer)}
	if q.port != 0 {
		a.from = netip.AddrPortFrom(c.source.Addr(), q.port)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer a.work.Wait()
	defer cancel()
	a.work.Go(func() { a.receive(ctx) })
	c.conn.SetDeadline(time.Now().Add(answerTime))
	if _, err := c.conn.Write(socksReply(replyOK, pinhole.AddrPortOf(sock.LocalAddr()))); err != nil {
		return err
	}
	c.s.count.request(c.proto, "ok")
	c.conn.SetDeadline(time.Time{})
	for err == nil { // nothing more is said here: what ends is the association
		_, err = c.r.Discard(1)
	}
	return nil
}

// enter counts an association of a source in.
func (s *Server) enter(source netip.Addr, most int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.associations[source] >= most {
		return false
	}
	s.associations[source]++
	return true
}

func (s *Server) exit(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.associations[source]--; s.associations[source] <= 0 {
		delete(s.associations, source)
	}
}

// receive takes the client's datagrams until ctx ends.
func (a *association) receive(ctx context.Context) {
	err := gate.Packets(ctx, a.sock, maxDatagram+1, func(from net.Addr, b []byte) {
		if why := a.take(ctx, pinhole.AddrPortOf(from), b); why != "" {
			a.c.s.count.drop(why)
		}
	})
	if err != nil {
		a.c.s.log.Warn("association not served", zap.Error(err))
	}
}

// take relays one datagram of the client's; "" or the reason why not.
func (a *association) take(ctx context.Context, from netip.AddrPort, b []byte) string {
	if !a.ours(from) {
		return dropSource
	}
	if len(b) > maxDatagram {
		return dropLong
	}
	to, data, err := splitDatagram(b)
	if err != nil {
		return reasonOf(err)
	}
	p, err := a.peer(ctx, to)
	switch {
	case err != nil:
		return reasonOf(err)
	case p == nil:
		return dropPeers
	}
	return a.send(p, data)
}

// ours tells whether a datagram is the client's: of its address, and of the port that it has named or sent from first.
func (a *association) ours(from netip.AddrPort) bool {
	if from.Addr() != a.c.source.Addr() {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.from.IsValid() {
		a.from = from
	}
	return from == a.from
}

// peer returns a destination, which it has dialled if it is new; nil if there are too many.
func (a *association) peer(ctx context.Context, to []byte) (*peer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.peers[string(to)]; p != nil {
		return p, nil
	}
	host, port, err := readDestination(to)
	if err != nil || len(a.peers) >= maxPeers {
		return nil, err
	}
	if a.c.s.peers.Add(1) > allPeers {
		a.c.s.peers.Add(-1)
		return nil, nil
	}
	p := &peer{to: string(to), used: time.Now()}
	a.peers[p.to] = p
	a.work.Go(func() {
		defer a.forget(p)
		a.carry(ctx, p, host, port)
	})
	return p, nil
}

func (a *association) forget(p *peer) {
	a.c.s.peers.Add(-1)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.peers, p.to)
}

// send sends to a peer, or keeps the datagram until it is dialled; "" or why it was dropped.
func (a *association) send(p *peer, data []byte) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = time.Now()
	switch {
	case p.refused:
		return dropRefused
	case p.conn != nil:
		return a.write(p.conn, data)
	case len(p.queue) >= maxQueue:
		return dropQueue
	}
	p.queue = append(p.queue, append([]byte(nil), data...))
	return ""
}

func (a *association) write(conn net.Conn, data []byte) string {
	if _, err := conn.Write(data); err != nil {
		return dropWrite // e.g. ICMP's word of an earlier one
	}
	a.c.s.count.datagrams[0].Add(1)
	a.c.packets[0].Add(uint64(len(data)))
	return ""
}

// carry dials a peer, sends what has waited, and brings what it answers until it is idle or ctx ends.
func (a *association) carry(ctx context.Context, p *peer, host string, port uint16) {
	dialling, cancel := context.WithTimeout(ctx, dialTimeout)
	conn, err := a.c.s.deps.Dial(dialling, "udp", host, port)
	cancel()
	if err != nil {
		a.refuse(ctx, p, joinHostPort(host, port), err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	p.mu.Lock()
	p.conn = conn
	for _, data := range p.queue {
		if why := a.write(conn, data); why != "" {
			a.c.s.count.drop(why)
		}
	}
	p.queue = nil
	p.mu.Unlock()
	a.answers(p, conn)
}

// refuse has a peer's datagrams dropped for a while.
func (a *association) refuse(ctx context.Context, p *peer, target string, err error) {
	p.mu.Lock()
	p.refused = true
	dropped := len(p.queue)
	p.queue = nil
	p.mu.Unlock()
	for range dropped {
		a.c.s.count.drop(reasonOf(err))
	}
	a.c.say(target, err)
	rest := time.NewTimer(peerRest)
	defer rest.Stop()
	select {
	case <-ctx.Done():
	case <-rest.C:
	}
}

// answers brings what a peer answers to the client, under the address that it came from.
func (a *association) answers(p *peer, conn net.Conn) {
	head := []byte{0, 0, 0}
	if at := pinhole.AddrPortOf(conn.RemoteAddr()); at.IsValid() {
		head = appendSOCKS(head, at)
	} else {
		head = append(head, p.to...) // reached by other means than this host's network
	}
	b := make([]byte, len(head)+maxDatagram)
	copy(b, head)
	for {
		conn.SetReadDeadline(time.Now().Add(peerIdle))
		n, err := conn.Read(b[len(head):])
		switch {
		case err == nil && n == maxDatagram:
			a.c.s.count.drop(dropLong)
		case err == nil:
			a.deliver(b[:len(head)+n], n)
		case errors.Is(err, syscall.ECONNREFUSED): // ICMP's word of a datagram that found nobody: another may
		case errors.Is(err, os.ErrDeadlineExceeded) && p.usedSince(time.Now().Add(-peerIdle)):
		default:
			return
		}
	}
}

func (p *peer) usedSince(t time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used.After(t)
}

// deliver sends an answer of n octets, with its header, to the client.
func (a *association) deliver(b []byte, n int) {
	a.mu.Lock()
	to := a.from
	a.mu.Unlock()
	if _, err := a.sock.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		a.c.s.count.drop(dropWrite)
		return
	}
	a.c.s.count.datagrams[1].Add(1)
	a.c.packets[1].Add(uint64(n))
}
