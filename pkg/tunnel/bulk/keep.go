package bulk

import (
	"slices"
	"sync"
)

const blockSize = 64 << 10

type block [blockSize]byte

// blocks are shared: only a connection that is beside its session holds any.
var blocks = sync.Pool{New: func() any { return new(block) }} //nolint:gochecknoglobals // all connections share them

// keep holds the bytes from number base to end, which were sent beside the
// session and may have to be sent again.
type keep struct {
	list      []*block
	first     int // where base is in the first block
	base, end uint64

	pinned   bool // somebody reads what is from pin on, without the lock
	pin      uint64
	deferred uint64 // what is before this number is forgotten then
}

func (k *keep) size() int { return int(k.end - k.base) }

// begin begins at a number; nothing is held.
func (k *keep) begin(at uint64) {
	k.drop(k.end)
	k.base, k.end = at, at
}

func (k *keep) append(p []byte) {
	for len(p) > 0 {
		at := (k.first + k.size()) % blockSize
		if at == 0 && (k.first+k.size())/blockSize == len(k.list) {
			k.list = append(k.list, blocks.Get().(*block))
		}
		n := copy(k.list[len(k.list)-1][at:], p)
		k.end += uint64(n)
		p = p[n:]
	}
}

// since returns what is from a number on, and pins it. There must be some.
func (k *keep) since(at uint64) (parts [][]byte) {
	k.pinned, k.pin = true, at
	for from, end := k.first+int(at-k.base), k.first+k.size(); from < end; {
		b := k.list[from/blockSize][from%blockSize:]
		b = b[:min(len(b), end-from)]
		parts = append(parts, b)
		from += len(b)
	}
	return parts
}

// unpin forgets what was to be forgotten meanwhile.
func (k *keep) unpin() {
	k.pinned = false
	if k.deferred > k.base {
		k.drop(k.deferred)
	}
	k.deferred = 0
}

// drop forgets what is before a number, base ≤ to ≤ end.
func (k *keep) drop(to uint64) {
	if k.pinned && to > k.pin {
		k.deferred = max(k.deferred, to)
		to = k.pin
	}
	k.first += int(to - k.base)
	k.base = to
	n := k.first / blockSize
	if k.base == k.end {
		n = len(k.list)
	}
	for _, b := range k.list[:n] {
		blocks.Put(b)
	}
	if n > 0 {
		k.list = slices.Delete(k.list, 0, n)
	}
	if k.first %= blockSize; len(k.list) == 0 {
		k.list, k.first = nil, 0
	}
}

// next returns bytes that lie together from base on.
func (k *keep) next() []byte {
	if k.size() == 0 {
		return nil
	}
	return k.list[0][k.first:min(blockSize, k.first+k.size())]
}
