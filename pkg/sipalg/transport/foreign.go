package transport

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A transparent socket (IP_TRANSPARENT, see ip(7)) is handed datagrams for addresses of others. Whom each was for comes as
// ancillary data, and what is sent back has that address as its source, so that the peer sees whom it has called.

// takesForeign tells whether a UDP socket is transparent, and has it say whom datagrams were for.
func takesForeign(fd int, v6 bool) bool {
	level, transparent, say := unix.SOL_IP, unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR
	if v6 {
		level, transparent, say = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR
	}
	on, err := unix.GetsockoptInt(fd, level, transparent)
	return err == nil && on != 0 && unix.SetsockoptInt(fd, level, say, 1) == nil
}

// foreignReader reads a transparent socket.
func (s *packetSock) foreignReader(udp *net.UDPConn) datagramReader {
	oob := make([]byte, unix.CmsgSpace(unix.SizeofSockaddrInet6)+unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	return func(b []byte) (n int, src, called netip.AddrPort, err error) {
		n, some, _, src, err := udp.ReadMsgUDPAddrPort(b, oob)
		if err == nil {
			called = originalDestination(oob[:some])
		}
		for _, a := range s.addrs {
			if a == called {
				called = netip.AddrPort{}
			}
		}
		return n, src, called, err
	}
}

// originalDestination returns whom a datagram was for, from its ancillary data: a sockaddr_in or sockaddr_in6.
func originalDestination(oob []byte) netip.AddrPort {
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

// sourceControl is the ancillary data that has a datagram sent from an address.
func sourceControl(from netip.Addr) []byte {
	if from.Is4() {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
}
