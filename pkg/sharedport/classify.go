package sharedport

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
)

// First is what the first bytes of a connection say.
type First struct {
	Class Class
	// Name is the server name of a ClientHello (RFC 6066 §3) in lower case, without a dot at its end; "" if
	// there is none.
	Name string
	// Header is how long a header of the PROXY protocol is, Source whom it says that the connection comes from;
	// not valid if it says nobody.
	Header int
	Source netip.AddrPort
}

// Looking is what is looked for besides the classes that need no leave.
type Looking struct {
	// Proxy looks for the PROXY protocol: its second version begins like a keep-alive of SIP, and who may send it may
	// claim any source.
	Proxy bool
	// WebSocket tells WebSockets for SIP from HTTP, for which the whole header of a request is waited for.
	WebSocket bool
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
func (l Looking) Classify(b []byte) (first First, more bool) {
	if l.Proxy {
		if first, more, ok := proxyHeader(b); ok || more {
			return first, more
		}
	}
	switch {
	case len(b) == 0:
		return First{}, true
	case b[0] == recordHandshake:
		return classifyTLS(b)
	case b[0]&0x80 != 0:
		return classifySSL2(b)
	case b[0] == 4 || b[0] == 5:
		return classifySOCKS(b)
	case b[0] < 4:
		return classifyBinary(b)
	}
	return l.classifyText(b)
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
	h, more, ok := readFirstHello(b)
	switch {
	case more:
		return First{}, true
	case !ok:
		return First{Class: Unknown}, false
	case h.tunnel:
		return First{Class: Tunnel, Name: h.name}, false
	}
	return First{Class: TLS, Name: h.name}, false
}

// What Google's hello of 72 bytes begins and ends with: fifteen ciphers, and a challenge that is always the same.
const (
	googleHello = "\x80\x46\x01\x03\x01\x00\x2d\x00\x00\x00\x10"
	googleEnd   = "\x1f\x17\x0c\xa6\x2f\x00\x78\xfc\x46\x55\x2e\xb1\x83\x39\xf1\xea"
	googleLen   = 72
)

// classifySSL2 knows a two-byte header whose first bit is set, message type 1 and version 2.0 to 3.x.
func classifySSL2(b []byte) (First, bool) {
	if n := min(len(b), len(googleHello)); string(b[:n]) == googleHello[:n] {
		if len(b) < googleLen {
			return First{}, true
		}
		if string(b[googleLen-len(googleEnd):googleLen]) == googleEnd {
			return First{Class: SSLTCP}, false
		}
	}
	if len(b) < 4 {
		return First{}, true
	}
	if b[2] == 1 && (b[3] == 3 || b[3] == 0) {
		return First{Class: SSL2}, false
	}
	return First{Class: Unknown}, false
}

// classifySOCKS knows a greeting with at least one method, and CONNECT and BIND of version 4.
func classifySOCKS(b []byte) (First, bool) {
	switch {
	case len(b) < 2:
		return First{}, true
	case b[0] == 5 && b[1] > 0, b[0] == 4 && (b[1] == 1 || b[1] == 2):
		return First{Class: SOCKS}, false
	}
	return First{Class: Unknown}, false
}

const stunCookie = 0x2112a442

// classifyBinary tells STUN, [MS-TURN], TPKT and Groove apart.
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
	case b[0] == 3 && b[1] == 0:
		return classifyTPKT(b)
	case b[0] == 1:
		return classifyGroove(b)
	}
	return First{Class: Unknown}, false
}

// classifyTPKT looks at what is in a TPKT: Q.931, or a connection request of X.224, whose variable part tells remote
// desktops: a cookie or a token in text, or their negotiation alone.
func classifyTPKT(b []byte) (First, bool) {
	const fixed = 11 // the headers of TPKT and of the connection request
	length := int(binary.BigEndian.Uint16(b[2:]))
	switch {
	case b[4] == 8 && length > 5:
		return First{Class: H225}, false
	case b[5]&0xf0 != 0xe0 || length < fixed:
		return First{Class: Unknown}, false
	case length == fixed:
		return First{Class: T120}, false
	case len(b) <= fixed:
		return First{}, true
	case b[fixed] >= 0xc0: // a parameter of X.224 §13.2.3
		return First{Class: T120}, false
	}
	return First{Class: RDP}, false
}

