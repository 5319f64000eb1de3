package msnftp

// headerSize is that of a block's header: 00, and its length, low octet first. Another first octet (01, seen
// with length 0) says that no data follow.
const headerSize = 3

// blocks splits a stream into blocks, wherever it is cut.
type blocks struct {
	header [headerSize]byte
	have   int // octets of the header
	left   int // octets of data
}

// piece is what a stream holds next.
type piece struct {
	// size is how many octets of the stream it takes.
	size int
	// data are those of them that are the file's.
	data []byte
	// end says that the block ends with it, stop that the data do.
	end, stop bool
}

// next returns the next piece of b, which is not empty.
func (d *blocks) next(b []byte) piece {
	if d.left > 0 {
		n := min(d.left, len(b))
		d.left -= n
		return piece{size: n, data: b[:n], end: d.left == 0}
	}
	n := copy(d.header[d.have:], b)
	if d.have += n; d.have < headerSize {
		return piece{size: n}
	}
	d.have = 0
	if d.header[0] != 0 {
		return piece{size: n, end: true, stop: true}
	}
	d.left = int(d.header[1]) | int(d.header[2])<<8
	return piece{size: n, end: d.left == 0}
}

// mostOctets bounds what may come from the sender after FIL: the data, three octets for each block, and what follows
// them. A block may be short, but a file of nothing but headers is none.
func mostOctets(size int64) int64 {
	const shortest, trailer = 32, 8 << 10
	return size + size/shortest*headerSize + trailer
}

// leastOctets is how much must have come for the whole file to have passed.
func leastOctets(size int64) int64 {
	const largest = 65535
	return size + (size+largest-1)/largest*headerSize
}
