// Package ber finds elements in the restricted BER that LDAP uses (RFC 4511 §5.1, X.690) and replaces the
// contents of single ones in place. It knows no schema, decodes no values and prints nothing anew: what is
// not replaced keeps its octets, needless long forms of lengths included.
//
//	stream ── Size ──► one message ── Next, Next … ──► elements ──► Edits.Replace ──► Edits.Apply ──► message
//	                   30 84 00 00 00 2c 02 01 05 66 …            lengths of all enclosing elements corrected
//
// Only definite lengths of at most four octets and single-octet tags are taken; nothing is allocated by a
// length that was received.
package ber

import (
	"errors"
	"slices"
)

// What is wrong with an encoding.
var (
	// ErrTag: a tag of more than one octet; LDAP has none.
	ErrTag = errors.New("multi-octet tag")
	// ErrLength: an indefinite length, or one of more than four octets (RFC 4511 §5.1, X.690 §8.1.3).
	ErrLength = errors.New("indefinite or oversized length")
	// ErrOverrun: an element ends after what encloses it.
	ErrOverrun = errors.New("element overruns its parent")
	// ErrEdit: an edit names an element that is not where it was, or edits overlap.
	ErrEdit = errors.New("edit does not fit the message")
)

// Tags of universal types that LDAP uses.
const (
	Boolean     byte = 0x01
	Integer     byte = 0x02
	OctetString byte = 0x04
	Enumerated  byte = 0x0a
	Sequence    byte = 0x30
	Set         byte = 0x31
)

// Element is a located element: its octets are b[Start:End], its contents b[Body:End].
type Element struct {
	Tag              byte
	Start, Body, End int
}

// Of returns the contents of the element in b.
func (e Element) Of(b []byte) []byte { return b[e.Body:e.End] }

// Constructed tells whether the contents are elements (X.690 §8.1.2.5).
func (e Element) Constructed() bool { return e.Tag&0x20 != 0 }

// header reads tag and length at b[0]. ok is false while octets are missing.
func header(b []byte) (size, body int, ok bool, err error) {
	if len(b) > 0 && b[0]&0x1f == 0x1f {
		return 0, 0, false, ErrTag
	}
	if len(b) < 2 {
		return 0, 0, false, nil
	}
	if b[1] < 0x80 {
		return 2 + int(b[1]), 2, true, nil
	}
	n := int(b[1] & 0x7f)
	if n == 0 || n > 4 {
		return 0, 0, false, ErrLength
	}
	if len(b) < 2+n {
		return 0, 0, false, nil
	}
	l := uint32(0)
	for _, o := range b[2 : 2+n] {
		l = l<<8 | uint32(o)
	}
	if l > 1<<30 {
		return 0, 0, false, ErrLength
	}
	return 2 + n + int(l), 2 + n, true, nil
}

// Size returns how many octets the element takes that b begins with; 0 while that cannot be told yet.
func Size(b []byte) (int, error) {
	size, _, _, err := header(b)
	return size, err
}

// Next returns the element that begins at b[off], which must end at or before end.
func Next(b []byte, off, end int) (Element, error) {
	size, body, ok, err := header(b[off:end])
	switch {
	case err != nil:
		return Element{}, err
	case !ok || size > end-off:
		return Element{}, ErrOverrun
	}
	return Element{b[off], off, off + body, off + size}, nil
}

// Walker reads the elements of a span one after the other. The first error ends it.
type Walker struct {
	b        []byte
	off, end int
	err      error
}

// Walk reads the elements that make up the contents of e in b.
func Walk(b []byte, e Element) *Walker { return &Walker{b: b, off: e.Body, end: e.End} }

// Next returns the next element; false at the end and after an error.
func (w *Walker) Next() (Element, bool) {
	if w.err != nil || w.off >= w.end {
		return Element{}, false
	}
	e, err := Next(w.b, w.off, w.end)
	if err != nil {
		w.err = err
		return Element{}, false
	}
	w.off = e.End
	return e, true
}

// Expect returns the next element if it has the tag; otherwise false, and the walk goes on with the same element.
func (w *Walker) Expect(tag byte) (Element, bool) {
	at := w.off
	e, ok := w.Next()
	if ok && e.Tag != tag {
		w.off = at
		return Element{}, false
	}
	return e, ok
}

