package sipmsg

import (
	"bytes"
	"errors"
)

var errNameAddr = errors.New("bad address")

// NameAddr is a view of a name-addr or addr-spec with header parameters, the form
// of From, To, Contact, Route, Record-Route, Path, Refer-To (RFC 3261 §20.10).
type NameAddr struct {
	// Value is the whole of it, trimmed.
	Value []byte
	// Display is the display name as on the wire, with quotes if it has them.
	Display []byte
	// URI has no angle brackets. It is "*" for the Contact that means all.
	URI []byte
	// Params starts with its ";"; it is empty and at the end when there are none.
	// Without angle brackets all parameters belong to the header field.
	Params []byte
	// Angle tells that the URI was in angle brackets.
	Angle bool
}

// Tag returns the tag parameter (RFC 3261 §19.3), empty if there is none.
func (n *NameAddr) Tag() []byte {
	v, _ := Param(n.Params, "tag")
	return v
}

// Param finds a header parameter in any case, see [Param].
func (n *NameAddr) Param(name string) (value []byte, ok bool) { return Param(n.Params, name) }

// IsStar tells whether this is the Contact "*" (RFC 3261 §10.2.2).
func (n *NameAddr) IsStar() bool { return len(n.URI) == 1 && n.URI[0] == '*' }

// ParseNameAddr reads one element. It rejects an unclosed quote, a comma in an
// unquoted display name, blanks inside the URI, and "?" in a URI that is not in
// angle brackets (RFC 4475 quotbal, baddn, badaspec, regbadct).
func ParseNameAddr(v []byte) (NameAddr, error) {
	var n NameAddr
	err := n.parse(v)
	return n, err
}

func (n *NameAddr) parse(v []byte) error {
	v = trim(v)
	*n = NameAddr{Value: v, Display: v[:0], URI: v[:0], Params: v[len(v):]}
	if len(v) == 0 {
		return errNameAddr
	}
	i := 0
	if v[0] == '"' {
		if i = skipQuoted(v, 0); i < 0 {
			return errNameAddr
		}
		n.Display = v[:i]
		if i = skipLWS(v, i); i == len(v) || v[i] != '<' {
			// "Alice" sip:alice@example.org is not RFC 3261, but stands in Microsoft's traces.
			return n.parseAddrSpec(v[i:])
		}
	} else {
		i = bytes.IndexByte(v, '<')
		if i < 0 || !isDisplay(v[:i]) {
			return n.parseAddrSpec(v)
		}
		n.Display = trim(v[:i])
	}
	n.Angle = true
	e := bytes.IndexByte(v[i:], '>')
	if e < 0 {
		return errNameAddr
	}
	n.URI = v[i+1 : i+e]
	n.Params = v[skipLWS(v, i+e+1):]
	return n.check()
}

// isDisplay tells whether b can be the display name in front of "<". More than the
// RFC's tokens is let through (dots, parentheses, UTF-8), as phones send it.
func isDisplay(b []byte) bool {
	for _, c := range b {
		if classes[c]&classNoDisplay != 0 {
			return false
		}
	}
	return true
}

func (n *NameAddr) parseAddrSpec(v []byte) error {
	e := 0
	for e < len(v) && v[e] != ';' && !isLWS(v[e]) {
		if c := v[e]; c == '?' || c == ',' || c == '<' || c == '>' || c == '"' {
			return errNameAddr
		}
		e++
	}
	n.URI = v[:e]
	n.Params = v[skipLWS(v, e):]
	return n.check()
}

func (n *NameAddr) check() error {
	if len(n.Params) > 0 && n.Params[0] != ';' {
		return errNameAddr
	}
	if err := checkParams(n.Params, false); err != nil {
		return err
	}
	if n.IsStar() && !n.Angle {
		return nil
	}
	if bytes.IndexByte(n.URI, ':') < 1 {
		return errNameAddr
	}
	for _, c := range n.URI {
		if classes[c]&classNoAddress != 0 {
			return errNameAddr
		}
	}
	return nil
}
