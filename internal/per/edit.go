package per

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

var (
	// ErrEdit is wrapped by the error for an edit that the message has no place for.
	ErrEdit = errors.New("per: no such edit")
	// ErrCheck is returned by Apply if the result does not decode to what was
	// asked for; then the source must be sent on, or nothing.
	ErrCheck = errors.New("per: edited message is not what it should be")
)

type op uint8

const (
	opPatch   op = iota // the value was overwritten in e.work
	opReplace           // the value has another size
	opDrop
	opAdd    // a component of the SEQUENCE
	opAppend // an element of the list
)

// mark says what edits there are at a node.
type mark uint8

const (
	markSelf   mark = 1 << iota // the node is replaced, overwritten or dropped
	markInside                  // there is an edit at the node or inside of it
	markMoved                   // one that changes sizes
)

// edit is one change. A node has one at most, and none inside of it, but for
// additions and appends.
type edit struct {
	ref  Ref
	op   op
	comp uint16
	set  bool  // val is the whole value of the node, of opPatch too
	val  int32 // where its value is in Editor.values
}

// Editor changes values of a Tree. It keeps its memory from one message to the
// next. Not for concurrent use; not to be used for two messages at once.
type Editor struct {
	check  *Decoder
	tree   *Tree
	work   []byte // the source with all patches
	edits  []edit // in the order of their nodes
	values []Value
	marks  []mark // of every node
	moved  bool   // an edit other than opPatch
	steers bool   // an edit that the reading of what follows could depend on: all but those of SetAddr
	deep   bool   // an edit of a node that has others inside
	w      writer
	serial []byte // of a value that might fit in place
}

// NewEditor returns an editor for messages of s.
func NewEditor(s *Schema) *Editor { return &Editor{check: NewDecoder(s)} }

// Begin starts to edit t, which must stay valid until Apply, and forgets what
// was edited before.
func (e *Editor) Begin(t *Tree) {
	e.tree = t
	e.work = append(e.work[:0], t.Source()...)
	clear(e.values) // they hold others' memory
	e.edits, e.values = e.edits[:0], e.values[:0]
	e.moved, e.deep, e.steers = false, false, false
	if cap(e.marks) < len(t.nodes) {
		e.marks = make([]mark, len(t.nodes), cap(t.nodes))
	}
	e.marks = e.marks[:len(t.nodes)]
	clear(e.marks)
}

// Changed tells whether there is anything to apply.
func (e *Editor) Changed() bool { return len(e.edits) > 0 }

// Replace puts v in the place of r, which keeps its type. It is done in place
// if v takes as many bits. The octets of v must not change before Apply.
func (e *Editor) Replace(r Ref, v Value) error {
	if err := e.free(r); err != nil {
		return err
	}
	t := e.tree
	n := &t.nodes[r]
	size, err := e.encode(n.typ, &v, n.start)
	if err != nil {
		return fmt.Errorf("replace %s: %w", t.Path(r), err)
	}
	if size == n.end-n.start {
		overwrite(e.work, e.serial, n.start, n.end)
		e.add(edit{ref: r, op: opPatch, val: e.keep(v), set: true})
		return nil
	}
	e.add(edit{ref: r, op: opReplace, val: e.keep(v), set: true})
	return nil
}

// encode puts the encoding of v into e.serial as if it began at bit at of a
// message, and returns how many bits it takes.
func (e *Editor) encode(t TypeID, v *Value, at uint32) (uint32, error) {
	w := writer{buf: e.serial[:0]}
	w.bits(0, int(at&7)) // what lies before it in its octet
	err := e.tree.schema.put(&w, t, v)
	e.serial = w.buf
	return w.nbits - at&7, err
}

// overwrite copies the bits [from, to) of an encoding that begins in the same
// bit of its first octet.
func overwrite(dst, enc []byte, from, to uint32) {
	if from == to {
		return
	}
	first := from / 8
	for i := first; i <= (to-1)/8; i++ {
		mask := byte(0xff)
		if i == first {
			mask >>= from & 7
		}
		if i == (to-1)/8 {
			mask &= 0xff << (7 - (to-1)&7)
		}
		dst[i] = dst[i]&^mask | enc[i-first]&mask
	}
}

