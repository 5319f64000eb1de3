package bulk

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/mux"
)

const (
	// After is how many bytes pass in the session before a stream is worth a connection of its own.
	After = 1 << 20
	// attempts bounds how often a stream is moved: the next time only after twice as many bytes.
	attempts = 6
	// keepMost is what may be under way beside the session, in bytes.
	keepMost = 16 << 20
	// ackEvery is after how many bytes their arrival is told, ackAfter after what time: each telling wakes up three
	// processes, and the other end keeps what was not told.
	ackEvery = 1 << 20
	ackAfter = 200 * time.Millisecond
	// holdMost is what Hold keeps back at most before it is sent, in bytes.
	holdMost = 256 << 10
	// lingers is how long after Close bytes may need to arrive.
	lingers = 30 * time.Second
)

// ErrCut is the error of a connection whose two ends cannot tell one another
// any more how far they are.
var ErrCut = errors.New("control stream lost while beside the session")

// Conn is a stream that can move. It is a net.Conn whose directions end
// separately; its methods may be called concurrently.
type Conn struct {
	stream *mux.Stream
	worth  func() // moving; may be nil

	writer sync.Mutex // one Write or CloseWrite at a time; taken before mu
	held   bool       // Hold was called; guarded by writer

	mu      sync.Mutex
	changed sync.Cond
	err     error // both directions are over
	leg     *leg  // the newest
	next    int64 // the sum of both directions at which moving is worth it
	tries   int
	asked   bool // worth was called, and neither Move nor Stay since

	got     uint64 // bytes read
	told    uint64 // of those beside the session, in the last ACK
	telling bool   // ackLate will run
	end     int64  // where the peer's direction ends, if it said so; -1
	reading *leg   // whose TCP Read reads
	kicked  bool
	readBy  time.Time
	inRead  bool

	werr    error  // the direction to the peer is over
	out     uint64 // bytes written
	handed  uint64 // of those beside the session, given to TCP
	keep    keep
	fin     bool // CloseWrite was called
	finTold bool
	closed  bool // Close was called
	settled bool // both directions have ended beside the session
	free    bool // resend is at work: the deadline does not hold for what was accepted
	writeBy time.Time
}

var _ net.Conn = (*Conn)(nil)

// leg is one stay beside the session.
type leg struct {
	ctl *mux.Stream
	tcp *splice.Direct
	tx  sync.Mutex // one message is written to ctl at a time

	// Guarded by the Conn's lock.
	moved     bool // we write to tcp
	peerMoved bool // the peer does, from that number on
	peerFrom  uint64
	dead      bool // tcp is not used any more
	lostSent  bool // our LOST is decided
	lostSaid  bool // and written
	lostGot   bool
	resent    bool // what the peer's LOST asks for is in the session
	finished  bool // the peer has all that we wrote
	over      bool // there is nothing more to say
}

// New returns a connection over a stream. worth is called when moving would be
// worth it, must not block, and is answered by Move or Stay before it is called
// again: of two moves under way the two ends might begin with different ones,
// and wait for each other. It is nil where the peer decides.
func New(stream *mux.Stream, worth func()) *Conn {
	c := &Conn{stream: stream, worth: worth, end: -1, next: After}
	c.changed.L = &c.mu
	return c
}

// Stream returns what it lies over in the session, for its datagrams.
func (c *Conn) Stream() *mux.Stream { return c.stream }

// Beside says whether bytes are written beside the session now.
func (c *Conn) Beside() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leg != nil && c.leg.moved && !c.leg.dead
}

// Stay says that what worth has asked for is not going to be.
func (c *Conn) Stay() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = false
}

// passedLocked is called when bytes have passed.
func (c *Conn) passedLocked() {
	if c.worth == nil || c.asked || c.tries >= attempts || c.fin || c.end >= 0 || int64(c.got+c.out) < c.next || c.leg != nil && !c.leg.over {
		return
	}
	c.tries++
	c.asked = true
	c.next = int64(c.got+c.out) + After<<c.tries
	c.worth()
}

// Read reads from where the peer writes.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		n, err, again := c.readOnce(p)
		if !again {
			return n, err
		}
	}
}

func (c *Conn) readOnce(p []byte) (n int, err error, again bool) {
	c.mu.Lock()
	l := c.leg
	beside := l != nil && l.peerMoved && !l.dead
	switch {
	case c.end >= 0 && c.got == uint64(c.end):
		err = io.EOF
	case c.err != nil:
		err = c.err
	case c.closed:
		err = net.ErrClosed
	case !c.readBy.IsZero() && !time.Now().Before(c.readBy):
		err = os.ErrDeadlineExceeded
	}
	if err != nil {
		c.mu.Unlock()
		return 0, err, false
	}
	if beside && c.got < l.peerFrom {
		p = p[:min(uint64(len(p)), l.peerFrom-c.got)]
		beside = false
	}
	c.inRead = true
	if beside {
		c.reading = l
	}
	c.mu.Unlock()
	if beside {
		n, err = l.tcp.Read(p)
	} else {
		n, err = c.stream.Read(p)
	}
	return c.wasRead(l, beside, n, err)
}

