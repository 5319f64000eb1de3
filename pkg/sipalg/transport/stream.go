package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// firstBuf is the read buffer of a connection until it needs more; a desk phone's INVITE fits twice.
const firstBuf = 4 << 10

// pong answers CRLFCRLF (RFC 5626 §3.5.1).
const pong = "\r\n"

// input is the read buffer of a stream. Plain TCP holds none while it waits for a first byte, so
// an idle connection costs little.
type input struct {
	c    *conn
	buf  []byte
	r, w int // what was read and not cut yet is buf[r:w]
	raw  syscall.RawConn
	run  func(fd uintptr) bool
	n    int
	err  error
}

// readStream cuts the stream into messages (RFC 3261 §18.3) until it ends.
func (c *conn) readStream() reason {
	in := &input{c: c}
	if tcp, ok := c.nc.(*net.TCPConn); ok {
		in.raw, _ = tcp.SyscallConn()
		in.run = in.readFD
	}
	defer in.release()
	fr := sipmsg.Framer{Max: c.cfg.MaxMessage}
	for {
		c.arm()
		n, err := in.fill()
		if n > 0 {
			c.heard = time.Now()
			if err := c.cut(in, &fr); err != nil {
				c.refuse(in.buf[in.r:in.w], err)
				return framing
			}
		}
		if err != nil {
			if why, again := c.readError(err); !again {
				return why
			}
		}
	}
}

// errHTTP: a browser, or a server that was made to send a request, is at the other end. What follows may
// look like SIP, but whoever wrote it is not the host that the connection comes from.
var errHTTP = errors.New("an HTTP request came")

// isHTTP tells whether the first line of a message ends like that of an HTTP request.
func isHTTP(msg []byte) bool {
	line, _, _ := bytes.Cut(msg, []byte("\r\n"))
	return len(line) > 9 && bytes.HasPrefix(line[len(line)-9:], []byte(" HTTP/"))
}

// cut hands on every whole message in the buffer. It returns an error if the stream cannot be cut further.
func (c *conn) cut(in *input, fr *sipmsg.Framer) error {
	for in.r < in.w {
		n, kind, err := fr.Next(in.buf[in.r:in.w])
		if err != nil {
			return err
		}
		switch kind {
		case sipmsg.KindIncomplete:
			// A lone CRLF may be half a ping: no message has begun.
			if c.first.IsZero() && !blank(in.buf[in.r:in.w]) {
				c.first = c.heard
			}
			return nil
		case sipmsg.KindMessage:
			if isHTTP(in.buf[in.r : in.r+n]) {
				return errHTTP
			}
			c.first = time.Time{}
			c.message(in.buf[in.r : in.r+n : in.r+n])
		case sipmsg.KindPing:
			if c.enqueue([]byte(pong)) != nil {
				return nil
			}
		}
		in.r += n
	}
	in.r, in.w = 0, 0
	return nil
}

// fill reads once, after making room.
func (in *input) fill() (int, error) {
	if in.w > 0 && in.w == len(in.buf) {
		in.makeRoom()
	}
	if in.raw != nil {
		if err := in.raw.Read(in.run); err != nil {
			return 0, err
		}
	} else {
		in.acquire()
		in.n, in.err = in.c.nc.Read(in.buf[in.w:])
	}
	in.w += in.n
	return in.n, in.err
}

// readFD reads a socket that is perhaps readable; false waits until it is.
func (in *input) readFD(fd uintptr) bool {
	in.acquire()
	for {
		n, err := unix.Read(int(fd), in.buf[in.w:])
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if in.w == 0 {
				in.release()
			}
			return false
		case nil:
			in.n, in.err = n, nil
			if n == 0 {
				in.err = io.EOF
			}
		default:
			in.n, in.err = 0, err
		}
		return true
	}
}

// makeRoom moves what is left to the front, or doubles the buffer. The framer bounds a message, so
// the buffer stays below twice the largest one.
func (in *input) makeRoom() {
	if in.r > 0 {
		copy(in.buf, in.buf[in.r:in.w])
		in.w -= in.r
		in.r = 0
		return
	}
	bigger := make([]byte, 2*len(in.buf))
	copy(bigger, in.buf[:in.w])
	n := in.w
	in.release()
	in.buf, in.w = bigger, n
}

func (in *input) acquire() {
	if in.buf == nil {
		in.buf = in.c.t.bufs.Get().(*[firstBuf]byte)[:]
	}
}

func (in *input) release() {
	if len(in.buf) == firstBuf {
		in.c.t.bufs.Put((*[firstBuf]byte)(in.buf))
	}
	in.buf, in.r, in.w = nil, 0, 0
}
