package per

import "fmt"

// verify compares the edited message with the source. It decodes it, unless there
// is nothing but SetAddr: no length, index or presence is read from what that
// overwrites, and any value of it is in range, so that the result decodes to the
// same nodes if all other octets are the same.
func (e *Editor) verify(out []byte) error {
	if !e.steers {
		if !e.sameOutside(out) {
			return fmt.Errorf("%w: octets beside an address", ErrCheck)
		}
		return nil
	}
	return e.verifyDecoded(out)
}

func (e *Editor) verifyDecoded(out []byte) error {
	got, err := e.check.Decode(e.tree.nodes[0].typ, out)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCheck, err)
	}
	if len(got.Rest()) > 0 {
		return fmt.Errorf("%w: %d octets left over", ErrCheck, len(got.Rest()))
	}
	if !e.moved && e.sameShape(got) {
		return nil
	}
	if at := e.same(got, 0, 0); at != None {
		return fmt.Errorf("%w: at %s", ErrCheck, e.tree.Path(at))
	}
	return nil
}

// sameShape is the check for patches alone: all nodes where they were, with the
// values that they had. False if a patch has put another alternative in; then
// the trees are compared at length.
func (e *Editor) sameShape(got *Tree) bool {
	was := e.tree
	if len(got.nodes) != len(was.nodes) {
		return false
	}
	k := 0
	for i := range was.nodes {
		a, b := &was.nodes[i], &got.nodes[i]
		if a.typ != b.typ || a.start != b.start || a.end != b.end || a.off != b.off || a.n != b.n {
			return false
		}
		if a.val == b.val {
			continue
		}
		for k < len(e.edits) && was.nodes[e.edits[k].ref].next <= Ref(i) {
			k++
		}
		if k == len(e.edits) || e.edits[k].ref > Ref(i) {
			return false
		}
	}
	return e.sameOutside(got.buf)
}

// sameOutside compares the octets that no patch has to do with.
func (e *Editor) sameOutside(out []byte) bool {
	at := 0
	src := e.tree.Source()
	for i := range e.edits {
		from, to := e.patched(&e.edits[i])
		if from > at && string(src[at:from]) != string(out[at:from]) {
			return false
		}
		at = max(at, to)
	}
	return string(src[at:]) == string(out[at:])
}

// patched returns the octets that a patch may have changed.
func (e *Editor) patched(ed *edit) (from, to int) {
	from, to = e.tree.Span(ed.ref)
	if ed.set {
		return from, to
	}
	if n := &e.tree.nodes[ed.ref]; n.n > 0 { // of SetAddr: less the padding
		return int(n.off / 8), to
	}
	return to - 2, to
}

// same compares the node was of the source with the node now of the result and
// returns the node that differs without being asked to, or None.
func (e *Editor) same(got *Tree, was, now Ref) Ref {
	a, b := &e.tree.nodes[was], &got.nodes[now]
	if a.typ != b.typ {
		return was
	}
	if ed := e.at(was); ed != nil {
		if !e.asked(got, ed, now) {
			return was
		}
		return None
	}
	typ := e.tree.typeOf(was)
	switch typ.Kind {
	case Seq:
		return e.sameChildren(got, was, now, true)
	case List:
		return e.sameChildren(got, was, now, false)
	case Choice:
		if a.val != b.val {
			return was
		}
		return e.same(got, was+1, now+1)
	case Open, Octets:
		if a.next > was+1 && b.next > now+1 {
			return e.sameInside(got, was, now)
		}
	}
	if a.val != b.val || a.n != b.n || a.next-was != b.next-now {
		return was
	}
	n := uint64(a.n) * unit(typ)
	for i := uint64(0); i < n; i += 56 {
		k := int(min(n-i, 56))
		if peek(e.tree.buf, a.off+uint32(i), k) != peek(got.buf, b.off+uint32(i), k) {
			return was
		}
	}
	return None
}

// asked tells whether the node now of the result has the value that ed gives it.
func (e *Editor) asked(got *Tree, ed *edit, now Ref) bool {
	a, b := &e.tree.nodes[ed.ref], &got.nodes[now]
	if !ed.set { // overwritten by SetAddr: octets of the same size
		if a.n == 0 {
			return got.Int(now) == int64(peek(e.work, a.end-16, 16))
		}
		return a.n == b.n && string(e.work[a.off/8:a.off/8+a.n]) == string(got.Octets(now))
	}
	size, err := e.encode(b.typ, &e.values[ed.val], b.start)
	if err != nil || size != b.end-b.start {
		return false
	}
	for i := uint32(0); i < size; i += 48 {
		k := int(min(size-i, 48))
		if peek(got.buf, b.start+i, k) != peek(e.serial, b.start&7+i, k) {
			return false
		}
	}
	return true
}

// sameInside compares what is inside an open type, and what comes after it.
func (e *Editor) sameInside(got *Tree, was, now Ref) Ref {
	a, b := &e.tree.nodes[was], &got.nodes[now]
	restA := e.tree.buf[(e.tree.nodes[was+1].end+7)/8 : a.off/8+a.n]
	restB := got.buf[(got.nodes[now+1].end+7)/8 : b.off/8+b.n]
	if string(restA) != string(restB) {
		return was
	}
	return e.same(got, was+1, now+1)
}

// sameChildren walks the children of both, less those dropped and those added.
// With byComp they are told by their component, otherwise by their order.
func (e *Editor) sameChildren(got *Tree, was, now Ref, byComp bool) Ref {
	a, b := &e.tree.nodes[was], &got.nodes[now]
	d := now + 1
	for c := was + 1; c < a.next; c = e.tree.nodes[c].next {
		if e.dropped(c) {
			continue
		}
		for byComp && d < b.next && e.added(was, got.nodes[d].comp) != nil {
			d = got.nodes[d].next
		}
		if d >= b.next || byComp && got.nodes[d].comp != e.tree.nodes[c].comp {
			return c
		}
		if at := e.same(got, c, d); at != None {
			return at
		}
		d = got.nodes[d].next
	}
	for extra := e.extra(was, byComp); d < b.next; d = got.nodes[d].next {
		if byComp && e.added(was, got.nodes[d].comp) == nil || !byComp && extra == 0 {
			return was
		}
		extra--
	}
	return None
}

// extra counts what was appended to a list.
func (e *Editor) extra(list Ref, byComp bool) int {
	n := 0
	for i := range e.edits {
		if !byComp && e.edits[i].op == opAppend && e.edits[i].ref == list {
			n++
		}
	}
	return n
}
