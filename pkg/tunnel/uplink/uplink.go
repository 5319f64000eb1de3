// Package uplink keeps a session with a relay: it dials, comes back by another connection when one is lost, moves to a
// better way when there is one, and begins a new session when the old one has ended.
//
// It knows neither paths nor what streams are for. An agent has one uplink, to the first of its relays that answers; a
// relay has one to each relay that it passes streams on to.
//
//	Dial ─► mux.Client ─► serve(session) ─── lost ──► Dial ─► Resume ─┐
//	  ▲                        │  ▲──────────────────────────────────┘
//	  └── pause, jittered ◄── ended       every Improve: Better ─► Resume
package uplink

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mux"
)

// Carrier is an authenticated connection to a relay.
type Carrier struct {
	net.Conn
	Rung, Path string
}

// Dialer makes carriers to one relay. Its methods are not called concurrently. If it has a method Network() string, which
// names the network that the host is in, a change has better ways looked for.
type Dialer interface {
	// Dial returns a carrier by the best way that works.
	Dial(ctx context.Context) (*Carrier, error)
	// Better returns a carrier by a better way than that of the one given, which stays as it is; nil, nil: there is none.
	Better(ctx context.Context, than *Carrier) (*Carrier, error)
}

// Config tunes an uplink. Zero values mean the defaults.
type Config struct {
	Mux mux.Config
	// Pause is how long to wait after the first failure: 500 ms. Each further one doubles it, up to MaxPause: 30 s.
	Pause, MaxPause time.Duration
	// DialTime bounds one attempt at one relay: 6 min, since where thousands come back at once each waits for its turn. A
	// relay that says nothing is given up earlier by the dialer.
	DialTime time.Duration
	// ImproveFirst is after how long a better way is looked for, 15 s, each time twice as long, up to Improve: 5 min; up to
	// half more or less. It begins anew with each session, and when Network of the dialer has changed.
	ImproveFirst, Improve time.Duration
	// Replaced is how long to stay away after another session with the same key has ended this one: 1 min.
	Replaced time.Duration
}

func (c Config) completed() Config {
	for _, d := range []struct {
		at   *time.Duration
		when time.Duration
	}{{&c.Pause, 500 * time.Millisecond}, {&c.MaxPause, 30 * time.Second}, {&c.DialTime, 6 * time.Minute}, {&c.ImproveFirst, 15 * time.Second}, {&c.Improve, 5 * time.Minute}, {&c.Replaced, time.Minute}} {
		if *d.at <= 0 {
			*d.at = d.when
		}
	}
	return c
}

// Uplink keeps a session.
type Uplink struct {
	relays []Dialer
	cfg    Config
	log    *zap.Logger

	mu      sync.Mutex // guards what follows
	session *mux.Session
	changed chan struct{} // closed and replaced when session changes
	carrier *Carrier
	state   State
}

// State is how an uplink is doing.
type State struct {
	// Relay is which of the dialers, from 0; it means something while Attached.
	Relay    int
	Attached bool
	Rung     string
	Path     string
	Since    time.Time
	// Sessions and Resumes count since the start, Failures the attempts since the last success.
	Sessions, Resumes, Failures int
	LastError                   string
}

// New returns an uplink to the first of the relays that can be reached.
func New(relays []Dialer, cfg Config, log *zap.Logger) *Uplink {
	return &Uplink{relays: relays, cfg: cfg.completed(), log: log, changed: make(chan struct{})}
}

// Current returns the session, or nil while there is none. A session that has lost its carrier counts.
func (u *Uplink) Current() *mux.Session {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.session
}

// Session waits for a session.
func (u *Uplink) Session(ctx context.Context) (*mux.Session, error) {
	for {
		u.mu.Lock()
		s, changed := u.session, u.changed
		u.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("no relay is reached: %w", ctx.Err())
		}
	}
}

// State returns how the uplink is doing.
func (u *Uplink) State() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	st := u.state
	st.Attached = u.session != nil && u.carrier != nil
	return st
}

