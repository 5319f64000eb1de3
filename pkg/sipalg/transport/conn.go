package transport

import (
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
)

// conn is an open connection, accepted or dialled, handshakes done.
//
// One goroutine reads (run). A second writes, but only while something waits to be written, so a
// quiet connection costs one goroutine.
type conn struct {
	t       *Transport
	cfg     *Config
	flow    flow.Flow
	nc      net.Conn        // read and written: TCP, or TLS over it
	base    net.Conn        // the connection beneath TLS: closing it never waits for the peer
	ws      *websocket.Conn // nil for TCP and TLS
	dialled bool
	name    string            // the server name that was verified, of a dialled TLS connection
	peer    *x509.Certificate // the peer's certificate where it was verified, else nil
	since   time.Time

	// What follows belongs to the reading goroutine.
	valid bool      // a whole message has come
	first time.Time // when the message that is not complete yet began; zero if there is none
	heard time.Time // when the last bytes came
	armed time.Time // the read deadline that is set

	mu      sync.Mutex // guards what follows
	gone    bool
	last    bool // nothing more may be queued
	why     reason
	pend    []byte // waits for the writing goroutine
	ends    []int  // where the messages in pend end; WebSocket only
	queued  int    // bytes in pend and in the writing goroutine's hands
	writing bool
	try     tryWrite
	writer  sync.WaitGroup
}

func (t *Transport) newConn(f flow.Flow, nc, base net.Conn) *conn {
	now := time.Now()
	f.Conn = t.seq.Add(1)
	c := &conn{t: t, cfg: t.cfg.Load(), flow: f, nc: nc, base: base, since: now, heard: now}
	if sc, ok := nc.(*net.TCPConn); ok {
		c.try.raw, _ = sc.SyscallConn()
		c.try.run = c.try.write
	}
	return c
}

func (c *conn) direction() string {
	if c.dialled {
		return "out"
	}
	return "in"
}

// run reads until the connection ends, and tells the handler. The connection is registered.
func (c *conn) run() {
	if v, ok := c.t.h.(Verifier); ok && c.peer != nil && !c.dialled {
		v.Verified(c.flow, c.peer)
	}
	var why reason
	if c.ws != nil {
		why = c.readFrames()
	} else {
		why = c.readStream()
	}
	c.end(why)
	c.writer.Wait()
	c.t.remove(c)
	c.mu.Lock()
	why = c.why
	c.mu.Unlock()
	if why != none {
		c.t.count.drop(why)
	}
	c.t.log.Debug("sip connection ended", zap.Uint64("conn", c.flow.Conn), zap.String("network", c.flow.Network),
		zap.Stringer("transport", c.flow.Proto), zap.Stringer("remote", c.flow.Remote), zap.Stringer("reason", why))
	c.t.h.Closed(c.flow)
}

// end closes the connection; the first reason stays.
func (c *conn) end(why reason) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLocked(why)
}

func (c *conn) endLocked(why reason) {
	if c.gone {
		return
	}
	c.gone, c.why = true, why
	c.base.Close()
}

// deadline says until when the peer may be silent now, and what it is dropped for then.
func (c *conn) deadline() (time.Time, reason) {
	at, why := c.heard.Add(c.cfg.Idle), idle
	if !c.valid && !c.dialled && c.peer == nil { // a trunk that proved its name may wait for our requests
		at, why = c.since.Add(c.cfg.FirstByte), firstByte
	}
	if !c.first.IsZero() {
		if d := c.first.Add(c.cfg.Complete); d.Before(at) {
			at, why = d, incomplete
		}
	}
	return at, why
}

// arm sets the read deadline. One that is a little early is left: expired looks again.
func (c *conn) arm() {
	at, _ := c.deadline()
	if early := at.Sub(c.armed); c.ws != nil || early < 0 || early > at.Sub(c.heard)/32 {
		c.armed = at
		c.nc.SetReadDeadline(at)
	}
}

// readError gives the reason for which the connection ends after a read failed with err; again is
// true if only the deadline was early.
func (c *conn) readError(err error) (why reason, again bool) {
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return none, false // the peer has closed, or end was called
	}
	at, why := c.deadline()
	return why, time.Now().Before(at)
}

// message hands a whole message to the handler.
func (c *conn) message(raw []byte) {
	c.valid = true
	c.t.count.received(c.flow.Proto)
	c.t.h.Receive(c.flow, raw)
}

// covers tells whether the peer has proved to be name.
func (c *conn) covers(name string) bool {
	return c.name == name || c.peer != nil && c.peer.VerifyHostname(name) == nil
}

// peerKey finds an open connection to a target. name is empty but for dialled TLS and WSS connections.
type peerKey struct {
	network string
	proto   flow.Proto
	addr    netip.AddrPort
	name    string
}

func (c *conn) key() peerKey { return peerKey{c.flow.Network, c.flow.Proto, c.flow.Remote, c.name} }

func (t *Transport) add(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLocked(c)
}

func (t *Transport) addLocked(c *conn) {
	t.conns[c.flow.Conn] = c
	t.peers[c.key()] = c
}

func (t *Transport) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c.flow.Conn)
	if t.peers[c.key()] == c {
		delete(t.peers, c.key())
	}
}

// findLocked returns an open connection to the key, accepted ones included. An accepted TLS
// connection serves only if the peer's certificate was verified and covers the name (RFC 5923 §4).
func (t *Transport) findLocked(k peerKey) *conn {
	if c := t.peers[k]; c != nil {
		return c
	}
	name := k.name
	k.name = ""
	if c := t.peers[k]; c != nil && c.covers(name) {
		return c
	}
	return nil
}

// Info describes an open connection.
type Info struct {
	Flow    flow.Flow
	Dialled bool
	Since   time.Time
	// Names are those of the peer's verified certificate, nil if it has shown none.
	Names []string
	// Queued is how many bytes wait to be written.
	Queued int
}

func (c *conn) info() Info {
	i := Info{Flow: c.flow, Dialled: c.dialled, Since: c.since}
	if c.peer != nil {
		i.Names = c.peer.DNSNames
	}
	c.mu.Lock()
	i.Queued = c.queued
	c.mu.Unlock()
	return i
}

// Connections lists the open connections in no order.
func (t *Transport) Connections() []Info {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]Info, 0, len(t.conns))
	for _, c := range t.conns {
		list = append(list, c.info())
	}
	return list
}

// Connection returns what is known of a flow's connection; false if it has ended or f is UDP.
func (t *Transport) Connection(f flow.Flow) (Info, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	c := t.conns[f.Conn]
	if c == nil {
		return Info{}, false
	}
	return c.info(), true
}

// Hangup closes a flow's connection. Handler.Closed follows. There is nothing to do for UDP.
func (t *Transport) Hangup(f flow.Flow) {
	t.mu.RLock()
	c := t.conns[f.Conn]
	t.mu.RUnlock()
	if c != nil {
		c.end(none)
	}
}

// tryWrite writes what the socket takes at once, without the writing goroutine. Guarded by conn.mu.
type tryWrite struct {
	raw syscall.RawConn // nil where it cannot be done
	run func(fd uintptr) bool
	b   []byte
	n   int
	err error
}
