package splice

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// pair is two joined sockets. Only its loop touches it, until done is closed.
type pair struct {
	fd       [2]int
	dir      [2]direction
	counters *Counters
	// idle and last are in nanoseconds of the loop's clock; idle 0 means never.
	idle, last int64
	// slot is the pair's number in its loop.
	slot  uint32
	ended bool
	// aborted says that the end came from outside.
	aborted bool
	// done is closed once result is set and the descriptors are closed.
	done   chan struct{}
	result Result
}

// direction is one way of a pair. At most one of pending and piped is not empty, and nothing is read
// before both are: so nothing overtakes.
type direction struct {
	pair     *pair
	from     uint8
	src, dst int
	// pending was read and is not written yet.
	pending []byte
	// pipe, if not nil, holds piped bytes.
	pipe  *pipe
	piped int
	// left is how many bytes may still come, -1 if any number may.
	left int64
	// run counts the bytes spliced since src was last found empty, slow how often that was little.
	run  int
	slow uint8

	// readable says that src may hold something, hangup that its end or an error waits behind that.
	readable, hangup bool
	// urgent says that urgent data has come: reads end before and behind it although there is more, and
	// splice(2) does not pass it.
	urgent bool
	// blocked says that dst takes nothing until epoll says so.
	blocked bool
	// splicing moves by pipe instead of copying; never says that this does not work here.
	splicing, never bool
	// queued says that the loop serves the direction in the next round.
	queued bool
	// eof says that src has ended, done that dst was told.
	eof, done bool
}

// newPair takes the descriptors of two connections, which are closed then. After an error they
// are as before.
func newPair(a, b *net.TCPConn, o Options) (*pair, error) {
	fa, err := dup(a)
	if err != nil {
		return nil, err
	}
	fb, err := dup(b)
	if err != nil {
		unix.Close(fa)
		return nil, err
	}
	a.Close()
	b.Close()
	p := &pair{fd: [2]int{fa, fb}, counters: o.Counters, idle: int64(o.Idle), done: make(chan struct{})}
	for s := range p.dir {
		p.dir[s] = direction{pair: p, from: uint8(s), src: p.fd[s], dst: p.fd[1-s], left: -1, pending: o.Prefix[s]}
		if o.Limit[s] > 0 {
			p.dir[s].left = o.Limit[s]
		}
	}
	return p, nil
}

// dup returns a second, non-blocking descriptor of a connection that sends without delay: a message that
// waits for more to come would wait for the peer's acknowledgement.
func dup(c *net.TCPConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("descriptor: %w", err)
	}
	fd := -1
	var failed error
	err = raw.Control(func(own uintptr) {
		if fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0); failed == nil {
			failed = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		if failed == nil { // urgent bytes stay in the stream (RFC 6093 §6)
			failed = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("descriptor: %w", err)
	}
	return fd, nil
}

// closeAll closes the sockets, so that the peers see an error, and not an orderly end, if err is not nil. An
// end from outside spares the side that was told the other's end before: it may still be reading.
func (p *pair) closeAll(err error) {
	for s, fd := range p.fd {
		if err != nil && !(p.aborted && p.dir[1-s].done) {
			// It fails if the connection is gone already.
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		unix.Close(fd)
	}
	p.fd = [2]int{-1, -1}
}

// finish publishes the result.
func (p *pair) finish(err error) {
	p.ended = true
	p.closeAll(err)
	p.result = Result{Bytes: [2]uint64{p.counters.Bytes(0), p.counters.Bytes(1)}, Err: err}
	close(p.done)
}

// side names a side in errors.
func side(s uint8) string { return [2]string{"a", "b"}[s] }
