package splice

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// parts is how many pieces one system call writes.
const parts = 8

// Direct reads and writes a TCP connection by calls that the scheduler does not hear of, for who must look at much that
// passes (TLS) and so can not have the kernel join it:
//
//	Read ─► recv ─► done, or nothing there ─► the runtime's poller
//
// The net package's calls count as ones that may block: what copies 128 KiB takes longer than the 20 µs after which the
// runtime looks for another thread, and the first such call after a wait wakes its monitor, which then looks every 20 µs. All
// other methods are those of the connection, whose deadlines and Close end a Read or Write as usual.
type Direct struct {
	*net.TCPConn
	raw syscall.RawConn
	in  inward
	out outward
}

// inward is what one Read hands to its call.
type inward struct {
	mu    sync.Mutex
	call  func(fd uintptr) bool // made once
	b     []byte
	n     int
	errno unix.Errno
}

// outward is what one Write hands to its call.
type outward struct {
	mu    sync.Mutex
	call  func(fd uintptr) bool // made once
	iov   [parts]unix.Iovec
	head  unix.Msghdr
	n     int
	errno unix.Errno
}

// NewDirect returns another way to read and write c, which it does not own.
func NewDirect(c *net.TCPConn) (*Direct, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("descriptor: %w", err)
	}
	d := &Direct{TCPConn: c, raw: raw}
	d.in.call, d.out.call = d.in.recv, d.out.send
	return d, nil
}

// recv returns false if it is to be called again when there is something to read.
func (w *inward) recv(fd uintptr) bool {
	for {
		if w.n, w.errno = recv(int(fd), w.b); w.errno != unix.EINTR {
			return w.errno != unix.EAGAIN
		}
	}
}

// send returns false if it is to be called again when there is room.
func (w *outward) send(fd uintptr) bool {
	for {
		if w.n, w.errno = sendmsg(int(fd), &w.head); w.errno != unix.EINTR {
			return w.errno != unix.EAGAIN
		}
	}
}

// Read implements [io.Reader].
func (d *Direct) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	w := &d.in
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = b
	err := d.raw.Read(w.call)
	w.b = nil
	switch {
	case err != nil:
		return 0, err
	case w.errno != 0:
		return 0, d.failed("read", "recv", w.errno)
	case w.n == 0:
		return 0, io.EOF
	}
	return w.n, nil
}

// Write implements [io.Writer].
func (d *Direct) Write(b []byte) (int, error) {
	one := [1][]byte{b}
	return d.WriteParts(one[:])
}

// WriteParts writes several pieces, by one system call as far as possible. It changes all to what is not written.
func (d *Direct) WriteParts(all [][]byte) (total int, err error) {
	w := &d.out
	w.mu.Lock()
	defer w.mu.Unlock()
	defer clear(w.iov[:])
	for all = written(all, 0); len(all) > 0; all = written(all, w.n) {
		n := min(len(all), parts)
		for i, b := range all[:n] {
			w.iov[i].Base = unsafe.SliceData(b)
			w.iov[i].SetLen(len(b))
		}
		w.head.Iov = &w.iov[0]
		w.head.SetIovlen(n)
		if err := d.raw.Write(w.call); err != nil {
			return total, err
		}
		if w.errno != 0 {
			return total, d.failed("write", "sendmsg", w.errno)
		}
		total += w.n
	}
	return total, nil
}

// written returns what is left of all behind n bytes; it does not begin with an empty piece.
func written(all [][]byte, n int) [][]byte {
	for len(all) > 0 && n >= len(all[0]) {
		n -= len(all[0])
		all[0] = nil
		all = all[1:]
	}
	if len(all) > 0 {
		all[0] = all[0][n:]
	}
	return all
}

func (d *Direct) failed(op, call string, errno unix.Errno) error {
	return &net.OpError{Op: op, Net: "tcp", Source: d.LocalAddr(), Addr: d.RemoteAddr(), Err: os.NewSyscallError(call, errno)}
}
