package mux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Stream is one of a session's streams. It is a net.Conn whose directions end
// separately. Its methods may be called concurrently.
type Stream struct {
	s         *Session
	id        uint32
	datagrams bool

	// The rest is guarded by the session's lock.
	readers, writers sync.Cond
	header           []byte
	accepted         bool
	needs            need
	queued           bool // in the session's ctl
	rerr, werr       error
	code             Code // of the RESET that is to be sent

	recv       buffer
	recvCredit int64 // what the peer still has
	window     int
	toReturn   int64 // read, not yet granted again
	tuneBytes  int
	tuneFrom   time.Time
	finRecv    bool

	sendCredit int64
	turn       turn
	pending    []byte // of the Write in progress
	writing    bool
	fin        bool // CloseWrite was called
	finSent    bool

	in, out [][]byte // datagrams

	readBy, writeBy deadline
}

var _ net.Conn = (*Stream)(nil)

// need is a set of control frames to be sent.
type need uint8

const (
	needOpen need = 1 << iota
	needAccept
	needCredit
	needFin
	needStop
	needReset
)

func (s *Session) newStreamLocked(id uint32, o OpenOptions) *Stream {
	st := &Stream{
		s: s, id: id, datagrams: o.Datagrams,
		window: s.cfg.StreamWindow, recvCredit: int64(s.cfg.StreamWindow), sendCredit: int64(s.peerFirst),
	}
	st.readers.L, st.writers.L = &s.mu, &s.mu
	st.shareLocked(o.Owner, o.Weight)
	s.windows += int64(st.window)
	s.streams[id] = st
	return st
}

// Share sets whose turn the stream's bytes use, and its weight in it; see OpenOptions.
func (st *Stream) Share(owner string, weight int) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.s.sched.remove(st)
	st.shareLocked(owner, weight)
	st.turnLocked()
}

func (st *Stream) shareLocked(owner string, weight int) {
	if weight <= 0 {
		weight = defaultWeight
	}
	st.turn.owner, st.turn.weight = owner, min(weight, maxWeight)
}

// turnLocked puts the stream into the scheduler if it has something to send.
func (st *Stream) turnLocked() {
	if len(st.pending) > 0 && st.sendCredit > 0 && st.werr == nil {
		st.s.sched.add(st)
	}
}

func (st *Stream) ctlLocked(n need) {
	st.needs |= n
	if !st.queued {
		st.queued = true
		st.s.ctl = append(st.s.ctl, st)
	}
}

// putControlLocked appends the stream's control frames to the ring.
func (st *Stream) putControlLocked() {
	s, n := st.s, st.needs
	st.needs, st.queued = 0, false
	if n&needOpen != 0 {
		var flags uint8
		if st.datagrams {
			flags = flagDatagrams
		}
		s.putLocked(typeOpen, flags, st.id, st.header)
		st.header = nil
	}
	if n&needAccept != 0 {
		s.putLocked(typeAccept, 0, st.id, nil)
	}
	if n&needCredit != 0 && !st.finRecv && !st.recv.closed {
		s.put32Locked(typeCredit, 0, st.id, uint32(st.toReturn))
		st.recvCredit += st.toReturn
		st.toReturn = 0
	}
	if n&needFin != 0 {
		s.putLocked(typeFin, 0, st.id, nil)
		st.finSent = true
	}
	if n&needStop != 0 && !st.finRecv {
		s.put32Locked(typeReset, flagStop, st.id, uint32(st.code))
	}
	if n&needReset != 0 {
		s.put32Locked(typeReset, 0, st.id, uint32(st.code))
	}
	st.settleLocked()
}

// settleLocked forgets a stream whose directions have both ended and that has
// nothing more to say. What is unread can still be read.
func (st *Stream) settleLocked() {
	s := st.s
	recvDone := st.finRecv || st.recv.closed
	sendDone := st.finSent || st.werr != nil && !st.fin
	if !recvDone || !sendDone || st.needs != 0 || s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	s.windows -= int64(st.window)
	if s.oursLocked(st.id) {
		s.ours--
	} else {
		s.theirs--
	}
	s.changed.Broadcast()
}

