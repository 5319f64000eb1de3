package per

import (
	"fmt"
)

// Limits of a message.
const (
	MaxOctets = 65536
	MaxDepth  = 32 // values and wrappers around a value, itself included
	MaxNodes  = 20000
)

// keepNodes is how many nodes a Decoder keeps memory for between messages: enough for
// all but a flood of values, 160 KiB.
const keepNodes = 4096

// Decoder decodes messages into Trees. It keeps its memory from one message to
// the next: a Tree is valid until the next Decode of the same Decoder. Not for
// concurrent use.
type Decoder struct {
	r     reader
	s     *Schema
	types []Type // of s
	slab  []node // of which n are in use
	n     int
	tree  Tree
	depth int
}

// NewDecoder returns a decoder for messages of s.
func NewDecoder(s *Schema) *Decoder { return &Decoder{s: s, types: s.Types} }

// Decode decodes one value of type t from the beginning of buf, which the Tree
// refers to and which must not change meanwhile. What follows the value is
// Tree.Rest. The error wraps one of the Err values.
func (d *Decoder) Decode(t TypeID, buf []byte) (*Tree, error) {
	if len(buf) > MaxOctets {
		return nil, fmt.Errorf("decode %s: %w", d.s.Types[t].Name, ErrSize)
	}
	d.r = reader{buf: buf, end: uint32(len(buf)) * 8}
	d.n, d.depth = 0, 0
	if len(d.slab) > keepNodes {
		d.slab = nil
	}
	d.value(t, 0, None)
	if d.r.err != nil {
		return nil, fmt.Errorf("decode %s: octet %d: %w", d.s.Types[t].Name, d.r.pos/8, d.r.err)
	}
	used := max(1, int(d.r.pos+7)/8)
	if used > len(buf) {
		return nil, fmt.Errorf("decode %s: %w", d.s.Types[t].Name, ErrTruncated)
	}
	d.tree = Tree{schema: d.s, buf: buf, nodes: d.slab[:d.n], used: used}
	return &d.tree, nil
}

// value decodes a value of type t, the comp-th of its parent.
func (d *Decoder) value(t TypeID, comp uint32, parent Ref) {
	ref := d.push(t, comp, parent)
	if ref == None {
		return
	}
	typ := &d.types[t]
	switch typ.Kind {
	case Null:
	case Seq:
		d.sequence(typ, ref)
	case Choice:
		d.choice(typ, ref)
	case List:
		d.list(typ, ref)
	case Open:
		d.wrapper(OpenType, ref)
	case Bool:
		d.slab[ref].val = int64(d.r.bits(1))
	case Int:
		d.integer(typ, &d.slab[ref])
	default:
		d.leaf(typ, &d.slab[ref])
		if typ.Elem != OpenType {
			d.contained(typ, ref)
		}
	}
	d.pop(ref)
}

// push begins a node. None if there are too many or too deep.
func (d *Decoder) push(t TypeID, comp uint32, parent Ref) Ref {
	i := d.n
	d.depth++
	if i >= MaxNodes || d.depth > MaxDepth {
		d.refuse(i)
		return None
	}
	if i == len(d.slab) {
		d.slab = append(d.slab, make([]node, min(max(64, i), MaxNodes-i))...)
	}
	n := &d.slab[i]
	n.typ, n.comp, n.parent, n.start = t, uint16(comp), parent, d.r.pos
	n.off, n.n, n.val = 0, 0, 0 // the node of an earlier message; pop sets the rest
	d.n++
	return Ref(i)
}

func (d *Decoder) refuse(nodes int) {
	if nodes >= MaxNodes {
		d.r.fail(ErrNodes)
	} else {
		d.r.fail(ErrDepth)
	}
}

// pop ends the node.
func (d *Decoder) pop(ref Ref) {
	d.depth--
	n := &d.slab[ref]
	n.end, n.next = d.r.pos, Ref(d.n)
}

// leaf decodes what has no children.
func (d *Decoder) leaf(typ *Type, n *node) {
	r := &d.r
	switch typ.Kind {
	case Enum:
		n.val = int64(d.index(typ))
	case OID, General:
		n.n = r.length()
		n.off = r.pos
		r.skip(uint64(n.n) * 8)
	case Octets, Bits, Chars:
		n.n = r.size(typ)
		if n.n > 0 && typ.aligned() {
			r.align()
		}
		n.off = r.pos
		r.skip(uint64(n.n) * unit(typ))
	}
}

// unit is the number of bits in a unit of a string's length.
func unit(t *Type) uint64 {
	switch t.Kind {
	case Bits:
		return 1
	case Chars:
		return uint64(t.CharBits)
	}
	return 8
}

// integer decodes an INTEGER (§12). Of one wider than 64 bits the value is not
// kept, only its octets.
func (d *Decoder) integer(typ *Type, n *node) {
	r := &d.r
	bounded := typ.HasLo && typ.HasHi
	if typ.Ext && r.bits(1) == 1 {
		bounded = false
	}
	if bounded {
		n.val = typ.Lo + int64(r.offset(uint64(typ.Hi-typ.Lo)))
		return
	}
	n.n = r.length()
	n.off = r.pos
	if n.n == 0 || n.n > 8 {
		if n.n == 0 {
			r.fail(ErrRange)
		}
		r.skip(uint64(n.n) * 8)
		return
	}
	v := r.octets(int(n.n))
	if typ.HasLo && !typ.Ext {
		n.val = typ.Lo + int64(v)
		return
	}
	shift := 64 - 8*n.n
	n.val = int64(v<<shift) >> shift
}

