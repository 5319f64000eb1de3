// Package tproxy is what a transparent socket of UDP (IP_TRANSPARENT, see ip(7)) has beyond package net. It is handed
// datagrams for addresses of others: whom each was for comes as ancillary data, and what is sent back takes that address
// as its source, so that the peer hears whom it has called.
//
//	Tell(fd) ──► ReadMsgUDP, oob ──► Called(oob) … From(called) ──► WriteMsgUDP
//
// It opens no sockets and remembers nothing.
package tproxy

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Tell has a UDP socket say whom datagrams were for.
func Tell(fd int, v6 bool) error {
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if v6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	return os.NewSyscallError("setsockopt IP_RECVORIGDSTADDR", unix.SetsockoptInt(fd, level, option, 1))
}

// Called returns whom a datagram was for, from its ancillary data: a sockaddr_in or sockaddr_in6. It is not valid if that
// says nothing of it.
func Called(oob []byte) netip.AddrPort {
	for len(oob) >= unix.SizeofCmsghdr {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case head.Level == unix.SOL_IP && head.Type == unix.IP_ORIGDSTADDR && len(data) >= 8:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:])), binary.BigEndian.Uint16(data[2:]))
		case head.Level == unix.SOL_IPV6 && head.Type == unix.IPV6_ORIGDSTADDR && len(data) >= 24:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:])).Unmap(), binary.BigEndian.Uint16(data[2:]))
		}
		oob = rest
	}
	return netip.AddrPort{}
}

// From returns the ancillary data that has a datagram sent from an address; nil, which leaves it to the kernel, if that is
// not valid.
func From(a netip.Addr) []byte {
	switch {
	case a.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
	case a.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
	}
	return nil
}