// Err returns what ended the walk early.
func (w *Walker) Err() error { return w.err }

// Int returns the value of an INTEGER or ENUMERATED of at most four octets.
func Int(contents []byte) (int32, bool) {
	if len(contents) == 0 || len(contents) > 4 {
		return 0, false
	}
	v := int32(int8(contents[0]))
	for _, o := range contents[1:] {
		v = v<<8 | int32(o)
	}
	return v, true
}

// Edits are replacements of the contents of primitive elements of one message. The zero value is empty.
type Edits struct {
	list []edit
}

type edit struct {
	at   Element
	with []byte
}

// Replace has the contents of the primitive element e replaced; with is kept until Apply.
func (s *Edits) Replace(e Element, with []byte) { s.list = append(s.list, edit{e, with}) }

// Len returns how many replacements there are.
func (s *Edits) Len() int { return len(s.list) }

// Apply returns the element that msg consists of with all replacements made and the lengths of what encloses
// them corrected. A length keeps its number of octets where the new one fits. msg stays as it is; without
// replacements it is returned itself.
func (s *Edits) Apply(msg []byte) ([]byte, error) {
	if len(s.list) == 0 {
		return msg, nil
	}
	slices.SortFunc(s.list, func(a, b edit) int { return a.at.Start - b.at.Start })
	top, err := Next(msg, 0, len(msg))
	if err != nil {
		return nil, err
	}
	rest := s.list
	out, err := rebuild(make([]byte, 0, len(msg)+16*len(rest)), msg, top, &rest)
	if err == nil && len(rest) > 0 {
		err = ErrEdit
	}
	return out, err
}

// rebuild appends e to dst with those of the edits that lie in it; they are taken from the front of rest.
// Its depth is bounded by that of the elements that were given to Replace.
func rebuild(dst, msg []byte, e Element, rest *[]edit) ([]byte, error) {
	edits := *rest
	if len(edits) == 0 || edits[0].at.Start >= e.End {
		return append(dst, msg[e.Start:e.End]...), nil
	}
	if edits[0].at == e {
		*rest = edits[1:]
		dst = appendHeader(dst, e, len(edits[0].with))
		return append(dst, edits[0].with...), nil
	}
	if !e.Constructed() {
		return nil, ErrEdit
	}
	start := len(dst)
	w := Walk(msg, e)
	for c, ok := w.Next(); ok; c, ok = w.Next() {
		var err error
		if dst, err = rebuild(dst, msg, c, rest); err != nil {
			return nil, err
		}
	}
	if w.Err() != nil {
		return nil, w.Err()
	}
	head := appendHeader(nil, e, len(dst)-start)
	return slices.Insert(dst, start, head...), nil
}

// appendHeader appends e's tag and the length n, in as many octets as e's own length if it fits.
func appendHeader(dst []byte, e Element, n int) []byte {
	dst = append(dst, e.Tag)
	long := e.Body - e.Start - 2 // length octets after the first one
	if long == 0 && n < 0x80 {
		return append(dst, byte(n))
	}
	need := 1
	for n>>(8*need) > 0 {
		need++
	}
	long = max(long, need)
	dst = append(dst, 0x80|byte(long))
	for i := long - 1; i >= 0; i-- {
		dst = append(dst, byte(n>>(8*i)))
	}
	return dst
}

// Append appends an element with the tag and the contents, its length in as few octets as it needs.
func Append(dst []byte, tag byte, contents ...[]byte) []byte {
	n := 0
	for _, c := range contents {
		n += len(c)
	}
	dst = appendHeader(dst, Element{Tag: tag, Body: 2}, n)
	for _, c := range contents {
		dst = append(dst, c...)
	}
	return dst
}

// AppendInt appends an INTEGER or ENUMERATED in as few octets as it needs (X.690 §8.3.2).
func AppendInt(dst []byte, tag byte, v int32) []byte {
	n := 1
	for n < 4 && v<<(32-8*n)>>(32-8*n) != v {
		n++
	}
	dst = append(dst, tag, byte(n))
	for i := n - 1; i >= 0; i-- {
		dst = append(dst, byte(v>>(8*i)))
	}
	return dst
}
