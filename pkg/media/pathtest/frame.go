package pathtest

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// frame is an Ethernet frame with a UDP packet.
type frame struct {
	dmac, smac [6]byte
	from, to   netip.AddrPort
	ttl, tos   byte
	noSum      bool
	options    bool // IPv4 with no-op options, IPv6 with an empty destination option
	mapped     bool // IPv4 addresses, but as IPv6 ones (::ffff:0:0/96) in an IPv6 packet
	payload    []byte
}

// wire returns the bytes, with checksums made from scratch.
func (f frame) wire() []byte {
	from, to := f.from.Addr(), f.to.Addr()
	if f.mapped {
		from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	udp := f.udp(from, to)
	b := append(f.dmac[:], f.smac[:]...)
	if from.Is6() {
		b = append(b, 0x86, 0xdd)
		ext, next := []byte(nil), byte(unix.IPPROTO_UDP)
		if f.options {
			ext, next = []byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}, unix.IPPROTO_DSTOPTS
		}
		b = append(b, 0x60|f.tos>>4, f.tos<<4|0x0a, 0xbc, 0xde)
		b = binary.BigEndian.AppendUint16(b, uint16(len(ext)+len(udp)))
		b = append(b, next, f.ttl)
		b = append(append(b, from.AsSlice()...), to.AsSlice()...)
		return append(append(b, ext...), udp...)
	}
	ip := []byte{0x45, f.tos}
	if f.options {
		ip[0] = 0x46
	}
	ip = binary.BigEndian.AppendUint16(ip, uint16(int(ip[0]&15)*4+len(udp)))
	ip = append(ip, 0, 0, 0, 0, f.ttl, unix.IPPROTO_UDP, 0, 0)
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	if f.options {
		ip = append(ip, 1, 1, 1, 0)
	}
	binary.BigEndian.PutUint16(ip[10:], ^checksum(ip))
	return append(append(append(b, 8, 0), ip...), udp...)
}

func (f frame) udp(from, to netip.Addr) []byte {
	udp := binary.BigEndian.AppendUint16(nil, f.from.Port())
	udp = binary.BigEndian.AppendUint16(udp, f.to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(f.payload)))
	udp = append(append(udp, 0, 0), f.payload...)
	if f.noSum {
		return udp
	}
	sum := ^checksum(append(pseudo(from.AsSlice(), to.AsSlice(), len(udp)), udp...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return udp
}

// pseudo is the pseudo header that UDP's checksum covers (RFC 768, RFC 8200 §8.1).
func pseudo(from, to []byte, size int) []byte {
	b := append(slices.Clone(from), to...)
	return append(b, 0, unix.IPPROTO_UDP, byte(size>>8), byte(size))
}

// checksum is the sum of RFC 1071, not inverted.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// tagged puts a VLAN tag (IEEE 802.1Q) into a frame.
func tagged(b []byte) []byte {
	return append(append(slices.Clone(b[:12]), 0x81, 0, 0, 5), b[12:]...)
}

// fragments cuts the packet in a frame into two.
func fragments(b []byte) [][]byte {
	const cut = 480
	if b[12] == 0x86 {
		first := append(slices.Clone(b[:54]), unix.IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 7)
		second := append(slices.Clone(b[:54]), unix.IPPROTO_UDP, 0, cut>>8, cut&0xff, 0, 0, 0, 7)
		first, second = append(first, b[54:54+cut]...), append(second, b[54+cut:]...)
		for _, f := range [][]byte{first, second} {
			f[20] = unix.IPPROTO_FRAGMENT
			binary.BigEndian.PutUint16(f[18:], uint16(len(f)-54))
		}
		return [][]byte{first, second}
	}
	first, second := slices.Clone(b[:34+cut]), append(slices.Clone(b[:34]), b[34+cut:]...)
	for i, f := range [][]byte{first, second} {
		binary.BigEndian.PutUint16(f[16:], uint16(len(f)-14))
		binary.BigEndian.PutUint16(f[20:], []uint16{0x2000, cut / 8}[i])
		binary.BigEndian.PutUint16(f[24:], 0)
		binary.BigEndian.PutUint16(f[24:], ^checksum(f[14:34]))
	}
	return [][]byte{first, second}
}

// Sound tells whether an Ethernet frame bears UDP, and whether its checksums are right.
func Sound(b []byte) (ok, udp bool) {
	if len(b) < 14+28 {
		return false, false
	}
	switch ip := b[14:]; {
	case b[12] == 8 && b[13] == 0 && ip[9] == unix.IPPROTO_UDP:
		l4, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if l4+8 > total || total > len(ip) || checksum(ip[:l4]) != 0xffff {
			return false, true
		}
		if binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 || binary.BigEndian.Uint16(ip[l4+6:]) == 0 {
			return true, true // fragments are judged by who puts them together
		}
		return sums(ip[12:16], ip[16:20], ip[l4:total]), true
	case b[12] == 0x86 && b[13] == 0xdd && ip[6] == unix.IPPROTO_UDP && len(ip) >= 48:
		total := 40 + int(binary.BigEndian.Uint16(ip[4:]))
		return total >= 48 && total <= len(ip) && binary.BigEndian.Uint16(ip[46:]) != 0 && sums(ip[8:24], ip[24:40], ip[40:total]), true
	}
	return false, false
}

func sums(from, to, udp []byte) bool {
	return checksum(append(pseudo(from, to, len(udp)), udp...)) == 0xffff
}
