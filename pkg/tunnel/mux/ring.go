package mux

import "sync"

// chunkSize is what the ring grows and shrinks by: four of the largest frames.
const chunkSize = 4 * maxFrame

type chunk struct {
	buf [chunkSize]byte
	off uint64 // of buf[0] in the count of bytes
	n   int    // used
}

// chunks and pieces are shared by all sessions: an idle session holds none.
var (
	chunkPool = sync.Pool{New: func() any { return new(chunk) }}
	piecePool = sync.Pool{New: func() any { return new(piece) }}
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

// next returns the waiting bytes that lie together, at most limit, and counts
// them as sent. They stay where they are until written is called.
func (r *ring) next(limit int) []byte {
	for _, c := range r.chunks {
		if at := r.sent - c.off; r.sent >= c.off && at < uint64(c.n) {
			b := c.buf[at:c.n]
			b = b[:min(len(b), limit)]
			r.writing, r.pin = true, r.sent
			r.sent += uint64(len(b))
			return b
		}
	}
	return nil
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

// resume goes on at the peer's count of bytes; false if that is not kept. It
// must not be called while the writer writes.
func (r *ring) resume(received uint64) (replay int, ok bool) {
	if received < r.acked || received > r.sent {
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
