// Package mcs reads the connect PDUs of T.125 (BER, §7), and of its domain PDUs (aligned PER, §7) what tells
// where data goes. It is no MCS provider: it merges no domains and hands out no channels.
//
//	7f 65 Connect-Initial    selectors, upward flag, three sets of parameters, user data (T.124)
//	7f 66 Connect-Response   result, id of the connection, parameters, user data
//	7f 67 Connect-Additional id, priority                7f 68 Connect-Result   result
//	 64…  SendDataRequest    initiator, channel, priority, segmentation, user data; 68, 6c, 70 likewise
//
// All lengths are definite; nothing is allocated by a length that was received.
package mcs

import (
	"encoding/binary"
	"errors"
)

// Kind is the tag of a connect PDU.
type Kind uint16

// The connect PDUs (T.125 §7, ConnectMCSPDU).
const (
	ConnectInitial    Kind = 0x7f65
	ConnectResponse   Kind = 0x7f66
	ConnectAdditional Kind = 0x7f67
	ConnectResult     Kind = 0x7f68
)

// Results of Connect-Response and Connect-Result (T.125 §7, Result).
const (
	Successful         = 0
	UnspecifiedFailure = 14
	UserRejected       = 15
)

// What is wrong with a PDU.
var (
	// ErrTag: not the tag that is expected at this place.
	ErrTag = errors.New("mcs: unexpected tag")
	// ErrLength: an element overruns what encloses it, is too long for its type, or its length is indefinite.
	ErrLength = errors.New("mcs: bad length")
)

// DomainParameters are what a domain can do (T.125 §7).
type DomainParameters struct {
	MaxChannelIDs, MaxUserIDs, MaxTokenIDs, NumPriorities    uint32
	MinThroughput, MaxHeight, MaxMCSPDUSize, ProtocolVersion uint32
}

// Connect is a connect PDU. Slices lie in what was read.
type Connect struct {
	Kind Kind
	// Calling and Called are the domain selectors of Connect-Initial.
	Calling, Called []byte
	Upward          bool
	// Target is what Connect-Initial proposes, and what Connect-Response settled on.
	Target, Minimum, Maximum DomainParameters
	// Result is that of a response.
	Result int
	// ConnectID names the first connection to those that are added to it.
	ConnectID uint32
	Priority  int
	// UserData is T.124's.
	UserData []byte

	params []byte // the element with Target
	user   int    // where the element with UserData begins
}

// reader takes BER elements off a span.
type reader struct {
	b   []byte
	off int
	err error
}

// element returns the contents of the next element, which must have the tag.
func (r *reader) element(tag byte) []byte {
	if r.err != nil {
		return nil
	}
	if r.off >= len(r.b) {
		r.err = ErrLength
		return nil
	}
	if r.b[r.off] != tag {
		r.err = ErrTag
		return nil
	}
	n, body, err := length(r.b, r.off+1)
	if err != nil {
		r.err = err
		return nil
	}
	r.off = body + n
	return r.b[body:r.off]
}

// length reads a definite length of at most four octets at b[off].
func length(b []byte, off int) (n, body int, err error) {
	if off >= len(b) {
		return 0, 0, ErrLength
	}
	n, body = int(b[off]), off+1
	if n >= 0x80 {
		count := n & 0x7f
		if count == 0 || count > 4 || count > len(b)-body {
			return 0, 0, ErrLength
		}
		v := uint64(0)
		for _, o := range b[body : body+count] {
			v = v<<8 | uint64(o)
		}
		if v > uint64(len(b)) {
			return 0, 0, ErrLength
		}
		n, body = int(v), body+count
	}
	if n > len(b)-body {
		return 0, 0, ErrLength
	}
	return n, body, nil
}

// number returns an INTEGER, BOOLEAN or ENUMERATED that is not negative.
func (r *reader) number(tag byte) uint32 {
	c := r.element(tag)
	if r.err == nil && (len(c) == 0 || len(c) > 5 || len(c) == 5 && c[0] != 0) {
		r.err = ErrLength
	}
	v := uint32(0)
	for _, o := range c {
		v = v<<8 | uint32(o)
	}
	return v
}

func (r *reader) parameters() (p DomainParameters, raw []byte) {
	from := r.off
	in := reader{b: r.element(0x30), err: r.err}
	for _, v := range []*uint32{
		&p.MaxChannelIDs, &p.MaxUserIDs, &p.MaxTokenIDs, &p.NumPriorities,
		&p.MinThroughput, &p.MaxHeight, &p.MaxMCSPDUSize, &p.ProtocolVersion,
	} {
		*v = in.number(0x02)
	}
	if in.err == nil && in.off != len(in.b) {
		in.err = ErrLength
	}
	if r.err = in.err; r.err != nil {
		return p, nil
	}
	return p, r.b[from:r.off]
}

