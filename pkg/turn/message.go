package turn

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what MESSAGE-INTEGRITY is made of (RFC 8489 §14.5)
	"encoding/binary"
	"hash/crc32"
	"net/netip"
)

// STUN messages (RFC 8489 §5):
//
//	 0                   1                   2                   3
//	|0 0|  type (class and method)  |  length of what follows, ×4    |
//	|                  magic cookie 0x2112A442                       |
//	|                  transaction ID (96 bits)                      |
//	|  attribute type               |  length  | value, padded to ×4 | ...
//
// ChannelData (RFC 8656 §12.4): | number 0x4000-0x7FFF | length | data |, over TCP padded to ×4.

const (
	headerSize  = 20
	channelHead = 4
	magicCookie = 0x2112A442
	// maxControl bounds requests: 16 peers of IPv6, the longest name and realm, and to spare.
	maxControl = 1596
	// maxAttributes bounds the attributes of one message.
	maxAttributes = 40
	macSize       = sha1.Size
)

type class uint8

const (
	request    class = 0
	indication class = 1
	success    class = 2
	failure    class = 3
)

type method uint16

// Methods (RFC 8489 §18.2, RFC 8656 §17, RFC 6062 §6.1).
const (
	binding           method = 0x001
	allocate          method = 0x003
	refresh           method = 0x004
	sendData          method = 0x006
	createPermission  method = 0x008
	channelBind       method = 0x009
	connect           method = 0x00A
	connectionBind    method = 0x00B
	connectionAttempt method = 0x00C
)

// String returns the name, as a label of metrics.
func (m method) String() string {
	switch m {
	case binding:
		return "binding"
	case allocate:
		return "allocate"
	case refresh:
		return "refresh"
	case sendData:
		return "send"
	case createPermission:
		return "create_permission"
	case channelBind:
		return "channel_bind"
	case connect:
		return "connect"
	case connectionBind:
		return "connection_bind"
	}
	return "other"
}

// Attributes (RFC 8489 §18.3, RFC 8656 §18, RFC 6062 §6.2, RFC 5780 §9.1).
const (
	attrMappedAddress     = 0x0001
	attrChangeRequest     = 0x0003
	attrUsername          = 0x0006
	attrIntegrity         = 0x0008
	attrErrorCode         = 0x0009
	attrUnknown           = 0x000A
	attrChannelNumber     = 0x000C
	attrLifetime          = 0x000D
	attrXORPeerAddress    = 0x0012
	attrData              = 0x0013
	attrRealm             = 0x0014
	attrNonce             = 0x0015
	attrXORRelayedAddress = 0x0016
	attrRequestedFamily   = 0x0017
	attrEvenPort          = 0x0018
	attrRequestedProto    = 0x0019
	attrDontFragment      = 0x001A
	attrXORMappedAddress  = 0x0020
	attrReservationToken  = 0x0022
	attrPriority          = 0x0024
	attrUseCandidate      = 0x0025
	attrPadding           = 0x0026
	attrResponsePort      = 0x0027
	attrConnectionID      = 0x002A
	attrFingerprint       = 0x8028
	attrResponseOrigin    = 0x802B
	attrOtherAddress      = 0x802C
)

// understood tells whether a server of ours reads a comprehension-required attribute, or may pass over it: ICE's PRIORITY and
// USE-CANDIDATE are for the peer's agent, and come in Binding requests to servers as well.
func understood(typ uint16) bool {
	switch typ {
	case attrMappedAddress, attrUsername, attrIntegrity, attrErrorCode, attrUnknown, attrChannelNumber, attrLifetime,
		attrXORPeerAddress, attrData, attrRealm, attrNonce, attrXORRelayedAddress, attrRequestedFamily, attrEvenPort, attrRequestedProto,
		attrXORMappedAddress, attrReservationToken, attrPriority, attrUseCandidate, attrConnectionID:
		return true
	}
	return false
}

// attribute is one attribute of a message; val is part of the message.
type attribute struct {
	typ uint16
	val []byte
}

// message is a STUN message that has been looked through. It holds parts of the bytes that it was read from.
type message struct {
	raw    []byte
	class  class
	method method
	attrs  []attribute
	room   [maxAttributes]attribute
	// integrity is the offset of MESSAGE-INTEGRITY, 0 if there is none.
	integrity int
	// fingerprint says that there is a right one.
	fingerprint bool
}

// isSTUN tells whether a frame begins as a message with RFC 8489's cookie does.
func isSTUN(b []byte) bool {
	return len(b) >= headerSize && b[0]&0xC0 == 0 && binary.BigEndian.Uint32(b[4:]) == magicCookie
}

