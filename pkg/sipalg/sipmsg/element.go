package sipmsg

import (
	"bytes"
	"iter"
)

// Element is one of the comma-separated elements of a header field, or the only
// one. It knows where it stands, so an [Editor] can replace or delete it.
type Element struct {
	// Value is trimmed and may hold folds.
	Value []byte
	// field is 1 + the header field's index; 0 means that the element does not come from a Message.
	field int
	// start is the offset of Value in the message.
	start int
}

// Field returns the index of the header field, for [Message.Header], or -1.
func (e Element) Field() int { return e.field - 1 }

// Elements returns the elements of all header fields with this id, in order.
// Commas in quotes, angle brackets and comments do not separate; empty elements
// are left out. Use it for fields that are lists (Via, Contact, Route,
// Record-Route, Path, Supported ...). Ranging over it does not allocate.
func (m *Message) Elements(id HeaderID) iter.Seq[Element] {
	return func(yield func(Element) bool) { m.elements(id, yield) }
}

func (m *Message) elements(id HeaderID, yield func(Element) bool) {
	if id >= numHeaders || m.first[id] == 0 {
		return
	}
	for i := int(m.first[id]) - 1; i < int(m.last[id]); i++ {
		if f := m.at(i); f.id == id && !m.fieldElements(i, yield) {
			return
		}
	}
}

// fieldElements yields the elements of the i-th field; it returns false when
// yield did.
func (m *Message) fieldElements(i int, yield func(Element) bool) bool {
	f := m.at(i)
	v := m.value(f)
	for from := 0; from < len(v); {
		end := elementEnd(v, from)
		s, e := from, end
		for s < e && isLWS(v[s]) {
			s++
		}
		for e > s && isLWS(v[e-1]) {
			e--
		}
		from = end + 1
		if e > s && !yield(Element{Value: v[s:e], field: i + 1, start: int(f.valStart) + s}) {
			return false
		}
	}
	return true
}

// elementEnd returns the index of the comma that ends the element at v[i:], or
// len(v). What is opened and not closed reaches to the end.
func elementEnd(v []byte, i int) int {
	if bytes.IndexByte(v[i:], ',') < 0 {
		return len(v)
	}
	for ; i < len(v); i++ {
		switch v[i] {
		case ',':
			return i
		case '"':
			if i = skipQuoted(v, i); i < 0 {
				return len(v)
			}
			i--
		case '<':
			for i < len(v) && v[i] != '>' {
				i++
			}
		case '(':
			// Only behind a blank is it a comment; URIs may have parentheses.
			if i == 0 || isLWS(v[i-1]) {
				i = skipComment(v, i)
			}
		}
	}
	return len(v)
}

// skipComment returns the index of the ")" that closes the comment at v[i].
func skipComment(v []byte, i int) int {
	depth := 0
	for ; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return i
}

// firstElement returns the first element of the first field with this id.
func (m *Message) firstElement(id HeaderID) (Element, bool) {
	for el := range m.Elements(id) {
		return el, true
	}
	return Element{}, false
}
