package per

import (
	"encoding/binary"
	"errors"
)

// What a message can be refused for. Errors of Decode wrap one of these.
var (
	ErrTruncated = errors.New("per: message ends inside of a value")
	ErrFragment  = errors.New("per: fragmented length")
	ErrRange     = errors.New("per: value or size out of its range")
	ErrCount     = errors.New("per: more elements announced than bits left")
	ErrDepth     = errors.New("per: nested too deeply")
	ErrNodes     = errors.New("per: too many values")
	ErrSize      = errors.New("per: message too long")
)

// reader reads bits up to a limit that open types and OCTET STRINGs narrow.
type reader struct {
	buf []byte
	pos uint32 // next bit
	end uint32 // first bit that may not be read
	err error  // the first fault; once set, what is read means nothing
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// bits reads n ≤ 56 bits, most significant first.
func (r *reader) bits(n int) uint64 {
	if uint32(n) > r.end-r.pos {
		r.fail(ErrTruncated)
		return 0
	}
	v := peek(r.buf, r.pos, n)
	r.pos += uint32(n)
	return v
}

// peek returns n ≤ 56 bits of buf from bit pos on; they must exist.
func peek(buf []byte, pos uint32, n int) uint64 {
	if n == 0 {
		return 0
	}
	i := int(pos >> 3)
	var v uint64
	if i+8 <= len(buf) {
		v = binary.BigEndian.Uint64(buf[i:])
	} else {
		for k, b := range buf[i:] {
			v |= uint64(b) << (56 - 8*k)
		}
	}
	return v << (pos & 7) >> (64 - n)
}

// align skips to an octet's begin.
func (r *reader) align() {
	r.pos = (r.pos + 7) &^ 7
	if r.pos > r.end {
		r.pos = r.end
		r.fail(ErrTruncated)
	}
}

// skip passes over n bits.
func (r *reader) skip(n uint64) {
	if n > uint64(r.end-r.pos) {
		r.fail(ErrTruncated)
		return
	}
	r.pos += uint32(n)
}

// length reads a general length (§10.9.3.5-8); fragments are refused, as no
// message of 64 KiB needs them.
func (r *reader) length() uint32 {
	r.align()
	v := uint32(r.bits(8))
	switch {
	case v < 0x80:
		return v
	case v < 0xc0:
		return v&0x3f<<8 | uint32(r.bits(8))
	}
	r.fail(ErrFragment)
	return 0
}

// offset reads a whole number of 0..span, span ≥ 0 (§10.5.7).
func (r *reader) offset(span uint64) uint64 {
	switch {
	case span < 255:
		return r.inRange(r.bits(width(span+1)), span)
	case span == 255:
		r.align()
		return r.bits(8)
	case span < 65536:
		r.align()
		return r.inRange(r.bits(16), span)
	}
	most := octetsFor(span)
	n := int(r.bits(width(uint64(most)))) + 1
	if n > most {
		r.fail(ErrRange)
		return 0
	}
	r.align()
	return r.inRange(r.octets(n), span)
}

func (r *reader) inRange(v, span uint64) uint64 {
	if v > span {
		r.fail(ErrRange)
		return 0
	}
	return v
}

// octets reads n ≤ 8 octets as a number.
func (r *reader) octets(n int) uint64 {
	if n <= 7 {
		return r.bits(8 * n)
	}
	return r.bits(32)<<32 | r.bits(32)
}

// size reads the length of a string or list of type t (§10.9.4), in its units.
func (r *reader) size(t *Type) uint32 {
	switch {
	case t.fixed():
		return uint32(t.Hi)
	case t.counted():
		return uint32(t.Lo) + uint32(r.offset(uint64(t.Hi-t.Lo)))
	}
	n := r.length()
	if int64(n) < t.Lo || t.HasHi && int64(n) > t.Hi {
		r.fail(ErrRange)
	}
	return n
}

// small reads a normally small number (§10.6).
func (r *reader) small() uint32 {
	if r.bits(1) == 0 {
		return uint32(r.bits(6))
	}
	n := r.length()
	if n > 2 {
		r.fail(ErrRange)
		return 0
	}
	return uint32(r.octets(int(n)))
}

// smallLength reads a normally small length (§10.9.3.4): that of an extension bitmap.
func (r *reader) smallLength() uint32 {
	n := uint32(1)
	if r.bits(1) == 0 {
		n += uint32(r.bits(6))
	} else {
		n = r.length()
	}
	if n > MaxAdditions {
		r.fail(ErrRange)
		return 0
	}
	return n
}
