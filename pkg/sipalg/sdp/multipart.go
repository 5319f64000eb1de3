package sdp

import (
	"bytes"
	"slices"
	"strconv"
)

// Bounds of a multipart body.
const (
	maxDepth    = 4
	maxParts    = 32
	maxBoundary = 200 // RFC 2046 §5.1.1 says 70
)

// Part is one leaf of a body. Its slices point into the body, but for those of a body that is
// its own only part.
type Part struct {
	// ContentType is the header field's value; empty if the part has none.
	ContentType []byte
	// Disposition is the value of Content-Disposition. Microsoft marks the older of two
	// descriptions "session; handling=optional; ms-proxy-2007fallback".
	Disposition []byte
	// Encoding is the value of Content-Transfer-Encoding.
	Encoding []byte
	// Body is the content, without the line end that belongs to the delimiter.
	Body []byte
	// Depth is 0 for a body that is not multipart, else the number of multiparts around the part.
	Depth int
}

// IsSDP tells whether a Content-Type is application/sdp, with any parameters, or application/gw-sdp, by which
// Communicator and its successors also tell how they reach a gateway.
func IsSDP(contentType []byte) bool {
	t := mediaType(contentType)
	return fold(t, "application/sdp") || fold(t, gatewaySDP)
}

const gatewaySDP = "application/gw-sdp"

// IsMultipart tells whether a Content-Type is a multipart that is taken apart here: any, as RFC 2046 §5.1.7 asks for
// kinds that are not known. Encrypted ones are left whole.
func IsMultipart(contentType []byte) bool {
	t := mediaType(contentType)
	return prefixFold(t, "multipart/") && !fold(t, "multipart/encrypted")
}

// EachPart yields the leaves of body in order: itself, or the parts of a multipart (RFC 2046 §5.1) at
// any depth. It returns an *Error if the body is a multipart that cannot be taken apart (the parts
// before the fault have been yielded), and nil when yield returned false. A missing last delimiter is tolerated.
func EachPart(contentType, body []byte, yield func(p Part) bool) error {
	e := entity{head: partHead{contentType: contentType}, body: body}
	parts := 0
	_, err := walk(e, 0, &parts, yield)
	return err
}

func walk(e entity, depth int, parts *int, yield func(p Part) bool) (more bool, err error) {
	if !IsMultipart(e.head.contentType) {
		return yield(e.part(depth)), nil
	}
	split, err := newSplitter(e, depth)
	if err != nil {
		return false, err
	}
	for {
		child, _, ok, err := split.next(parts)
		if err != nil || !ok {
			return err == nil, err
		}
		if more, err := walk(child, depth+1, parts, yield); err != nil || !more {
			return false, err
		}
	}
}

// Preferred returns the description of body that counts, and its number among the descriptions. Of several
// ones that say the same (multipart/alternative, RFC 2046 §5.1.4; Microsoft's clients put the older dialect
// of ICE first and mark it) it is the last, else the first; one for a gateway only if there is no other. It
// returns nil, -1 if there is none, and an *Error like [EachPart].
func Preferred(contentType, body []byte) (part []byte, number int, err error) {
	n, last := 0, fold(mediaType(contentType), "multipart/alternative")
	number = -1
	gateway := false
	err = EachPart(contentType, body, func(p Part) bool {
		if !IsSDP(p.ContentType) {
			return true
		}
		forGateway := fold(mediaType(p.ContentType), gatewaySDP)
		if part == nil || gateway && !forGateway || last && gateway == forGateway {
			part, number, gateway = p.Body, n, forGateway
		}
		last = last || hasParameter(p.Disposition, "ms-proxy-2007fallback")
		n++
		return true
	})
	if err != nil {
		return nil, -1, err
	}
	return part, number, nil
}

// RewriteBody appends body to dst with f applied to each SDP part, and tells whether any byte
// changed. F appends the new description to dst; its errors are returned as they are. Preamble, boundaries,
// headers of parts, other parts and epilogue keep their bytes, but for a Content-Length of a part that was
// true before: it follows the part. On error dst is returned as it was.
//
// An SDP part in a transfer encoding that hides it (base64, quoted-printable), or in a multipart/signed, is an *Error:
// nobody could rewrite its addresses.
func RewriteBody(dst, contentType, body []byte, f func(sdpPart, dst []byte) ([]byte, error)) ([]byte, bool, error) {
	return editLeaves(dst, contentType, body, func(dst []byte, e entity, _ int) ([]byte, error) {
		switch {
		case !IsSDP(e.head.contentType):
			return append(dst, e.body...), nil
		case e.head.encoded():
			return dst, &Error{Reason: "encoded_part"}
		case e.signed:
			return dst, &Error{Reason: "signed_part"}
		}
		return f(e.body, dst)
	})
}

// EditParts is the counterpart of [RewriteBody] for what else a message carries: f is applied to each leaf that is no
// session description, and returns what to put in the part's place, nil to leave it. F undoes a part's
// transfer encoding itself; a Content-Encoding stays, since many readers pass over it.
func EditParts(dst, contentType, body []byte, f func(p Part) []byte) ([]byte, bool, error) {
	return editLeaves(dst, contentType, body, func(dst []byte, e entity, depth int) ([]byte, error) {
		if !IsSDP(e.head.contentType) {
			if with := f(e.part(depth)); with != nil {
				return append(dst, with...), nil
			}
		}
		return append(dst, e.body...), nil
	})
}

// editLeaves appends body to dst, each leaf as the function appends it.
func editLeaves(dst, contentType, body []byte, leaf func(dst []byte, e entity, depth int) ([]byte, error)) ([]byte, bool, error) {
	l := leafEditor{leaf: leaf}
	out, err := l.edit(dst, entity{head: partHead{contentType: contentType}, body: body}, 0)
	if err != nil {
		return dst, false, err
	}
	return out, l.changed, nil
}

