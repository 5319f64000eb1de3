package sipmsg

import (
	"slices"
	"strconv"
)

// Editor collects changes to a [Message] and writes the result in one copy. The
// zero value is ready for Reset. Texts are copied when they are given.
//
// Insertions at one place keep the order of the calls and stand before what
// replaces the bytes there. An edit that touches bytes which an earlier one
// removes is dropped and counted, see [Editor.Conflicts].
type Editor struct {
	m *Message
	// edits are sorted by off; none overlap.
	edits     []edit
	arena     []byte
	conflicts int
	body      bool
}

// edit replaces del bytes at off by arena[from:to].
type edit struct {
	off, del, from, to int
	// field is 1 + the field's index for what DeleteElement made.
	field int
}

// Reset forgets all edits and turns to m, which must stay as it is until AppendTo.
func (e *Editor) Reset(m *Message) {
	e.m, e.edits, e.arena, e.conflicts, e.body = m, e.edits[:0], e.arena[:0], 0, false
}

// Conflicts returns how many edits were dropped because they overlap earlier ones
// or because their bytes are not part of the message. It is 0 in a correct program.
func (e *Editor) Conflicts() int { return e.conflicts }

// replace adds an edit unless it overlaps another.
func (e *Editor) replace(off, del int, with []byte) {
	from := len(e.arena)
	e.arena = append(e.arena, with...)
	e.add(edit{off: off, del: del, from: from, to: len(e.arena)})
}

func (e *Editor) add(n edit) {
	i := e.place(n)
	if i < 0 {
		e.conflicts++
		return
	}
	e.edits = slices.Insert(e.edits, i, n)
}

// place returns where n belongs in e.edits, or -1 when it overlaps one of them.
func (e *Editor) place(n edit) int {
	i := len(e.edits)
	for i > 0 {
		p := e.edits[i-1]
		if p.off < n.off || p.off == n.off && (p.del == 0 || n.del > 0) {
			break
		}
		i--
	}
	if i > 0 && e.edits[i-1].off+e.edits[i-1].del > n.off {
		return -1
	}
	if i < len(e.edits) && n.off+n.del > e.edits[i].off {
		return -1
	}
	return i
}

// offset finds where sub stands in the message, -1 if it is not part of it.
func (e *Editor) offset(sub []byte) int {
	raw := e.m.raw
	off := cap(raw) - cap(sub)
	if cap(sub) == 0 || off < 0 || off+len(sub) > len(raw) || &raw[:cap(raw)][off] != &sub[:1][0] {
		return -1
	}
	return off
}

// ReplaceSpan replaces sub, which must be a part of m.Raw() as any view returns it.
func (e *Editor) ReplaceSpan(sub, with []byte) {
	if off := e.offset(sub); off >= 0 {
		e.replace(off, len(sub), with)
		return
	}
	e.conflicts++
}

// InsertBefore inserts in front of sub, a part of m.Raw().
func (e *Editor) InsertBefore(sub, with []byte) {
	if off := e.offset(sub); off >= 0 {
		e.replace(off, 0, with)
		return
	}
	e.conflicts++
}

// InsertAfter inserts behind sub, a part of m.Raw().
func (e *Editor) InsertAfter(sub, with []byte) {
	if off := e.offset(sub); off >= 0 {
		e.replace(off+len(sub), 0, with)
		return
	}
	e.conflicts++
}

// ReplaceRequestURI replaces the Request-URI.
func (e *Editor) ReplaceRequestURI(b []byte) { e.ReplaceSpan(e.m.uri, b) }

// ReplaceValue replaces the value of the i-th header field.
func (e *Editor) ReplaceValue(i int, b []byte) {
	f := e.m.at(i)
	e.replace(int(f.valStart), int(f.valEnd-f.valStart), b)
}

// ReplaceElement replaces one element.
func (e *Editor) ReplaceElement(el Element, b []byte) {
	if el.field == 0 {
		e.conflicts++
		return
	}
	e.replace(el.start, len(el.Value), b)
}

// DeleteHeader deletes the i-th header field with its line end.
func (e *Editor) DeleteHeader(i int) {
	f := e.m.at(i)
	e.add(edit{off: int(f.start), del: int(f.end - f.start)})
}

