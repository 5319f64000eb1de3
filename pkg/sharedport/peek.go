package sharedport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errSlow is the end of a wait that some bytes came in, but too few.
var errSlow = errors.New("too little in time")

// peek waits, at most until the deadline, until the connection's first bytes tell what it is, and leaves them
// where they are. It clears the connection's read deadline. The error is [os.ErrDeadlineExceeded]
// if nothing has come, errSlow if too little has, [io.EOF] if the peer has ended before.
func peek(c *net.TCPConn, until time.Time, l Looking) (First, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return First{}, fmt.Errorf("peek: %w", err)
	}
	c.SetReadDeadline(until)
	defer c.SetReadDeadline(time.Time{})
	p := peeker{b: make([]byte, 512), looking: l}
	if err = raw.Read(p.look); err == nil {
		err = p.err
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && p.some:
		err = errSlow
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("peek: %w", err)
	}
	return p.first, err
}

// peeker looks at what waits in a socket.
type peeker struct {
	b       []byte
	looking Looking
	first   First
	some    bool // at least one byte has come
	err     error
}

// look returns true once it is known what the connection is, or that this will not be known. After false it is
// called again when more has come.
func (p *peeker) look(fd uintptr) bool {
	for {
		n, _, err := unix.Recvfrom(int(fd), p.b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			p.err = err
			return true
		case n == 0:
			p.err = io.EOF
			return true
		}
		p.some = true
		first, more := p.looking.Classify(p.b[:n])
		switch {
		case !more:
			p.first = first
			return true
		case n == len(p.b) && n < Most:
			p.b = make([]byte, min(4*n, Most)) // there may be more already
		case n == Most:
			p.first = First{Class: Unknown}
			return true
		default:
			if ended(int(fd)) {
				p.err = io.EOF
				return true
			}
			return false
		}
	}
}

// ended tells whether the peer sends no more: bytes that wait hide it from a reader that leaves them.
func ended(fd int) bool {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(set, 0)
	return err == nil && n > 0 && set[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// readFirst does the same for a connection whose bytes must be read to be seen, and returns them.
func readFirst(c net.Conn, until time.Time, l Looking) ([]byte, First, error) {
	c.SetReadDeadline(until)
	defer c.SetReadDeadline(time.Time{})
	b := make([]byte, 0, 512)
	for {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(4*cap(b), Most)), b...)
		}
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		first, more := l.Classify(b)
		switch {
		case !more:
			return b, first, nil
		case len(b) >= Most:
			return b, First{Class: Unknown}, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && len(b) > 0:
			return b, First{}, errSlow
		case err != nil:
			return b, First{}, err
		}
	}
}