// classifyGroove knows a Connect of version 1.5 or 1.6, in either byte order: command, its length, version, a zero,
// and the name of the device that is called.
func classifyGroove(b []byte) (First, bool) {
	shortest := func(n uint16) bool { return n >= 12 && n <= 8192 }
	switch {
	case !shortest(binary.BigEndian.Uint16(b[1:])) && !shortest(binary.LittleEndian.Uint16(b[1:])):
	case b[3] != 1 || b[4] != 5 && b[4] != 6 || b[5] != 0:
	case printable(b[6:8]):
		return First{Class: Groove}, false
	}
	return First{Class: Unknown}, false
}

// classifyText goes by the first line's beginning. OPTIONS alone does not tell SIP from HTTP.
func (l Looking) classifyText(b []byte) (First, bool) {
	for _, w := range words() {
		n := min(len(b), len(w.text))
		if string(b[:n]) != w.text[:n] {
			continue
		}
		switch {
		case n < len(w.text):
			return First{}, true
		case w.class == HTTP && l.WebSocket:
			return upgrade(b)
		}
		return First{Class: w.class}, false
	}
	if rest, ok := bytes.CutPrefix(b, []byte("\r\n")); ok { // RFC 3261 §7.5
		if first, more := requestLine(rest); more || first.Class == SIP {
			return first, more
		}
		return First{Class: Unknown}, false
	}
	if len(b) == 1 && b[0] == '\r' {
		return First{}, true
	}
	return requestLine(b)
}

// maxLine bounds how much of a first line is waited for.
const maxLine = 8192

// requestLine classifies a request by the end of its first line, for methods that no list has.
func requestLine(b []byte) (First, bool) {
	b = b[:min(len(b), maxLine)]
	line, _, whole := bytes.Cut(b, []byte("\r\n"))
	switch {
	case !whole:
		more := len(b) < maxLine && printable(bytes.TrimSuffix(b, []byte("\r")))
		if more {
			return First{}, true
		}
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

// upgrade tells a WebSocket for SIP from other HTTP, by the header of the request: it must be whole to tell, unless
// it is too long.
func upgrade(b []byte) (First, bool) {
	b = b[:min(len(b), maxLine)]
	head, _, whole := bytes.Cut(b, []byte("\r\n\r\n"))
	switch {
	case !whole && len(b) < maxLine:
		return First{}, true
	case whole && bytes.HasPrefix(b, []byte("GET ")) && hasToken(head, "upgrade", "websocket") && hasToken(head, "sec-websocket-protocol", "sip"):
		return First{Class: WebSocket}, false
	}
	return First{Class: HTTP}, false
}

// hasToken tells whether a header has a field of that name with that token in its list (RFC 9110 §5.6.1).
func hasToken(head []byte, name, token string) bool {
	for line := range strings.SplitSeq(string(head), "\r\n") {
		field, list, ok := strings.Cut(line, ":")
		if !ok || !strings.EqualFold(field, name) {
			continue
		}
		for item := range strings.SplitSeq(list, ",") {
			if strings.EqualFold(strings.Trim(item, " \t"), token) {
				return true
			}
		}
	}
	return false
}

type word struct {
	text  string
	class Class
}

// words are beginnings, none of which begins another.
func words() []word {
	return []word{
		{"GET ", HTTP}, {"POST ", HTTP}, {"HEAD ", HTTP}, {"PUT ", HTTP}, {"DELETE ", HTTP}, {"PRI * HTTP/2", HTTP},
		{"CONNECT ", Connect}, {"SSTP_DUPLEX_POST ", SSTP},
		{"RDG_OUT_DATA ", RPC}, {"RDG_IN_DATA ", RPC}, {"RPC_IN_DATA ", RPC}, {"RPC_OUT_DATA ", RPC},
		{"SIP/2.0 ", SIP}, {"\r\n\r\n", SIP},
	}
}