// SetInt sets an INTEGER, BOOLEAN or the index of an ENUMERATED.
func (e *Editor) SetInt(r Ref, v int64) error { return e.Replace(r, Number(v)) }

// SetOctets sets the contents of an OCTET STRING, whatever is decoded inside.
func (e *Editor) SetOctets(r Ref, b []byte) error { return e.Replace(r, Octet(b)) }

// SetAddr overwrites an address and a port in place: ip is an OCTET STRING of 4 or 16
// octets at an octet's begin, port an INTEGER of 0..65535. The address must be of
// the same family; to change the family, Replace what holds them.
func (e *Editor) SetAddr(ip, port Ref, to netip.AddrPort) error {
	if err := e.free(ip); err != nil {
		return err
	}
	if err := e.free(port); err != nil {
		return err
	}
	n, p := &e.tree.nodes[ip], &e.tree.nodes[port]
	addr := to.Addr().Unmap()
	size := uint32(addr.BitLen()) / 8
	if typ := e.tree.typeOf(ip); typ.Kind != Octets || typ.Elem != OpenType || n.n != size || size == 0 || n.off%8 != 0 ||
		!isPort(e.tree.typeOf(port)) {
		return fmt.Errorf("%w: %s does not take %s", ErrEdit, e.tree.Path(ip), to)
	}
	if addr.Is4() {
		b := addr.As4()
		copy(e.work[n.off/8:], b[:])
	} else {
		b := addr.As16()
		copy(e.work[n.off/8:], b[:])
	}
	e.work[p.end/8-2], e.work[p.end/8-1] = byte(to.Port()>>8), byte(to.Port())
	e.add(edit{ref: ip, op: opPatch})
	e.add(edit{ref: port, op: opPatch})
	return nil
}

// isPort tells whether a type is an INTEGER of 0..65535, two octets at an octet's begin.
func isPort(t *Type) bool {
	return t.Kind == Int && !t.Ext && t.HasLo && t.HasHi && t.Lo == 0 && t.Hi == 65535
}

// Drop removes an optional component, an addition or an element of a list.
func (e *Editor) Drop(r Ref) error {
	if r == None {
		return fmt.Errorf("%w: nothing to drop", ErrEdit)
	}
	t := e.tree
	for p := t.nodes[r].parent; p != None && t.nodes[p].typ == OpenType; p = t.nodes[r].parent {
		r = p
	}
	if err := e.free(r); err != nil {
		return err
	}
	n := &t.nodes[r]
	if n.parent == None {
		return fmt.Errorf("%w: the message cannot be dropped", ErrEdit)
	}
	switch typ := t.typeOf(n.parent); {
	case typ.Kind == Seq && (n.comp >= typ.Root || t.schema.comps(typ)[n.comp].Optional()):
	case typ.Kind == List && !typ.fixed() && int64(e.elements(n.parent)) > typ.Lo:
	default:
		return fmt.Errorf("%w: %s cannot be dropped", ErrEdit, t.Path(r))
	}
	e.add(edit{ref: r, op: opDrop})
	return nil
}

// Add adds an absent component to a SEQUENCE.
func (e *Editor) Add(seq Ref, name string, v Value) error {
	t := e.tree
	if seq = t.inner(seq); t.Kind(seq) == Octets {
		seq = t.Inside(seq)
	}
	typ := t.typeOf(seq)
	if typ.Kind != Seq {
		return fmt.Errorf("%w: %s takes no component %s", ErrEdit, t.Path(seq), name)
	}
	i := slices.Index(t.schema.compNames(typ), name)
	if i < 0 || t.component(seq, uint16(i)) != None || e.added(seq, uint16(i)) != nil {
		return fmt.Errorf("%w: %s does not take %s", ErrEdit, t.Path(seq), name)
	}
	if e.replaced(seq) {
		return fmt.Errorf("%w: %s was edited before", ErrEdit, t.Path(seq))
	}
	if err := t.schema.fits(t.schema.comps(typ)[i].Type(), &v); err != nil {
		return fmt.Errorf("add %s: %w", name, err)
	}
	e.add(edit{ref: seq, op: opAdd, comp: uint16(i), val: e.keep(v)})
	return nil
}

