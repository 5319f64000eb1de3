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

// Peek waits, at most for within, until the connection's first bytes tell what it is, and leaves them
// where they are. Before it returns it clears the connection's read deadline. The error is [os.ErrDeadlineExceeded]
// if too little has come, [io.EOF] if the peer has ended before.
func Peek(c *net.TCPConn, within time.Duration) (First, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return First{}, fmt.Errorf("peek: %w", err)
	}
	c.SetReadDeadline(time.Now().Add(within))
	defer c.SetReadDeadline(time.Time{})
	p := peeker{b: make([]byte, 512)}
	if err = raw.Read(p.look); err == nil {
		err = p.err
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("peek: %w", err)
	}
	return p.first, err
}

// peeker looks at what waits in a socket.
type peeker struct {
	b     []byte
	first First
	err   error
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
		first, more := Classify(p.b[:n])
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