// DeleteElement deletes one element with its comma, or the whole header field when
// no other element is left in it.
func (e *Editor) DeleteElement(el Element) {
	if el.field == 0 || el.field > e.m.n {
		e.conflicts++
		return
	}
	inField := func(p edit) bool { return p.field == el.field }
	if !slices.ContainsFunc(e.edits, inField) {
		e.deleteElements(el.field, func(other Element) bool { return other.start == el.start })
		return
	}
	// Deletions in one field depend on each other: they are all made anew.
	old, before := slices.Clone(e.edits), e.conflicts
	e.edits = slices.DeleteFunc(e.edits, inField)
	e.deleteElements(el.field, func(other Element) bool {
		return other.start == el.start || slices.ContainsFunc(old, func(p edit) bool {
			return inField(p) && p.off <= other.start && other.start < p.off+p.del
		})
	})
	if e.conflicts != before {
		e.edits, e.conflicts = append(e.edits[:0], old...), before+1
	}
}

// deleteElements adds the deletions in one field. An element behind the first one
// that stays takes the comma in front of it along, the others the comma behind.
func (e *Editor) deleteElements(field int, gone func(Element) bool) {
	stays := false
	from, end := -1, 0
	e.m.fieldElements(field-1, func(el Element) bool {
		switch {
		case !gone(el):
			if from >= 0 {
				e.add(edit{off: from, del: el.start - from, field: field})
				from = -1
			}
			stays = true
		case stays:
			e.add(edit{off: end, del: el.start + len(el.Value) - end, field: field})
		case from < 0:
			from = el.start
		}
		end = el.start + len(el.Value)
		return true
	})
	if !stays {
		f := e.m.at(field - 1)
		e.add(edit{off: int(f.start), del: int(f.end - f.start), field: field})
	}
}

// Prepend inserts a header field, "Name: value" without CRLF, before all others.
func (e *Editor) Prepend(line []byte) { e.insertLine(e.m.hdrStart, line) }

// PrependBefore inserts a header field before the first with this id, or before
// all others when there is none.
func (e *Editor) PrependBefore(id HeaderID, line []byte) {
	off := e.m.hdrStart
	if e.m.has(id) {
		off = int(e.m.at(int(e.m.first[id]) - 1).start)
	}
	e.insertLine(off, line)
}

// Append inserts a header field behind all others.
func (e *Editor) Append(line []byte) { e.insertLine(e.m.hdrEnd, line) }

func (e *Editor) insertLine(off int, line []byte) {
	from := len(e.arena)
	e.arena = append(append(e.arena, line...), '\r', '\n')
	e.add(edit{off: off, from: from, to: len(e.arena)})
}

// ReplaceBody replaces the body and corrects every Content-Length; one is added
// if there is none.
func (e *Editor) ReplaceBody(b []byte) {
	if e.body {
		e.conflicts++
		return
	}
	e.body = true
	e.replace(e.m.bodyStart, len(e.m.raw)-e.m.bodyStart, b)
	e.setLength(len(b))
}

// EnsureContentLength adds a Content-Length if there is none, which a message from
// a datagram needs before it may go on a stream (RFC 3261 §20.14).
func (e *Editor) EnsureContentLength() {
	if !e.body && !e.m.has(ContentLength) {
		e.body = true
		e.setLength(len(e.m.raw) - e.m.bodyStart)
	}
}

func (e *Editor) setLength(n int) {
	var tmp [40]byte
	if !e.m.has(ContentLength) {
		e.Append(strconv.AppendInt(append(tmp[:0], "Content-Length: "...), int64(n), 10))
		return
	}
	for i := int(e.m.first[ContentLength]) - 1; i < e.m.n; i++ {
		f := e.m.at(i)
		if f.id != ContentLength {
			continue
		}
		if old, _, ok := number(e.m.value(f)); !ok || int(old) != n {
			e.ReplaceValue(i, strconv.AppendInt(tmp[:0], int64(n), 10))
		}
	}
}

// AppendTo appends the edited message to dst, which must not share memory with the
// message. Without edits it appends m.Raw().
func (e *Editor) AppendTo(dst []byte) []byte {
	raw, at := e.m.raw, 0
	size := len(raw)
	for _, c := range e.edits {
		size += c.to - c.from - c.del
	}
	dst = slices.Grow(dst, size)
	for _, c := range e.edits {
		dst = append(dst, raw[at:c.off]...)
		dst = append(dst, e.arena[c.from:c.to]...)
		at = c.off + c.del
	}
	return append(dst, raw[at:]...)
}
