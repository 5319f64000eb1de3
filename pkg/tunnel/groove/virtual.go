package groove

import (
	"bufio"
	"io"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// Bounds of what is remembered.
const (
	// maxHalfOpen bounds virtual connections that are not established yet; perSourceHalfOpen those of one address.
	maxHalfOpen, perSourceHalfOpen = 1024, 128
	// A GUID that was used is refused for usedTime; maxUsed are remembered.
	usedTime, maxUsed = 10 * time.Minute, 1 << 14
	// lostTime is after how long without a request the client of Polling is gone: it has no other way to say so, and
	// asks every two seconds at least. One of KeepAlive has as long to ask again by another connection.
	lostTime = 30 * time.Second
)

// Why a virtual connection has ended, as the reason label of metrics.
const (
	endClosed      = "closed"          // by who serves it here
	endPeer        = "peer"            // by the client or a proxy
	endEstablish   = "not_established" // in time
	endIdle        = "idle"
	endShutdown    = "shutdown"
	endEarly       = "early_data" // before it was established
	endEcho        = "echo"       // something else than the echo
	endReused      = "reused"     // its GUID, for another request
	endMismatch    = "mismatch"   // two requests that do not fit together
	endOversized   = "oversized"
	endBody        = "body"       // that could not be read
	endSequence    = "sequence"   // of Polling
	endExhausted   = "exhausted"  // LongLived's Content-Length
	endUnanswering = "unanswered" // a response could not be sent
)

// half is a connection of TCP that carries one direction of LongLived.
type half struct {
	conn net.Conn
	br   *bufio.Reader
	left int64 // of its body
}

// virtual is a virtual connection at the server. What is not said otherwise is guarded by the server's mutex.
type virtual struct {
	target // does not change
	source netip.Addr
	begun  time.Time

	established bool
	// pinged is closed when it is established, done when it has ended. They do not change.
	pinged, done chan struct{}
	ended        bool
	closing      time.Time // when it was closed here
	last         time.Time // of a request
	lost         time.Time // since when the client may ask by another connection only

	// getting and posting say that there is such a request now; of LongLived, that there was one.
	getting, posting bool
	echoed           bool // the client has said its first
	answered         bool // and the server
	get, post        *half
	stream           *stream
	queued           *queued
	seq              uint32 // of the next request of Polling
}

// role is what a request does for its virtual connection.
type role int

const (
	roleGet role = iota
	rolePost
)

// enter finds the virtual connection of a request, or begins it, and takes the role in it. why says that there is
// none for this request.
func (s *Server) enter(t target, source netip.Addr, r role) (v *virtual, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	v = s.live[t.guid]
	if v == nil {
		if v, why = s.beginLocked(t, source, now); why != "" {
			return nil, why
		}
	}
	v.last = now
	busy := &v.getting
	if r == rolePost {
		busy = &v.posting
	}
	switch {
	case v.target != t:
		why = endMismatch
	case *busy:
		why = endReused
	default:
		*busy = true
		if r == roleGet {
			v.lost = time.Time{}
		}
		return v, ""
	}
	s.endLocked(v, why)
	return nil, why
}

// beginLocked enters a new virtual connection, if there is room.
func (s *Server) beginLocked(t target, source netip.Addr, now time.Time) (*virtual, string) {
	switch {
	case s.stopped:
		return nil, endShutdown
	case s.used.has(t.guid, now):
		return nil, endReused
	case s.rawOpen+len(s.live) >= s.cfg.MaxConnections:
		return nil, "max_connections"
	case s.halfOpen >= maxHalfOpen, s.sources[source] >= perSourceHalfOpen:
		return nil, "half_open"
	}
	v := &virtual{target: t, source: source, begun: now, pinged: make(chan struct{}), done: make(chan struct{})}
	s.live[t.guid] = v
	s.halfOpen++
	s.sources[source]++
	return v, ""
}

// leave gives the role back, for the next request.
func (s *Server) leave(v *virtual, r role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.last = time.Now()
	if r == roleGet {
		v.getting = false
	} else {
		v.posting = false
	}
}

// establishLocked has the connection served, whose both ends have said their first.
func (s *Server) establishLocked(v *virtual, conn net.Conn) {
	s.notHalfLocked(v)
	v.established = true
	close(v.pinged)
	s.ready = append(s.ready, ready{v, &Conn{Conn: conn, Mode: v.mode, Relay: v.relay}})
	select {
	case s.wake <- struct{}{}:
	default:
	}
	s.count.total.WithLabelValues(v.mode.String()).Inc()
	s.count.open.WithLabelValues(v.mode.String()).Inc()
}

func (s *Server) notHalfLocked(v *virtual) {
	s.halfOpen--
	if s.sources[v.source]--; s.sources[v.source] <= 0 {
		delete(s.sources, v.source)
	}
}

// lose notes that the connection of a client's last GET is gone.
func (s *Server) lose(v *virtual) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !v.getting {
		v.lost = time.Now()
	}
}