// index decodes the index of an ENUMERATED or CHOICE (§13, §22): additions
// count on from the root.
func (d *Decoder) index(typ *Type) uint32 {
	r := &d.r
	if !typ.Ext || typ.Root > 128 {
		if typ.Ext && r.bits(1) == 1 {
			return uint32(typ.Root) + r.small()
		}
		return uint32(r.offset(uint64(typ.Root) - 1))
	}
	w := width(uint64(typ.Root)) // at most the 7 bits that an addition's index takes
	v := uint32(r.bits(1 + w))
	if v>>w == 0 {
		if v >= uint32(typ.Root) {
			r.fail(ErrRange)
		}
		return v
	}
	r.pos -= uint32(w)
	return uint32(typ.Root) + r.small()
}

// sequence decodes a SEQUENCE or SET (§18).
func (d *Decoder) sequence(typ *Type, ref Ref) {
	r := &d.r
	bits := int(typ.Opt)
	if typ.Ext {
		bits++
	}
	have := r.bits(bits)
	next := uint64(1) << typ.Opt
	extended := have&next != 0
	have &^= next
	next >>= 1
	d.slab[ref].val = int64(have)
	comps := d.s.comps(typ)
	for i, c := range comps[:typ.Root] {
		if c.Optional() {
			absent := have&next == 0
			next >>= 1
			if absent {
				continue
			}
		}
		if d.value(c.Type(), uint32(i), ref); r.err != nil {
			return
		}
	}
	if extended {
		d.additions(typ, comps[typ.Root:], ref)
	}
}

// additions decodes what follows the root of an extended SEQUENCE (§18.7-9).
// Additions that the schema does not know stay open types.
func (d *Decoder) additions(typ *Type, comps []Comp, ref Ref) {
	r := &d.r
	n := r.smallLength()
	at := r.pos
	d.slab[ref].off, d.slab[ref].n = at, n
	r.skip(uint64(n))
	for i := uint32(0); i < n && r.err == nil; i++ {
		if peek(r.buf, at+i, 1) == 0 {
			continue
		}
		inner := OpenType
		if int(i) < len(comps) {
			inner = comps[i].Type()
		}
		d.open(inner, uint32(typ.Root)+i, ref)
	}
}

// choice decodes a CHOICE; its child is the alternative (§22).
func (d *Decoder) choice(typ *Type, ref Ref) {
	i := d.index(typ)
	d.slab[ref].val = int64(i)
	if d.r.err != nil {
		return
	}
	if i >= uint32(typ.Root)+uint32(typ.Adds) {
		d.open(OpenType, i, ref)
		return
	}
	inner := d.s.Comps[uint32(typ.First)+i].Type()
	if i < uint32(typ.Root) {
		d.value(inner, i, ref)
	} else {
		d.open(inner, i, ref)
	}
}

// list decodes a SEQUENCE OF or SET OF (§19). Every element has a bit at least.
func (d *Decoder) list(typ *Type, ref Ref) {
	r := &d.r
	n := r.size(typ)
	if n > r.end-r.pos {
		r.fail(ErrCount)
	}
	d.slab[ref].n = n
	for i := uint32(0); i < n && r.err == nil; i++ {
		d.value(typ.Elem, i, ref)
	}
}

// open adds an open type as a node and decodes what is inside, if inner says what.
func (d *Decoder) open(inner TypeID, comp uint32, parent Ref) {
	ref := d.push(OpenType, comp, parent)
	if ref == None {
		return
	}
	d.wrapper(inner, ref)
	d.pop(ref)
}

// wrapper decodes an open type (§10.2, §18.8); octets after the inner value
// are a newer sender's business and stay.
func (d *Decoder) wrapper(inner TypeID, ref Ref) {
	r := &d.r
	n := r.length()
	at := r.pos
	d.slab[ref].off, d.slab[ref].n = at, n
	r.skip(uint64(n) * 8)
	if r.err == nil && inner != OpenType {
		d.within(inner, ref, at, r.pos)
	}
}

// within decodes a value inside of the octets at..end of the node ref.
func (d *Decoder) within(inner TypeID, ref Ref, at, end uint32) {
	outer := d.r.end
	d.r.pos, d.r.end = at, end
	d.value(inner, 0, ref)
	d.r.end = outer
	if d.r.err == nil {
		d.r.pos = end
	}
}

// contained decodes what the schema says to be in an OCTET STRING. It may be
// anything, and is somebody else's message: if it does not decode, it stays octets.
func (d *Decoder) contained(typ *Type, ref Ref) {
	n := &d.slab[ref]
	if d.r.err != nil || n.n == 0 {
		return
	}
	mark, depth := d.n, d.depth
	at, end := n.off, d.r.pos
	d.within(typ.Elem, ref, at, end)
	switch d.r.err {
	case nil, ErrNodes, ErrDepth: //nolint:errorlint // the reader's own, never wrapped
		return
	}
	d.n = mark
	d.r.err, d.r.pos, d.depth = nil, end, depth
}
