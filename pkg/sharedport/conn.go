package sharedport

import (
	"crypto/tls"
	"net"
	"net/netip"
)

// secured is a connection whose TLS has ended at the port. What was read to classify it comes again first.
type secured struct {
	*tls.Conn
	head []byte // belongs to the reader
}

// Read reads decrypted bytes. Like that of a stream's usual owner, it has one caller at a time.
func (c *secured) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.head)
	if c.head = c.head[n:]; len(c.head) == 0 {
		c.head = nil
	}
	return n, nil
}

// proxied is a connection that came through a balancer.
type proxied struct {
	*net.TCPConn
	source netip.AddrPort
}

// RemoteAddr returns the address that the PROXY protocol told.
func (c *proxied) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.source) }

// NetConn returns the balancer's connection.
func (c *proxied) NetConn() net.Conn { return c.TCPConn }

var (
	_ net.Conn = (*secured)(nil)
	_ net.Conn = (*proxied)(nil)
)