// failLocked ends both directions here.
func (st *Stream) failLocked(rerr, werr error) {
	if st.rerr == nil {
		st.rerr = rerr
	}
	if st.werr == nil {
		st.werr = werr
	}
	st.needs, st.fin = 0, false
	st.stopLocked()
	st.s.datagrams.drop(st)
	st.s.sched.remove(st)
	st.writers.Broadcast()
	st.s.changed.Broadcast()
}

// stopLocked forgets what is unread and takes nothing more.
func (st *Stream) stopLocked() {
	s := st.s
	for _, b := range st.in {
		s.unreadDatagrams -= len(b)
	}
	st.in = nil
	s.returnLocked(st.recv.close())
	st.readers.Broadcast()
}

func (st *Stream) resetByPeerLocked(err *ResetError, onlyStop bool) {
	if onlyStop {
		if st.werr == nil {
			st.werr = err
		}
		st.needs &^= needFin
		st.fin = false
		st.s.sched.remove(st)
		st.writers.Broadcast()
	} else {
		st.failLocked(err, err)
		st.s.forgetLocked(st)
	}
	st.settleLocked()
}

// Reset ends both directions at once, at both ends: what is under way is lost.
func (st *Stream) Reset(code Code) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.resetLocked(code)
}

func (st *Stream) resetLocked(code Code) {
	if st.s.err != nil || st.s.streams[st.id] != st {
		return
	}
	known := st.needs&needOpen == 0 // to the peer
	err := &ResetError{code}
	st.failLocked(err, err)
	if known {
		st.code = code
		st.ctlLocked(needReset)
		st.s.fillLocked()
	}
	st.settleLocked()
}

// CloseRead tells the peer to send no more, and forgets what is unread. The
// other direction goes on.
func (st *Stream) CloseRead(code Code) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.closeReadLocked(code)
}

func (st *Stream) closeReadLocked(code Code) {
	if st.rerr != nil {
		return
	}
	st.rerr = net.ErrClosed
	st.stopLocked()
	if !st.finRecv {
		st.code = code
		st.ctlLocked(needStop)
	}
	st.s.fillLocked()
	st.settleLocked()
}

// CloseWrite ends the direction to the peer, after what was written.
func (st *Stream) CloseWrite() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.closeWriteLocked()
}

func (st *Stream) closeWriteLocked() error {
	if st.fin {
		return nil
	}
	if st.werr != nil {
		return st.werr
	}
	st.fin = true
	if !st.writing {
		st.finLocked()
	}
	return nil
}

func (st *Stream) finLocked() {
	st.werr = net.ErrClosed
	st.ctlLocked(needFin)
	st.s.fillLocked()
}

// Close ends both directions: the peer gets everything that was written, and
// is told to send no more. A Write in progress is cut off, by a reset.
func (st *Stream) Close() error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.writing {
		st.resetLocked(CodeCanceled)
		return nil
	}
	_ = st.closeWriteLocked() // it has ended already
	st.closeReadLocked(CodeClosed)
	return nil
}

// Read reads what has arrived, io.EOF after the peer's CloseWrite, a
// *ResetError after a reset.
func (st *Stream) Read(p []byte) (int, error) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	at, b, err := st.takeLocked(len(p))
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	st.recv.unpin(at)
	for n < len(p) && st.recv.size > 0 { // what came in further frames
		at, b = st.recv.take(len(p) - n)
		n += copy(p[n:], b)
		st.recv.unpin(at)
	}
	st.consumedLocked(n)
	return n, nil
}

