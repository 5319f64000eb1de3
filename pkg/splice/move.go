package splice

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// turns is how many pieces a direction may move per round; the rest waits until others had theirs.
	turns = 8
	// A direction that finds less than littleRun bytes per visit, littleRuns times in a row, copies again.
	littleRun, littleRuns = 8 << 10, 3
)

// move brings as much from d's source to its destination as both allow now.
func (l *loop) move(d *direction) {
	p := d.pair
	for range turns {
		if p.ended || d.done || !l.flush(d) {
			return
		}
		switch {
		case d.eof:
			l.pass(d)
			return
		case !d.readable:
			return
		case d.splicing && !d.urgent:
			l.fill(d)
		default:
			l.copy(d)
		}
	}
	if !p.ended && !d.done && !d.blocked && !d.queued {
		d.queued = true
		l.again = append(l.again, d)
	}
}

// flush writes what was read before; false if the destination does not take all of it, or is gone.
func (l *loop) flush(d *direction) bool {
	for len(d.pending) > 0 {
		n, errno := send(d.dst, d.pending)
		if errno != 0 {
			return l.refused(d, errno)
		}
		if d.pending = d.pending[n:]; len(d.pending) == 0 {
			d.pending = nil
		}
	}
	for d.piped > 0 {
		n, errno := splice(d.pipe.r, d.dst, d.piped)
		if errno != 0 {
			return l.refused(d, errno)
		}
		d.piped -= n
	}
	return true
}

// refused looks at why the destination took nothing: it is full, or an error ends the pair.
func (l *loop) refused(d *direction, errno unix.Errno) bool {
	switch errno {
	case unix.EAGAIN:
		d.blocked = true
	case unix.EINTR:
		return l.flush(d)
	default:
		l.end(d.pair, sideError(1-d.from, "write", errno))
	}
	return false
}

// copy reads once and writes what it got.
func (l *loop) copy(d *direction) {
	b := l.buffer[:]
	if d.left >= 0 && d.left < copySize {
		b = b[:max(d.left, 1)] // one byte more than none tells whether there is more
	}
	n, errno := recv(d.src, b)
	if errno != 0 || n == 0 {
		l.empty(d, errno)
		return
	}
	if !l.counted(d, n) {
		return
	}
	if n < len(b) && !d.hangup && !d.urgent {
		d.readable = false // epoll(7), question 9: a stream that gave less has no more
	}
	d.splicing = n == copySize && !d.never
	sent, errno := send(d.dst, b[:n])
	switch {
	case errno == 0:
	case errno == unix.EAGAIN || errno == unix.EINTR:
		sent = 0
	default:
		l.end(d.pair, sideError(1-d.from, "write", errno))
		return
	}
	if sent < n {
		d.pending = append([]byte(nil), b[sent:n]...)
	}
}

// fill splices from the source into an empty pipe.
func (l *loop) fill(d *direction) {
	if d.pipe == nil {
		if d.pipe = l.pipes.get(l.now); d.pipe == nil {
			d.splicing = false
			return
		}
	}
	size := d.pipe.size
	if d.left >= 0 && d.left < int64(size) {
		size = int(max(d.left, 1))
	}
	n, errno := splice(d.src, d.pipe.w, size)
	switch {
	case errno == unix.EINVAL: // a kind of TCP without splice
		d.never, d.splicing = true, false
		l.release(d)
	case errno != 0 || n == 0:
		l.release(d)
		l.empty(d, errno)
	default:
		d.piped = n
		d.run += n
		l.counted(d, n)
	}
}

// empty handles a read that gave no byte.
func (l *loop) empty(d *direction, errno unix.Errno) {
	switch errno {
	case 0:
		d.eof = true
	case unix.EINTR:
	case unix.EAGAIN:
		d.readable = false
		if d.splicing {
			l.rest(d)
		}
	default:
		l.end(d.pair, sideError(d.from, "read", errno))
	}
}

// rest decides, when a visit is over, whether splicing still pays.
func (l *loop) rest(d *direction) {
	if d.run >= littleRun {
		d.slow = 0
	} else if d.slow++; d.slow >= littleRuns {
		d.splicing, d.slow = false, 0
	}
	d.run = 0
}

// counted accounts for n bytes from the source; false if they are too many, which ends the pair.
func (l *loop) counted(d *direction, n int) bool {
	p := d.pair
	p.last = l.now
	p.counters.add(d.from, n, l.wall)
	if d.left < 0 {
		return true
	}
	if int64(n) > d.left {
		l.end(p, sideError(d.from, "read", ErrLimit))
		return false
	}
	d.left -= int64(n)
	return true
}

// pass tells the destination that the source has ended. Once both have, the pair has ended in order.
func (l *loop) pass(d *direction) {
	d.done = true
	l.release(d)
	// It fails if the destination is gone, which reading from there will tell.
	_ = unix.Shutdown(d.dst, unix.SHUT_WR)
	if other := &d.pair.dir[1-d.from]; other.done {
		l.end(d.pair, nil)
	}
}

// release gives d's pipe back.
func (l *loop) release(d *direction) {
	if d.pipe != nil {
		l.pipes.put(d.pipe, d.piped == 0)
		d.pipe, d.piped = nil, 0
	}
}

func sideError(from uint8, what string, err error) error {
	return fmt.Errorf("%s: %s: %w", side(from), what, err)
}
