package mux

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// ID names a session to both ends. It is random, and no secret.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Session carries streams over one carrier at a time. Its methods may be
// called concurrently.
type Session struct {
	cfg    Config
	id     ID
	client bool

	resuming sync.Mutex // one carrier is exchanged at a time; taken before mu
	lostc    chan struct{}
	away     chan struct{}
	done     chan struct{}
	running  sync.WaitGroup // goroutines of carriers

	mu       sync.Mutex
	err      *SessionError // ended
	wake     sync.Cond     // the writer has something to do
	changed  sync.Cond     // Open, Accept, Close and fences wait for this
	epoch    uint32
	carrier  *carrier  // nil while there is none
	lostAt   time.Time // since when
	last     *carrier  // the newest, perhaps lost
	linger   *time.Timer
	ring     ring
	batch    int    // bytes that one write may take
	received uint64 // counted bytes of frames that arrived whole
	acked    uint64 // of those, told to the peer
	ackDue   bool
	ackTimer *time.Timer
	ackArmed bool

	streams   map[uint32]*Stream
	nextID    uint32 // that we open
	lastID    uint32 // that the peer opened
	ours      int    // live streams that we opened
	theirs    int    // and that the peer opened
	peerLimit int    // how many we may have open
	peerFirst int    // the window of a new stream at the peer
	incoming  []*Stream
	take      func(*Incoming) // instead of Accept
	over      func()
	served    sync.WaitGroup // what take has
	retry     time.Duration  // of the peer's GOAWAY
	wentAway  bool           // the peer's
	goAway    uint32         // ours, in seconds, to be sent
	goAwayDue bool
	leaving   bool // GoAway was called

	sched           sched
	ctl             []*Stream // with frames to be sent that are not data
	refusals        []refusal
	datagrams       datagrams
	unreadDatagrams int   // bytes
	sendCredit      int64 // of the session
	recvCredit      int64 // what the peer still has
	toReturn        int64 // read, not yet granted again
	creditDue       bool
	windows         int64 // of all streams together

	stats Stats
}

// refusal is a RESET for a stream that was never there.
type refusal struct {
	stream uint32
	code   Code
}

// maxRefusals bounds what a peer that opens too much and reads nothing can pile up.
const maxRefusals = 256

func newSession(cfg Config, id ID, client bool) *Session {
	s := &Session{
		cfg: cfg, id: id, client: client,
		lostc:   make(chan struct{}, 1), // a loss that nobody waits for yet is kept, several are one
		away:    make(chan struct{}),
		done:    make(chan struct{}),
		streams: map[uint32]*Stream{},
		batch:   chunkSize,
		nextID:  2,
	}
	if client {
		s.nextID = 1
	}
	s.wake.L, s.changed.L = &s.mu, &s.mu
	s.recvCredit = int64(cfg.SessionWindow)
	return s
}

// ID returns the session's name.
func (s *Session) ID() ID { return s.id }

// Lost gives one receive each time that the carrier is lost; the client then
// calls Resume with a new one.
func (s *Session) Lost() <-chan struct{} { return s.lostc }

// Away is closed by the peer's GOAWAY.
func (s *Session) Away() <-chan struct{} { return s.away }

// RetryAfter returns what the peer's GOAWAY asks for.
func (s *Session) RetryAfter() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retry
}

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns a *SessionError once the session has ended.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errLocked()
}

func (s *Session) errLocked() error {
	if s.err == nil {
		return nil // not a *SessionError that is nil
	}
	return s.err
}

// GoAway asks the peer to open nothing more and to come back, here or
// elsewhere, after a time (whole seconds are sent). What is open stays.
func (s *Session) GoAway(retryAfter time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.goAway, s.goAwayDue, s.leaving = uint32(min(max(retryAfter, 0)/time.Second, 1<<31)), true, true
	s.fillLocked()
}