// Run keeps the session until ctx ends. serve is given each new one and returns when it has ended.
func (u *Uplink) Run(ctx context.Context, serve func(context.Context, *mux.Session)) error {
	pause, first := u.cfg.Pause, 0
	var left *Carrier // of a session that the relay has forgotten: the next one begins on it
	for ctx.Err() == nil {
		s, which, err := u.begin(ctx, first, left)
		left = nil
		if err != nil {
			u.failed(ctx, err, pause)
			rest(ctx, jitter(pause))
			pause, first = min(2*pause, u.cfg.MaxPause), 0
			continue
		}
		began := time.Now()
		left = u.serve(ctx, s, which, serve)
		if lasted := time.Since(began) > u.cfg.MaxPause; lasted {
			pause, first = u.cfg.Pause, 0
			if left != nil {
				first = which
				continue
			}
		} else {
			first = which + 1 // a relay that takes sessions only to end them is no success
			left.drop()
			left = nil
		}
		rest(ctx, max(u.afterwards(s), jitter(pause)))
		pause = min(2*pause, u.cfg.MaxPause)
	}
	left.drop()
	return nil
}

// drop closes a carrier, if there is one.
func (c *Carrier) drop() {
	if c != nil {
		c.Close()
	}
}

// begin begins a session with the first relay that takes one, from a given one on; left is a carrier to that.
func (u *Uplink) begin(ctx context.Context, first int, left *Carrier) (*mux.Session, int, error) {
	var errs []error
	for i := range u.relays {
		which := (first + i) % len(u.relays)
		c, err := left, error(nil)
		if left = nil; c == nil {
			c, err = u.dial(ctx, which)
		}
		if err == nil {
			var s *mux.Session
			if s, err = mux.Client(ctx, c.Conn, u.cfg.Mux); err == nil {
				u.begun(s, c, which)
				return s, which, nil
			}
		}
		errs = append(errs, err)
	}
	return nil, 0, errors.Join(errs...)
}

// serve keeps one session alive until it has ended, and returns a carrier if one is left over.
func (u *Uplink) serve(ctx context.Context, s *mux.Session, which int, serve func(context.Context, *mux.Session)) (left *Carrier) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var served sync.WaitGroup
	served.Go(func() { serve(ctx, s) })
	next := min(u.cfg.ImproveFirst, u.cfg.Improve)
	improve := time.NewTimer(jitter(next))
	defer improve.Stop()
	look := time.NewTicker(networkEvery)
	defer look.Stop()
	network := u.network(which)
	for alive := true; alive; {
		select {
		case <-s.Done():
			alive = false
		case <-s.Away(): // the relay goes down: what is open there ends with it
			u.log.Info("the relay asks to leave", zap.Int("relay", which))
			alive = s.Stats().Streams > 0 && u.linger(ctx, s)
		case <-ctx.Done():
			alive = false
		case <-s.Lost():
			u.lost()
			alive, left = u.resume(ctx, s, which)
		case <-improve.C:
			u.improve(ctx, s, which)
			next = min(2*next, u.cfg.Improve)
			improve.Reset(jitter(next))
		case <-look.C:
			if now := u.network(which); now != network {
				u.log.Info("the network has changed")
				network, next = now, min(u.cfg.ImproveFirst, u.cfg.Improve)
				improve.Reset(0)
			}
		}
	}
	u.ended()
	s.Close(mux.CodeClosed)
	cancel()
	served.Wait()
	return left
}

// networkEvery is how often it is looked whether the host has come into another network.
const networkEvery = 5 * time.Second

// network names the network that the host is in, as far as the dialer knows.
func (u *Uplink) network(which int) string {
	if n, ok := u.relays[which].(interface{ Network() string }); ok {
		return n.Network()
	}
	return ""
}

// linger waits while streams of a relay that goes down are open; false says that none is.
func (u *Uplink) linger(ctx context.Context, s *mux.Session) bool {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for s.Stats().Streams > 0 {
		select {
		case <-look.C:
		case <-s.Done():
			return false
		case <-ctx.Done():
			return false
		}
	}
	return false
}

