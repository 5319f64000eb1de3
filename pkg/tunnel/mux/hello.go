package mux

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"go.uber.org/zap"
)

// past is a deadline that makes pending reads and writes return.
func past() time.Time { return time.Unix(1, 0) }

// Client begins a session on conn, which from then on belongs to it, also if
// an error is returned. SetDeadline of conn must end pending reads and writes.
func Client(ctx context.Context, conn net.Conn, cfg Config) (*Session, error) {
	var id ID
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("session id: %w", err)
	}
	s := newSession(cfg.withDefaults(), id, true)
	if err := s.callLocked(ctx, conn, flagNew); err != nil {
		conn.Close()
		return nil, err
	}
	return s, nil
}

// Resume moves the client's session to conn, and returns when the server has
// agreed. The old carrier is dropped, also if it was well. If an error is
// returned, conn is closed; the session has no carrier then, and waits for the
// next Resume, unless Err says that it has ended. After ErrForgotten, conn is
// not closed: Client can begin a new session on it.
func (s *Session) Resume(ctx context.Context, conn net.Conn) error {
	if !s.client {
		conn.Close()
		return errors.New("only clients resume")
	}
	s.resuming.Lock()
	defer s.resuming.Unlock()
	s.fence()
	err := s.callLocked(ctx, conn, 0)
	if err == nil {
		return nil
	}
	var f *SessionError
	forgotten := errors.As(err, &f) && f.Remote && f.Code == CodeEmptySession
	if forgotten {
		err = fmt.Errorf("%w: %w", ErrForgotten, err)
	} else {
		conn.Close()
	}
	if f != nil && (f.Code == CodeEmptySession || f.Code == CodeCrossedConnections) {
		s.end(f, false)
	}
	s.signalLost()
	return err
}

// ErrForgotten is returned by Resume when the server does not know the
// session, as after its restart.
var ErrForgotten = errors.New("the session is forgotten")

// callLocked exchanges HELLOs as client; resuming is held, or nobody knows s.
func (s *Session) callLocked(ctx context.Context, conn net.Conn, flags uint8) error {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	s.epoch++
	mine := s.helloLocked(flags)
	s.mu.Unlock()

	free := s.bound(ctx, conn)
	defer free()
	if _, err := conn.Write(mine.frame()); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	start := time.Now()
	theirs, err := readHello(conn)
	if err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	if theirs.id != s.id || theirs.epoch != mine.epoch {
		return fmt.Errorf("hello: %w", fault(CodeProtocol, "answer of another session or epoch"))
	}
	if !free() {
		return fmt.Errorf("hello: %w", context.Cause(ctx))
	}
	return s.attach(conn, theirs, time.Since(start))
}

// Server answers the HELLO of a client on conn, which from then on belongs to
// the session, also if an error is returned. find returns the session of that
// name if it belongs to the peer that conn was authenticated for. resumed says
// that s is such a session, which now goes on here.
func Server(ctx context.Context, conn net.Conn, find func(ID) *Session, cfg Config) (s *Session, resumed bool, err error) {
	cfg = cfg.withDefaults()
	free := bound(ctx, conn, cfg.Hello)
	defer free()
	theirs, err := readHello(conn)
	if err != nil {
		return nil, false, refuse(conn, err)
	}
	s, fresh := find(theirs.id), theirs.flags&flagNew != 0
	if s == nil && !fresh {
		if theirs, err = again(conn, theirs.id); err != nil {
			return nil, false, refuse(conn, err)
		}
		s, fresh = find(theirs.id), true
	}
	switch {
	case s != nil && fresh:
		return nil, false, refuse(conn, fault(CodeCrossedConnections, "session %s begins again", theirs.id))
	case s == nil:
		s = newSession(cfg, theirs.id, false)
	}
	if err := s.answer(conn, theirs, free); err != nil {
		return nil, false, refuse(conn, err)
	}
	return s, !fresh, nil
}

// again tells a client that its session is not known, and lets it begin another on the same connection: a server that was
// restarted has thousands come who would else have to come twice.
func again(conn net.Conn, id ID) (hello, error) {
	if _, err := conn.Write(endFrame(CodeEmptySession)); err != nil {
		return hello{}, err
	}
	theirs, err := readHello(conn)
	switch {
	case err != nil:
		return hello{}, fmt.Errorf("session %s is not known: %w", id, err)
	case theirs.flags&flagNew == 0:
		return hello{}, fault(CodeEmptySession, "session %s is not known, nor is %s", id, theirs.id)
	}
	return theirs, nil
}

