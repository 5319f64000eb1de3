package sipalg

import (
	"bytes"
	"net/netip"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// connection is what the core knows of a stream connection that lives. Most have none of it.
type connection struct {
	aliases map[*alias]bool           // whose flow it is
	calls   map[callParties]time.Time // whose content came by it, and when
	signed  bool                      // its client signs what it sends (signature.go)
	ping    timer                     // keeps it open, where the server counts on that
	every   time.Duration
	covers  func(name string) bool // what the client's verified certificate covers; nil if it has shown none
	peer    bool                   // it covers the name of a peer (peer.go)
	host    netip.Addr             // where that is
}

const (
	// maxConnCalls bounds the calls that one connection's end is told of: a server's carries those of many.
	maxConnCalls = 1 << 12
	// callLife is how long after its last content a call is still told: an invitation waits for two minutes.
	callLife = 10 * time.Minute
	// maxName bounds Call-IDs and URIs that are kept for longer than a transaction.
	maxName = 256
)

// noteConn remembers that a connection lives, before anything comes by it.
func (c *Core) noteConn(f flow.Flow) {
	if _, known := c.conns[f.Conn]; f.Conn != 0 && !known {
		c.conns[f.Conn] = nil
	}
}

// connOf returns the state of a flow's connection, made if needed; nil if it has ended or f is UDP.
func (c *Core) connOf(f flow.Flow) *connection {
	s, alive := c.conns[f.Conn]
	if s == nil && alive {
		s = &connection{}
		c.conns[f.Conn] = s
	}
	return s
}

// enterConn remembers that an alias has its flow by a connection; false if the connection has ended.
func (c *Core) enterConn(f flow.Flow, a *alias) bool {
	if f.Conn == 0 {
		return true
	}
	s := c.connOf(f)
	if s == nil {
		return false
	}
	if s.aliases == nil {
		s.aliases = map[*alias]bool{}
	}
	s.aliases[a] = true
	return true
}

// leaveConn forgets that an alias has its flow by a connection.
func (c *Core) leaveConn(a *alias) {
	if s := c.conns[a.flow.Conn]; s != nil {
		delete(s.aliases, a)
	}
}

// callParties names a call and the URIs of From and To, the lesser first: clients that were started in the same second
// use the same Call-IDs.
type callParties struct{ callID, one, other string }

// noteCall remembers that content of the call of the message at hand came by a connection.
func (c *Core) noteCall(f flow.Flow) {
	s := c.connOf(f)
	from, to := string(c.m.From().URI), string(c.m.To().URI)
	callID := callParties{string(c.m.CallID()), min(from, to), max(from, to)}
	if s == nil || len(callID.callID) > maxName || len(from)+len(to) > maxName {
		return
	}
	if s.calls == nil {
		s.calls = map[callParties]time.Time{}
	}
	if _, known := s.calls[callID]; known || len(s.calls) < maxConnCalls {
		s.calls[callID] = c.now
	}
}

// closeConn forgets a connection that has ended.
func (c *Core) closeConn(f flow.Flow) {
	s := c.conns[f.Conn]
	delete(c.conns, f.Conn)
	if s == nil {
		return
	}
	c.stop(&s.ping)
	if s.peer {
		c.endPeer(s)
	}
	for a := range s.aliases {
		a.flow = flow.Flow{}
	}
	for call := range s.calls {
		c.contents.Lost(call.callID, call.one, call.other)
	}
}

// sweepCalls forgets the calls of connections whose content is long over.
func (c *Core) sweepCalls() {
	for _, s := range c.conns {
		if s == nil {
			continue
		}
		for id, at := range s.calls {
			if c.now.Sub(at) > callLife {
				delete(s.calls, id)
			}
		}
	}
}

// minPing is the shortest interval at which a connection is kept open.
const minPing = 10 * time.Second

// keepServer keeps the connection to a registrar open by CRLFs, as the answer at hand says that the client
// will ([MS-CONMGMT]):
//
//	ms-keep-alive: UAS; tcp=no; hop-hop=yes; end-end=no; timeout=300
//
// The client's own CRLFs end at the edge, and one connection carries many clients.
func (c *Core) keepServer(f flow.Flow) {
	if f.Proto != flow.TCP && f.Proto != flow.TLS {
		return
	}
	v, ok := c.m.FindName("ms-keep-alive")
	i := bytes.IndexByte(v, ';')
	if !ok || i < 0 {
		return
	}
	hop, _ := sipmsg.Param(v[i:], "hop-hop")
	timeout, _ := sipmsg.Param(v[i:], "timeout")
	n, ok := parseUint(timeout)
	s := c.connOf(f)
	if !bytes.EqualFold(hop, []byte("yes")) || !ok || n == 0 || s == nil {
		return
	}
	every := max(time.Duration(min(n, 3600))*time.Second*2/3, minPing)
	if s.every != 0 && s.every <= every {
		return
	}
	s.every = every
	s.ping.fire = func(c *Core) {
		c.out.sendCopy(f, []byte("\r\n\r\n"))
		c.start(&s.ping, s.every)
	}
	c.start(&s.ping, every)
}
