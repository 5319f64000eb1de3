package groove

import (
	"errors"
	"io"
	"net"
	"os"
	"time"
)

const (
	// emptyAfter is when a GET of KeepAlive that waits is answered without data: later than any Noop, so that clients of
	// Groove never see it, and earlier than the patience of most proxies.
	emptyAfter = time.Minute
	// pollHold is how long a request of Polling waits for an answer to what it has brought.
	pollHold = 20 * time.Millisecond
)

// pollPace is what clients of Polling are told.
func pollPace() *pace {
	return &pace{min: 50 * time.Millisecond, max: 2 * time.Second, repetitions: 20}
}

// keepGet answers a GET of KeepAlive, as soon as there is something to say.
func (c *client) keepGet(t target, h *head) bool {
	v, why := c.s.enter(t, c.source, roleGet)
	if why != "" {
		return c.refuse(why)
	}
	c.got = v
	gone := c.watch()
	var b []byte
	over := true
	if c.s.meet(v, c.conn, roleGet) {
		select {
		case <-v.pinged:
		case <-gone.c:
		case <-v.done:
		}
	}
	switch {
	case c.s.firstAnswer(v):
		b, over = []byte(echo), false
	case isClosed(v.pinged) && !isClosed(gone.c):
		late := make(chan struct{})
		timer := time.AfterFunc(emptyAfter, func() { close(late) })
		b, over = v.queued.out.take(maxBody, late, gone.c)
		timer.Stop()
	}
	switch alive := gone.stop(c); {
	case !alive:
		c.s.end(v, endPeer)
		return false
	case over:
		c.s.end(v, endClosed)
		return false
	}
	return c.reply(v, roleGet, h, b)
}

// keepPost takes a POST of KeepAlive in.
func (c *client) keepPost(t target, h *head) bool {
	v, why := c.s.enter(t, c.source, rolePost)
	if why != "" {
		return c.refuse(why)
	}
	b, why := c.body(h)
	if why == "" {
		why = c.s.take(v, c.conn, b)
	}
	if why != "" {
		c.s.end(v, why)
		return false
	}
	return c.reply(v, rolePost, h, nil)
}

// take brings the body of a POST to who reads it; the first is the echo.
func (s *Server) take(v *virtual, conn net.Conn, b []byte) (why string) {
	s.mu.Lock()
	first := !v.echoed
	early := !first && !v.answered
	s.mu.Unlock()
	switch {
	case first && string(b) != echo:
		return endEcho
	case early:
		return endEarly
	case first:
		s.meet(v, conn, rolePost)
		return ""
	}
	return s.bring(v, b)
}

// bring waits until there is room for what a client has said. Nobody reads it any more where the connection was closed
// here, which still has something to say.
func (s *Server) bring(v *virtual, b []byte) (why string) {
	if _, err := v.queued.in.write(b, &deadline{}); err == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.closing.IsZero() {
		return endPeer // and has ended already
	}
	return ""
}

// meet notes that a GET waits, or that the POST has brought the echo. With both the connection is established. It
// returns false if it has ended.
func (s *Server) meet(v *virtual, conn net.Conn, r role) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.ended {
		return false
	}
	if r == rolePost {
		v.echoed = true
	}
	if v.queued == nil {
		v.queued = newQueued(conn, func() { s.closed(v) })
	}
	if v.echoed && v.getting && !v.established {
		s.establishLocked(v, v.queued)
	}
	return true
}

// firstAnswer tells whether a GET is the one that gets the echo.
func (s *Server) firstAnswer(v *virtual) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := v.established && !v.answered
	v.answered = v.answered || first
	return first
}

// body reads a body of at most 32 KiB.
func (c *client) body(h *head) (b []byte, why string) {
	if h.length > maxBody {
		return nil, endOversized
	}
	b = make([]byte, h.length)
	c.conn.SetReadDeadline(time.Now().Add(bodyTime))
	_, err := io.ReadFull(c.br, b)
	c.conn.SetReadDeadline(time.Time{})
	if err != nil {
		return nil, endPeer
	}
	return b, ""
}

// reply ends a request's role and answers it, in this order: the next may come by another connection.
func (c *client) reply(v *virtual, r role, h *head, b []byte) bool {
	c.s.leave(v, r)
	c.conn.SetWriteDeadline(time.Now().Add(bodyTime))
	if _, err := c.conn.Write(append(response("200 OK", h.persist, int64(len(b))), b...)); err != nil {
		c.s.end(v, endUnanswering)
		return false
	}
	if r == roleGet && !h.persist {
		c.s.lose(v)
	}
	return h.persist
}

// poll serves a request of Polling.
func (c *client) poll(t target, h *head) bool {
	v, why := c.s.enter(t, c.source, rolePost)
	if why != "" {
		return c.refuse(why)
	}
	b, why := c.body(h)
	var p pollBody
	if why == "" {
		var err error
		if p, err = parsePollBody(b, false); err != nil || p.guid != t.guid || !sameRelay(p.relay, t.relay) {
			why = endBody
		}
	}
	if why == "" {
		p.data, why = c.s.pollTake(v, c.conn, p)
	}
	if why != "" {
		c.s.end(v, why)
		return false
	}
	p.pace = pollPace()
	return c.reply(v, rolePost, h, p.bytes())
}

// pollTake brings the data of a request to who reads them, and returns those of its response. The first request is the
// probe: number 0 without data. The second has number 0 again, and with it the connection is established.
func (s *Server) pollTake(v *virtual, conn net.Conn, p pollBody) (out []byte, why string) {
	s.mu.Lock()
	probe := !v.echoed
	good := p.seq == v.seq && (!probe || len(p.data) == 0) && !v.ended
	switch {
	case !good:
	case probe:
		v.echoed = true
		v.queued = newQueued(conn, func() { s.closed(v) })
	default:
		v.seq++
		if !v.established {
			s.establishLocked(v, v.queued)
		}
	}
	s.mu.Unlock()
	switch {
	case !good:
		return nil, endSequence
	case probe:
		return nil, ""
	}
	if why = s.bring(v, p.data); why != "" {
		return nil, why
	}
	late := make(chan struct{})
	defer time.AfterFunc(pollHold, func() { close(late) }).Stop()
	out, over := v.queued.out.take(p.room(), late, nil)
	if over {
		return nil, endClosed
	}
	return out, ""
}

// watching looks whether the peer of a connection on which nothing is to be read goes away.
type watching struct {
	c    chan struct{} // closed when it has
	seen chan error    // has room for the one result
}

// watch begins to look, until stop.
func (c *client) watch() watching {
	w := watching{make(chan struct{}), make(chan error, 1)}
	go func() {
		_, err := c.br.Peek(1)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			close(w.c)
		}
		w.seen <- err
	}()
	return w
}

// stop ends the look, and tells whether the peer is still there.
func (w watching) stop(c *client) bool {
	c.conn.SetReadDeadline(time.Unix(1, 0))
	err := <-w.seen
	c.conn.SetReadDeadline(time.Time{})
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}
