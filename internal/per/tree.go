package per

import (
	"iter"
	"strconv"
	"strings"
	"unicode/utf16"
)

// Ref is a node of a Tree; None is no node.
type Ref int32

// None is what is returned for a component that is absent. All methods of Tree
// accept it: nothing is in nothing.
const None Ref = -1

// node is a decoded value. Nodes lie in the order of their bits, children
// right after their parent.
type node struct {
	typ        TypeID
	comp       uint16 // component, alternative or element of the parent
	parent     Ref
	next       Ref    // the node after the last descendant
	start, end uint32 // bits, padding before the contents included
	off        uint32 // strings, open types: first bit of the contents; Seq: of the extension bitmap
	n          uint32 // strings: units; List: elements; Seq: width of the extension bitmap
	val        int64  // numbers, indexes; Seq: bits of the optional components
}

// Tree is a decoded message.
type Tree struct {
	schema *Schema
	buf    []byte
	nodes  []node
	used   int
}

// Root is the message itself.
func (t *Tree) Root() Ref { return 0 }

// Len is the number of nodes; every Ref is less.
func (t *Tree) Len() int { return len(t.nodes) }

// Source returns the octets of the message.
func (t *Tree) Source() []byte { return t.buf[:t.used] }

// Rest returns what followed the message in the buffer.
func (t *Tree) Rest() []byte { return t.buf[t.used:] }

// Type returns the type of r.
func (t *Tree) Type(r Ref) TypeID {
	if r == None {
		return OpenType
	}
	return t.nodes[r].typ
}

// Kind returns the kind of r's type; Null for None.
func (t *Tree) Kind(r Ref) Kind {
	if r == None {
		return Null
	}
	return t.schema.Types[t.nodes[r].typ].Kind
}

// Parent returns what r is in, open types included; None for the root.
func (t *Tree) Parent(r Ref) Ref {
	if r == None {
		return None
	}
	return t.nodes[r].parent
}

// Span returns the octets that hold bits of r: [from, to) in Source.
func (t *Tree) Span(r Ref) (from, to int) {
	if r == None {
		return 0, 0
	}
	n := &t.nodes[r]
	return int(n.start / 8), int(n.end+7) / 8
}

// Next returns the node after r and all that is in it; equal to Len at the end.
func (t *Tree) Next(r Ref) Ref { return t.nodes[r].next }

// inner steps through an open type or OCTET STRING to the value inside, if
// that was decoded.
func (t *Tree) inner(r Ref) Ref {
	for r != None {
		n := &t.nodes[r]
		if n.typ != OpenType || n.next == r+1 {
			return r
		}
		r++
	}
	return r
}

// Inside returns the value that was decoded inside an OCTET STRING or open
// type; None if there is none.
func (t *Tree) Inside(r Ref) Ref {
	if k := t.Kind(r); r == None || k != Octets && k != Open || t.nodes[r].next == r+1 {
		return None
	}
	return r + 1
}

// component finds the wrapper or value of component i of r.
func (t *Tree) component(r Ref, i uint16) Ref {
	for c := r + 1; c < t.nodes[r].next; c = t.nodes[c].next {
		if t.nodes[c].comp == i {
			return c
		}
	}
	return None
}

// Child returns a component of a SEQUENCE, or the alternative of a CHOICE if
// it is the named one; None if absent. It sees through the open type around
// an addition and through an OCTET STRING with a decoded value.
func (t *Tree) Child(r Ref, name string) Ref {
	r = t.inner(r)
	if r == None {
		return None
	}
	if t.Kind(r) == Octets {
		r = t.Inside(r)
	}
	typ := t.typeOf(r)
	if typ.Kind != Seq && typ.Kind != Choice {
		return None
	}
	names := t.schema.compNames(typ)
	for c := r + 1; c < t.nodes[r].next; c = t.nodes[c].next {
		if i := t.nodes[c].comp; int(i) < len(names) && names[i] == name {
			return t.inner(c)
		}
	}
	return None
}

func (t *Tree) typeOf(r Ref) *Type {
	if r == None {
		return &t.schema.Types[OpenType]
	}
	return &t.schema.Types[t.nodes[r].typ]
}

