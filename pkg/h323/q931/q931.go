// Package q931 reads the envelope of H.225.0 call signalling (Q.931 §4, H.225.0
// §7.1-7.3): the call reference, the message type, the information elements, and
// in the User-User element the PER of the H.323 message. It does not decode the
// PER (pkg/h323/h225 does), nor the TPKT around it, and reads no other element.
//
//	08 │ 02 │ call reference 2 │ type │ elements …
//	element   80-ff: one octet │ id, length 1, contents │ 7e, length 2, 05, PER
//
//	payload of a TPKT ─► Parse ─► Message.UserUser ─► … ─► Message.AppendWith
//
// Elements may come in any order; those that are not understood stay as they are.
package q931

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Type is a message type (Q.931 table 4-2, H.225.0 table 4).
type Type byte

// The types of H.225.0.
const (
	Alerting        Type = 0x01
	CallProceeding  Type = 0x02
	Progress        Type = 0x03
	Setup           Type = 0x05
	Connect         Type = 0x07
	SetupAck        Type = 0x0d
	ConnectAck      Type = 0x0f
	ReleaseComplete Type = 0x5a
	Facility        Type = 0x62
	Notify          Type = 0x6e
	StatusInquiry   Type = 0x75
	Information     Type = 0x7b
	Status          Type = 0x7d
)

// Identifiers of elements.
const (
	Cause         byte = 0x08
	Display       byte = 0x28
	BearerCap     byte = 0x04
	CallingNumber byte = 0x6c
	CalledNumber  byte = 0x70
	userUser      byte = 0x7e
)

const (
	discriminator = 0x08
	asn1          = 0x05 // protocol discriminator of the User-User element
	fixed         = 5    // octets before the elements
	// userUserHeader are the octets before the PER: identifier, length, protocol discriminator.
	userUserHeader = 4
)

var (
	// ErrHeader is returned for what is no Q.931 message with a two-octet call reference.
	ErrHeader = errors.New("q931: malformed header")
	// ErrElement is returned for an element that goes beyond the message.
	ErrElement = errors.New("q931: element goes beyond the message")
	// ErrUserUser is returned for a second User-User element, or one that is not H.323's.
	ErrUserUser = errors.New("q931: malformed user-user element")
	// ErrTooLong is returned for an element that its length field cannot hold.
	ErrTooLong = errors.New("q931: element too long")
)

// Message is a parsed message. It refers to the octets that were parsed.
type Message struct {
	CallRef  uint16 // 0..32767; 0 is the global one
	FromDest bool   // sent by the side that did not allocate the call reference
	Type     Type

	raw      []byte
	uuieAt   int // of the identifier; 0 if there is no User-User element
	uuieEnd  int
	perBegin int
}

// Parse parses the payload of a TPKT. A User-User element without contents counts
// as none.
func Parse(b []byte) (Message, error) {
	if len(b) < fixed || b[0] != discriminator || b[1] != 2 {
		return Message{}, fmt.Errorf("%w: %.*x", ErrHeader, min(len(b), 2), b)
	}
	ref := binary.BigEndian.Uint16(b[2:])
	m := Message{CallRef: ref & 0x7fff, FromDest: ref&0x8000 != 0, Type: Type(b[4]), raw: b}
	for at := fixed; at < len(b); {
		id, from, to, err := element(b, at)
		if err != nil {
			return Message{}, err
		}
		if id == userUser {
			if m.uuieAt != 0 {
				return Message{}, fmt.Errorf("%w: a second one", ErrUserUser)
			}
			m.uuieAt, m.perBegin, m.uuieEnd = at, from, to
			if to > from {
				if b[from] != asn1 {
					return Message{}, fmt.Errorf("%w: protocol discriminator %#x", ErrUserUser, b[from])
				}
				m.perBegin++
			}
		}
		at = to
	}
	return m, nil
}

// element finds the contents of the element at an octet: [from, to).
func element(b []byte, at int) (id byte, from, to int, err error) {
	id = b[at]
	size := 1
	switch {
	case id >= 0x80:
		return id, at + 1, at + 1, nil
	case id == userUser:
		size = 2
	}
	from = at + 1 + size
	if from > len(b) {
		return id, 0, 0, fmt.Errorf("%w: %#x", ErrElement, id)
	}
	n := int(b[at+1])
	if size == 2 {
		n = int(binary.BigEndian.Uint16(b[at+1:]))
	}
	if to = from + n; to > len(b) {
		return id, 0, 0, fmt.Errorf("%w: %#x", ErrElement, id)
	}
	return id, from, to, nil
}

// Empty tells whether m is the zero Message.
func (m *Message) Empty() bool { return m.raw == nil }

// UserUser returns the PER of the User-User element; nil if there is none.
func (m *Message) UserUser() []byte {
	if m.perBegin == m.uuieEnd {
		return nil
	}
	return m.raw[m.perBegin:m.uuieEnd:m.uuieEnd]
}

// Element returns the contents of the first element of that id.
func (m *Message) Element(id byte) ([]byte, bool) {
	for at := fixed; at < len(m.raw); {
		got, from, to, err := element(m.raw, at)
		if err != nil {
			return nil, false
		}
		if got == id {
			return m.raw[from:to:to], true
		}
		at = to
	}
	return nil, false
}

// AppendWith appends the message to dst with another PER in its User-User
// element, which there must be.
func (m *Message) AppendWith(dst, per []byte) ([]byte, error) {
	if m.uuieAt == 0 {
		return dst, fmt.Errorf("%w: none there", ErrUserUser)
	}
	out := slices.Grow(dst, m.uuieAt+userUserHeader+len(per)+len(m.raw)-m.uuieEnd)
	out, err := appendUserUser(append(out, m.raw[:m.uuieAt]...), per)
	if err != nil {
		return dst, err
	}
	return append(out, m.raw[m.uuieEnd:]...), nil
}

func appendUserUser(dst, per []byte) ([]byte, error) {
	if len(per) > 65534 {
		return dst, fmt.Errorf("%w: user-user: %d octets", ErrTooLong, len(per))
	}
	dst = append(dst, userUser)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(per)+1))
	dst = append(dst, asn1)
	return append(dst, per...), nil
}

// Element is an information element of a message of our own.
type Element struct {
	ID       byte // 0x80 and above: a single octet, without contents
	Contents []byte
}

// Append appends a message of our own: header, elements in the order given
// (ascending by the book, Q.931 §4.5.1), then the User-User element if per is not empty.
func Append(dst []byte, t Type, callRef uint16, fromDest bool, elements []Element, per []byte) ([]byte, error) {
	ref := callRef & 0x7fff
	if fromDest {
		ref |= 0x8000
	}
	out := append(dst, discriminator, 2) //nolint:gocritic // dst is given back on an error
	out = binary.BigEndian.AppendUint16(out, ref)
	out = append(out, byte(t))
	for _, e := range elements {
		out = append(out, e.ID)
		if e.ID >= 0x80 {
			continue
		}
		if len(e.Contents) > 255 || e.ID == userUser {
			return dst, fmt.Errorf("%w: %#x: %d octets", ErrTooLong, e.ID, len(e.Contents))
		}
		out = append(out, byte(len(e.Contents)))
		out = append(out, e.Contents...)
	}
	if len(per) == 0 {
		return out, nil
	}
	out, err := appendUserUser(out, per)
	if err != nil {
		return dst, err
	}
	return out, nil
}

// AppendTo appends the message to dst as it came.
func (m *Message) AppendTo(dst []byte) []byte { return append(dst, m.raw...) }