func (s *Session) answer(conn net.Conn, theirs hello, free func() bool) error {
	s.resuming.Lock()
	defer s.resuming.Unlock()
	s.mu.Lock()
	if theirs.epoch <= s.epoch || s.client {
		defer s.mu.Unlock()
		return fault(CodeCrossedConnections, "epoch %d after %d", theirs.epoch, s.epoch)
	}
	s.epoch = theirs.epoch
	s.mu.Unlock()
	s.fence()

	s.mu.Lock()
	mine, ended := s.helloLocked(0), s.err != nil
	known := s.ring.keeps(theirs.received)
	s.mu.Unlock()
	if ended {
		return fault(CodeEmptySession, "session %s has ended", s.id)
	}
	if !known {
		lost := fault(CodeEmptySession, "peer has %d bytes", theirs.received)
		s.end(lost, false)
		return lost
	}
	_, werr := conn.Write(mine.frame())
	if werr == nil && !free() {
		werr = errors.New("out of time")
	}
	if werr != nil {
		return fmt.Errorf("hello: %w", werr)
	}
	return s.attach(conn, theirs, 0)
}

// refuse tells the peer why, closes conn and returns err.
func refuse(conn net.Conn, err error) error {
	var f *SessionError
	if errors.As(err, &f) {
		conn.SetWriteDeadline(time.Now().Add(lastWord))
		_, _ = conn.Write(endFrame(f.Code))
	}
	conn.Close()
	return err
}

func (s *Session) helloLocked(flags uint8) hello {
	return hello{
		version: version, flags: flags, id: s.id, epoch: s.epoch,
		streamWindow: uint32(s.cfg.StreamWindow), sessionWindow: uint32(s.cfg.SessionWindow),
		streams: uint32(s.cfg.MaxStreams), received: s.received,
	}
}

// readHello reads one frame, which must be HELLO or say why not.
func readHello(conn net.Conn) (hello, error) {
	var b [headerLen + maxHello]byte
	if _, err := io.ReadFull(conn, b[:headerLen]); err != nil {
		return hello{}, err
	}
	h, bad := parseHeader(b[:])
	if bad != nil {
		return hello{}, bad
	}
	if h.typ != typeHello && h.typ != typeEnd {
		return hello{}, fault(CodeProtocol, "frame of type %d instead", h.typ)
	}
	p := b[headerLen : headerLen+h.size]
	if _, err := io.ReadFull(conn, p); err != nil {
		return hello{}, err
	}
	if h.typ == typeEnd {
		return hello{}, &SessionError{Code: Code(binary.BigEndian.Uint32(p)), Remote: true}
	}
	v, bad := parseHello(p)
	if bad != nil {
		return hello{}, bad
	}
	return v, nil
}

// bound ends what conn is doing when ctx or the time for HELLOs is over. The
// returned function takes the bound off; it says whether that came in time.
func (s *Session) bound(ctx context.Context, conn net.Conn) func() bool {
	return bound(ctx, conn, s.cfg.Hello)
}

func bound(ctx context.Context, conn net.Conn, d time.Duration) func() bool {
	conn.SetDeadline(time.Now().Add(d))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(past()) })
	first, ok := true, false
	return func() bool {
		if first {
			first, ok = false, stop()
			if ok {
				conn.SetDeadline(time.Time{})
			}
		}
		return ok
	}
}

// attach starts the carrier whose peer said theirs.
func (s *Session) attach(conn net.Conn, theirs hello, rtt time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	replay, ok := s.ring.resume(theirs.received)
	if !ok {
		return fault(CodeEmptySession, "peer has %d bytes", theirs.received)
	}
	if s.last == nil {
		s.sendCredit = int64(theirs.sessionWindow)
		s.peerLimit, s.peerFirst = int(min(theirs.streams, 1<<20)), int(theirs.streamWindow)
	} else {
		s.cfg.Logger.Info("tunnel session resumed", zap.Stringer("session", s.id), zap.Uint32("epoch", s.epoch), zap.Int("replay_bytes", replay))
	}
	s.stats.Replayed += uint64(replay)
	if s.linger != nil {
		s.linger.Stop()
		s.linger = nil
	}
	select {
	case <-s.lostc: // nobody need act on it any more
	default:
	}
	s.startCarrierLocked(conn, rtt)
	s.fillLocked()
	return nil
}
