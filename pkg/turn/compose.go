package turn

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what MESSAGE-INTEGRITY is made of (RFC 8489 §14.5)
	"encoding/binary"
	"net/netip"
)

// composer writes one message; each method appends an attribute.
type composer struct{ b []byte }

// compose begins a message in buf, whose content is overwritten.
func compose(buf []byte, c class, m method, txid [12]byte) *composer {
	typ := uint16(m&0xF) | uint16(m&0x70)<<1 | uint16(m&0xF80)<<2 | uint16(c&1)<<4 | uint16(c&2)<<7
	w := &composer{binary.BigEndian.AppendUint16(buf[:0], typ)}
	w.b = append(w.b, 0, 0)
	w.b = binary.BigEndian.AppendUint32(w.b, magicCookie)
	w.b = append(w.b, txid[:]...)
	return w
}

func (w *composer) attr(typ uint16, val []byte) *composer {
	w.b = binary.BigEndian.AppendUint16(w.b, typ)
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(len(val)))
	w.b = append(w.b, val...)
	for len(w.b)%4 != 0 {
		w.b = append(w.b, 0)
	}
	binary.BigEndian.PutUint16(w.b[2:], uint16(len(w.b)-headerSize))
	return w
}

func (w *composer) text(typ uint16, val string) *composer { return w.attr(typ, []byte(val)) }

func (w *composer) uint32(typ uint16, v uint32) *composer {
	return w.attr(typ, binary.BigEndian.AppendUint32(nil, v))
}

// address appends an address, exclusive-or'ed or, as RFC 5780's are, plain.
func (w *composer) address(typ uint16, at netip.AddrPort, xor bool) *composer {
	ip := at.Addr().Unmap()
	port, octets, family := at.Port(), ip.AsSlice(), byte(1)
	if ip.Is6() {
		family = 2
	}
	if xor {
		port ^= magicCookie >> 16
		octets = xored(octets, [12]byte(w.b[8:20]))
	}
	return w.attr(typ, append([]byte{0, family, byte(port >> 8), byte(port)}, octets...))
}

// errorCode appends ERROR-CODE (RFC 8489 §14.8); the phrase may be empty.
func (w *composer) errorCode(code int, phrase string) *composer {
	return w.attr(attrErrorCode, append([]byte{0, 0, byte(code / 100), byte(code % 100)}, phrase...))
}

// sign appends MESSAGE-INTEGRITY made with the key; nothing without a key.
func (w *composer) sign(key []byte) *composer {
	if len(key) == 0 {
		return w
	}
	binary.BigEndian.PutUint16(w.b[2:], uint16(len(w.b)-headerSize+4+macSize))
	mac := hmac.New(sha1.New, key)
	mac.Write(w.b)
	return w.attr(attrIntegrity, mac.Sum(nil))
}

// fingerprint appends FINGERPRINT if asked for.
func (w *composer) fingerprint(on bool) *composer {
	if !on {
		return w
	}
	binary.BigEndian.PutUint16(w.b[2:], uint16(len(w.b)-headerSize+8))
	return w.uint32(attrFingerprint, fingerprintOf(w.b))
}

// phrase returns the words for an error code.
func phrase(code int) string {
	switch code {
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 437:
		return "Allocation Mismatch"
	case 438:
		return "Stale Nonce"
	case 440:
		return "Address Family not Supported"
	case 441:
		return "Wrong Credentials"
	case 442:
		return "Unsupported Transport Protocol"
	case 443:
		return "Peer Address Family Mismatch"
	case 486:
		return "Allocation Quota Reached"
	case 508:
		return "Insufficient Capacity"
	}
	return ""
}