// wasRead counts what was read, and decides what an error means.
func (c *Conn) wasRead(l *leg, beside bool, n int, err error) (int, error, bool) {
	var say []message
	c.mu.Lock()
	c.got += uint64(n)
	c.inRead, c.reading = false, nil
	kicked := c.kicked
	if kicked {
		c.kicked = false
		c.deadlineLocked()
	}
	if beside && !l.dead && c.got-c.told >= ackEvery {
		c.told = c.got
		say = append(say, message{ack, c.got})
	} else if beside && c.got > c.told && !c.telling {
		c.telling = true
		time.AfterFunc(ackAfter, c.ackLate)
	}
	say = append(say, c.finishLocked(l)...)
	if beside && err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.loseLocked(l)
	}
	say = append(say, c.lostLocked(l)...)
	c.passedLocked()
	late := !c.readBy.IsZero() && !time.Now().Before(c.readBy)
	c.mu.Unlock()
	c.say(l, say)
	switch {
	case n > 0:
		return n, nil, false
	case beside || kicked && errors.Is(err, os.ErrDeadlineExceeded) && !late:
		return 0, nil, true
	}
	return 0, err, err == nil
}

// ackLate tells the arrival of bytes that were too few for wasRead to tell.
func (c *Conn) ackLate() {
	var say []message
	c.mu.Lock()
	c.telling = false
	l := c.leg
	if c.err == nil && !c.closed && !c.finTold && l.peerMoved && !l.dead && !l.over && c.got > c.told {
		c.told = c.got
		say = []message{{ack, c.got}}
	}
	c.mu.Unlock()
	c.say(l, say)
}

// kickLocked has a Read in progress look again.
func (c *Conn) kickLocked() {
	c.changed.Broadcast()
	if !c.inRead {
		return
	}
	c.kicked = true
	past := time.Unix(1, 0)
	_ = c.stream.SetReadDeadline(past)
	if c.reading != nil {
		c.reading.tcp.SetReadDeadline(past)
	}
}

func (c *Conn) deadlineLocked() {
	_ = c.stream.SetReadDeadline(c.readBy)
	if c.leg != nil && !c.leg.dead {
		c.leg.tcp.SetReadDeadline(c.readBy)
	}
}

// Write writes p to the session, or beside it.
func (c *Conn) Write(p []byte) (total int, err error) {
	c.writer.Lock()
	defer c.writer.Unlock()
	for len(p) > 0 && err == nil {
		var n int
		n, err = c.writeOnce(p)
		total += n
		p = p[n:]
	}
	return total, err
}

func (c *Conn) writeOnce(p []byte) (int, error) {
	c.mu.Lock()
	l, err := c.wayLocked()
	if err != nil {
		c.mu.Unlock()
		return 0, err
	}
	if l == nil {
		c.mu.Unlock()
		n, err := c.stream.Write(p)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.out += uint64(n)
		c.passedLocked()
		return n, err
	}
	p = p[:min(len(p), keepMost-c.keep.size())]
	c.keep.append(p)
	c.out += uint64(len(p))
	much := !c.held || c.out-c.handed >= holdMost
	c.mu.Unlock()
	if much {
		c.hand(l)
	}
	return len(p), nil
}

// hand gives TCP what it has not got of what is kept. The caller has writer.
func (c *Conn) hand(l *leg) {
	c.mu.Lock()
	if l == nil || !l.moved || l.dead || c.handed == c.out {
		c.mu.Unlock()
		return
	}
	parts := c.keep.since(c.handed)
	c.handed = c.out
	c.mu.Unlock()
	_, err := l.tcp.WriteParts(parts)
	c.mu.Lock()
	c.keep.unpin()
	c.changed.Broadcast()
	c.mu.Unlock()
	if err != nil {
		c.lose(l) // and they are sent again
	}
}

// Hold has Write keep back what goes beside the session, until it is much or
// Release is called: TLS writes each of its records by itself, and a system
// call for each costs more than to encrypt it. One caller at a time holds.
func (c *Conn) Hold() {
	c.writer.Lock()
	defer c.writer.Unlock()
	c.held = true
}

// Release sends what Hold has kept back.
func (c *Conn) Release() {
	c.writer.Lock()
	defer c.writer.Unlock()
	c.held = false
	c.hand(c.newest())
}

