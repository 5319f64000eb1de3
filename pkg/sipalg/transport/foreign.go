package transport

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"edged.dev/edged/internal/tproxy"
)

// takesForeign tells whether a UDP socket is transparent, and has it say whom datagrams were for.
func takesForeign(fd int, v6 bool) bool {
	level, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
	if v6 {
		level, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	on, err := unix.GetsockoptInt(fd, level, transparent)
	return err == nil && on != 0 && tproxy.Tell(fd, v6) == nil
}

// foreignReader reads a transparent socket.
func (s *packetSock) foreignReader(udp *net.UDPConn) datagramReader {
	oob := make([]byte, unix.CmsgSpace(unix.SizeofSockaddrInet6)+unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	return func(b []byte) (n int, src, called netip.AddrPort, err error) {
		n, some, _, src, err := udp.ReadMsgUDPAddrPort(b, oob)
		if err == nil {
			called = tproxy.Called(oob[:some])
		}
		for _, a := range s.addrs {
			if a == called {
				called = netip.AddrPort{}
			}
		}
		return n, src, called, err
	}
}