// takeLocked waits for bytes, and takes at most n of them; until the piece is
// unpinned they stay where they are.
func (st *Stream) takeLocked(n int) (*piece, []byte, error) {
	for {
		switch {
		case st.rerr != nil:
			return nil, nil, st.rerr
		case st.recv.size > 0:
			p, b := st.recv.take(n)
			return p, b, nil
		case st.finRecv:
			return nil, nil, io.EOF
		case st.readBy.over():
			return nil, nil, os.ErrDeadlineExceeded
		}
		st.readers.Wait()
	}
}

// WriteTo writes what arrives to w until the peer's CloseWrite, without a copy in between.
func (st *Stream) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, rerr, werr := st.move(w)
		total += int64(n)
		switch {
		case werr != nil:
			return total, werr
		case errors.Is(rerr, io.EOF):
			return total, nil
		case rerr != nil:
			return total, rerr
		}
	}
}

// move waits for bytes and writes them to w.
func (st *Stream) move(w io.Writer) (n int, rerr, werr error) {
	s := st.s
	s.mu.Lock()
	at, b, rerr := st.takeLocked(pieceSize)
	s.mu.Unlock()
	if rerr != nil {
		return 0, rerr, nil
	}
	n, werr = w.Write(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	st.recv.unpin(at)
	st.consumedLocked(len(b))
	return n, nil, werr
}

// Write returns when all of p is on its way: copied to where it is kept until
// the peer has it. It waits for credit, for its turn and for a carrier.
func (st *Stream) Write(p []byte) (int, error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for st.writing && st.werr == nil && !st.writeBy.over() {
		st.writers.Wait()
	}
	switch {
	case st.werr != nil:
		return 0, st.werr
	case st.fin:
		return 0, net.ErrClosed
	case st.writeBy.over():
		return 0, os.ErrDeadlineExceeded
	}
	st.writing, st.pending = true, p
	st.turnLocked()
	s.fillLocked()
	for len(st.pending) > 0 && st.werr == nil && !st.writeBy.over() {
		st.waitWriteLocked()
	}
	n := len(p) - len(st.pending)
	s.sched.remove(st)
	st.writing, st.pending = false, nil
	st.writers.Broadcast()
	err := st.werr
	if st.fin && err == nil {
		st.finLocked()
	}
	switch {
	case n == len(p):
		return n, nil
	case err != nil:
		return n, err
	}
	return n, os.ErrDeadlineExceeded
}

func (st *Stream) waitWriteLocked() {
	if st.sendCredit > 0 && st.s.sendCredit > 0 {
		st.writers.Wait()
		return
	}
	start := time.Now()
	st.writers.Wait()
	st.s.stats.Stalled += time.Since(start)
}

// deadline is the end of waiting in one direction.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (st *Stream) setLocked(d *deadline, c *sync.Cond, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() { st.s.broadcast(c) })
	}
	c.Broadcast()
}

// SetDeadline sets both deadlines.
func (st *Stream) SetDeadline(t time.Time) error {
	_ = st.SetReadDeadline(t) // neither fails
	return st.SetWriteDeadline(t)
}

// SetReadDeadline ends Read and WriteTo, not ReceiveDatagram, at t.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.setLocked(&st.readBy, &st.readers, t)
	return nil
}

// SetWriteDeadline ends Write at t. What it has taken by then arrives.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.setLocked(&st.writeBy, &st.writers, t)
	return nil
}

// Addr is the address of a stream's ends: the session and the stream's number.
type Addr struct {
	Session ID
	Stream  uint32
}

// Network returns "edged-tunnel".
func (Addr) Network() string { return "edged-tunnel" }

func (a Addr) String() string { return fmt.Sprintf("%s/%d", a.Session, a.Stream) }

// LocalAddr returns an Addr.
func (st *Stream) LocalAddr() net.Addr { return Addr{st.s.id, st.id} }

// RemoteAddr returns the same Addr: a stream has one name.
func (st *Stream) RemoteAddr() net.Addr { return st.LocalAddr() }
