package sipalg

import (
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
)

// A peer is a server that has shown a certificate with a name of sip.peers, or of a server under sip.domains
// (mutual TLS of federated sites). While its connection lives its host is trusted as a configured server is: it
// speaks for other hosts, and no limit per source binds it.

// Verified takes note that the client of a connection has proved who it is; covers tells which names its
// certificate has.
func (c *Core) Verified(now time.Time, f flow.Flow, covers func(name string) bool, out *Output) {
	c.begin(now, out)
	c.noteConn(f)
	s := c.connOf(f)
	s.covers = covers
	c.judgePeer(f.Remote.Addr().Unmap(), s)
	if s.peer {
		c.log.Info("peer has proved its name", zap.String("network", f.Network), zap.Stringer("peer", f.Remote))
		c.noteServers()
	}
}

// judgePeer tells whether a connection's certificate makes it a peer's.
func (c *Core) judgePeer(host netip.Addr, s *connection) {
	s.host, s.peer = host, c.isPeer(s.covers)
	if s.peer {
		c.peers[host]++
	}
}

func (c *Core) isPeer(covers func(string) bool) bool {
	for _, name := range c.cfg.Peers {
		if covers(name) {
			return true
		}
	}
	for _, d := range c.domains {
		for _, u := range d.servers {
			if _, numeric := parseAddr([]byte(u.Host)); !numeric && covers(u.Host) {
				return true
			}
		}
	}
	return false
}

// judgePeers judges all connections anew, after the configuration has changed.
func (c *Core) judgePeers() {
	clear(c.peers)
	for _, s := range c.conns {
		if s != nil && s.covers != nil {
			c.judgePeer(s.host, s)
		}
	}
}

// endPeer takes note that a peer's connection has ended.
func (c *Core) endPeer(s *connection) {
	if c.peers[s.host]--; c.peers[s.host] <= 0 {
		delete(c.peers, s.host)
		c.noteServers()
	}
}