// Find follows Child along names; None if one is absent.
func (t *Tree) Find(r Ref, names ...string) Ref {
	for _, name := range names {
		r = t.Child(r, name)
	}
	return r
}

// Chosen returns the name of the alternative of a CHOICE and the value.
// An alternative that the schema does not know has no name.
func (t *Tree) Chosen(r Ref) (string, Ref) {
	r = t.inner(r)
	typ := t.typeOf(r)
	if typ.Kind != Choice {
		return "", None
	}
	if i := t.nodes[r].val; i < int64(typ.Root)+int64(typ.Adds) {
		return t.schema.compNames(typ)[i], t.inner(r + 1)
	}
	return "", r + 1
}

// Elems are the elements of a list.
func (t *Tree) Elems(r Ref) iter.Seq[Ref] {
	return func(yield func(Ref) bool) {
		if t.Kind(r) != List {
			return
		}
		for c := r + 1; c < t.nodes[r].next; c = t.nodes[c].next {
			if !yield(c) {
				return
			}
		}
	}
}

// Int returns the value of an INTEGER or BOOLEAN, or the index of an ENUMERATED or
// CHOICE; 0 for None.
func (t *Tree) Int(r Ref) int64 {
	if r == None {
		return 0
	}
	return t.nodes[r].val
}

// Octets returns the contents of an OCTET STRING, OBJECT IDENTIFIER or open type, in the
// source; nil for others and for None.
func (t *Tree) Octets(r Ref) []byte {
	if r == None {
		return nil
	}
	n := &t.nodes[r]
	switch t.schema.Types[n.typ].Kind {
	case OID, General, Open:
		return t.buf[n.off/8 : n.off/8+n.n]
	case Octets:
		if n.off%8 != 0 { // at most two octets
			v := peek(t.buf, n.off, int(n.n)*8)
			return []byte{byte(v >> 8), byte(v)}[2-n.n:]
		}
		return t.buf[n.off/8 : n.off/8+n.n]
	}
	return nil
}

// Text returns the contents of a character string.
func (t *Tree) Text(r Ref) string {
	if r == None {
		return ""
	}
	n, typ := &t.nodes[r], t.typeOf(r)
	if typ.Kind == General {
		return string(t.Octets(r))
	}
	if typ.Kind != Chars {
		return ""
	}
	units := make([]uint16, n.n)
	for i := range units {
		v := peek(t.buf, n.off+uint32(i)*uint32(typ.CharBits), int(typ.CharBits))
		if typ.Alphabet != "" {
			v = uint64(charAt(typ.Alphabet, v))
		}
		units[i] = uint16(v)
	}
	return string(utf16.Decode(units))
}

// charAt maps an index to its character; beyond the alphabet, to '?'.
func charAt(alphabet string, i uint64) byte {
	if i >= uint64(len(alphabet)) {
		return '?'
	}
	return alphabet[i]
}

// Name returns what r is called in its parent, without the wrappers around it;
// empty for elements and for what the schema does not know.
func (t *Tree) Name(r Ref) string {
	for r != None {
		n := &t.nodes[r]
		if n.parent == None {
			return ""
		}
		typ := t.typeOf(n.parent)
		switch typ.Kind {
		case Seq, Choice:
			if names := t.schema.compNames(typ); int(n.comp) < len(names) {
				return names[n.comp]
			}
			return ""
		case List:
			return ""
		}
		r = n.parent
	}
	return ""
}

// Path names r from the root, for logs and tests: "h323-uu-pdu.h245Control[0].request".
func (t *Tree) Path(r Ref) string {
	var parts []string
	for ; r != None && t.nodes[r].parent != None; r = t.nodes[r].parent {
		n := &t.nodes[r]
		switch typ := t.typeOf(n.parent); typ.Kind {
		case Seq, Choice:
			name := "?"
			if names := t.schema.compNames(typ); int(n.comp) < len(names) {
				name = names[n.comp]
			}
			parts = append(parts, name, ".")
		case List:
			parts = append(parts, "["+strconv.Itoa(int(n.comp))+"]")
		}
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		if b.Len() > 0 || parts[i] != "." {
			b.WriteString(parts[i])
		}
	}
	return b.String()
}
