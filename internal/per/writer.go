package per

import (
	"math/bits"
	"slices"
)

// writer appends bits to a buffer. Bits of buf beyond nbits are zero.
type writer struct {
	buf   []byte
	nbits uint32
}

// bits appends the n ≤ 56 low bits of v.
func (w *writer) bits(v uint64, n int) {
	for n > 0 {
		if w.nbits&7 == 0 {
			w.buf = append(w.buf, 0)
		}
		room := 8 - int(w.nbits&7)
		k := min(room, n)
		part := byte(v>>(n-k)) & (1<<k - 1)
		w.buf[len(w.buf)-1] |= part << (room - k)
		w.nbits += uint32(k)
		n -= k
	}
}

// align appends zeros up to the next octet.
func (w *writer) align() { w.nbits = uint32(len(w.buf)) * 8 }

// octets appends whole octets at an octet's begin.
func (w *writer) octets(b []byte) {
	w.align()
	w.buf = append(w.buf, b...)
	w.align()
}

// copyBits appends the bits [from, to) of src, which lie in their octets as
// those of w will.
func (w *writer) copyBits(src []byte, from, to uint32) {
	if head := min(-from&7, to-from); head > 0 {
		w.bits(peek(src, from, int(head)), int(head))
		from += head
	}
	if whole := (to - from) / 8; whole > 0 {
		w.octets(src[from/8 : from/8+whole])
		from += whole * 8
	}
	w.bits(peek(src, from, int(to-from)), int(to-from))
}

// shiftBits appends the bits [from, to) of src wherever they lie.
func (w *writer) shiftBits(src []byte, from, to uint32) {
	if from&7 == w.nbits&7 {
		w.copyBits(src, from, to)
		return
	}
	for from < to {
		k := min(to-from, 48)
		w.bits(peek(src, from, int(k)), int(k))
		from += k
	}
}

// lengthOctets returns the encoding of a general length (§10.9.3.5-7) and how
// many octets of it count. n is below 16384.
func lengthOctets(n int) ([2]byte, int) {
	if n < 0x80 {
		return [2]byte{byte(n)}, 1
	}
	return [2]byte{0x80 | byte(n>>8), byte(n)}, 2
}

// length appends a general length; false if it had to be fragmented.
func (w *writer) length(n int) bool {
	if n >= 16384 {
		return false
	}
	b, k := lengthOctets(n)
	w.octets(b[:k])
	return true
}

// offset appends a whole number of 0..span (§10.5.7).
func (w *writer) offset(v, span uint64) {
	switch {
	case span < 255:
		w.bits(v, width(span+1))
		return
	case span < 65536:
		w.align()
		w.bits(v, 8*octetsFor(span))
		return
	}
	n := octetsFor(v)
	w.bits(uint64(n-1), width(uint64(octetsFor(span))))
	w.align()
	w.number(v, n)
}

// number appends the n ≤ 8 low octets of v.
func (w *writer) number(v uint64, n int) {
	for ; n > 0; n-- {
		w.bits(v>>(8*(n-1))&0xff, 8)
	}
}

// small appends a normally small number (§10.6).
func (w *writer) small(n uint32) {
	if n < 64 {
		w.bits(uint64(n), 7)
		return
	}
	w.bits(1, 1)
	k := octetsFor(uint64(n))
	w.length(k)
	w.number(uint64(n), k)
}

// smallLength appends a normally small length (§10.9.3.4), n ≥ 1.
func (w *writer) smallLength(n uint32) {
	if n <= 64 {
		w.bits(uint64(n-1), 7)
		return
	}
	w.bits(1, 1)
	w.length(int(n))
}

// mark begins contents whose length comes first; close finishes them.
func (w *writer) mark() int {
	w.align()
	w.buf = append(w.buf, 0)
	w.align()
	return len(w.buf)
}

// close pads the contents since at to octets, of which there is one at least
// if they are a value, and puts their length before them.
func (w *writer) close(at int, value bool) bool {
	if value && len(w.buf) == at {
		w.buf = append(w.buf, 0)
	}
	n := len(w.buf) - at
	if n >= 16384 {
		return false
	}
	b, k := lengthOctets(n)
	w.buf[at-1] = b[0]
	if k == 2 {
		w.buf = slices.Insert(w.buf, at, b[1])
	}
	w.align()
	return true
}

// signedOctets is how many octets v takes in two's complement (§10.8).
func signedOctets(v int64) int {
	u := uint64(v)
	if v < 0 {
		u = ^u
	}
	return bits.Len64(u)/8 + 1
}
