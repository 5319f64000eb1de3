package sipmsg

import (
	"bytes"
	"errors"
)

var errURI = errors.New("bad URI")

// URI is a view of a URI. All slices are parts of the bytes given to [ParseURI]
// and, when empty, stand where the part would be, so that an Editor can act on them.
type URI struct {
	// Value is the whole URI.
	Value []byte
	// Scheme as on the wire ("sip", "SIPS", "tel").
	Scheme []byte
	// Opaque is what follows the colon, for schemes other than sip and sips.
	Opaque []byte
	// User and Password are still escaped.
	User, Password []byte
	// HostPort is host and port with the brackets of IPv6.
	HostPort []byte
	// Host has no brackets.
	Host []byte
	// Port is 0 when absent.
	Port uint16
	// V6 tells that the host was in brackets.
	V6 bool
	// Params starts with its ";", Headers with its "?".
	Params, Headers []byte
}

// IsSIP tells whether the scheme is sip or sips.
func (u URI) IsSIP() bool { return equalFold(u.Scheme, "sip") || u.IsSecure() }

// IsSecure tells whether the scheme is sips.
func (u URI) IsSecure() bool { return equalFold(u.Scheme, "sips") }

// Param finds a URI parameter in any case, see [Param].
func (u URI) Param(name string) (value []byte, ok bool) { return Param(u.Params, name) }

// ParseURI reads a URI (RFC 3261 §19.1, §25.1). Only sip and sips are taken apart;
// of any other scheme the rest is opaque, which is no error.
func ParseURI(b []byte) (URI, error) {
	var u URI
	err := u.parse(b)
	return u, err
}

func (u *URI) parse(b []byte) error {
	*u = URI{Value: b}
	colon := bytes.IndexByte(b, ':')
	if colon < 1 || b[0]|0x20 < 'a' || b[0]|0x20 > 'z' {
		return errURI
	}
	for _, c := range b[:colon] {
		if classes[c]&classScheme == 0 {
			return errURI
		}
	}
	u.Scheme = b[:colon]
	rest := b[colon+1:]
	for _, c := range rest {
		if classes[c]&classNoURI != 0 {
			return errURI
		}
	}
	if !u.IsSIP() {
		u.Opaque = rest
		if len(rest) == 0 {
			return errURI
		}
		return nil
	}
	return u.parseSIP(rest)
}

// parseSIP reads "[user[:password]@]host[:port][;params][?headers]". The user part
// may itself hold ";" and "?" (RFC 4475 §3.1.1.8, semiuri), so "@" is looked for first.
func (u *URI) parseSIP(b []byte) error {
	u.User, u.Password = b[:0], b[:0]
	if at := bytes.IndexByte(b, '@'); at >= 0 {
		u.User = b[:at]
		u.Password = b[at:at]
		if c := bytes.IndexByte(u.User, ':'); c >= 0 {
			u.User, u.Password = u.User[:c], u.User[c+1:]
		}
		if at == 0 {
			return errURI
		}
		b = b[at+1:]
	}
	h, err := parseHostPort(b)
	if err != nil {
		return err
	}
	u.HostPort, u.Host, u.Port, u.V6 = b[:h.end], h.host, h.port, h.v6
	b = b[h.end:]
	u.Params, u.Headers = b, b[len(b):]
	if q := bytes.IndexByte(b, '?'); q >= 0 {
		u.Params, u.Headers = b[:q], b[q:]
	}
	if len(u.Params) > 0 && u.Params[0] != ';' {
		return errURI
	}
	return nil
}

type hostPort struct {
	host []byte
	port uint16
	v6   bool
	end  int
}

// parseHostPort reads "host[:port]" at the start of b. A colon behind a host that
// is not in brackets must lead to a port, which rejects bare IPv6 (RFC 5118 §4.2).
func parseHostPort(b []byte) (hostPort, error) {
	var h hostPort
	i := 0
	if len(b) > 0 && b[0] == '[' {
		h.v6 = true
		for i = 1; i < len(b) && isIPv6Char(b[i]); i++ {
		}
		if i == 1 || i == len(b) || b[i] != ']' {
			return h, errURI
		}
		h.host = b[1:i]
		i++
	} else {
		for i < len(b) && isHost(b[i]) {
			i++
		}
		h.host = b[:i]
	}
	if len(h.host) == 0 {
		return h, errURI
	}
	h.end = i
	if i < len(b) && b[i] == ':' {
		e := i + 1
		for e < len(b) && isDigit(b[e]) {
			e++
		}
		p, ok := port(b[i+1 : e])
		if !ok {
			return h, errURI
		}
		h.port, h.end = p, e
	}
	return h, nil
}

func isIPv6Char(c byte) bool {
	return isDigit(c) || c == ':' || c == '.' || c|0x20 >= 'a' && c|0x20 <= 'f'
}