// Close ends the session at both ends and waits for its goroutines. With
// CodeClosed it first lets the peer acknowledge what was written, for at most
// two seconds; streams that are still open are reset.
func (s *Session) Close(code Code) error {
	if code == CodeClosed {
		s.drain()
	}
	s.end(&SessionError{Code: code}, true)
	s.running.Wait()
	return nil
}

func (s *Session) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := false
	t := time.AfterFunc(drain, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		late = true
		s.changed.Broadcast()
	})
	defer t.Stop()
	for s.err == nil && s.carrier != nil && !late && (s.ring.size() > 0 || len(s.ctl) > 0) {
		s.changed.Wait()
	}
}

// end ends the session, once. tell says whether the peer is to be told.
func (s *Session) end(why *SessionError, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = why
	s.cfg.Logger.Info("tunnel session ended", zap.Stringer("session", s.id), zap.Stringer("code", why.Code), zap.Bool("by_peer", why.Remote),
		zap.NamedError("cause", why.Cause), zap.Int("streams", len(s.streams)))
	for _, st := range s.streams {
		st.failLocked(why, why)
	}
	clear(s.streams)
	s.sched, s.ctl, s.refusals, s.incoming, s.datagrams = sched{}, nil, nil, nil, datagrams{}
	if s.linger != nil {
		s.linger.Stop()
	}
	if s.ackTimer != nil {
		s.ackTimer.Stop()
	}
	if c := s.carrier; c != nil {
		c.tell = tell
		s.dropLocked(c)
	} else if !s.ring.writing {
		s.ring.drop()
	}
	close(s.done)
	s.wake.Broadcast()
	s.changed.Broadcast()
	if s.over != nil {
		go s.over()
	}
}

// OpenOptions say what a stream is for.
type OpenOptions struct {
	Datagrams bool
	Owner     string // streams of one owner share its turn
	Weight    int    // within the owner; 16 is the default, 1 the least, 1024 the most

	// Away is how long the session may have been without a carrier until Open gives up with ErrAway; 0: it waits.
	Away time.Duration
}

// ErrAway is returned by Open when the session has had no carrier for OpenOptions.Away.
var ErrAway = errors.New("the peer is away")

// awayLocked tells whether Open gives up.
func (s *Session) awayLocked(o OpenOptions) bool {
	return o.Away > 0 && s.carrier == nil && time.Since(s.lostAt) >= o.Away
}

// waitLocked waits until something has changed, or the session has been without a carrier for too long.
func (s *Session) waitLocked(o OpenOptions) {
	if o.Away > 0 && s.carrier == nil {
		late := time.AfterFunc(time.Until(s.lostAt.Add(o.Away)), func() { s.broadcast(&s.changed) })
		defer late.Stop()
	}
	s.changed.Wait()
}

