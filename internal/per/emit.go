package per

// emit writes the node r as edited. What holds no edit is copied bit by bit,
// if it begins at the same bit of an octet as in the source; otherwise its
// padding is made anew.
func (e *Editor) emit(r Ref) error {
	t := e.tree
	n := &t.nodes[r]
	if e.w.nbits&7 == n.start&7 && !e.touched(r) {
		e.w.copyBits(e.work, n.start, n.end)
		return nil
	}
	if ed := e.at(r); ed != nil && ed.set {
		return t.schema.put(&e.w, n.typ, &e.values[ed.val])
	}
	switch typ := t.typeOf(r); typ.Kind {
	case Seq:
		return e.emitSeq(typ, r)
	case Choice:
		putIndex(&e.w, typ, int(n.val))
		return e.emit(r + 1)
	case List:
		return e.emitList(typ, r)
	case Open:
		return e.emitOpen(r)
	case Octets:
		if n.next > r+1 && e.touched(r) && e.at(r) == nil {
			return e.emitOpen(r)
		}
		return e.emitLeaf(typ, n)
	default:
		return e.emitLeaf(typ, n)
	}
}

// touched tells whether r or anything in it is changed in size.
func (e *Editor) touched(r Ref) bool { return e.marks[r]&markMoved != 0 }

// emitLeaf writes an unchanged value at another bit of the octet. In e.work it
// may have been patched, which changes no length.
func (e *Editor) emitLeaf(typ *Type, n *node) error {
	w := &e.w
	switch typ.Kind {
	case Null:
	case Int:
		e.emitInt(typ, n)
	case Enum, Bool:
		w.shiftBits(e.work, n.start, n.end)
	default:
		if err := putSize(w, typ, int(n.n)); err != nil {
			return err
		}
		if n.n > 0 && typ.aligned() {
			w.align()
		}
		w.shiftBits(e.work, n.off, n.off+n.n*uint32(unit(typ)))
	}
	return nil
}

// emitInt writes an INTEGER: its prefix, if it has one, and its octets.
func (e *Editor) emitInt(typ *Type, n *node) {
	w := &e.w
	bounded := typ.HasLo && typ.HasHi && n.n == 0
	span := uint64(typ.Hi - typ.Lo)
	if typ.Ext {
		w.bits(b2u(!bounded), 1)
	}
	switch {
	case !bounded:
		w.length(int(n.n))
		w.shiftBits(e.work, n.off, n.end)
	case span < 255:
		k := uint32(width(span + 1))
		w.bits(peek(e.work, n.end-k, int(k)), int(k))
	case span < 65536:
		w.align()
		w.octets(e.work[n.end/8-uint32(octetsFor(span)) : n.end/8])
	default:
		prefix := width(uint64(octetsFor(span)))
		at := n.start
		if typ.Ext {
			at++
		}
		k := peek(e.work, at, prefix)
		w.bits(k, prefix)
		w.octets(e.work[n.end/8-uint32(k)-1 : n.end/8])
	}
}

// emitOpen writes an open type, or an OCTET STRING with a value inside.
func (e *Editor) emitOpen(r Ref) error {
	n := &e.tree.nodes[r]
	at := e.w.mark()
	end := n.off + n.n*8
	if n.next > r+1 {
		if err := e.emit(r + 1); err != nil {
			return err
		}
		e.w.octets(e.work[(e.tree.nodes[r+1].end+7)/8 : end/8])
	} else {
		e.w.octets(e.work[n.off/8 : end/8])
	}
	if !e.w.close(at, n.n > 0) {
		return ErrSize
	}
	return nil
}

// emitSeq writes a SEQUENCE with the sender's width of the extension bitmap,
// or a wider one if an addition beyond it was added.
func (e *Editor) emitSeq(typ *Type, r Ref) error {
	n := &e.tree.nodes[r]
	have := uint64(n.val)
	wide, bitmap := e.bitmap(typ, r)
	if typ.Ext {
		e.w.bits(b2u(wide > 0), 1)
	}
	comps := e.tree.schema.comps(typ)[:typ.Root]
	bit := uint64(1) << typ.Opt >> 1
	for i, c := range comps {
		if !c.Optional() {
			continue
		}
		child := e.tree.component(r, uint16(i))
		if e.dropped(child) {
			have &^= bit
		} else if e.added(r, uint16(i)) != nil {
			have |= bit
		}
		bit >>= 1
	}
	e.w.bits(have, int(typ.Opt))
	for i := range comps {
		if err := e.emitComponent(typ, r, uint16(i)); err != nil {
			return err
		}
	}
	if wide == 0 {
		return nil
	}
	e.w.smallLength(wide)
	for i := range wide {
		e.w.bits(b2u(bitmap[i/64]>>(i%64)&1 == 1), 1)
	}
	for i := range wide {
		if err := e.emitComponent(typ, r, typ.Root+uint16(i)); err != nil {
			return err
		}
	}
	return nil
}

// bitmap works out the extension bitmap of r; bit i of it is addition i. With
// the last addition the whole bitmap goes (§18.1).
func (e *Editor) bitmap(typ *Type, r Ref) (wide uint32, have [MaxAdditions / 64]uint64) {
	n := &e.tree.nodes[r]
	if !typ.Ext {
		return 0, have
	}
	wide = n.n
	some, fewer := false, false
	for c := r + 1; c < n.next; c = e.tree.nodes[c].next {
		i := int(e.tree.nodes[c].comp) - int(typ.Root)
		switch {
		case i < 0:
		case e.dropped(c):
			fewer = true
		default:
			some = true
			have[i/64] |= 1 << (i % 64)
		}
	}
	for i := range e.edits {
		if ed := &e.edits[i]; ed.op == opAdd && ed.ref == r && ed.comp >= typ.Root {
			k := uint32(ed.comp - typ.Root)
			some = true
			have[k/64] |= 1 << (k % 64)
			wide = max(wide, k+1)
		}
	}
	if fewer && !some {
		wide = 0
	}
	return wide, have
}

func (e *Editor) dropped(r Ref) bool {
	ed := e.at(r)
	return ed != nil && ed.op == opDrop
}

// emitComponent writes component i of r, if there is one in the end.
func (e *Editor) emitComponent(typ *Type, r Ref, i uint16) error {
	if ed := e.added(r, i); ed != nil {
		inner := e.tree.schema.comps(typ)[i].Type()
		if i >= typ.Root {
			return e.tree.schema.putOpen(&e.w, inner, &e.values[ed.val])
		}
		return e.tree.schema.put(&e.w, inner, &e.values[ed.val])
	}
	c := e.tree.component(r, i)
	if c == None || e.dropped(c) {
		return nil
	}
	return e.emit(c)
}

func (e *Editor) emitList(typ *Type, r Ref) error {
	if err := putSize(&e.w, typ, e.elements(r)); err != nil {
		return err
	}
	for c := range e.tree.Elems(r) {
		if e.dropped(c) {
			continue
		}
		if err := e.emit(c); err != nil {
			return err
		}
	}
	for i := range e.edits {
		if ed := &e.edits[i]; ed.op == opAppend && ed.ref == r {
			if err := e.tree.schema.put(&e.w, typ.Elem, &e.values[ed.val]); err != nil {
				return err
			}
		}
	}
	return nil
}