// Append adds an element at the end of a list.
func (e *Editor) Append(list Ref, v Value) error {
	t := e.tree
	list = t.inner(list)
	typ := t.typeOf(list)
	if typ.Kind != List || typ.fixed() || typ.HasHi && int64(e.elements(list)) >= typ.Hi || e.replaced(list) {
		return fmt.Errorf("%w: %s takes no more elements", ErrEdit, t.Path(list))
	}
	if err := t.schema.fits(typ.Elem, &v); err != nil {
		return fmt.Errorf("append to %s: %w", t.Path(list), err)
	}
	e.add(edit{ref: list, op: opAppend, val: e.keep(v)})
	return nil
}

// fits tells whether v can be encoded as a t.
func (s *Schema) fits(t TypeID, v *Value) error {
	var w writer
	return s.put(&w, t, v)
}

// elements counts the elements that a list will have.
func (e *Editor) elements(list Ref) int {
	n := int(e.tree.nodes[list].n)
	for i := range e.edits {
		switch ed := &e.edits[i]; {
		case ed.op == opAppend && ed.ref == list:
			n++
		case ed.op == opDrop && e.tree.nodes[ed.ref].parent == list:
			n--
		}
	}
	return n
}

// free refuses an edit of what is edited already, is inside of that, or holds an edit.
func (e *Editor) free(r Ref) error {
	if r == None {
		return fmt.Errorf("%w: the value is absent", ErrEdit)
	}
	if e.marks[r] != 0 {
		return fmt.Errorf("%w: %s was edited before", ErrEdit, e.tree.Path(r))
	}
	if e.replaced(e.tree.nodes[r].parent) {
		return fmt.Errorf("%w: %s was edited before", ErrEdit, e.tree.Path(r))
	}
	return nil
}

// replaced tells whether r or what it is in has another value by now.
func (e *Editor) replaced(r Ref) bool {
	for ; r != None; r = e.tree.nodes[r].parent {
		if e.marks[r]&markSelf != 0 {
			return true
		}
		if !e.deep {
			break
		}
	}
	return false
}

func (e *Editor) added(seq Ref, comp uint16) *edit {
	for i := range e.edits {
		if ed := &e.edits[i]; ed.op == opAdd && ed.ref == seq && ed.comp == comp {
			return ed
		}
	}
	return nil
}

// at returns the edit that replaces or drops r.
func (e *Editor) at(r Ref) *edit {
	if r == None || e.marks[r]&markSelf == 0 {
		return nil
	}
	lo, hi := 0, len(e.edits)
	for lo < hi {
		if mid := (lo + hi) / 2; e.edits[mid].ref < r {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return &e.edits[lo]
}

// keep keeps the value of an edit, and returns where.
func (e *Editor) keep(v Value) int32 {
	e.values = append(e.values, v)
	return int32(len(e.values) - 1)
}

// add keeps the edits in the order of their nodes. A node has one edit that
// replaces or drops it, or any number that add to it.
func (e *Editor) add(ed edit) {
	e.edits = append(e.edits, ed)
	for i := len(e.edits) - 1; i > 0 && e.edits[i-1].ref > ed.ref; i-- {
		e.edits[i-1], e.edits[i] = ed, e.edits[i-1]
	}
	m := markInside
	e.steers = e.steers || ed.op != opPatch || ed.set
	if ed.op != opPatch {
		m |= markMoved
		e.moved = true
	}
	if ed.op <= opDrop {
		e.marks[ed.ref] |= markSelf
		e.deep = e.deep || e.tree.nodes[ed.ref].next > ed.ref+1
	}
	for r := ed.ref; r != None && e.marks[r]&m != m; r = e.tree.nodes[r].parent {
		e.marks[r] |= m
	}
}

// Apply appends the edited message to dst, without what followed the message in
// its buffer. The result has been compared with the source, and decoded for that
// unless nothing but addresses was overwritten; on an error dst is returned as it was.
func (e *Editor) Apply(dst []byte) ([]byte, error) {
	out := e.work
	if e.moved {
		e.w = writer{buf: e.w.buf[:0]}
		if err := e.emit(0); err != nil {
			return dst, fmt.Errorf("apply: %w", err)
		}
		if len(e.w.buf) == 0 {
			e.w.buf = append(e.w.buf, 0)
		}
		out = e.w.buf
	}
	if err := e.verify(out); err != nil {
		return dst, fmt.Errorf("apply: %w", err)
	}
	return append(dst, out...), nil
}
