package ils

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"edged.dev/edged/pkg/ils/ber"
)

// maxUnread bounds an answer that passes unread because it is longer than the limit.
const maxUnread = 64 << 20

// linger is how long a client may keep its side open once the server has closed.
const linger = 5 * time.Second

// relay moves the octets of one client's connection.
type relay struct {
	client    net.Conn
	server    net.Conn   // nil with a directory
	directory *directory // nil with a server
	session   *session
	early     []byte // what the client has said before the server was sought
	idle      time.Duration
	limit     int
	active    atomic.Int64 // when something last came, Unix nanoseconds
	ended     atomic.Bool  // the server has closed: the client gets a moment to do so too
}

// run relays until both directions have ended; it returns why a stream was refused, nil if it just ended.
func (c *relay) run() error {
	c.active.Store(time.Now().UnixNano())
	if c.directory != nil {
		return c.answer()
	}
	var back error
	var work sync.WaitGroup
	work.Go(func() {
		back = c.pump(c.client, c.server, c.session.response, maxUnread)
		if back != nil {
			c.close()
		}
		closeWrite(c.client)
		c.ended.Store(true)
		c.client.SetReadDeadline(time.Now().Add(linger))
	})
	forth := c.pump(c.server, c.client, c.session.request, 0)
	if forth != nil {
		c.close()
	}
	closeWrite(c.server)
	work.Wait()
	return errors.Join(forth, back)
}

func (c *relay) close() {
	c.client.Close()
	if c.server != nil {
		c.server.Close()
	}
}

// closeWrite says the end of one direction (TCP FIN).
func closeWrite(conn net.Conn) {
	if hc, ok := conn.(interface{ CloseWrite() error }); ok && hc.CloseWrite() == nil {
		return
	}
	conn.Close()
}

// pump frames what src sends, has edit read it, and writes the result to dst. Messages longer than the limit,
// but not than unread, pass as they are. It returns nil when src ends or either stream breaks.
func (c *relay) pump(dst, src net.Conn, edit func([]byte) ([]byte, error), unread int) error {
	f := framer{limit: c.limit, unread: unread, opaque: c.session.opaque, seal: c.session.seal, refuse: c.session.sealing()}
	for {
		if c.read(src, &f) != nil {
			return nil // the end of the stream; what is left of a message is of no use to anybody
		}
		out, err := f.drain(edit)
		if len(out) > 0 {
			dst.SetWriteDeadline(time.Now().Add(c.idle))
			if _, werr := dst.Write(out); werr != nil {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// read waits for more of src. A deadline that passes while the other direction is busy does not count.
func (c *relay) read(src net.Conn, f *framer) error {
	if src == c.client && len(c.early) > 0 {
		n := copy(f.space(), c.early)
		f.filled(n)
		c.early = c.early[n:]
		return nil
	}
	for {
		if !c.ended.Load() {
			src.SetReadDeadline(time.Unix(0, c.active.Load()).Add(c.idle))
		}
		n, err := src.Read(f.space())
		if n > 0 {
			c.active.Store(time.Now().UnixNano())
			f.filled(n)
			return nil
		}
		quiet := time.Since(time.Unix(0, c.active.Load())) >= c.idle
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) && !quiet && !c.ended.Load() {
			continue
		}
		if quiet {
			c.close()
		}
		return err
	}
}

// answer serves the client from the built-in directory.
func (c *relay) answer() error {
	visitor := &visitor{host: c.session.host}
	c.session.state = neverSealed
	err := c.pump(c.client, c.client, func(raw []byte) ([]byte, error) {
		seen, err := c.session.request(raw)
		if err != nil {
			return nil, err
		}
		var out []byte
		err = c.directory.handle(visitor, seen, func(answer []byte) error {
			edited, err := c.session.response(answer)
			out = append(out, edited...)
			return err
		})
		return out, err
	}, 0)
	if errors.Is(err, io.EOF) { // Unbind
		return nil
	}
	return err
}

// framer cuts a stream into messages. Its buffer grows to the limit at most.
type framer struct {
	limit, unread int
	opaque        func(first byte) bool
	seal          func()
	refuse        error // ends the stream instead of letting what is opaque pass; nil: it passes
	buf           []byte
	skip          int // octets of a long message still to pass unread
	begun         bool
}

// space returns where to read to.
func (f *framer) space() []byte {
	if cap(f.buf)-len(f.buf) < 2048 {
		f.buf = append(make([]byte, 0, max(4096, 2*cap(f.buf))), f.buf...)
	}
	return f.buf[len(f.buf):cap(f.buf)]
}

// filled says that n octets have been read there.
func (f *framer) filled(n int) { f.buf = f.buf[:len(f.buf)+n] }

// drain returns what is to be written for all whole messages of the buffer, and the error that ended it.
func (f *framer) drain(edit func([]byte) ([]byte, error)) (out []byte, err error) {
	for {
		size, err := f.size()
		if err != nil || size == 0 || size > len(f.buf) {
			return out, err
		}
		part := f.take(size)
		switch {
		case f.skip > 0:
			f.skip -= size
		case f.opaque(part[0]):
			if f.refuse != nil {
				return out, f.refuse
			}
		default:
			f.begun = true
			if part, err = edit(part); err != nil {
				return append(out, part...), err
			}
		}
		out = append(out, part...)
	}
}

// take removes the first n octets of the buffer and returns them; they stay valid until the next space.
func (f *framer) take(n int) []byte {
	out := f.buf[:n:n]
	f.buf = f.buf[n:]
	return out
}

// size returns how many octets of the buffer are the next piece, 0 if that cannot be told yet.
func (f *framer) size() (int, error) {
	if len(f.buf) == 0 {
		return 0, nil
	}
	if f.skip > 0 {
		return min(f.skip, len(f.buf)), nil
	}
	if !f.begun && f.buf[0] == 0x16 { // TLS from the start (LDAPS)
		f.seal()
	}
	if f.opaque(f.buf[0]) {
		return len(f.buf), f.refuse
	}
	if f.buf[0] != ber.Sequence {
		if f.begun {
			return 0, errMalformed
		}
		return 0, errNotLDAP
	}
	size, err := ber.Size(f.buf)
	switch {
	case err != nil:
		return 0, errMalformed
	case size > max(f.limit, f.unread):
		return 0, errSize
	case size > f.limit:
		f.begun, f.skip = true, size
		return min(size, len(f.buf)), nil
	}
	return size, nil
}
