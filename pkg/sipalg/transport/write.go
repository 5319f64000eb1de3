package transport

import (
	"context"
	"errors"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"
)

// keepSpare is the largest buffer that the writing goroutine keeps for its next turn.
const keepSpare = 64 << 10

// send queues one message, or writes it at once where the socket takes it.
func (c *conn) send(raw []byte) error {
	err := c.enqueue(raw)
	if err == nil {
		c.t.count.sent(c.flow.Proto)
	}
	return err
}

func (c *conn) enqueue(raw []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone || c.last {
		return ErrGone
	}
	if !c.writing && c.try.raw != nil {
		n, err := c.try.now(raw)
		if err != nil {
			c.endLocked(writeFailed)
			return ErrGone
		}
		if raw = raw[n:]; len(raw) == 0 {
			return nil
		}
	}
	if c.queued+len(raw) > c.cfg.Queue {
		c.endLocked(slowPeer)
		return ErrSlow
	}
	c.queued += len(raw)
	c.pend = append(c.pend, raw...)
	if c.ws != nil {
		c.ends = append(c.ends, len(c.pend))
	}
	if !c.writing {
		c.writing = true
		c.writer.Add(1)
		go c.drain()
	}
	return nil
}

// drain writes until nothing waits. What gathers meanwhile goes in one write.
func (c *conn) drain() {
	defer c.writer.Done()
	var batch []byte
	var ends []int
	for {
		c.mu.Lock()
		c.queued -= len(batch)
		if c.gone || len(c.pend) == 0 {
			c.writing, c.pend, c.ends = false, nil, nil
			c.mu.Unlock()
			return
		}
		if cap(batch) > keepSpare {
			batch = nil
		}
		batch, c.pend = c.pend, batch[:0]
		ends, c.ends = c.ends, ends[:0]
		c.mu.Unlock()
		if err := c.write(batch, ends); err != nil {
			c.end(writeFailed)
		}
	}
}

func (c *conn) write(batch []byte, ends []int) error {
	c.nc.SetWriteDeadline(time.Now().Add(c.cfg.Write))
	if c.ws == nil {
		_, err := c.nc.Write(batch)
		return err
	}
	start := 0
	for _, end := range ends {
		if err := c.ws.Write(context.Background(), frameType(batch[start:end]), batch[start:end]); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// frameType is text for what a browser may take as text, binary for what is no UTF-8 (RFC 7118 §4.2).
func frameType(msg []byte) websocket.MessageType {
	if validText(msg) {
		return websocket.MessageText
	}
	return websocket.MessageBinary
}

// now returns how many bytes of b the socket took. A full socket is no error.
func (w *tryWrite) now(b []byte) (int, error) {
	w.b, w.n, w.err = b, 0, nil
	err := w.raw.Write(w.run)
	w.b = nil
	return w.n, errors.Join(err, w.err)
}

func (w *tryWrite) write(fd uintptr) bool {
	for w.n < len(w.b) {
		n, err := unix.Write(int(fd), w.b[w.n:])
		switch {
		case err == nil:
			w.n += n
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return true
		default:
			w.err = err
			return true
		}
	}
	return true
}