// Open opens a stream. The header, at most MaxHeader bytes, is the peer's to
// understand. It returns when the peer has accepted, a *ResetError if it
// refused. While as many streams are open as the peer allows, or there is no
// carrier, it waits.
func (s *Session) Open(ctx context.Context, header []byte, o OpenOptions) (*Stream, error) {
	if len(header) > MaxHeader {
		return nil, fmt.Errorf("header of %d bytes, more than %d", len(header), MaxHeader)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer context.AfterFunc(ctx, func() { s.broadcast(&s.changed) })()
	for s.err == nil && !s.wentAway && s.ours >= s.peerLimit && ctx.Err() == nil && !s.awayLocked(o) {
		s.waitLocked(o)
	}
	switch {
	case s.err != nil:
		return nil, s.err
	case s.wentAway:
		return nil, ErrGoAway
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case s.awayLocked(o):
		return nil, ErrAway
	case s.nextID > 1<<31:
		return nil, errors.New("no more stream numbers in this session")
	}
	st := s.newStreamLocked(s.nextID, o)
	st.header = header
	s.nextID += 2
	s.ours++
	st.ctlLocked(needOpen)
	s.fillLocked()
	return st.openedLocked(ctx, o)
}

// openedLocked waits for the peer's answer.
func (st *Stream) openedLocked(ctx context.Context, o OpenOptions) (*Stream, error) {
	s := st.s
	for !st.accepted && st.rerr == nil && ctx.Err() == nil && !s.awayLocked(o) {
		s.waitLocked(o)
	}
	switch {
	case st.accepted:
		return st, nil
	case st.rerr != nil:
		return nil, st.rerr
	}
	st.resetLocked(CodeCanceled)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, ErrAway
}

// Incoming is a stream that the peer wants to open.
type Incoming struct {
	Header    []byte
	Datagrams bool
	st        *Stream
}

// Accept waits for the peer to open a stream. Either of Incoming's methods
// must be called for it.
func (s *Session) Accept(ctx context.Context) (*Incoming, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer context.AfterFunc(ctx, func() { s.broadcast(&s.changed) })()
	for s.err == nil && len(s.incoming) == 0 && ctx.Err() == nil {
		s.changed.Wait()
	}
	if s.err != nil {
		return nil, s.err
	}
	if len(s.incoming) == 0 {
		return nil, context.Cause(ctx)
	}
	st := s.incoming[0]
	s.incoming = s.incoming[1:]
	return st.incomingLocked(), nil
}

func (st *Stream) incomingLocked() *Incoming {
	in := &Incoming{st.header, st.datagrams, st}
	st.header = nil
	return in
}

// Serve is for who has many sessions that wait: instead of a call of Accept,
// which needs a goroutine, take is called for each stream that the peer opens,
// and over when the session has ended, each in a goroutine of its own.
func (s *Session) Serve(take func(*Incoming), over func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take, s.over = take, over
	if s.err != nil {
		go over()
		return
	}
	for _, st := range s.incoming {
		s.handLocked(st)
	}
	s.incoming = nil
}

// handLocked gives a stream of the peer to who takes it.
func (s *Session) handLocked(st *Stream) {
	take, in := s.take, st.incomingLocked()
	s.served.Go(func() { take(in) })
}

// WaitServed returns, once the session has ended, when all calls of take have
// returned.
func (s *Session) WaitServed() { s.served.Wait() }

// Accept takes the stream.
func (in *Incoming) Accept() *Stream {
	s := in.st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !in.st.accepted && in.st.rerr == nil {
		in.st.accepted = true
		in.st.ctlLocked(needAccept)
		s.fillLocked()
	}
	return in.st
}

// Refuse resets it.
func (in *Incoming) Refuse(code Code) { in.st.Reset(code) }

func (s *Session) broadcast(c *sync.Cond) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Broadcast()
}

// Stats are counters of a session, and its state now.
type Stats struct {
	Epoch    uint32 // the number of carriers so far
	Attached bool
	RTT      time.Duration // the shortest of the carrier's pings; 0: not known yet
	Streams  int
	Unacked  int // bytes in the ring
	Window   int // receive windows of all streams together, bytes

	Sent, Received  uint64 // counted bytes, without those sent again
	Replayed        uint64 // bytes sent again
	DatagramsSent   uint64
	DatagramsRecv   uint64
	DroppedQueue    uint64        // datagrams: older ones of a full queue
	DroppedNoStream uint64        // datagrams: no such stream, or one without
	DroppedCarrier  uint64        // datagrams: waiting when the carrier was lost
	Refused         uint64        // streams over a limit
	Stalled         time.Duration // of writers that waited for credit, summed up
}

// Stats returns the counters.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.stats
	v.Epoch, v.Attached, v.Streams, v.Unacked = s.epoch, s.carrier != nil, len(s.streams), s.ring.size()
	v.Sent, v.Received, v.Window = s.ring.end, s.received, int(s.windows)
	if s.last != nil {
		v.RTT = s.last.rtt
	}
	return v
}
