package turn

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// connectTime is how long a peer may take to accept; RFC 6062 §5.2 says at least 30 s, during which pion handles
// nothing else of this client.
const connectTime = 30 * time.Second

// acceptRest is how long accepting rests when it fails: out of descriptors, others will close theirs.
const acceptRest = 50 * time.Millisecond

// dial connects the relay port of an allocation with a peer (RFC 6062 §5.2).
func (a *allocation) dial(peer netip.AddrPort) (net.Conn, error) {
	if why := a.s.peers.Connect(peer); why != "" {
		return nil, errors.New(why)
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	c, err := a.s.deps.Streams.Dial(ctx, a.s.boundOf(a.relayed), a.s.boundOf(peer))
	if err != nil {
		return nil, err
	}
	return &peerConn{Conn: c, a: a}, nil
}

// relayListener is the relay port of a TCP allocation as pion sees it.
type relayListener struct{ a *allocation }

// Accept returns the next connection of a peer (RFC 6062 §5.3).
func (l relayListener) Accept() (net.Conn, error) {
	for {
		c, err := l.a.listener.Accept()
		if err == nil {
			return &peerConn{Conn: c, a: l.a}, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		<-time.After(acceptRest)
	}
}

// Close ends the allocation.
func (l relayListener) Close() error {
	l.a.close()
	return nil
}

// Addr implements [net.Listener].
func (l relayListener) Addr() net.Addr { return l.a.listener.Addr() }

// peerConn is a connection with a peer; it counts.
type peerConn struct {
	net.Conn
	a *allocation
}

// Read reads what the peer sends.
func (c *peerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.a.passed(1, n)
	return n, err
}

// Write sends to the peer.
func (c *peerConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.a.passed(0, n)
	return n, err
}

// passed counts what came from the client (0) or a peer (1), and waits for as long as the allocation's bandwidth asks.
func (a *allocation) passed(from, n int) {
	a.mu.Lock()
	a.octets[from] += uint64(n)
	a.mu.Unlock()
	for a.octetRate[from].limited() && n > 0 {
		part := min(n, maxRelayed)
		if !a.octetRate[from].take(part) {
			<-time.After(budgetRest)
			continue
		}
		n -= part
	}
}

// budgetRest is how often a stream that has used its bandwidth up looks for more.
const budgetRest = 5 * time.Millisecond
