package mux

import "slices"

// pieceSize is what a stream's buffer grows by: one frame.
const pieceSize = maxFrame

// sliver is the free end of a piece that is left unused rather than splitting a frame over it.
const sliver = pieceSize / 16

// piece is a part of a buffer. Whoever reads or writes it without the lock
// pins it for that time.
type piece struct {
	buf  [pieceSize]byte
	r, w int
	pins int
}

// buffer holds what arrived on a stream and was not read. The reader of the
// carrier writes into it, and the application reads from it, both without a
// copy in between.
type buffer struct {
	pieces []*piece
	size   int
	closed bool // nothing is kept any more
}

// room is where a frame is to be put: in one piece, or the rest of it in another.
type room struct {
	p, q          *piece
	first, second []byte
}

// reserve pins room for n bytes, 0 < n ≤ maxPayload.
func (b *buffer) reserve(n int) room {
	if len(b.pieces) > 0 {
		p := b.pieces[len(b.pieces)-1]
		if free := pieceSize - p.w; free >= n {
			p.pins++
			return room{p: p, first: p.buf[p.w : p.w+n]}
		} else if free >= sliver {
			p.pins++
			q := b.grow()
			return room{p, q, p.buf[p.w:], q.buf[:n-free]}
		}
	}
	p := b.grow()
	return room{p: p, first: p.buf[:n]}
}

// grow appends a pinned piece.
func (b *buffer) grow() *piece {
	p := piecePool.Get().(*piece)
	p.r, p.w, p.pins = 0, 0, 1
	b.pieces = append(b.pieces, p)
	return p
}

// commit makes the bytes in the room readable, or forgets them.
func (b *buffer) commit(r room, ok bool) {
	if ok && !b.closed {
		r.p.w += len(r.first)
		if r.q != nil {
			r.q.w += len(r.second)
		}
		b.size += len(r.first) + len(r.second)
	}
	if r.q != nil {
		r.q.pins--
	}
	b.unpin(r.p)
}

// take returns at most n bytes, counts them as read, and pins them. There must be some.
func (b *buffer) take(n int) (*piece, []byte) {
	i := slices.IndexFunc(b.pieces, func(p *piece) bool { return p.r < p.w })
	p := b.pieces[i]
	v := p.buf[p.r:min(p.w, p.r+n)]
	p.r += len(v)
	p.pins++
	b.size -= len(v)
	return p, v
}

// unpin frees what is read and not pinned.
func (b *buffer) unpin(p *piece) {
	p.pins--
	b.free()
}

func (b *buffer) free() {
	n := 0
	for _, p := range b.pieces {
		if p.pins > 0 || p.r < p.w && !b.closed {
			break
		}
		piecePool.Put(p)
		n++
	}
	if b.pieces = slices.Delete(b.pieces, 0, n); len(b.pieces) == 0 {
		b.pieces = nil
	}
}

// close forgets what is unread and returns how much that was.
func (b *buffer) close() int {
	n := b.size
	b.size, b.closed = 0, true
	b.free()
	return n
}
