package trace

import (
	"bytes"
	"strconv"
)

// head is what is read of a SIP message. The slices are parts of it.
type head struct {
	first    []byte // the start line
	callID   []byte
	cseq     []byte // "1 INVITE"
	method   []byte
	from, to []byte
	status   int // 0 of a request
}

// scan reads the start line and the few header fields that tell messages apart, of the first of each name.
func scan(data []byte) head {
	var h head
	line, rest := cutLine(data)
	h.first = line
	if tail, ok := bytes.CutPrefix(line, []byte("SIP/2.0 ")); ok && len(tail) >= 3 {
		h.status, _ = strconv.Atoi(string(tail[:3]))
	} else {
		h.method, _, _ = bytes.Cut(line, []byte{' '})
	}
	for len(rest) > 0 && (h.callID == nil || h.cseq == nil || h.from == nil || h.to == nil) {
		if line, rest = cutLine(rest); len(line) == 0 {
			break
		}
		h.field(line)
	}
	if h.status != 0 {
		if i := bytes.LastIndexByte(h.cseq, ' '); i >= 0 {
			h.method = h.cseq[i+1:]
		}
	}
	return h
}

// CallID returns the Call-ID of a message, empty if it has none.
func CallID(data []byte) string { return string(scan(data).callID) }

// field takes one header line.
func (h *head) field(line []byte) {
	name, value, ok := bytes.Cut(line, []byte{':'})
	if !ok {
		return
	}
	name = bytes.TrimRight(name, " \t")
	var to *[]byte
	switch {
	case is(name, "call-id", 'i'):
		to = &h.callID
	case is(name, "cseq", 0):
		to = &h.cseq
	case is(name, "from", 'f'):
		to = &h.from
	case is(name, "to", 't'):
		to = &h.to
	default:
		return
	}
	if *to == nil {
		*to = bytes.TrimSpace(value)
	}
}

// is tells whether a header name is the given one, in lower case, or its compact form.
func is(name []byte, long string, short byte) bool {
	if len(name) == 1 {
		return short != 0 && name[0]|0x20 == short
	}
	return len(name) == len(long) && bytes.EqualFold(name, []byte(long))
}

func cutLine(data []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(data, []byte{'\n'})
	return bytes.TrimSuffix(line, []byte{'\r'}), rest
}
