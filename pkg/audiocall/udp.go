package audiocall

import (
	"context"
	"net"
	"net/netip"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

// maxDatagram is the longest UDP payload.
const maxDatagram = 64 << 10

// ServePacket relays what comes to pc, a UDP socket of the edge's on the named network, until ctx ends.
func (s *Server) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	local := pinhole.AddrPortOf(pc.LocalAddr())
	s.mu.Lock()
	s.socks[sock{network, local.Port(), pinhole.FamilyOf(local.Addr())}] = pc
	s.mu.Unlock()
	return gate.Packets(ctx, pc, maxDatagram, func(from net.Addr, b []byte) {
		s.datagram(network, local.Port(), pinhole.AddrPortOf(from).Addr(), b)
	})
}

// datagram sends on what a host has sent to a port: to the same port of the other host of its pair.
func (s *Server) datagram(network string, port uint16, from netip.Addr, b []byte) {
	s.mu.RLock()
	p := s.pairs[end{network, from}]
	var to end
	var out net.PacketConn
	if p != nil {
		if to = p.ends[0]; to == (end{network, from}) {
			to = p.ends[1]
		}
		out = s.socks[sock{to.network, port, pinhole.FamilyOf(to.host)}]
	}
	s.mu.RUnlock()
	if out == nil {
		s.count.stray.Add(1)
		return
	}
	var at net.Addr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.host, port))
	if p.taken && to == p.ends[0] { // who knows of no edge hears the host that it has called
		at = pinhole.CalledAddr{UDPAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.host, port)), Called: netip.AddrPortFrom(from, port)}
	}
	if _, err := out.WriteTo(b, at); err != nil {
		s.count.stray.Add(1)
		return
	}
	s.count.packets.Add(1)
}
