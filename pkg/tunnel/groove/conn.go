package groove

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// ErrExhausted says that a connection of LongLived has carried all that its Content-Length allows (nearly 2 GiB each
// way): it is closed, and what was to be written was not. Who wants to go on builds a new one.
var ErrExhausted = errors.New("virtual connection exhausted")

// linger is how long a closed connection may take to bring what was written before to its peer.
const linger = 5 * time.Second

// Conn is a virtual connection, an ordinary [net.Conn] with deadlines. Close sends what was written before, for 5 s
// at most, without waiting for it. There is no half-close: the end of either direction is the end of both, and
// reading ends with [io.EOF] whether the peer has closed the connection or a proxy has.
type Conn struct {
	net.Conn
	Mode Mode
	// Relay is the name in the URI, in small letters.
	Relay string
}

// stream carries a connection of LongLived: it reads from one of TCP and writes to the other.
type stream struct {
	rc, wc net.Conn
	ended  func(why string) // told of the end, once
	last   atomic.Int64

	rmu  sync.Mutex // guards what follows
	br   *bufio.Reader
	left int64 // may still come

	wmu  sync.Mutex // guards room
	room int64      // may still go

	once   sync.Once
	closed atomic.Bool
}

// Read reads what the peer has written.
func (s *stream) Read(p []byte) (int, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.left == 0 {
		s.shut(endExhausted)
		return 0, ErrExhausted
	}
	n, err := s.br.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	s.touch()
	switch {
	case err == nil || errors.Is(err, os.ErrDeadlineExceeded):
	case s.closed.Load() && !errors.Is(err, io.EOF):
		err = net.ErrClosed
	default:
		s.shut(endPeer)
	}
	return n, err
}

// Write writes all of p, or nothing and ErrExhausted.
func (s *stream) Write(p []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if int64(len(p)) > s.room {
		s.shut(endExhausted)
		return 0, ErrExhausted
	}
	n, err := s.wc.Write(p)
	s.room -= int64(n)
	s.touch()
	return n, err
}

func (s *stream) touch() { s.last.Store(time.Now().UnixNano()) }

// Close ends both directions.
func (s *stream) Close() error {
	s.shut(endClosed)
	return nil
}

func (s *stream) shut(why string) {
	s.once.Do(func() {
		s.closed.Store(true)
		s.wc.Close() // first: what was written is still sent
		s.rc.Close()
		s.ended(why)
	})
}

// deaf is told that the peer has closed the connection that is written to. What it has sent before may still be read.
func (s *stream) deaf() {
	s.wc.Close()
	time.AfterFunc(linger, func() { s.shut(endPeer) })
}

// LocalAddr returns the address of the connection that is read from.
func (s *stream) LocalAddr() net.Addr { return s.rc.LocalAddr() }

// RemoteAddr returns that of its peer, which may be a proxy.
func (s *stream) RemoteAddr() net.Addr { return s.rc.RemoteAddr() }

// SetDeadline sets both deadlines.
func (s *stream) SetDeadline(t time.Time) error {
	return errors.Join(s.rc.SetReadDeadline(t), s.wc.SetWriteDeadline(t))
}

// SetReadDeadline implements [net.Conn].
func (s *stream) SetReadDeadline(t time.Time) error { return s.rc.SetReadDeadline(t) }

// SetWriteDeadline implements [net.Conn].
func (s *stream) SetWriteDeadline(t time.Time) error { return s.wc.SetWriteDeadline(t) }

// queued is the end of a connection of KeepAlive or Polling that its user has; requests fill and empty its queues.
type queued struct {
	in, out       *queue
	rd, wd        deadline
	local, remote net.Addr
	closed        func() // told of Close, each time
}

func newQueued(conn net.Conn, closed func()) *queued {
	return &queued{in: newQueue(), out: newQueue(), local: conn.LocalAddr(), remote: conn.RemoteAddr(), closed: closed}
}

// Read reads what the peer has written.
func (q *queued) Read(p []byte) (int, error) { return q.in.read(p, &q.rd) }

// Write returns once there is room for all of p; it is sent a little later.
func (q *queued) Write(p []byte) (int, error) { return q.out.write(p, &q.wd) }

// Close has what was written sent.
func (q *queued) Close() error {
	q.in.end(net.ErrClosed, true)
	q.out.end(net.ErrClosed, false)
	q.closed()
	return nil
}

// fail ends both directions with the carriage: what has come can be read, then err.
func (q *queued) fail(err error) {
	q.in.end(err, false)
	q.out.end(err, true)
}

// LocalAddr returns the address of the first connection that carried this one.
func (q *queued) LocalAddr() net.Addr { return q.local }

// RemoteAddr returns that of its peer, which may be a proxy.
func (q *queued) RemoteAddr() net.Addr { return q.remote }

// SetDeadline sets both deadlines.
func (q *queued) SetDeadline(t time.Time) error {
	q.rd.set(t)
	q.wd.set(t)
	return nil
}

// SetReadDeadline implements [net.Conn].
func (q *queued) SetReadDeadline(t time.Time) error {
	q.rd.set(t)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (q *queued) SetWriteDeadline(t time.Time) error {
	q.wd.set(t)
	return nil
}

var (
	_ net.Conn = (*Conn)(nil)
	_ net.Conn = (*stream)(nil)
	_ net.Conn = (*queued)(nil)
)
