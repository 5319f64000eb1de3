package msturn

import (
	"encoding/binary"
	"net/netip"
)

// reply is a message that is being written.
type reply []byte

// begin starts a message of a kind, with its MAGIC-COOKIE.
func begin(k kind, id [16]byte) reply {
	r := make(reply, 4, 192)
	binary.BigEndian.PutUint16(r, uint16(k))
	r = append(r, id[:]...)
	c := cookie()
	return append(r, c[:]...)
}

func (r reply) bytes(a attr, v []byte) reply {
	r = binary.BigEndian.AppendUint16(r, uint16(a))
	r = binary.BigEndian.AppendUint16(r, uint16(len(v)))
	return append(r, v...)
}

func (r reply) number(a attr, v uint32) reply {
	return r.bytes(a, binary.BigEndian.AppendUint32(nil, v))
}

func (r reply) sequence(s sequence) reply {
	return r.bytes(attrSequence, binary.BigEndian.AppendUint32(s.connection[:20:20], s.number))
}

// failure adds ERROR-CODE (RFC 3489 §11.2.9).
func (r reply) failure(code int, reason string) reply {
	return r.bytes(attrErrorCode, append([]byte{0, 0, byte(code / 100), byte(code % 100)}, reason...))
}

func (r reply) addr(a attr, at netip.AddrPort) reply {
	v := []byte{0, 1, byte(at.Port() >> 8), byte(at.Port())}
	if !at.Addr().Is4() {
		v[1] = 2
	}
	return r.bytes(a, append(v, at.Addr().AsSlice()...))
}

// xorAddr adds an address that is mixed with the transaction id ([MS-TURN] §2.2.2.16), so that NATs leave it alone.
func (r reply) xorAddr(a attr, at netip.AddrPort) reply {
	id := [16]byte(r[4:headerLen])
	from := len(r) + 4
	r = r.addr(a, at)
	for i := range r[from+4:] {
		r[from+4+i] ^= id[i]
	}
	r[from+2] ^= id[0]
	r[from+3] ^= id[1]
	return r
}

// finish writes the length.
func (r reply) finish() []byte {
	binary.BigEndian.PutUint16(r[2:], uint16(len(r)-headerLen))
	return r
}

// sign adds MESSAGE-INTEGRITY and the length.
func (r reply) sign(key []byte) []byte {
	sum := mac(key, r)
	return r.bytes(attrIntegrity, sum[:]).finish()
}