type leafEditor struct {
	leaf    func(dst []byte, e entity, depth int) ([]byte, error)
	parts   int
	changed bool
}

func (l *leafEditor) edit(dst []byte, e entity, depth int) ([]byte, error) {
	if IsMultipart(e.head.contentType) {
		return l.multipart(dst, e, depth)
	}
	start := len(dst)
	dst, err := l.leaf(dst, e, depth)
	if err == nil && !bytes.Equal(dst[start:], e.body) {
		l.changed = true
	}
	return dst, err
}

func (l *leafEditor) multipart(dst []byte, e entity, depth int) ([]byte, error) {
	split, err := newSplitter(e, depth)
	if err != nil {
		return dst, err
	}
	pos := 0
	for {
		child, at, ok, err := split.next(&l.parts)
		if err != nil {
			return dst, err
		}
		if !ok {
			return append(dst, e.body[pos:]...), nil
		}
		child.signed = e.signed || fold(mediaType(e.head.contentType), "multipart/signed")
		headEnd := len(dst) + at - pos
		dst = append(dst, e.body[pos:at]...)
		if dst, err = l.edit(dst, child, depth+1); err != nil {
			return dst, err
		}
		dst = child.head.fixLength(dst, headEnd, len(child.body))
		pos = at + len(child.body)
	}
}

// fixLength corrects the Content-Length of a part whose body begins at headEnd in dst, and was old bytes long.
func (h *partHead) fixLength(dst []byte, headEnd, old int) []byte {
	now := len(dst) - headEnd
	if n, err := strconv.Atoi(string(h.length)); err != nil || n != old || now == old {
		return dst
	}
	from := headEnd - h.lengthBack
	return slices.Replace(dst, from, from+len(h.length), strconv.AppendInt(nil, int64(now), 10)...)
}

// entity is a body with what its header says.
type entity struct {
	head   partHead
	body   []byte
	signed bool // within a multipart/signed
}

func (e *entity) part(depth int) Part {
	return Part{ContentType: e.head.contentType, Disposition: e.head.disposition, Encoding: e.head.transfer, Body: e.body, Depth: depth}
}

// splitter yields the children of a multipart.
type splitter struct {
	body, boundary []byte
	at             int // after the last delimiter line
	done           bool
}

func newSplitter(e entity, depth int) (*splitter, error) {
	boundary := boundaryOf(e.head.contentType)
	switch {
	case depth == maxDepth:
		return nil, &Error{Reason: "too_deep"}
	case len(boundary) == 0 || len(boundary) > maxBoundary:
		return nil, &Error{Reason: "no_boundary"}
	case e.head.encoded():
		return nil, &Error{Reason: "encoded_part"}
	}
	s := &splitter{body: e.body, boundary: boundary}
	_, next, last, ok := s.delimiter(0)
	if !ok {
		return nil, &Error{Reason: "no_parts"}
	}
	s.at, s.done = next, last && !s.more(next)
	return s, nil
}

// next returns the next child and the offset of its body, and counts it in parts.
func (s *splitter) next(parts *int) (e entity, at int, ok bool, err error) {
	if s.done || s.at > len(s.body) {
		return e, 0, false, nil
	}
	if *parts++; *parts > maxParts {
		return e, 0, false, &Error{"too_many_parts", s.at}
	}
	start := s.at
	end, next, last, found := s.delimiter(start)
	if !found {
		end, s.done = len(s.body), true
	} else {
		s.at, s.done = next, last && !s.more(next)
	}
	head, n := parseHead(s.body[start:end])
	if head.ambiguous {
		return e, 0, false, &Error{"ambiguous_part", start}
	}
	return entity{head: head, body: s.body[start+n : end]}, start + n, true, nil
}

// more tells that a delimiter follows what looked like the closing one: some readers go on there.
func (s *splitter) more(from int) bool {
	_, _, _, ok := s.delimiter(from)
	return ok
}

// delimiter finds the next delimiter line from offset from on: end is where what stands before it ends,
// next where the line after it begins; last says that it is the closing one.
func (s *splitter) delimiter(from int) (end, next int, last, ok bool) {
	for i := from; ; {
		n := bytes.Index(s.body[i:], s.boundary)
		if n < 0 {
			return 0, 0, false, false
		}
		i += n
		start, after := i-2, i+len(s.boundary)
		if start >= from && s.body[start] == '-' && s.body[start+1] == '-' && (start == 0 || s.body[start-1] == '\n') {
			if next, last, ok = s.lineEnd(after); ok {
				return beforeLineEnd(s.body, from, start), next, last, true
			}
		}
		i++
	}
}

// lineEnd reads the rest of a delimiter line: "--" if it is the closing one, blanks, the line's end.
func (s *splitter) lineEnd(i int) (next int, last, ok bool) {
	if bytes.HasPrefix(s.body[i:], []byte("--")) {
		last = true
		i += 2
	}
	for i < len(s.body) && isBlank(s.body[i]) {
		i++
	}
	switch rest := s.body[i:]; {
	case len(rest) == 0:
		return i, last, last
	case rest[0] == '\n':
		return i + 1, last, true
	case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
		return i + 2, last, true
	}
	return i, last, last // text after the closing delimiter is epilogue
}

// beforeLineEnd returns the offset of the line end before start, which belongs to the delimiter.
func beforeLineEnd(b []byte, from, start int) int {
	if start > from && b[start-1] == '\n' {
		start--
		if start > from && b[start-1] == '\r' {
			start--
		}
	}
	return start
}
