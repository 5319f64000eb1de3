package pinhole

import (
	"net"
	"net/netip"
)

// AddrPortOf converts the addresses of UDP and TCP that package net gives, IPv4 in its own form; others are
// not valid.
func AddrPortOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
