package sharedport

import (
	"strings"
)

const (
	// Most is how many bytes of a connection are looked at. Hellos with post-quantum keys have about 2 kB.
	Most = 16 << 10

	recordHandshake = 22
	recordHeader    = 5
	clientHello     = 1
	// maxName is the longest host name (RFC 1035 §2.3.4).
	maxName = 253
)

// TunnelProtocol is the application protocol (RFC 7301) of edged's own tunnel.
const TunnelProtocol = "edged-tunnel/1"

// clientHi is what is read of a ClientHello.
type clientHi struct {
	name   string // the server name
	tunnel bool   // TunnelProtocol is offered
}

// readFirstHello reads the ClientHello that b begins with: records of type handshake, over which the message may be
// spread (RFC 8446 §5.1). more says that it is not complete yet, ok that it is one.
func readFirstHello(b []byte) (h clientHi, more, ok bool) {
	var msg []byte
	for short := false; ; {
		if len(msg) >= 4 {
			want := 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
			if msg[0] != clientHello || want > Most {
				return clientHi{}, false, false
			}
			if len(msg) >= want {
				msg = msg[4:want]
				break
			}
		}
		if short {
			return clientHi{}, true, false
		}
		var part []byte
		if part, b, short, ok = record(b); !ok {
			return clientHi{}, false, false
		}
		msg = append(msg, part...)
	}
	h, ok = readHello(msg)
	return h, false, ok
}

// record cuts a record off b. short says that not all of it is there yet; part is what is.
func record(b []byte) (part, rest []byte, short, valid bool) {
	if len(b) > 0 && b[0] != recordHandshake || len(b) > 1 && b[1] != 3 {
		return nil, nil, false, false
	}
	if len(b) < recordHeader {
		return nil, nil, true, true
	}
	n := int(b[3])<<8 | int(b[4])
	if n == 0 || n > Most { // RFC 8446 §5.1
		return nil, nil, false, false
	}
	b = b[recordHeader:]
	if len(b) < n {
		return b, nil, true, true
	}
	return b[:n], b[n:], false, true
}

// cursor reads a message; a length that leads beyond its end makes it bad for good.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

// number reads a whole number of so many octets.
func (c *cursor) number(octets int) int {
	n := 0
	for _, o := range c.take(octets) {
		n = n<<8 | int(o)
	}
	return n
}

// vector reads what its length in so many octets goes before.
func (c *cursor) vector(octets int) cursor { return cursor{b: c.take(c.number(octets))} }

// readHello reads a ClientHello's body, and tells whether it is well-formed.
func readHello(b []byte) (h clientHi, ok bool) {
	c := cursor{b: b}
	version := c.number(2)
	c.take(32)  // random
	c.vector(1) // session
	suites := c.vector(2)
	c.vector(1) // compression
	if c.bad || version>>8 != 3 || len(suites.b) == 0 || len(suites.b)%2 != 0 {
		return clientHi{}, false
	}
	if len(c.b) == 0 {
		return clientHi{}, true // no extensions, as in TLS 1.0
	}
	extensions := c.vector(2)
	for len(extensions.b) > 0 && !extensions.bad {
		kind, body := extensions.number(2), extensions.vector(2)
		if extensions.bad {
			break
		}
		switch kind {
		case extensionName:
			if h.name, ok = readName(body); !ok {
				return clientHi{}, false
			}
		case extensionProtocols:
			h.tunnel = offersTunnel(body)
		}
	}
	return h, !c.bad && !extensions.bad
}

// Extensions of a ClientHello (RFC 6066 §1.1, RFC 7301 §3.1).
const (
	extensionName      = 0
	extensionProtocols = 16
)

// offersTunnel tells whether TunnelProtocol is among the application protocols. A list that is not well-formed offers
// nothing; who ends TLS refuses it.
func offersTunnel(c cursor) (found bool) {
	list := c.vector(2)
	for len(list.b) > 0 && !list.bad {
		name := list.vector(1)
		found = found || string(name.b) == TunnelProtocol && !list.bad
	}
	return found && !c.bad && !list.bad
}

// readName returns the host name of the extension server_name (RFC 6066 §3).
func readName(c cursor) (string, bool) {
	list := c.vector(2)
	for len(list.b) > 0 && !list.bad {
		kind, name := list.number(1), list.vector(2)
		if kind == 0 && !list.bad {
			return hostName(name.b)
		}
	}
	return "", !c.bad && !list.bad
}

// hostName returns a name in lower case if it may be one.
func hostName(b []byte) (string, bool) {
	name := strings.ToLower(strings.TrimSuffix(string(b), "."))
	ok := name != "" && len(name) <= maxName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
	if !ok {
		return "", false
	}
	return name, true
}
