package sdp

import "bytes"

// partHead holds the header fields of a part that matter here.
type partHead struct {
	contentType, disposition, transfer, encoding, length []byte
	// ambiguous tells that what the body is or how it is encoded is said twice, and not the same.
	ambiguous bool
	// lengthBack is the distance from the value of Content-Length to the body.
	lengthBack int
}

// encoded tells whether the body's bytes are not the content's.
func (h *partHead) encoded() bool {
	t := h.transfer
	plain := len(t) == 0 || fold(t, "7bit") || fold(t, "8bit") || fold(t, "binary")
	return !plain || len(h.encoding) > 0 && !fold(h.encoding, "identity")
}

// parseHead reads header fields up to the empty line, and returns the offset of what follows it.
// A part without an empty line is all header.
func parseHead(b []byte) (h partHead, body int) {
	lengthAt := 0
	for pos := 0; pos < len(b); {
		end, next := foldedLine(b, pos)
		if end == pos {
			h.lengthBack = next - lengthAt
			return h, next
		}
		if colon := bytes.IndexByte(b[pos:end], ':'); colon >= 0 {
			name, value := bytes.TrimSpace(b[pos:pos+colon]), bytes.TrimSpace(b[pos+colon+1:end])
			if fold(name, "content-length") && h.length == nil {
				lengthAt = end - len(bytes.TrimLeft(b[pos+colon+1:end], " \t\r\n"))
			}
			h.set(name, value)
		}
		pos = next
	}
	h.lengthBack = len(b) - lengthAt
	return h, len(b)
}

// set keeps the first value of each field.
func (h *partHead) set(name, value []byte) {
	var to *[]byte
	switch {
	case fold(name, "content-type") || fold(name, "c"):
		to = &h.contentType
	case fold(name, "content-disposition"):
		to = &h.disposition
	case fold(name, "content-transfer-encoding"):
		to = &h.transfer
	case fold(name, "content-encoding") || fold(name, "e"):
		to = &h.encoding
	case fold(name, "content-length"):
		to = &h.length
	default:
		return
	}
	switch {
	case *to == nil:
		*to = value
	case to != &h.disposition && !bytes.Equal(*to, value):
		h.ambiguous = true
	}
}

// foldedLine returns the end of the header field at pos, with its continuation lines, and the start of the next.
func foldedLine(b []byte, pos int) (end, next int) {
	for from := pos; ; from = next {
		end, next = len(b), len(b)
		if i := bytes.IndexByte(b[from:], '\n'); i >= 0 {
			end, next = from+i, from+i+1
		}
		if end > from && b[end-1] == '\r' {
			end--
		}
		if end == pos || next >= len(b) || !isBlank(b[next]) {
			return end, next
		}
	}
}

// mediaType returns the value without its parameters, and without the blanks that may stand around the slash (RFC 3261 §25.1).
func mediaType(contentType []byte) []byte {
	if i := bytes.IndexByte(contentType, ';'); i >= 0 {
		contentType = contentType[:i]
	}
	contentType = bytes.TrimSpace(contentType)
	if bytes.ContainsAny(contentType, " \t\r\n") {
		return bytes.Join(bytes.Fields(contentType), nil)
	}
	return contentType
}

// hasParameter tells whether a field's value has a parameter without a value, whose name is in lower case.
func hasParameter(value []byte, name string) bool {
	for part := range bytes.SplitSeq(value, []byte{';'}) {
		if fold(bytes.TrimSpace(part), name) {
			return true
		}
	}
	return false
}

// boundaryOf returns the boundary parameter of a Content-Type, nil if there is none.
func boundaryOf(contentType []byte) []byte {
	for rest := contentType; ; {
		i := bytes.IndexByte(rest, ';')
		if i < 0 {
			return nil
		}
		rest = bytes.TrimLeft(rest[i+1:], " \t\r\n")
		eq := bytes.IndexByte(rest, '=')
		if eq < 0 {
			return nil
		}
		name := bytes.TrimSpace(rest[:eq])
		var value []byte
		value, rest = parameter(bytes.TrimLeft(rest[eq+1:], " \t\r\n"))
		if fold(name, "boundary") {
			return value
		}
	}
}

// parameter splits a parameter's value, a token or a quoted string, from what follows it.
func parameter(b []byte) (value, rest []byte) {
	if len(b) > 0 && b[0] == '"' {
		if i := bytes.IndexByte(b[1:], '"'); i >= 0 {
			return b[1 : 1+i], b[i+2:]
		}
		return nil, nil
	}
	i := bytes.IndexByte(b, ';')
	if i < 0 {
		i = len(b)
	}
	return bytes.TrimSpace(b[:i]), b[i:]
}