func (c *Conn) newest() *leg {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leg
}

// wayLocked returns where the next bytes go: nil for the session. It waits while a
// leg is lost and what it had is not yet sent again, and while too much is under way.
func (c *Conn) wayLocked() (*leg, error) {
	var timer *time.Timer
	for {
		l := c.leg
		switch {
		case c.err != nil:
			return nil, c.err
		case c.werr != nil:
			return nil, c.werr
		case c.closed || c.fin:
			return nil, net.ErrClosed
		case l == nil || l.dead && !l.moved:
			return nil, nil //nolint:nilnil // the session
		case !l.moved:
			l.moved = true
			c.keep.begin(c.out)
			c.handed = c.out
			at := c.out
			c.mu.Unlock()
			c.say(l, []message{{move, at}})
			c.mu.Lock()
			continue
		case !c.writeBy.IsZero() && !time.Now().Before(c.writeBy):
			return nil, os.ErrDeadlineExceeded
		case !l.dead && c.keep.size() < keepMost:
			return l, nil
		}
		if timer == nil && !c.writeBy.IsZero() {
			timer = time.AfterFunc(time.Until(c.writeBy), c.wake)
			defer timer.Stop()
		}
		c.changed.Wait()
	}
}

func (c *Conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed.Broadcast()
}

// CloseWrite ends the direction to the peer, after what was written.
func (c *Conn) CloseWrite() error {
	c.writer.Lock()
	defer c.writer.Unlock()
	c.hand(c.newest())
	return c.closeWrite()
}

func (c *Conn) closeWrite() error {
	c.mu.Lock()
	if c.fin || c.err != nil {
		defer c.mu.Unlock()
		return c.err
	}
	c.fin = true
	l := c.leg
	inSession := l == nil || !l.moved
	var say []message
	if !inSession && !l.dead {
		say = []message{{end, c.out}}
	}
	c.mu.Unlock()
	if inSession {
		return c.stream.CloseWrite()
	}
	c.say(l, say)
	return nil
}

// Close ends both directions. What was written arrives, if the peer reads it
// within half a minute. A Write in progress is cut off, by a reset.
func (c *Conn) Close() error {
	if !c.writer.TryLock() {
		c.Reset(mux.CodeCanceled)
		return nil
	}
	if c.held {
		c.writer.Unlock()
		c.Reset(mux.CodeCanceled)
		return nil
	}
	_ = c.closeWrite() // it may have ended already
	c.writer.Unlock()
	c.mu.Lock()
	c.closed = true
	c.kickLocked()
	wait := c.err == nil && c.leg != nil && c.leg.moved && !c.leg.finished && !c.leg.over
	c.mu.Unlock()
	if wait {
		time.AfterFunc(lingers, c.finish)
		return nil
	}
	c.finish()
	return nil
}

// finish closes what there is.
func (c *Conn) finish() {
	c.mu.Lock()
	l := c.leg
	if l != nil {
		l.over, l.dead = true, true
	}
	c.dropLocked()
	if c.err == nil {
		c.err = net.ErrClosed
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	if l != nil {
		l.tcp.Close()
		_ = l.ctl.Close()
	}
	_ = c.stream.Close()
}

// dropLocked forgets what is kept, unless resend is writing it.
func (c *Conn) dropLocked() {
	if !c.free {
		c.keep.drop(c.keep.end)
	}
}

// Reset ends both directions at both ends; what is under way is lost.
func (c *Conn) Reset(code mux.Code) { c.fail(&mux.ResetError{Code: code}, code) }

func (c *Conn) fail(err error, code mux.Code) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	l := c.leg
	if l != nil {
		l.over, l.dead = true, true
	}
	c.dropLocked()
	c.changed.Broadcast()
	c.mu.Unlock()
	if l != nil {
		l.tcp.SetLinger(0)
		l.tcp.Close()
		l.ctl.Reset(code)
	}
	c.stream.Reset(code)
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // neither fails
	return c.SetWriteDeadline(t)
}

// SetReadDeadline ends Read at t.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = t
	if !c.kicked {
		c.deadlineLocked()
	}
	return nil
}

// SetWriteDeadline ends Write at t. Beside the session, what Write has taken arrives nevertheless.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy = t
	if !c.free {
		_ = c.stream.SetWriteDeadline(t)
	}
	if c.leg != nil && !c.leg.dead {
		_ = c.leg.tcp.SetWriteDeadline(t)
	}
	c.changed.Broadcast()
	return nil
}

// LocalAddr returns the stream's.
func (c *Conn) LocalAddr() net.Addr { return c.stream.LocalAddr() }

// RemoteAddr returns the stream's.
func (c *Conn) RemoteAddr() net.Addr { return c.stream.RemoteAddr() }