// parse looks through a whole message; "" or the reason why it is none. Attributes after MESSAGE-INTEGRITY are not
// believed (RFC 8489 §14.5) and left out; a FINGERPRINT must be last and right (§7.3, §14.7).
func (m *message) parse(b []byte) string {
	if !isSTUN(b) || int(binary.BigEndian.Uint16(b[2:]))+headerSize != len(b) || len(b)%4 != 0 {
		return "not_stun"
	}
	typ := binary.BigEndian.Uint16(b)
	m.raw, m.integrity, m.fingerprint = b, 0, false
	m.class = class(typ>>4&1 | typ>>7&2)
	m.method = method(typ&0xF | typ>>1&0x70 | typ>>2&0xF80)
	m.attrs = m.room[:0]
	for at := headerSize; at < len(b); {
		if len(b)-at < 4 {
			return "bad_attribute"
		}
		typ, n := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		next := at + 4 + (n+3)&^3
		if next > len(b) || !rightSize(typ, n) {
			return "bad_attribute"
		}
		switch {
		case typ == attrFingerprint:
			if next != len(b) || binary.BigEndian.Uint32(b[at+4:]) != fingerprintOf(b[:at]) {
				return "bad_fingerprint"
			}
			m.fingerprint = true
		case m.integrity > 0: // unsigned
		case len(m.attrs) == maxAttributes:
			return "too_many_attributes"
		default:
			if typ == attrIntegrity {
				m.integrity = at
			}
			m.attrs = append(m.attrs, attribute{typ, b[at+4 : at+4+n]})
		}
		at = next
	}
	return ""
}

// rightSize tells whether an attribute that we know has a length that it may have.
func rightSize(typ uint16, n int) bool {
	switch typ {
	case attrChangeRequest, attrChannelNumber, attrLifetime, attrRequestedFamily, attrRequestedProto, attrConnectionID, attrFingerprint:
		return n == 4
	case attrXORPeerAddress, attrXORMappedAddress, attrXORRelayedAddress:
		return n == 8 || n == 20
	case attrIntegrity:
		return n == macSize
	case attrReservationToken:
		return n == 8
	case attrEvenPort:
		return n == 1
	case attrUsername, attrRealm, attrNonce:
		return n <= 763 // RFC 8489 §14.3, §14.9, §14.10: 513 octets, 128 characters
	}
	return true
}

// get returns the value of the first attribute of a type, nil if there is none.
func (m *message) get(typ uint16) []byte {
	for _, a := range m.attrs {
		if a.typ == typ {
			return a.val
		}
	}
	return nil
}

// has tells whether there is an attribute of a type; some have no value.
func (m *message) has(typ uint16) bool {
	for _, a := range m.attrs {
		if a.typ == typ {
			return true
		}
	}
	return false
}

// txid returns the transaction ID.
func (m *message) txid() [12]byte { return [12]byte(m.raw[8:20]) }

// unknown lists the comprehension-required attributes that nobody here understands.
func (m *message) unknown(known func(uint16) bool) (list []uint16) {
	for _, a := range m.attrs {
		if a.typ < 0x8000 && !known(a.typ) {
			list = append(list, a.typ)
		}
	}
	return list
}

// signedWith tells whether MESSAGE-INTEGRITY was made with the key (RFC 8489 §14.5).
func (m *message) signedWith(key []byte) bool {
	if m.integrity == 0 {
		return false
	}
	var head [headerSize]byte
	copy(head[:], m.raw)
	binary.BigEndian.PutUint16(head[2:], uint16(m.integrity+4+macSize-headerSize))
	mac := hmac.New(sha1.New, key)
	mac.Write(head[:])
	mac.Write(m.raw[headerSize:m.integrity])
	return hmac.Equal(mac.Sum(nil), m.raw[m.integrity+4:m.integrity+4+macSize])
}

func fingerprintOf(b []byte) uint32 { return crc32.ChecksumIEEE(b) ^ 0x5354554E }

// xorAddress reads XOR-PEER-ADDRESS and its like (RFC 8489 §14.2); not valid if the family does not fit the length.
func xorAddress(val []byte, txid [12]byte) netip.AddrPort {
	if len(val) < 8 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(val[2:]) ^ magicCookie>>16
	switch {
	case val[1] == 1 && len(val) == 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(xored(val[4:8], txid))), port)
	case val[1] == 2 && len(val) == 20:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(xored(val[4:20], txid))), port)
	}
	return netip.AddrPort{}
}

// xored returns b exclusive-or the cookie and the transaction ID.
func xored(b []byte, txid [12]byte) []byte {
	var key [16]byte
	binary.BigEndian.PutUint32(key[:], magicCookie)
	copy(key[4:], txid[:])
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ key[i]
	}
	return out
}
