// Package msturn serves the TURN that Communicator and Office Communications Server 2007 speak for audio and video: an early
// draft of TURN (draft-rosenberg-midcom-turn-08) with extensions ([MS-TURN]), which no client or server of RFC 8656 understands.
// It is not RFC 8656's server, which is pkg/turn, and moves no media of other protocols; ICE is the clients' business.
//
//	client ── Allocate, Send, Set-Active-Destination ──► Server ──► relay port (UDP, or TCP for a client on TCP) ──► peer
//	client ◄── Data-Indication, or bare data of the active peer ──┘
//
// core and auth are the inner half: message in, who sent it, now → message out, port asked. server, stream and peers hold the sockets.
package msturn

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the protocol's
	"encoding/binary"
	"errors"
	"net/netip"
)

// A message ([MS-TURN] §2.2; numbers are in network order):
//
//	0         2        4                         20
//	| type    | length | transaction id (16)     | attributes
//	attribute: type(2) length(2) value, without padding; the first one is MAGIC-COOKIE.
const (
	headerLen = 20
	cookieLen = 8 // the attribute
	macLen    = sha1.Size
)

type kind uint16

const (
	allocateRequest  kind = 0x0003
	allocateOK       kind = 0x0103
	allocateError    kind = 0x0113
	sendRequest      kind = 0x0004 // has no answer
	dataIndication   kind = 0x0115
	setActiveRequest kind = 0x0006
	setActiveOK      kind = 0x0106
	setActiveError   kind = 0x0116
)

type attr uint16

// Attributes ([MS-TURN] §2.2.2). NONCE and REALM have each other's numbers of RFC 8489.
const (
	attrMappedAddress attr = 0x0001 // in the answer to Allocate: the relay's
	attrUsername      attr = 0x0006
	attrIntegrity     attr = 0x0008
	attrErrorCode     attr = 0x0009
	attrUnknown       attr = 0x000A
	attrLifetime      attr = 0x000D
	attrAlternate     attr = 0x000E
	attrMagicCookie   attr = 0x000F
	attrBandwidth     attr = 0x0010
	attrDestination   attr = 0x0011
	attrRemote        attr = 0x0012
	attrData          attr = 0x0013
	attrNonce         attr = 0x0014
	attrRealm         attr = 0x0015
	attrFamily        attr = 0x0017
	attrVersion       attr = 0x8008
	attrXorMapped     attr = 0x8020 // mixed with the transaction id, not with a cookie
	attrSequence      attr = 0x8050 // connection id (20 octets), number
	firstOptional     attr = 0x8000
)

// cookie is the attribute with which every message begins.
func cookie() [cookieLen]byte { return [cookieLen]byte{0x00, 0x0f, 0x00, 0x04, 0x72, 0xc6, 0x4b, 0xc6} }

var errMalformed = errors.New("malformed message")

// message is what a message says; slices are parts of raw.
type message struct {
	raw  []byte
	kind kind
	id   [16]byte
	// username, nonce and data are nil if they are not there.
	username, nonce, data []byte
	sequence              *sequence
	dest                  netip.AddrPort
	lifetime              uint32 // seconds
	hasLifetime           bool
	version               uint32
	family                uint32
	integrity             int // where MESSAGE-INTEGRITY begins, 0 if there is none
	unknown               attr
}

// sequence is MS-SEQUENCE-NUMBER: it stands for the nonce once there is an allocation.
type sequence struct {
	connection [20]byte
	number     uint32
}

// IsMessage tells whether b is one message of this protocol, whole: it is told from STUN of RFC 3489 and 5389 and from
// media by its first attribute.
func IsMessage(b []byte) bool {
	c := cookie()
	return len(b) >= headerLen+cookieLen && b[0]&0xc0 == 0 && int(binary.BigEndian.Uint16(b[2:]))+headerLen == len(b) &&
		bytes.Equal(b[headerLen:headerLen+cookieLen], c[:])
}

// decode reads a message without copying it. Of an attribute that is there twice the first counts; what stands after
// MESSAGE-INTEGRITY is not signed and does not count.
func decode(b []byte) (message, error) {
	if !IsMessage(b) {
		return message{}, errMalformed
	}
	m := message{raw: b, kind: kind(binary.BigEndian.Uint16(b)), id: [16]byte(b[4:headerLen])}
	seen := map[attr]bool{}
	for at := headerLen; at < len(b) && m.integrity == 0; {
		if len(b)-at < 4 {
			return m, errMalformed
		}
		a, n := attr(binary.BigEndian.Uint16(b[at:])), int(binary.BigEndian.Uint16(b[at+2:]))
		if n > len(b)-at-4 {
			return m, errMalformed
		}
		if !seen[a] && !m.take(a, b[at+4:at+4+n], at) {
			return m, errMalformed
		}
		seen[a] = true
		at += 4 + n
	}
	return m, nil
}

// take keeps the attribute at an offset; false if its length is wrong.
func (m *message) take(a attr, v []byte, at int) (ok bool) {
	switch a {
	case attrUsername:
		m.username = v
	case attrNonce:
		m.nonce = v
	case attrData:
		m.data = v
	case attrDestination:
		m.dest, ok = readAddr(v)
		return ok
	case attrLifetime:
		m.lifetime, m.hasLifetime = number(v)
		return m.hasLifetime
	case attrVersion:
		m.version, ok = number(v)
		return ok
	case attrFamily:
		m.family, ok = number(v)
		return ok
	case attrSequence:
		if len(v) != 24 {
			return false
		}
		m.sequence = &sequence{[20]byte(v[:20]), binary.BigEndian.Uint32(v[20:])}
	case attrIntegrity:
		m.integrity = at
		return len(v) == macLen
	case attrRealm, attrMagicCookie, attrMappedAddress, attrErrorCode, attrUnknown, attrAlternate, attrBandwidth, attrRemote:
		// known: of no meaning in what a client sends, or a wish that need not be granted
	default:
		if a < firstOptional && m.unknown == 0 {
			m.unknown = a
		}
	}
	return true
}

func number(v []byte) (uint32, bool) {
	if len(v) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(v), true
}

// readAddr reads the address of STUN (RFC 3489 §11.2.1): family 1 or 2, port, address.
func readAddr(v []byte) (netip.AddrPort, bool) {
	if len(v) < 4 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(v[2:])
	switch {
	case v[1] == 1 && len(v) == 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(v[4:])), port), true
	case v[1] == 2 && len(v) == 20:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(v[4:])), port), true
	}
	return netip.AddrPort{}, false
}

// mac is what MESSAGE-INTEGRITY must be with a key: HMAC-SHA1 over what stands before the attribute, filled up
// with zeros to a multiple of 64 octets (RFC 3489 §11.2.8); the header's length counts the attribute.
func mac(key, before []byte) [macLen]byte {
	h := hmac.New(sha1.New, key)
	var head [4]byte
	copy(head[:], before)
	binary.BigEndian.PutUint16(head[2:], uint16(len(before)+4+macLen-headerLen))
	h.Write(head[:])
	h.Write(before[4:])
	if rest := len(before) % 64; rest != 0 {
		h.Write(make([]byte, 64-rest))
	}
	return [macLen]byte(h.Sum(nil))
}

// signed tells whether the message was signed with the key.
func (m *message) signed(key []byte) bool {
	if m.integrity == 0 {
		return false
	}
	want := mac(key, m.raw[:m.integrity])
	return hmac.Equal(want[:], m.raw[m.integrity+4:m.integrity+4+macLen])
}