func (u *Uplink) dial(ctx context.Context, which int) (*Carrier, error) {
	ctx, cancel := context.WithTimeout(ctx, u.cfg.DialTime)
	defer cancel()
	return u.relays[which].Dial(ctx)
}

// resume has the session go on by a new carrier; false says that it has ended. What is left over is a carrier to a relay
// that has forgotten it.
func (u *Uplink) resume(ctx context.Context, s *mux.Session, which int) (alive bool, left *Carrier) {
	for pause := u.cfg.Pause / 5; ctx.Err() == nil; pause = min(2*pause, u.cfg.MaxPause/6) {
		c, err := u.dial(ctx, which)
		if err == nil {
			if err = s.Resume(ctx, c.Conn); errors.Is(err, mux.ErrForgotten) {
				return false, c
			}
		}
		if err == nil {
			u.resumed(c)
			return true, nil
		}
		u.failed(ctx, err, pause)
		t := time.NewTimer(jitter(pause))
		select {
		case <-s.Done():
			t.Stop()
			return false, nil
		case <-ctx.Done():
			t.Stop()
			return false, nil
		case <-t.C:
		}
	}
	return false, nil
}

// improveTime bounds a look for better ways: meanwhile nobody sees to a carrier that is lost.
const improveTime = 30 * time.Second

// improve moves the session if there is a better way. A carrier that is lost meanwhile is noticed by serve.
func (u *Uplink) improve(ctx context.Context, s *mux.Session, which int) {
	u.mu.Lock()
	now := u.carrier
	u.mu.Unlock()
	if now == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, improveTime)
	defer cancel()
	c, err := u.relays[which].Better(ctx, now)
	if err != nil || c == nil {
		return
	}
	if err := s.Resume(ctx, c.Conn); err != nil {
		c.Close()
		u.failed(ctx, err, 0)
		return
	}
	u.log.Info("session moved", zap.String("rung", c.Rung), zap.String("path", c.Path), zap.String("from", now.Rung))
	u.resumed(c)
}

// afterwards returns how long to wait before the next session.
func (u *Uplink) afterwards(s *mux.Session) time.Duration {
	var ended *mux.SessionError
	if errors.As(s.Err(), &ended) && ended.Remote && ended.Code == mux.CodeCrossedConnections {
		u.log.Error("another agent has attached with this device's key; is the key in use twice?")
		return jitter(u.cfg.Replaced)
	}
	return jitter(s.RetryAfter())
}

func (u *Uplink) begun(s *mux.Session, c *Carrier, which int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.session, u.carrier = s, c
	u.state.Relay, u.state.Rung, u.state.Path, u.state.Since = which, c.Rung, c.Path, time.Now()
	u.state.Failures, u.state.LastError = 0, ""
	u.state.Sessions++
	close(u.changed)
	u.changed = make(chan struct{})
	u.log.Info("attached to the relay", zap.Int("relay", which), zap.String("rung", c.Rung), zap.String("path", c.Path))
}

func (u *Uplink) resumed(c *Carrier) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.carrier = c
	u.state.Rung, u.state.Path = c.Rung, c.Path
	u.state.Resumes++
	u.state.Failures, u.state.LastError = 0, ""
}

func (u *Uplink) lost() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.carrier = nil
	u.log.Info("connection to the relay lost, the session stays", zap.String("rung", u.state.Rung))
}

func (u *Uplink) ended() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.session, u.carrier = nil, nil
}

func (u *Uplink) failed(ctx context.Context, err error, pause time.Duration) {
	if ctx.Err() != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.state.Failures++
	u.state.LastError = err.Error()
	u.log.Warn("the relay is not reached", zap.Int("failures", u.state.Failures), zap.Duration("pause", pause), zap.Error(err))
}

// jitter returns a time up to a half more or less, so that agents do not come back together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }

func rest(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