// ParseConnect reads a connect PDU, which is all of b. More behind its end is not accepted.
func ParseConnect(b []byte) (Connect, error) {
	if len(b) < 2 || b[0] != 0x7f {
		return Connect{}, ErrTag
	}
	c := Connect{Kind: Kind(binary.BigEndian.Uint16(b))}
	n, body, err := length(b, 2)
	if err != nil || body+n != len(b) {
		return Connect{}, ErrLength
	}
	r := reader{b: b, off: body}
	switch c.Kind {
	case ConnectInitial:
		c.Calling, c.Called = r.element(0x04), r.element(0x04)
		c.Upward = r.number(0x01) != 0
		c.Target, c.params = r.parameters()
		c.Minimum, _ = r.parameters()
		c.Maximum, _ = r.parameters()
		c.user = r.off
		c.UserData = r.element(0x04)
	case ConnectResponse:
		c.Result = int(r.number(0x0a))
		c.ConnectID = r.number(0x02)
		c.Target, c.params = r.parameters()
		c.user = r.off
		c.UserData = r.element(0x04)
	case ConnectAdditional:
		c.ConnectID = r.number(0x02)
		c.Priority = int(r.number(0x0a))
	case ConnectResult:
		c.Result = int(r.number(0x0a))
	default:
		return Connect{}, ErrTag
	}
	if r.err == nil && r.off != len(b) {
		r.err = ErrLength
	}
	return c, r.err
}

// WithUserData returns b, of which c was read, with other user data, and the outer length corrected.
func (c Connect) WithUserData(b, user []byte) []byte {
	_, body, _ := length(b, 2) // read before
	inner := append([]byte{}, b[body:c.user]...)
	inner = appendElement(inner, []byte{0x04}, user)
	return appendElement(nil, b[:2], inner)
}

// Refuse returns a Connect-Response or Connect-Result that refuses c.
func (c Connect) Refuse(result byte) []byte {
	body := []byte{0x0a, 1, result}
	if c.Kind == ConnectAdditional {
		return appendElement(nil, []byte{0x7f, 0x68}, body)
	}
	body = append(body, 0x02, 1, 0)
	body = append(body, c.params...)
	return appendElement(nil, []byte{0x7f, 0x66}, append(body, 0x04, 0))
}

func appendElement(dst, tag, contents []byte) []byte {
	dst = append(dst, tag...)
	switch n := len(contents); {
	case n < 0x80:
		dst = append(dst, byte(n))
	case n < 0x100:
		dst = append(dst, 0x81, byte(n))
	default:
		dst = append(dst, 0x82, byte(n>>8), byte(n))
	}
	return append(dst, contents...)
}

// FrontLen is how many octets of a domain PDU with data ParseSendData needs.
const FrontLen = 7

// SendData is where a domain PDU with data goes.
type SendData struct {
	// Front is the kind, the initiator and the channel: what the segments of one piece of data have in common.
	Front [5]byte
	// Channel is the id of the channel that it is sent on.
	Channel uint16
	// Begin and End are the segmentation flags (T.125 §7): both are set if it holds all of the data.
	Begin, End bool
	priority   byte
}

// ParseSendData reads the front of a SendDataRequest, SendDataIndication or one of their uniform kinds; false
// for all other domain PDUs.
func ParseSendData(b []byte) (SendData, bool) {
	if len(b) < FrontLen || b[0]>>2 < 25 || b[0]>>2 > 28 {
		return SendData{}, false
	}
	// choice 6 bits and padding; initiator and channel 2 octets each; priority 2 bits, begin, end
	return SendData{[5]byte(b), binary.BigEndian.Uint16(b[3:]), b[5]&0x20 != 0, b[5]&0x10 != 0, b[5] &^ 0x30}, true
}

// MaxSegment is how many octets a segment may hold here: more would be written in fragments (X.691 §10.9).
const MaxSegment = 16<<10 - 1

// AppendSegment appends a PDU of the same front with up to MaxSegment octets of data.
func (d SendData) AppendSegment(dst, user []byte, begin, end bool) []byte {
	flags := d.priority
	if begin {
		flags |= 0x20
	}
	if end {
		flags |= 0x10
	}
	dst = append(append(dst, d.Front[:]...), flags)
	if len(user) < 0x80 {
		dst = append(dst, byte(len(user)))
	} else {
		dst = append(dst, 0x80|byte(len(user)>>8), byte(len(user)))
	}
	return append(dst, user...)
}
