package transport

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// STUN keep-alives on the SIP port (RFC 5626 §4.4.2 and §8, RFC 8489).
//
//	 0                   1                   2                   3
//	|0 0|     type (14)             |         length (16)           |
//	|                  magic cookie 0x2112A442                      |
//	|                  transaction id (96 bits)                     |
//	|  attributes: type (16), length (16), value padded to 4 ...    |
//
// A SIP message begins with a letter, so a first byte of 0 or 1 can only be STUN.
const (
	stunHeader      = 20
	stunCookie      = 0x2112A442
	stunBinding     = 0x0001
	stunSuccess     = 0x0101
	stunErrorClass  = 0x0111
	stunIndication  = 0x0011
	attrMapped      = 0x0020 // XOR-MAPPED-ADDRESS
	attrError       = 0x0009
	attrUnknown     = 0x000A
	attrFingerprint = 0x8028
	stunFingerXOR   = 0x5354554E
	maxUnknown      = 8 // attribute types named in one 420 answer
)

// isSTUN tells whether a datagram on the SIP port is a STUN message rather than SIP.
func isSTUN(b []byte) bool {
	return len(b) >= stunHeader && b[0] <= 1 && binary.BigEndian.Uint32(b[4:]) == stunCookie
}

// appendSTUN appends to dst the answer to the STUN message req that came from src.
// ok is false if req is malformed or no binding request. An empty answer with ok true
// means that nothing is to be said (an indication).
func appendSTUN(dst, req []byte, src netip.AddrPort) (answer []byte, ok bool) {
	if !isSTUN(req) || int(binary.BigEndian.Uint16(req[2:]))+stunHeader != len(req) || len(req)%4 != 0 {
		return dst, false
	}
	typ := binary.BigEndian.Uint16(req)
	if typ == stunIndication {
		return dst, true
	}
	unknown, n, finger, ok := scanSTUN(req)
	if typ != stunBinding || !ok {
		return dst, false
	}
	start := len(dst)
	dst = append(dst, req[:stunHeader]...)
	if n > 0 {
		dst = append420(dst, unknown[:n])
		binary.BigEndian.PutUint16(dst[start:], stunErrorClass)
	} else {
		dst = appendMapped(dst, src)
		binary.BigEndian.PutUint16(dst[start:], stunSuccess)
	}
	if finger {
		return appendFingerprint(dst, start), true
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start-stunHeader))
	return dst, true
}

// scanSTUN walks the attributes: the types that must be understood but are not, and whether a
// FINGERPRINT is there. ok is false if an attribute overruns the message or the fingerprint is wrong.
func scanSTUN(req []byte) (unknown [maxUnknown]uint16, n int, finger, ok bool) {
	for off := stunHeader; off < len(req); {
		if finger || len(req)-off < 4 { // the fingerprint is the last attribute (RFC 8489 §14.7)
			return unknown, n, finger, false
		}
		typ, size := binary.BigEndian.Uint16(req[off:]), int(binary.BigEndian.Uint16(req[off+2:]))
		next := off + 4 + (size+3)&^3
		if next > len(req) {
			return unknown, n, finger, false
		}
		switch {
		case typ == attrFingerprint:
			finger = true
			sum := crc32.ChecksumIEEE(req[:off]) ^ stunFingerXOR
			if size != 4 || binary.BigEndian.Uint32(req[off+4:]) != sum {
				return unknown, n, finger, false
			}
		case typ < 0x8000 && !ignorable(typ) && n < maxUnknown:
			unknown[n] = typ
			n++
		}
		off = next
	}
	return unknown, n, finger, true
}

// ignorable lists the comprehension-required attributes of RFC 8489 that a keep-alive has no use
// for: USERNAME, MESSAGE-INTEGRITY (both), REALM, NONCE, PASSWORD-ALGORITHM, USERHASH.
func ignorable(typ uint16) bool {
	switch typ {
	case 0x0006, 0x0008, 0x0014, 0x0015, 0x001C, 0x001D, 0x001E:
		return true
	}
	return false
}

// appendMapped appends XOR-MAPPED-ADDRESS (RFC 8489 §14.2); dst ends with the STUN header.
func appendMapped(dst []byte, src netip.AddrPort) []byte {
	key := dst[len(dst)-stunHeader+4:]
	addr := src.Addr().Unmap()
	family, raw := byte(1), addr.AsSlice()
	if addr.Is6() {
		family = 2
	}
	dst = binary.BigEndian.AppendUint16(dst, attrMapped)
	dst = binary.BigEndian.AppendUint16(dst, uint16(4+len(raw)))
	dst = append(dst, 0, family)
	dst = binary.BigEndian.AppendUint16(dst, src.Port()^uint16(stunCookie>>16))
	for i, b := range raw {
		dst = append(dst, b^key[i])
	}
	return dst
}

// append420 appends ERROR-CODE 420 and UNKNOWN-ATTRIBUTES (RFC 8489 §6.3.1).
func append420(dst []byte, unknown []uint16) []byte {
	const text = "Unknown Attribute"
	dst = binary.BigEndian.AppendUint16(dst, attrError)
	dst = binary.BigEndian.AppendUint16(dst, 4+uint16(len(text)))
	dst = append(append(dst, 0, 0, 4, 20), text+"\x00\x00\x00"...) // padded to a multiple of 4
	dst = binary.BigEndian.AppendUint16(dst, attrUnknown)
	dst = binary.BigEndian.AppendUint16(dst, uint16(2*len(unknown)))
	for _, t := range unknown {
		dst = binary.BigEndian.AppendUint16(dst, t)
	}
	if len(unknown)%2 == 1 {
		dst = append(dst, 0, 0)
	}
	return dst
}

// appendFingerprint appends the FINGERPRINT of the message that begins at start, and sets its length.
func appendFingerprint(dst []byte, start int) []byte {
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start-stunHeader+8))
	sum := crc32.ChecksumIEEE(dst[start:]) ^ stunFingerXOR
	dst = binary.BigEndian.AppendUint16(dst, attrFingerprint)
	dst = binary.BigEndian.AppendUint16(dst, 4)
	return binary.BigEndian.AppendUint32(dst, sum)
}
