package sipmsg

import "errors"

var errVia = errors.New("bad Via")

// Via is a view of one Via element (RFC 3261 §20.42, RFC 3581). Slices are parts
// of the message.
type Via struct {
	// Element is where it stands, for the Editor; only from a [Message].
	Element Element
	// Value is the whole element, trimmed.
	Value []byte
	// Proto is the transport as on the wire, "UDP".
	Proto []byte
	// SentBy is host and port as on the wire, with the brackets of IPv6.
	SentBy []byte
	// Host has no brackets; Port is 0 when absent.
	Host []byte
	Port uint16
	V6   bool
	// Params starts with its ";".
	Params []byte
	// Branch is empty for RFC 2543 clients and for in-dialog requests of
	// Microsoft's; transactions are then matched by other fields (RFC 3261 §17.2.3).
	Branch []byte
	// Received has no brackets, which RFC 5118 §4.5 lets one write or not.
	Received []byte
	// HasRPort tells that rport is there; RPort is its value, 0 if it has none.
	HasRPort bool
	RPort    uint16
	// RPortParam is the parameter from its name to the end of its value.
	RPortParam []byte
	Maddr      []byte
	// TTL is 0 when absent.
	TTL uint8
}

// ParseVia reads one Via element. Blanks are legal nearly everywhere: around the
// slashes of "SIP/2.0/UDP", and around the colon of the port.
func ParseVia(b []byte) (Via, error) {
	var v Via
	err := v.parse(b)
	return v, err
}

func (v *Via) parse(b []byte) error {
	b = trim(b)
	*v = Via{Value: b, Element: Element{Value: b}}
	i, ok := v.parseProtocol(b)
	if !ok {
		return errVia
	}
	h, err := parseHostPort(b[i:])
	if err != nil {
		return errVia
	}
	v.Host, v.Port, v.V6 = h.host, h.port, h.v6
	end := i + h.end
	next := skipLWS(b, end)
	if h.port == 0 && next < len(b) && b[next] == ':' {
		p := skipLWS(b, next+1)
		end = p
		for end < len(b) && isDigit(b[end]) {
			end++
		}
		if v.Port, ok = port(b[p:end]); !ok {
			return errVia
		}
		next = skipLWS(b, end)
	}
	v.SentBy = b[i:end]
	v.Params = b[next:]
	return v.parseParams()
}

// parseProtocol reads "SIP / 2.0 / UDP " and returns the index of sent-by. The
// version is any token: a request of another version is to be answered with 505.
func (v *Via) parseProtocol(b []byte) (int, bool) {
	start := 0
	for part := range 3 {
		end := skipToken(b, start)
		if end == start {
			return 0, false
		}
		word := b[start:end]
		if part == 0 && !equalFold(word, "SIP") {
			return 0, false
		}
		next := skipLWS(b, end)
		if part == 2 {
			v.Proto = word
			return next, next > end
		}
		if next == len(b) || b[next] != '/' {
			return 0, false
		}
		start = skipLWS(b, next+1)
	}
	return 0, false
}

func (v *Via) parseParams() error {
	b := v.Params
	if len(b) > 0 && b[0] == '(' {
		// A comment (RFC 2543) ends what is read.
		v.Params = b[:0]
		return nil
	}
	if len(b) > 0 && b[0] != ';' {
		return errVia
	}
	for i := 0; i < len(b); {
		p, next, empty := nextParam(b, i)
		if p.bad || empty {
			return errVia
		}
		if next < 0 {
			return nil
		}
		i = next
		if !v.take(p) {
			return errVia
		}
	}
	return nil
}

// take keeps the parameters that routing needs.
func (v *Via) take(p param) bool {
	switch len(p.name) {
	case 6:
		if equalFold(p.name, "branch") {
			v.Branch = p.value
		}
	case 8:
		if equalFold(p.name, "received") {
			v.Received = p.value
			if n := len(p.value); n > 2 && p.value[0] == '[' && p.value[n-1] == ']' {
				v.Received = p.value[1 : n-1]
			}
		}
	case 5:
		if equalFold(p.name, "maddr") {
			v.Maddr = p.value
			break
		}
		if equalFold(p.name, "rport") {
			return v.takeRPort(p)
		}
	case 3:
		if equalFold(p.name, "ttl") {
			n, _, ok := number(p.value)
			v.TTL = uint8(min(n, 255))
			return ok
		}
	}
	return true
}

func (v *Via) takeRPort(p param) bool {
	v.HasRPort = true
	whole := p.name
	if p.hasValue {
		// Both are parts of one slice, so their capacities tell their distance.
		whole = p.name[:cap(p.name)-cap(p.value)+len(p.value)]
	}
	v.RPortParam = whole
	if len(p.value) == 0 {
		return true
	}
	var ok bool
	v.RPort, ok = port(p.value)
	return ok
}
