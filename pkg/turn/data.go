package turn

import (
	"encoding/binary"
	"net"
	"net/netip"

	"edged.dev/edged/pkg/pinhole"
)

const (
	// headroom is what precedes data in a Data indication to a client at most: header, XOR-PEER-ADDRESS of IPv6, DATA's own.
	headroom = headerSize + 24 + 4
	// relayBuffer is the buffer for datagrams of peers.
	relayBuffer = 1600
	// maxRelayed is the longest datagram of a peer that is relayed; an Ethernet carries 1,472 octets.
	maxRelayed = relayBuffer - headroom - 4
)

// fromChannel relays ChannelData (RFC 8656 §12.6).
func (s *Server) fromChannel(o origin, b []byte) {
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n > len(b)-channelHead {
		s.count.drop("bad_channel_data")
		return
	}
	a := s.find(o.tuple)
	if a == nil || a.port == nil {
		s.count.drop("no_allocation")
		return
	}
	c := a.channelOf(binary.BigEndian.Uint16(b))
	if c == nil || !a.permitted(c.peer.Addr()) {
		s.count.drop("no_channel")
		return
	}
	s.toPeer(a, c.peer, c.to, b[channelHead:channelHead+n])
}

// fromSend relays a Send indication (RFC 8656 §11.2), which nobody signs: permissions are what it must have.
func (s *Server) fromSend(o origin, m *message) {
	a := s.find(o.tuple)
	if a == nil || a.port == nil {
		s.count.drop("no_allocation")
		return
	}
	peer := xorAddress(m.get(attrXORPeerAddress), m.txid())
	if !peer.IsValid() || !m.has(attrData) || m.has(attrDontFragment) || len(m.unknown(understood)) > 0 {
		s.count.drop("bad_send")
		return
	}
	if !a.permitted(peer.Addr()) {
		s.count.drop("no_permission")
		return
	}
	s.toPeer(a, peer, net.UDPAddrFromAddrPort(s.boundOf(peer)), m.get(attrData))
}

func (s *Server) toPeer(a *allocation, peer netip.AddrPort, to *net.UDPAddr, data []byte) {
	if why := s.peers.Packet(peer); why != "" {
		s.count.drop(why)
		return
	}
	if !a.mayPass(0, len(data)) {
		return
	}
	if _, err := a.port.WriteTo(data, to); err != nil {
		s.count.drop("send")
	}
}

// mayPass tells whether a datagram is within the quotas of the direction, and counts it if it is not.
func (a *allocation) mayPass(direction, octets int) bool {
	switch {
	case !a.packetRate[direction].take(1):
		a.s.count.drop("packets")
	case !a.octetRate[direction].take(octets):
		a.s.count.drop("bandwidth")
	default:
		return true
	}
	return false
}

// pump relays the datagrams of peers to the client, until the port is closed; that ends the allocation.
func (a *allocation) pump() {
	defer a.close()
	buf := make([]byte, relayBuffer)
	for {
		n, src, err := a.port.ReadFrom(buf[headroom : headroom+maxRelayed+1])
		if err != nil {
			return
		}
		if n > maxRelayed {
			a.s.count.drop("too_long")
			continue
		}
		a.fromPeer(a.s.advertisedOf(pinhole.AddrPortOf(src)), buf, n)
	}
}

// fromPeer relays one datagram, whose n octets are in buf from headroom on.
func (a *allocation) fromPeer(src netip.AddrPort, buf []byte, n int) {
	c := a.channelTo(src)
	switch {
	case !a.permitted(src.Addr()):
		a.s.count.drop("no_permission")
		return
	case !a.mayPass(1, n):
		return
	}
	var frame []byte
	if c != nil {
		frame = channelData(buf, n, c.number, a.from.stream)
	} else {
		frame = dataIndication(buf, n, src, a.s.txid())
	}
	if err := a.from.to.reply(a.from.client, frame); err != nil {
		a.s.count.drop("send")
	}
}

// channelData puts ChannelData's header before the data; over a stream it is padded (RFC 8656 §12.5).
func channelData(buf []byte, n int, number uint16, stream bool) []byte {
	from, end := headroom-channelHead, headroom+n
	binary.BigEndian.PutUint16(buf[from:], number)
	binary.BigEndian.PutUint16(buf[from+2:], uint16(n))
	for stream && (end-from)%4 != 0 {
		buf[end] = 0
		end++
	}
	return buf[from:end]
}

// dataIndication puts the header and attributes of a Data indication before the data, DATA being the last
// (RFC 8656 §11.4).
func dataIndication(buf []byte, n int, peer netip.AddrPort, txid [12]byte) []byte {
	size := 12
	if peer.Addr().Is6() {
		size = 24
	}
	from, end := headroom-4-size-headerSize, headroom+n
	w := compose(buf[from:from], indication, 0x007, txid)
	w.address(attrXORPeerAddress, peer, true)
	binary.BigEndian.PutUint16(buf[headroom-4:], attrData)
	binary.BigEndian.PutUint16(buf[headroom-2:], uint16(n))
	for (end-from)%4 != 0 {
		buf[end] = 0
		end++
	}
	binary.BigEndian.PutUint16(buf[from+2:], uint16(end-from-headerSize))
	return buf[from:end]
}
