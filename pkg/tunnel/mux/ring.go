package mux

import (
	"encoding/binary"
	"sync"
)

// chunkSize is what the ring grows and shrinks by: four of the largest frames.
const chunkSize = 4 * maxFrame

type chunk struct {
	buf [chunkSize]byte
	off uint64 // of buf[0] in the count of bytes
	n   int    // used
}

// chunkPool and piecePool are shared by all sessions: an idle session holds
// nothing, and what a busy one gave back serves the next.
var (
	chunkPool = sync.Pool{New: func() any { return new(chunk) }} //nolint:gochecknoglobals // 10,000 sessions share them
	piecePool = sync.Pool{New: func() any { return new(piece) }} //nolint:gochecknoglobals // 10,000 sessions share them
)

// ring keeps the counted frames that the peer has not acknowledged.
//
//	acked ≤ sent ≤ end     [acked, sent): handed to a carrier  [sent, end): waiting
type ring struct {
	chunks           []*chunk
	acked, sent, end uint64
	writing          bool   // the writer reads from [pin, sent) without the lock
	pin              uint64 // valid while writing
}

func (r *ring) size() int   { return int(r.end - r.acked) }
func (r *ring) unsent() int { return int(r.end - r.sent) }

// room returns how many bytes the last chunk can still take, a whole one if it is full.
func (r *ring) room() int {
	if len(r.chunks) > 0 {
		if c := r.chunks[len(r.chunks)-1]; c.n < chunkSize {
			return chunkSize - c.n
		}
	}
	return chunkSize
}

// reserve appends n bytes, n ≤ maxFrame, and returns them to be filled.
func (r *ring) reserve(n int) []byte {
	var c *chunk
	if len(r.chunks) > 0 {
		c = r.chunks[len(r.chunks)-1]
	}
	if c == nil || chunkSize-c.n < n {
		c = chunkPool.Get().(*chunk)
		c.off, c.n = r.end, 0
		r.chunks = append(r.chunks, c)
	}
	b := c.buf[c.n : c.n+n]
	c.n += n
	r.end += uint64(n)
	return b
}

// next returns the waiting frames that lie together, at most limit bytes, at
// least one frame, and counts them as sent. They stay where they are until
// written is called.
func (r *ring) next(limit int) []byte {
	for _, c := range r.chunks {
		if at := r.sent - c.off; r.sent >= c.off && at < uint64(c.n) {
			b := c.buf[at:c.n]
			b = b[:wholeFrames(b, limit)]
			r.writing, r.pin = true, r.sent
			r.sent += uint64(len(b))
			return b
		}
	}
	return nil
}

// wholeFrames returns the length of the frames at the beginning of b that fit
// into limit, at least of the first.
func wholeFrames(b []byte, limit int) int {
	n := 0
	for n < len(b) {
		size := headerLen + int(binary.BigEndian.Uint16(b[n+2:]))
		if n > 0 && n+size > limit {
			break
		}
		n += size
	}
	return n
}

// boundary says whether a frame begins, or will begin, at the offset.
func (r *ring) boundary(off uint64) bool {
	for _, c := range r.chunks {
		if off >= c.off && off-c.off < uint64(c.n) {
			at, n := int(off-c.off), 0
			for n < at {
				n += headerLen + int(binary.BigEndian.Uint16(c.buf[n+2:]))
			}
			return n == at
		}
	}
	return off == r.end
}

// written says that the carrier has taken what next returned.
func (r *ring) written() {
	r.writing = false
	r.free()
}

// ack takes the peer's count of bytes; false if it cannot be.
func (r *ring) ack(received uint64) bool {
	if received < r.acked {
		return true // an old one, overtaken
	}
	if received > r.sent {
		return false
	}
	r.acked = received
	r.free()
	return true
}

// keeps says whether everything from the peer's count of bytes on is there.
func (r *ring) keeps(received uint64) bool {
	return received >= r.acked && received <= r.sent && r.boundary(received)
}

// resume goes on at the peer's count of bytes; false if that is not kept. It
// must not be called while the writer writes.
func (r *ring) resume(received uint64) (replay int, ok bool) {
	if !r.keeps(received) {
		return 0, false
	}
	replay = int(r.sent - received)
	r.acked, r.sent = received, received
	r.free()
	return replay, true
}

func (r *ring) free() {
	n := 0
	for _, c := range r.chunks {
		end := c.off + uint64(c.n)
		if end > r.acked || r.writing && end > r.pin {
			break
		}
		chunkPool.Put(c)
		n++
	}
	if n > 0 {
		r.chunks = append(r.chunks[:0], r.chunks[n:]...)
		clear(r.chunks[len(r.chunks) : len(r.chunks)+n])
	}
	if len(r.chunks) == 0 {
		r.chunks = nil
	}
}

// drop gives everything back; nothing may be written any more.
func (r *ring) drop() {
	r.writing, r.acked, r.sent = false, r.end, r.end
	r.free()
}
