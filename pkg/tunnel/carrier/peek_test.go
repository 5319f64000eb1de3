package carrier

import (
	"errors"

	"golang.org/x/sys/unix"
)

func peekFD(fd int, b []byte) (int, error) {
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK)
	return max(n, 0), err
}

func again(err error) bool { return errors.Is(err, unix.EAGAIN) }
