package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"edged.dev/edged/pkg/tunnel/bulk"
)

const (
	// recordHeader is the length of what precedes a record (RFC 8446 §5.2): type, version, length.
	recordHeader = 5
	// busy is after how many bytes a stream gets a buffer, which others do not need.
	busy = 256 << 10
	// readBuffer takes what the other end sends at once.
	readBuffer = 256 << 10
)

// records is a stream beneath TLS, read in large pieces and given to TLS record by record: so it is known whether the
// next one is there already, and that TLS keeps none.
//
//	stream ─► buf ─► header | body ─► crypto/tls
//
// crypto/tls takes an end at a record's boundary for the peer's, with or without close_notify (RFC 8446 §6.1); here it
// is an error, as is that of the session.
type records struct {
	*bulk.Conn

	// Of the one reader, which crypto/tls is.
	passed int
	buf    []byte // nil until busy
	r, w   int
	header [recordHeader]byte
	have   int // octets of the header that were given
	left   int // octets of the body that were not

	ready atomic.Bool // a whole record is in buf
}

// Read gives the rest of a header or of a body. It never returns an error that is io.EOF.
func (c *records) Read(b []byte) (int, error) {
	want := c.left
	if want == 0 {
		want = recordHeader - c.have
	}
	n, err := c.read(b[:min(len(b), want)])
	if c.left > 0 {
		c.left -= n
	} else {
		copy(c.header[c.have:], b[:n])
		if c.have += n; c.have == recordHeader {
			c.have, c.left = 0, int(binary.BigEndian.Uint16(c.header[3:]))
		}
	}
	c.ready.Store(c.left == 0 && c.have == 0 && whole(c.buf[c.r:c.w]))
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %v", ErrCut, err) //nolint:errorlint // an io.EOF in the chain would be the orderly end again
	}
	return n, err
}

// whole says whether b begins with a whole record.
func whole(b []byte) bool {
	return len(b) >= recordHeader && len(b)-recordHeader >= int(binary.BigEndian.Uint16(b[3:]))
}

// read reads by way of the buffer, if there is one.
func (c *records) read(b []byte) (int, error) {
	if c.r == c.w {
		if c.passed < busy {
			n, err := c.Conn.Read(b)
			c.passed += n
			return n, err
		}
		if c.buf == nil {
			c.buf = make([]byte, readBuffer)
		}
		n, err := c.Conn.Read(c.buf)
		if c.r, c.w = 0, n; n == 0 {
			return 0, err
		}
	}
	n := copy(b, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}