// end ends a virtual connection, once.
func (s *Server) end(v *virtual, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(v, why)
}

func (s *Server) endLocked(v *virtual, why string) {
	if v.ended {
		return
	}
	v.ended = true
	delete(s.live, v.guid)
	s.used.add(v.guid, time.Now())
	if v.established {
		s.count.open.WithLabelValues(v.mode.String()).Dec()
	} else {
		s.notHalfLocked(v)
	}
	s.count.endeds.WithLabelValues(why).Inc()
	s.log.Debug("virtual connection ended", zap.String("relay", v.relay), zap.Stringer("mode", v.mode), zap.Stringer("source", v.source),
		zap.Bool("established", v.established), zap.Duration("lasted", time.Since(v.begun)), zap.String("reason", why))
	close(v.done)
	if v.queued != nil {
		v.queued.fail(io.EOF)
	}
	for _, h := range []*half{v.get, v.post} {
		if h != nil {
			s.work.Go(func() { h.conn.Close() }) // which TLS may make slow
		}
	}
}

// sweep ends what has taken too long.
func (s *Server) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used.expire(now)
	for _, v := range s.live {
		last, idle := v.last, s.cfg.Idle
		switch {
		case v.stream != nil:
			last = time.Unix(0, v.stream.last.Load())
		case v.mode == Polling:
			idle = lostTime
		}
		switch {
		case !v.established && now.Sub(v.begun) > s.cfg.Establish:
			s.endLocked(v, endEstablish)
		case !v.lost.IsZero() && now.Sub(v.lost) > lostTime:
			s.endLocked(v, endPeer)
		case !v.closing.IsZero() && now.Sub(v.closing) > linger:
			s.endLocked(v, endClosed)
		case v.established && now.Sub(last) > idle && (v.stream != nil || !v.posting):
			s.endLocked(v, endIdle)
		}
	}
}

// closed is told that a connection of requests was closed here.
func (s *Server) closed(v *virtual) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.closing.IsZero() {
		v.closing = time.Now()
	}
	if v.queued.out.len() == 0 {
		s.endLocked(v, endClosed)
	}
}

// guids are those that were used a while ago, oldest first.
type guids struct {
	until map[string]time.Time
	order []string
}

func (g *guids) has(guid string, now time.Time) bool {
	t, ok := g.until[guid]
	return ok && now.Before(t)
}

func (g *guids) add(guid string, now time.Time) {
	if len(g.order) >= maxUsed {
		g.forget()
	}
	g.until[guid] = now.Add(usedTime)
	g.order = append(g.order, guid)
}

func (g *guids) expire(now time.Time) {
	for len(g.order) > 0 && !now.Before(g.until[g.order[0]]) {
		g.forget()
	}
}

func (g *guids) forget() {
	delete(g.until, g.order[0])
	g.order = g.order[1:]
}
