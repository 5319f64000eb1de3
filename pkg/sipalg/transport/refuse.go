package transport

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// linger is how long a refused peer has to take the answer and close.
const linger = 2 * time.Second

// refuse answers the request at the start of rest, which has no end that could be found, if its
// head allows that. The connection is of no more use afterwards.
func (c *conn) refuse(rest []byte, err error) {
	var fault *sipmsg.Error
	head := bytes.Index(rest, []byte("\r\n\r\n"))
	if !errors.As(err, &fault) || fault.Status == 0 || head < 0 {
		return
	}
	var m sipmsg.Message
	_ = m.Parse(rest[:head+4]) // that the message is faulty is known
	if !m.Answerable() {
		return
	}
	answer := sipmsg.AppendResponse(nil, &m, fault.Status, fault.Text, []byte(rand.Text()))
	if c.send(answer) == nil {
		c.hangUp()
	}
}

// hangUp lets the peer read what was written before the connection is closed: closing while bytes
// of the peer wait unread would reset it.
func (c *conn) hangUp() {
	c.mu.Lock()
	c.last = true
	c.mu.Unlock()
	c.writer.Wait()
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.nc.SetReadDeadline(time.Now().Add(linger))
	_, _ = io.Copy(io.Discard, io.LimitReader(c.nc, int64(c.cfg.MaxMessage)))
}
