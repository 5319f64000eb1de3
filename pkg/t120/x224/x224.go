// Package x224 reads the transport PDUs of class 0 (X.224 §13) as T.123 uses them over TCP, and the front of
// RDP, which is the same with a cookie and a negotiation in CR and CC ([MS-RDPBCGR] 2.2.1.1, 2.2.1.2). It is no
// transport layer: it keeps no connection and splits no data.
//
//	CR CC DR ER   LI  code  DST-REF  SRC-REF  class or reason  parameters or cookie, negotiation
//	DT            02  f0    80 (last of a unit) or 00          user data
//
// LI counts the header without itself. What a PDU has in its payload of a TPKT is all there is.
package x224

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Kind is the code of a TPDU, without the credit bits (X.224 §13.1).
type Kind byte

// The TPDUs of class 0 (X.224 §13.3-13.12).
const (
	ConnectionRequest Kind = 0xe0
	ConnectionConfirm Kind = 0xd0
	DisconnectRequest Kind = 0x80
	Data              Kind = 0xf0
	Error             Kind = 0x70
)

// String returns the usual abbreviation.
func (k Kind) String() string {
	switch k {
	case ConnectionRequest:
		return "CR"
	case ConnectionConfirm:
		return "CC"
	case DisconnectRequest:
		return "DR"
	case Data:
		return "DT"
	case Error:
		return "ER"
	}
	return "unknown"
}

// What is wrong with a TPDU.
var (
	// ErrLength: the length indicator does not fit the payload or the kind.
	ErrLength = errors.New("x224: length indicator does not fit")
	// ErrKind: the code is none of class 0's.
	ErrKind = errors.New("x224: not a TPDU of class 0")
	// ErrClass: another class than 0 is proposed or confirmed.
	ErrClass = errors.New("x224: class is not 0")
	// ErrParameter: a parameter overruns the header, or a cookie has no end.
	ErrParameter = errors.New("x224: malformed parameter")
)

// TPDU is one transport PDU. Slices lie in the payload that was read.
type TPDU struct {
	Kind     Kind
	Dst, Src uint16
	// Reason is why (DR: X.224 §13.5.3, ER: §13.12.3).
	Reason byte
	// Last says of DT that it ends the unit.
	Last bool
	// Size is the proposed or confirmed TPDU size in octets; 0 if none is named.
	Size int
	// Calling and Called are the transport selectors.
	Calling, Called []byte
	// Cookie is RDP's text before the negotiation, without its line end.
	Cookie []byte
	// Negotiation is RDP's; its Type is 0 if there is none.
	Negotiation Negotiation
	// User is the user data of DT.
	User []byte
}

// Negotiation is RDP's request (1), response (2) or failure (3) ([MS-RDPBCGR] 2.2.1.1.1, 2.2.1.2.1).
type Negotiation struct {
	Type, Flags byte
	// Protocols are those requested, the one selected (0 is RDP's own security, all others are TLS), or the
	// reason of the failure.
	Protocols uint32
}

// Parse reads a TPDU, which is the whole payload of a TPKT.
func Parse(b []byte) (TPDU, error) {
	if len(b) < 3 || int(b[0])+1 > len(b) || b[0] == 0xff || b[0] < 2 {
		return TPDU{}, ErrLength
	}
	head := b[1 : 1+int(b[0])]
	t := TPDU{Kind: Kind(head[0] & 0xf0)}
	switch t.Kind {
	case Data:
		if len(head) != 2 || head[0] != byte(Data) || head[1]&0x7f != 0 {
			return TPDU{}, ErrLength // class 0 has neither references nor numbers here (X.224 §13.7.1)
		}
		t.Last, t.User = head[1] == 0x80, b[3:]
		return t, nil
	case Error:
		if len(head) < 4 {
			return TPDU{}, ErrLength
		}
		t.Dst, t.Reason = binary.BigEndian.Uint16(head[1:]), head[3]
		return t, nil
	case ConnectionRequest, ConnectionConfirm, DisconnectRequest:
		return t, t.connection(head, b[1+len(head):])
	}
	return TPDU{}, ErrKind
}

// connection reads what CR, CC and DR have in common (X.224 §13.3-13.5).
func (t *TPDU) connection(head, rest []byte) error {
	if len(head) < 6 {
		return ErrLength
	}
	t.Dst, t.Src = binary.BigEndian.Uint16(head[1:]), binary.BigEndian.Uint16(head[3:])
	if t.Kind == DisconnectRequest {
		t.Reason = head[5]
		return nil
	}
	switch {
	case len(rest) > 0: // class 0 takes no user data here
		return ErrLength
	case head[5]>>4 != 0:
		return ErrClass
	}
	return t.variable(head[6:])
}

// variable reads the parameters (X.224 §13.2.3), or RDP's cookie and negotiation in their place.
func (t *TPDU) variable(b []byte) error {
	if len(b) > 0 && b[0] >= 0x20 && b[0] < 0x7f {
		end := bytes.Index(b, []byte("\r\n"))
		if end < 0 {
			return ErrParameter
		}
		t.Cookie, b = b[:end], b[end+2:]
		return t.negotiation(b)
	}
	if len(b) > 0 && b[0] < 0x20 {
		return t.negotiation(b)
	}
	for len(b) > 0 {
		if len(b) < 2 || int(b[1]) > len(b)-2 {
			return ErrParameter
		}
		value := b[2 : 2+int(b[1])]
		switch b[0] {
		case 0xc0:
			if len(value) != 1 || value[0] < 7 || value[0] > 13 {
				return ErrParameter // 128 to 8192 octets (X.224 §13.3.4)
			}
			t.Size = 1 << value[0]
		case 0xc1:
			t.Calling = value
		case 0xc2:
			t.Called = value
		}
		b = b[2+len(value):]
	}
	return nil
}

// negotiation reads RDP's; what follows it (correlation) is nobody's business here.
func (t *TPDU) negotiation(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) < 8 || binary.LittleEndian.Uint16(b[2:]) != 8 {
		return ErrParameter
	}
	t.Negotiation = Negotiation{b[0], b[1], binary.LittleEndian.Uint32(b[4:])}
	return nil
}

// Plain tells of a CR or CC that it is T.123's: it has no part of RDP's.
func (t TPDU) Plain() bool { return len(t.Cookie) == 0 && t.Negotiation.Type == 0 }

// Sealed tells of a CC that TLS follows.
func (t TPDU) Sealed() bool {
	return t.Kind == ConnectionConfirm && t.Negotiation.Type == 2 && t.Negotiation.Protocols != 0
}

// Confirm returns a CC for a CR: the same parameters, no data.
func Confirm(request []byte, t TPDU) []byte {
	out := bytes.Clone(request[:1+int(request[0])])
	out[1] = byte(ConnectionConfirm)
	binary.BigEndian.PutUint16(out[2:], t.Src)
	binary.BigEndian.PutUint16(out[4:], 1)
	return out
}

// Disconnect returns a DR that refuses a CR, with a reason of X.224 §13.5.3.
func Disconnect(t TPDU, reason byte) []byte {
	return []byte{6, byte(DisconnectRequest), byte(t.Src >> 8), byte(t.Src), 0, 0, reason}
}

// Reasons of a DR.
const (
	Unspecified    byte = 0
	Congestion     byte = 1
	AddressUnknown byte = 3
)

// AppendData appends a DT that is a whole unit.
func AppendData(dst, user []byte) []byte {
	return append(append(dst, 2, byte(Data), 0x80), user...)
}
