package groove

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

// client is a connection of TCP at the server, and what was read of it. One goroutine serves it.
type client struct {
	s      *Server
	conn   net.Conn
	br     *bufio.Reader
	source netip.Addr
	served bool     // a request of ours has come
	got    *virtual // of KeepAlive, by the last GET
}

// newClient makes a client of a connection, and of a reader that has some of it already, or nil.
func newClient(s *Server, conn net.Conn, br *bufio.Reader) *client {
	if br == nil {
		br = bufio.NewReaderSize(conn, maxHead)
	}
	return &client{s: s, conn: conn, br: br, source: pinhole.AddrPortOf(conn.RemoteAddr()).Addr()}
}

var errSlow = errors.New("slow")

// next waits for the next request, and reads its header.
func (c *client) next(idle time.Duration) (*head, error) {
	if !c.served {
		idle = headTime
	}
	c.conn.SetReadDeadline(time.Now().Add(idle))
	if _, err := c.br.Peek(1); err != nil {
		return nil, err
	}
	c.conn.SetReadDeadline(time.Now().Add(headTime))
	h, err := readHead(c.br)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errSlow
	}
	c.conn.SetReadDeadline(time.Time{})
	return h, err
}

// failed counts why no request came; an end between two is none.
func (c *client) failed(err error) {
	if c.got != nil {
		c.s.lose(c.got)
	}
	switch {
	case errors.Is(err, errSlow):
		c.s.refuse("slow_header", c.source)
	case errors.Is(err, errTooLong):
		c.s.refuse("long_header", c.source)
	case errors.Is(err, errMalformed):
		c.s.refuse("malformed_header", c.source)
	case errors.Is(err, os.ErrDeadlineExceeded) && !c.served:
		c.s.refuse("silent", c.source)
	default:
		return
	}
	gate.Reset(c.conn)
}

// answer serves a request, and tells whether another may follow.
func (c *client) answer(ctx context.Context, h *head) bool {
	t, err := parseTarget(h.first[1])
	method := h.first[0]
	switch {
	case errors.Is(err, errNotGroove):
		return c.other(ctx, h)
	case err != nil:
		c.say("400 Bad Request")
		c.s.refuse(err.Error(), c.source)
		return false
	case !c.s.serves(t.relay):
		return c.refuse("relay", zap.String("relay", t.relay))
	case t.mode == Polling && !c.s.cfg.Polling:
		return c.refuse("polling")
	case h.chunked, method == "POST" && h.length < 0, method == "GET" && h.length > 0:
		return c.refuse("framing")
	}
	c.served = true
	switch {
	case t.mode == LongLived && method == "GET":
		return c.longGet(t)
	case t.mode == LongLived && method == "POST":
		return c.longPost(t, h)
	case t.mode == KeepAlive && method == "GET":
		return c.keepGet(t, h)
	case t.mode == KeepAlive && method == "POST":
		return c.keepPost(t, h)
	case t.mode == Polling && method == "POST":
		return c.poll(t, h)
	}
	return c.refuse("method")
}

// refuse closes the connection without an answer, as [MS-GRVHENC] §3.2.5 has it for what is wrong in a URI.
func (c *client) refuse(why string, more ...zap.Field) bool {
	c.s.refuse(why, c.source, more...)
	gate.Reset(c.conn)
	return false
}

// other hands the connection to who serves what is not ours, until it is closed.
func (c *client) other(ctx context.Context, h *head) bool {
	if c.s.deps.Other == nil || h.raw == nil {
		c.say("404 Not Found")
		c.s.refuse(errNotGroove.Error(), c.source)
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	c.s.deps.Other(&handed{Conn: c.conn, r: io.MultiReader(bytes.NewReader(h.raw), c.br), closed: cancel})
	<-ctx.Done()
	return false
}

// say answers without a body.
func (c *client) say(status string) {
	c.conn.SetWriteDeadline(time.Now().Add(bodyTime))
	_, _ = c.conn.Write(response(status, false, 0)) // it is closed next, whatever becomes of this
}

// longGet carries what the server says by LongLived.
func (c *client) longGet(t target) bool {
	v, why := c.s.enter(t, c.source, roleGet)
	if why != "" {
		return c.refuse(why)
	}
	c.s.attach(v, &half{conn: c.conn, br: c.br}, roleGet)
	_, _ = c.br.Peek(1) // nothing is to come: it is closed, here or there
	if !c.s.deafen(v) {
		c.s.end(v, endPeer)
	}
	<-v.done
	return false
}

// longPost carries what the client says.
func (c *client) longPost(t target, h *head) bool {
	v, why := c.s.enter(t, c.source, rolePost)
	if why != "" {
		return c.refuse(why)
	}
	first := make([]byte, len(echo))
	c.conn.SetReadDeadline(time.Now().Add(c.s.cfg.Establish))
	_, err := io.ReadFull(c.br, first)
	c.conn.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		c.s.end(v, endPeer)
	case string(first) != echo:
		c.s.end(v, endEcho)
	case c.br.Buffered() > 0:
		c.s.end(v, endEarly)
	case h.length < minLength || h.length > t.length:
		c.s.end(v, endMismatch)
	default:
		c.s.attach(v, &half{conn: c.conn, br: c.br, left: h.length - int64(len(echo))}, rolePost)
	}
	<-v.done
	return false
}

// attach gives a virtual connection its half. With both of them it is established.
func (s *Server) attach(v *virtual, h *half, r role) {
	if !s.attached(v, h, r) {
		return
	}
	// It may be that what was answered on that connection before has not been read: the lock is not held meanwhile.
	v.get.conn.SetWriteDeadline(time.Now().Add(bodyTime))
	_, err := v.get.conn.Write(append(response("200 OK", false, v.length), echo...))
	v.get.conn.SetWriteDeadline(time.Time{})
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.endLocked(v, endUnanswering)
	case !v.ended:
		s.streamLocked(v)
	}
}

// attached notes the half, and tells whether it is the second.
func (s *Server) attached(v *virtual, h *half, r role) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.ended {
		return false
	}
	if r == roleGet {
		v.get = h
	} else {
		v.post = h
	}
	return v.get != nil && v.post != nil
}

// streamLocked has the connection served that both halves are of.
func (s *Server) streamLocked(v *virtual) {
	v.stream = &stream{
		rc: v.post.conn, wc: v.get.conn, br: v.post.br, left: v.post.left, room: v.length - int64(len(echo)),
		ended: func(why string) { s.end(v, why) },
	}
	v.stream.touch()
	s.establishLocked(v, v.stream)
}

// deafen tells the stream of an established connection that its client does not read any more.
func (s *Server) deafen(v *virtual) bool {
	s.mu.Lock()
	st := v.stream
	s.mu.Unlock()
	if st != nil {
		st.deaf()
	}
	return st != nil
}
