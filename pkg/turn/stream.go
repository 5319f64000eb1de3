package turn

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

const (
	// frameTime is how long a frame that has begun may take to be whole.
	frameTime = 10 * time.Second
	// writeTime is how long a client may take no octet of what it is sent.
	writeTime = 10 * time.Second
	// firstBuffer holds whole requests; ChannelData may be longer, of who has an allocation.
	firstBuffer = 2048
	// maxChannelFrame is ChannelData with the most that its length can say, padded.
	maxChannelFrame = channelHead + 64<<10
)

// streamConn is a connection of a client as pion sees it: whole requests that the guard has composed, one at each Read,
// and after a ConnectionBind (RFC 6062 §5.4) octets as they come.
type streamConn struct {
	net.Conn
	session
	ep    *endpoint
	tuple tuple
	began time.Time
	// authentic says that a request was signed rightly.
	authentic bool
	raw       atomic.Bool

	buf        []byte // read and not yet handled: buf[from:to]
	from, to   int
	frameBegan time.Time

	once   sync.Once
	closed chan struct{}
}

func newStreamConn(ep *endpoint, c net.Conn) *streamConn {
	return &streamConn{
		Conn: c, ep: ep, began: time.Now(), buf: make([]byte, firstBuffer), closed: make(chan struct{}),
		tuple: tuple{pinhole.AddrPortOf(c.RemoteAddr()), pinhole.AddrPortOf(c.LocalAddr()), true},
	}
}

// errFrame ends a connection whose octets are no frames: there is no way to find the next one.
var errFrame = errors.New("not a STUN message or ChannelData")

// Read handles frames until there is a request for pion. Only pion's one reader of this connection calls it.
func (c *streamConn) Read(p []byte) (int, error) {
	if c.raw.Load() {
		return c.readRaw(p)
	}
	c.settle()
	if b := c.ep.probe(&c.session); b != nil {
		return copy(p, b), nil
	}
	for {
		frame, err := c.next()
		if err != nil {
			c.endAllocation() // that of a request which was handled while Close was called
			return 0, err
		}
		if b := c.frame(frame); b != nil {
			return copy(p, b), nil
		}
	}
}

func (c *streamConn) readRaw(p []byte) (int, error) {
	if c.from < c.to {
		n := copy(p, c.buf[c.from:c.to])
		c.from += n
		return n, nil
	}
	return c.Conn.Read(p)
}

// frame handles one whole frame; what it returns is for pion.
func (c *streamConn) frame(b []byte) []byte {
	o := origin{tuple: c.tuple, ep: c.ep, to: c, authenticated: func() { c.authentic = true }}
	if b[0]>>6 == 1 {
		c.ep.s.fromChannel(o, b)
		return nil
	}
	return c.ep.s.control(o, b, &c.session)
}

// next reads one frame. It is valid until the next call.
func (c *streamConn) next() ([]byte, error) {
	for {
		n, err := c.frameSize()
		if err != nil {
			c.ep.s.count.drop("bad_frame")
			return nil, err
		}
		if n > 0 && c.to-c.from >= n {
			b := c.buf[c.from : c.from+n]
			c.from += n
			c.frameBegan = time.Time{}
			return b, nil
		}
		c.makeRoom(n)
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// frameSize returns the size of the frame that the buffer begins with, 0 if that is not known yet.
func (c *streamConn) frameSize() (int, error) {
	b := c.buf[c.from:c.to]
	if len(b) < channelHead {
		return 0, nil
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	switch b[0] >> 6 {
	case 0:
		if n += headerSize; n > maxControl && (!c.authentic || n > maxChannelFrame) || n%4 != 0 {
			return 0, errFrame
		}
		if len(b) >= 8 && binary.BigEndian.Uint32(b[4:]) != magicCookie {
			return 0, errFrame
		}
		return n, nil
	case 1:
		if !c.authentic { // nobody has a channel before
			return 0, errFrame
		}
		return (channelHead + n + 3) &^ 3, nil
	}
	return 0, errFrame
}

// makeRoom has the buffer begin with what is not handled, with room for a frame of n octets.
func (c *streamConn) makeRoom(n int) {
	if c.from > 0 {
		c.to = copy(c.buf, c.buf[c.from:c.to])
		c.from = 0
	}
	if n > len(c.buf) {
		c.buf = append(c.buf, make([]byte, n-len(c.buf))...)
	}
}

// fill reads more, within the time that is left.
func (c *streamConn) fill() error {
	for {
		if c.to > c.from && c.frameBegan.IsZero() {
			c.frameBegan = time.Now()
		}
		until := time.Now().Add(authTime)
		switch {
		case !c.authentic:
			until = c.began.Add(authTime)
		case !c.frameBegan.IsZero():
			until = c.frameBegan.Add(frameTime)
		}
		if err := c.Conn.SetReadDeadline(until); err != nil {
			return err
		}
		n, err := c.Conn.Read(c.buf[c.to:])
		c.to += n
		switch {
		case n > 0:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && c.to == c.from && c.authentic && c.ep.s.find(c.tuple) != nil:
			// silent, but its allocation lives
		case err != nil:
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.ep.s.count.drop("idle_connection")
			}
			return err
		}
	}
}

// Write sends pion's answers, amended, except those to the guard's own questions.
func (c *streamConn) Write(b []byte) (int, error) {
	if c.raw.Load() {
		return c.write(b)
	}
	if c.ep.probed(&c.session, b) {
		return len(b), nil
	}
	if isSTUN(b) && binary.BigEndian.Uint16(b) == uint16(connectionBind)|0x100 {
		defer c.beRaw()
	}
	_, err := c.write(c.ep.s.amend(c.tuple, b))
	return len(b), err
}

// beRaw has what follows a ConnectionBind pass as it is.
func (c *streamConn) beRaw() {
	c.raw.Store(true)
	_ = c.Conn.SetReadDeadline(time.Time{})
}

func (c *streamConn) write(b []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		c.Close() // half a frame may be out
	}
	return n, err
}

// reply implements [replier].
func (c *streamConn) reply(_ netip.AddrPort, frame []byte) error {
	_, err := c.write(frame)
	return err
}

// Close ends the connection and the allocation that came by it.
func (c *streamConn) Close() error {
	c.once.Do(func() {
		c.endAllocation()
		close(c.closed)
	})
	return c.Conn.Close()
}

func (c *streamConn) endAllocation() {
	if a := c.ep.s.find(c.tuple); a != nil {
		a.close()
	}
}
