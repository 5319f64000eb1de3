package mux

import (
	"context"
	"math/rand/v2"
	"net"
	"time"

	"go.uber.org/zap"
)

// datagramConn is what a carrier of QUIC also is: datagrams then go beside
// its stream. SendDatagram must not keep b and not block; ReceiveDatagram ends
// when the connection is closed or ctx ends. A carrier that only sometimes has
// them says so by a method Datagrams() bool.
type datagramConn interface {
	SendDatagram(b []byte) error
	ReceiveDatagram(ctx context.Context) ([]byte, error)
}

// carrier is one connection that the session runs over. All of it is guarded
// by the session's lock.
type carrier struct {
	conn    net.Conn
	beside  datagramConn // or nil
	cancel  context.CancelFunc
	running int           // goroutines
	writing bool          // one of them is the writer
	gone    chan struct{} // closed when the last has ended
	lost    bool
	tell    bool // the writer's last frame is END

	rtt      time.Duration // shortest
	heard    time.Time     // when anything arrived last
	waiting  time.Time     // since when something is outstanding; zero: nothing is
	data     time.Time     // when anything but answers arrived last
	probed   time.Time     // when a silence after that was last looked into
	watching bool          // look will look into it
	nextPing time.Time
	pinged   time.Time // zero: no PING is under way
	pingDue  bool
	pongDue  bool
	pong     uint64
	watch    *time.Timer
}

func (s *Session) startCarrierLocked(conn net.Conn, rtt time.Duration) {
	now := time.Now()
	c := &carrier{conn: conn, cancel: func() {}, running: 1, gone: make(chan struct{}), rtt: rtt, heard: now, pingDue: true}
	c.nextPing = now.Add(s.pingInterval())
	if d := besideOf(conn); d != nil {
		ctx, cancel := context.WithCancel(context.Background())
		c.beside, c.cancel = d, cancel
		c.running++
		s.running.Go(func() { s.readDatagrams(ctx, c) })
	}
	s.carrier, s.last = c, c
	s.acked, s.ackDue = s.received, false
	s.running.Go(func() { s.read(c) })
	s.wakeLocked()
	c.watch = time.AfterFunc(s.cfg.DeadAfter, func() { s.look(c) })
}

// wakeLocked has the writer see to what there is to be sent. It has left if the session has no streams, which costs an idle
// session no stack.
func (s *Session) wakeLocked() {
	c := s.carrier
	if c == nil || c.writing {
		s.wake.Signal()
		return
	}
	s.startWriterLocked(c)
}

// startWriterLocked starts c's writer. The reader still runs, so that this is not c's first goroutine.
func (s *Session) startWriterLocked(c *carrier) {
	c.writing = true
	c.running++
	s.running.Go(func() { s.write(c) })
}

func besideOf(conn net.Conn) datagramConn {
	if m, ok := conn.(interface{ Datagrams() bool }); ok && !m.Datagrams() {
		return nil
	}
	d, _ := conn.(datagramConn)
	return d
}

// pingInterval is PingEvery and up to a fifth more or less, so that thousands
// of sessions do not fall into step.
func (s *Session) pingInterval() time.Duration {
	fifth := s.cfg.PingEvery / 5
	return s.cfg.PingEvery - fifth + rand.N(2*fifth+1)
}

// look runs when a PING is due, or when the carrier may be dead.
func (s *Session) look(c *carrier) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.lost {
		return
	}
	now := time.Now()
	if !now.Before(c.nextPing) {
		c.nextPing = now.Add(s.pingInterval())
		c.pingDue = true
		s.wakeLocked()
	}
	next := c.nextPing
	if c.watching {
		if quiet := c.data.Add(s.cfg.DeadAfter / 3); now.Before(quiet) {
			next = quiet
		} else {
			s.probeLocked(c, now)
		}
	}
	if !c.waiting.IsZero() {
		silent := c.waiting
		if c.heard.After(silent) {
			silent = c.heard
		}
		dead := silent.Add(s.cfg.DeadAfter)
		if !now.Before(dead) {
			s.loseLocked(c, errDead)
			return
		}
		if dead.Before(next) {
			next = dead
		}
	}
	c.watch.Reset(next.Sub(now))
}

// probeLocked asks whether the peer is still there: what it was sending has
// stopped, and an end that only receives has nothing outstanding to notice it by.
func (s *Session) probeLocked(c *carrier, now time.Time) {
	c.watching = false
	if len(s.streams) > 0 && c.data.After(c.probed) {
		c.probed, c.pingDue = now, true
		s.wakeLocked()
	}
}

// arrivedLocked notes that something came which the peer sent of itself.
func (s *Session) arrivedLocked() {
	c := s.carrier
	if c == nil {
		return
	}
	c.data = c.heard
	if !c.watching {
		c.watching = true
		c.watch.Reset(s.cfg.DeadAfter / 3)
	}
}

// outstandingLocked notes since when the peer owes an answer.
func (s *Session) outstandingLocked(c *carrier) {
	owed := s.ring.sent > s.ring.acked || !c.pinged.IsZero()
	switch {
	case !owed:
		c.waiting = time.Time{}
	case c.waiting.IsZero() && !c.lost:
		c.waiting = time.Now()
		if !c.watching { // else look comes before that anyway
			c.watch.Reset(s.cfg.DeadAfter)
		}
	}
}

// lose gives c up because of err.
func (s *Session) lose(c *carrier, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loseLocked(c, err)
}

func (s *Session) loseLocked(c *carrier, err error) {
	if c.lost {
		return
	}
	s.cfg.Logger.Info("tunnel carrier lost", zap.Stringer("session", s.id), zap.Uint32("epoch", s.epoch), zap.Error(err))
	s.dropLocked(c)
	s.startLingerLocked()
	s.signalLost()
}

// dropLocked has c's goroutines end.
func (s *Session) dropLocked(c *carrier) {
	c.lost = true
	if c.tell && !c.writing {
		s.startWriterLocked(c)
	}
	c.watch.Stop()
	c.cancel()
	if c.tell {
		c.conn.SetReadDeadline(past())
		c.conn.SetWriteDeadline(time.Now().Add(lastWord))
	} else {
		c.conn.SetDeadline(past())
	}
	if s.carrier == c {
		s.carrier, s.lostAt = nil, time.Now()
	}
	s.stats.DroppedCarrier += uint64(s.datagrams.clear())
	s.wake.Broadcast()
	s.changed.Broadcast()
}

// ended is called by each of c's goroutines as it ends; the last closes.
func (s *Session) ended(c *carrier) {
	s.mu.Lock()
	c.running--
	final := c.running == 0
	if final && s.err != nil {
		s.ring.drop()
	}
	s.mu.Unlock()
	if final {
		close(c.gone)
		c.conn.Close()
	}
}

// fence drops the carrier, if there is one, and waits until nothing reads or
// writes it any more.
func (s *Session) fence() {
	s.mu.Lock()
	c := s.last
	if c != nil && !c.lost {
		s.dropLocked(c)
		s.startLingerLocked()
	}
	s.mu.Unlock()
	if c != nil {
		<-c.gone
	}
}

func (s *Session) signalLost() {
	select {
	case s.lostc <- struct{}{}:
	default:
	}
}

// startLingerLocked gives the peer time to come back, if it does not have it already.
func (s *Session) startLingerLocked() {
	if s.err != nil || s.linger != nil {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(s.cfg.Linger, func() {
		s.mu.Lock()
		over := s.linger == t
		s.mu.Unlock()
		if over {
			s.end(&SessionError{Code: CodeLingered}, false)
		}
	})
	s.linger = t
}
