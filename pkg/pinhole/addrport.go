package pinhole

import (
	"net"
	"net/netip"
)

// AddrPortOf converts the addresses of UDP and TCP that package net gives, and [CalledAddr], IPv4 in its own form; others are
// not valid.
func AddrPortOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	case CalledAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// CalledAddr is the peer of a datagram at a transparent socket: one that takes, and sends, what is between the peer and somebody
// else. What is written to it comes from that address.
type CalledAddr struct {
	*net.UDPAddr
	// Called is whom the peer has sent to, or whom it shall take for the sender.
	Called netip.AddrPort
}

// CalledOf returns whom a datagram from that address was for; not valid if it was for the edge.
func CalledOf(a net.Addr) netip.AddrPort {
	c, _ := a.(CalledAddr)
	return c.Called
}
