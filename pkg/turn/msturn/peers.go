package msturn

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// The relay port of a client on TCP is a TCP port: peers connect to it, and it connects to peers. What passes is a
// stream of packets with their length before each (RFC 4571), as ICE has it on TCP; a client gets them one by one,
// with the length, because that is how clients take them out of a Data-Indication.

const (
	maxPeers = 16 // connections of one relay port
	// peerQueue is how many chunks wait for a connection that is being made; then the client waits.
	peerQueue = 32
	dialTime  = 10 * time.Second
	// awaitTime is how long a peer that has connected may wait for the client to send to it first.
	awaitTime = 30 * time.Second
)

// Streams makes the TCP sockets of relay ports: Listen at any free port of an address, and Dial from the same port.
type Streams interface {
	Listen(ctx context.Context, at netip.Addr) (net.Listener, error)
	Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error)
}

var errPeer = errors.New("the peer takes nothing")

// tcpRelay is the relay port of a client on TCP.
type tcpRelay struct {
	server *Server
	of     *allocation
	client *stream
	ln     net.Listener
	local  netip.AddrPort
	ended  chan struct{} // closed with the port
	work   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	timer  *time.Timer
	peers  map[netip.AddrPort]*peer
}

// peer is a connection with a peer, or one that is being made.
type peer struct {
	at   netip.AddrPort
	out  chan []byte
	gone chan struct{} // closed when the connection has ended
	conn net.Conn      // guarded by the relay's mu; nil while it is being made
}

func (s *Server) openStreams(ctx context.Context, network string, a *allocation, c *stream) (relayPort, error) {
	if s.deps.Streams == nil {
		return nil, errors.New("relay: TCP ports are off")
	}
	bound, public, err := s.deps.Networks.Local(network, pinhole.IPv4)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	ln, err := s.deps.Streams.Listen(ctx, bound)
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	local := pinhole.AddrPortOf(ln.Addr())
	a.relay = netip.AddrPortFrom(public, local.Port())
	return &tcpRelay{server: s, of: a, client: c, ln: ln, local: local, ended: make(chan struct{}), peers: map[netip.AddrPort]*peer{}}, nil
}

// send writes to the peer, which is connected first if it is not. It waits while the peer takes nothing.
func (t *tcpRelay) send(to netip.AddrPort, b []byte) error {
	p := t.peer(to, nil)
	if p == nil {
		return errPeer
	}
	wait := time.NewTimer(writeTime)
	defer wait.Stop()
	select {
	case p.out <- slices.Clone(b):
		return nil
	case <-p.gone:
	case <-t.ended:
	case <-wait.C:
	}
	return errPeer
}

// peer returns the peer at an address, made anew if it is not there; conn is its connection, nil has it dialled. It returns
// nil if there may be no more, or another connection is there already.
func (t *tcpRelay) peer(at netip.AddrPort, conn net.Conn) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[at]
	if p != nil && conn == nil {
		return p
	}
	if p != nil || t.closed || len(t.peers) >= maxPeers {
		return nil
	}
	p = &peer{at: at, out: make(chan []byte, peerQueue), gone: make(chan struct{}), conn: conn}
	t.peers[at] = p
	t.work.Go(func() { t.run(p) })
	return p
}

// serve accepts peers until the port is closed.
func (t *tcpRelay) serve() {
	defer t.work.Wait()
	defer t.Close()
	for {
		conn, err := t.ln.Accept()
		select {
		case <-t.ended:
			if err == nil {
				conn.Close()
			}
			return
		default:
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			t.pause()
			continue
		}
		if t.peer(pinhole.AddrPortOf(conn.RemoteAddr()), conn) == nil {
			t.server.count.drop("peer_connections")
			conn.Close()
		}
	}
}

// pause waits a little after a failed accept: out of descriptors, others will close theirs.
func (t *tcpRelay) pause() {
	select {
	case <-t.ended:
	case <-time.After(50 * time.Millisecond):
	}
}

// run serves a peer to the end of its connection.
func (t *tcpRelay) run(p *peer) {
	defer t.forget(p)
	if t.connection(p) == nil && !t.dial(p) {
		t.server.count.drop("peer_unreachable")
		return
	}
	conn := t.connection(p)
	defer conn.Close()
	t.work.Go(func() { t.write(p, conn) })
	t.read(p, conn)
}

func (t *tcpRelay) connection(p *peer) net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	return p.conn
}

func (t *tcpRelay) forget(p *peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(p.gone)
	delete(t.peers, p.at)
}

// dial connects from the relay port; false if that fails or the port was closed meanwhile.
func (t *tcpRelay) dial(p *peer) bool {
	ctx, cancel := context.WithTimeout(context.Background(), dialTime)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	t.work.Go(func() {
		select {
		case <-t.ended:
			cancel()
		case <-stop:
		}
	})
	conn, err := t.server.deps.Streams.Dial(ctx, t.local, p.at)
	if err != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		conn.Close()
		return false
	}
	p.conn = conn
	return true
}

// write sends what waits for the peer.
func (t *tcpRelay) write(p *peer, conn net.Conn) {
	for {
		select {
		case b := <-p.out:
			conn.SetWriteDeadline(time.Now().Add(writeTime))
			if _, err := conn.Write(b); err != nil {
				conn.Close()
				return
			}
		case <-p.gone:
			return
		}
	}
}

// read brings the packets of a peer to the client, once the client has let the peer in.
func (t *tcpRelay) read(p *peer, conn net.Conn) {
	if !t.of.await(p.at.Addr(), t.ended) {
		t.server.count.drop("no_permission")
		return
	}
	r := bufio.NewReader(conn)
	for {
		head, err := r.Peek(2)
		if err != nil {
			return
		}
		n := 2 + int(binary.BigEndian.Uint16(head))
		if n > maxData {
			t.server.count.drop("too_long")
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		t.server.deliver(t.of, t.client, p.at, b)
	}
}

func (t *tcpRelay) until(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	if t.timer == nil {
		t.timer = time.AfterFunc(time.Until(at), func() { t.Close() })
		return
	}
	t.timer.Reset(time.Until(at))
}

func (t *tcpRelay) discard() { t.Close() }

// Close closes the port and all its connections.
func (t *tcpRelay) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.ended)
	if t.timer != nil {
		t.timer.Stop()
	}
	for _, p := range t.peers {
		if p.conn != nil {
			p.conn.Close()
		}
	}
	return t.ln.Close()
}
