package sharedport

import (
	"bytes"
	"encoding/binary"
)

// Class is what a connection begins with.
type Class string

// The classes.
const (
	// TLS is a TLS ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2).
	TLS Class = "tls"
	// SSL2 is a hello in the format of SSL 2.0, with which some clients of 2001-2006 still begin (RFC 5246 §E.2).
	SSL2 Class = "ssl2"
	// PseudoTLS is the fixed hello of [MS-TURN] §3.1.4, after which TURN follows in clear.
	PseudoTLS Class = "pseudo_tls"
	// MSTURN is TURN in the framing of [MS-TURN] §2.1.
	MSTURN Class = "ms_turn"
	// STUN is STUN or TURN over TCP (RFC 8489 §6.2.2).
	STUN Class = "stun"
	// TPKT is T.120, H.323 or RDP (RFC 1006 §6).
	TPKT Class = "tpkt"
	// HTTP is a request of HTTP, CONNECT among them.
	HTTP Class = "http"
	// SIP is a SIP message or its keep-alive (RFC 5626 §4.4.1).
	SIP Class = "sip"
	// SOCKS is SOCKS 5 (RFC 1928 §3).
	SOCKS Class = "socks"
	// Unknown is all else.
	Unknown Class = "unknown"
)

// First is what the first bytes of a connection say.
type First struct {
	Class Class
	// Name is the server name of a ClientHello (RFC 6066 §3) in lower case, without a dot at its end; "" if
	// there is none.
	Name string
}

// pseudoHello begins the 50 bytes of an [MS-TURN] pseudo-TLS hello, pseudoEnd ends them: no session, one
// cipher suite (0x0018), no compression, no extensions.
const (
	pseudoHello = "\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01"
	pseudoEnd   = "\x00\x00\x02\x00\x18\x01\x00"
	pseudoLen   = 50
)

// Classify says what a connection is that begins with b, or that more bytes are needed to tell. The answer for
// what is Most bytes long, or longer, is final; while more are needed, first says nothing.
func Classify(b []byte) (first First, more bool) {
	switch {
	case len(b) == 0:
		return First{}, true
	case b[0] == recordHandshake:
		return classifyTLS(b)
	case b[0]&0x80 != 0:
		return classifySSL2(b)
	case b[0] == 5:
		return First{Class: SOCKS}, false
	case b[0] < 4:
		return classifyBinary(b)
	}
	return classifyText(b)
}

func classifyTLS(b []byte) (First, bool) {
	if n := min(len(b), len(pseudoHello)); string(b[:n]) == pseudoHello[:n] {
		if len(b) < pseudoLen {
			return First{}, true
		}
		if string(b[pseudoLen-len(pseudoEnd):pseudoLen]) == pseudoEnd {
			return First{Class: PseudoTLS}, false
		}
	}
	name, more, ok := helloName(b)
	switch {
	case more:
		return First{}, true
	case !ok:
		return First{Class: Unknown}, false
	}
	return First{Class: TLS, Name: name}, false
}

// classifySSL2 knows a two-byte header whose first bit is set, message type 1 and version 2.0 to 3.x.
func classifySSL2(b []byte) (First, bool) {
	if len(b) < 4 {
		return First{}, true
	}
	if b[2] == 1 && (b[3] == 3 || b[3] == 0) {
		return First{Class: SSL2}, false
	}
	return First{Class: Unknown}, false
}

const stunCookie = 0x2112a442

// classifyBinary tells STUN, [MS-TURN] and TPKT apart.
func classifyBinary(b []byte) (First, bool) {
	if len(b) < 8 {
		return First{}, true
	}
	length := binary.BigEndian.Uint16(b[2:])
	inner := binary.BigEndian.Uint16(b[6:])
	switch {
	case length%4 == 0 && binary.BigEndian.Uint32(b[4:]) == stunCookie:
		return First{Class: STUN}, false
	case (b[0] == 2 || b[0] == 3) && b[1] == 0 && b[4] < 4 && int(length) == int(inner)+20:
		return First{Class: MSTURN}, false
	case b[0] == 3 && b[1] == 0 && (b[5]&0xf0 == 0xe0 || b[4] == 8):
		return First{Class: TPKT}, false
	}
	return First{Class: Unknown}, false
}

// classifyText goes by the first line's beginning. OPTIONS alone does not tell SIP from HTTP.
func classifyText(b []byte) (First, bool) {
	for _, w := range words() {
		n := min(len(b), len(w.text))
		if string(b[:n]) != w.text[:n] {
			continue
		}
		return First{Class: w.class}, n < len(w.text)
	}
	return requestLine(b)
}

// maxLine bounds how much of a first line is waited for.
const maxLine = 2048

// requestLine classifies a request by the end of its first line, for methods that no list has.
func requestLine(b []byte) (First, bool) {
	b = b[:min(len(b), maxLine)]
	line, _, whole := bytes.Cut(b, []byte("\r\n"))
	switch {
	case !whole:
		return First{Class: Unknown}, len(b) < maxLine && printable(bytes.TrimSuffix(b, []byte("\r")))
	case !printable(line):
	case bytes.HasSuffix(line, []byte(" SIP/2.0")):
		return First{Class: SIP}, false
	case bytes.HasSuffix(line, []byte(" HTTP/1.1")), bytes.HasSuffix(line, []byte(" HTTP/1.0")):
		return First{Class: HTTP}, false
	}
	return First{Class: Unknown}, false
}

func printable(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' || r > '~' })
}

type word struct {
	text  string
	class Class
}

func words() []word {
	return []word{
		{"GET ", HTTP}, {"POST ", HTTP}, {"HEAD ", HTTP}, {"CONNECT ", HTTP}, {"PRI * HTTP/2", HTTP},
		{"SIP/2.0 ", SIP}, {"\r\n\r\n", SIP},
	}
}
