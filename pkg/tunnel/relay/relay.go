package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
)

// Relay joins the streams of devices.
type Relay struct {
	deps  Deps
	log   *zap.Logger
	count *counters
	pairs *bulk.Pairs // nil without a joiner

	running sync.WaitGroup // sessions and what they started

	mu       sync.Mutex // guards what follows
	rules    Rules
	draining bool
	sessions map[mux.ID]*attachment
	devices  map[device.ID]*attachment // the newest session of each
	flows    map[*flow]struct{}
}

// attachment is a device's session.
type attachment struct {
	dev   device.Device
	relay bool // another relay: it passes streams on
	s     *mux.Session
	via   Via // guarded by Relay.mu: it changes when the session moves
	since time.Time
	opens *bucket
	bytes *bucket
}

// New returns a relay.
func New(rules Rules, deps Deps, log *zap.Logger) *Relay {
	r := &Relay{
		rules: rules, deps: deps, log: log, count: newCounters(), sessions: map[mux.ID]*attachment{},
		devices: map[device.ID]*attachment{}, flows: map[*flow]struct{}{},
	}
	if deps.Joiner != nil {
		r.pairs = bulk.NewPairs(deps.Joiner)
	}
	return r
}

// Admit tells whether a device may finish its handshake: it is known, or it may have come to enrol itself.
func (r *Relay) Admit(id device.ID) error {
	if _, ok := r.who(id); ok {
		return nil
	}
	if r.tokensWait(time.Now()) {
		return nil
	}
	r.count.refused.WithLabelValues("unknown_device").Inc()
	return fmt.Errorf("device %s is not known", id)
}

// tokensWait tells whether a device that is not known may have come with a token.
func (r *Relay) tokensWait(now time.Time) bool {
	if r.deps.Store == nil {
		return false
	}
	n, err := r.deps.Store.Waiting(now)
	return err == nil && n > 0
}

// who returns what is known of a device, or of another relay.
func (r *Relay) who(id device.ID) (attachment, bool) {
	if d, ok := r.deps.Registry.Lookup(id); ok {
		return attachment{dev: d}, r.deps.Deny == nil || !r.deps.Deny(d)
	}
	if r.deps.Peers[id] {
		return attachment{dev: device.Device{ID: id, Name: "relay-" + id.Short()}, relay: true}, true
	}
	return attachment{}, false
}

// Session serves a device that has shown its key on conn, which is the relay's from then on. It returns when the session
// has begun, or goes on; it ends when ctx does.
func (r *Relay) Session(ctx context.Context, conn net.Conn, peer device.ID, via Via) {
	a, ok := r.who(peer)
	if !ok {
		r.count.refused.WithLabelValues("unknown_device").Inc()
		conn.Close()
		return
	}
	cfg := r.deps.Mux
	cfg.MaxStreams, cfg.Logger = r.limits().Streams, r.log
	s, resumed, err := mux.Server(ctx, conn, func(id mux.ID) *mux.Session { return r.sessionOf(id, peer) }, cfg)
	if err != nil {
		r.count.refused.WithLabelValues("hello").Inc()
		r.log.Info("tunnel session refused", zap.String("device", a.dev.Name), zap.String("remote", via.Remote), zap.Error(err))
		return
	}
	if resumed {
		r.moved(s.ID(), via)
		return
	}
	a.s, a.via, a.since = s, via, time.Now()
	a.opens, a.bytes = &bucket{}, &bucket{}
	r.running.Add(1)
	if !r.attach(&a) {
		defer r.running.Done()
		r.count.refused.WithLabelValues("sessions").Inc()
		s.Close(mux.CodeTryLater)
		return
	}
	r.serve(ctx, &a)
}

func (r *Relay) limits() Limits {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rules.Limits
}

// sessionOf returns a session if it is this device's.
func (r *Relay) sessionOf(id mux.ID, peer device.ID) *mux.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.sessions[id]; a != nil && a.dev.ID.Equal(peer) {
		return a.s
	}
	return nil
}

// moved notes that a session goes on by another way.
func (r *Relay) moved(id mux.ID, via Via) {
	r.count.resumes.WithLabelValues(via.Rung).Inc()
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.sessions[id]; a != nil {
		a.via = via
	}
}

// attach makes the device reachable by this session. The one before it is ended: a device that has lost its memory
// comes back like that.
func (r *Relay) attach(a *attachment) bool {
	r.mu.Lock()
	old := r.devices[a.dev.ID]
	// It may have been removed since its key was seen; and a session's name, which devices choose, is one session's.
	now, known := r.who(a.dev.ID)
	if r.draining || !known || now.relay != a.relay || r.sessions[a.s.ID()] != nil || old == nil && len(r.devices) >= r.rules.Limits.Sessions {
		r.mu.Unlock()
		return false
	}
	a.dev = now.dev
	a.opens.set(float64(r.rules.Limits.Opens))
	a.bytes.set(float64(r.rules.Limits.Bandwidth))
	r.sessions[a.s.ID()], r.devices[a.dev.ID] = a, a
	r.mu.Unlock()
	r.count.attached.WithLabelValues(a.via.Rung).Inc()
	r.log.Info("device attached", zap.String("device", a.dev.Name), zap.Stringer("id", a.dev.ID),
		zap.String("rung", a.via.Rung), zap.String("path", a.via.Path), zap.String("remote", a.via.Remote))
	if old != nil {
		r.log.Warn("device attached again, the session before is ended", zap.String("device", a.dev.Name), zap.String("remote_before", old.via.Remote))
		old.s.Close(mux.CodeCrossedConnections)
	}
	return true
}

func (r *Relay) detach(a *attachment) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, a.s.ID())
	if r.devices[a.dev.ID] == a {
		delete(r.devices, a.dev.ID)
	}
	r.count.ended(a.s.Stats())
	r.log.Info("device detached", zap.String("device", a.dev.Name), zap.Duration("after", time.Since(a.since)), zap.NamedError("cause", a.s.Err()))
}

// serve has what the device opens answered until the session ends. No goroutine waits for that: of thousands of devices
// most open nothing.
func (r *Relay) serve(ctx context.Context, a *attachment) {
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, func() { a.s.Close(mux.CodeClosed) })
	a.s.Serve(func(in *mux.Incoming) { r.opened(ctx, a, in) }, func() {
		defer r.running.Done()
		cancel()
		a.s.Close(mux.CodeClosed)
		a.s.WaitServed()
		r.detach(a)
	})
}

// opened serves one stream.
func (r *Relay) opened(ctx context.Context, a *attachment, in *mux.Incoming) {
	if !a.opens.try(time.Now()) {
		r.refuse(a, in, "rate", mux.CodeTryLater)
		return
	}
	if len(in.Header) > 0 && streamhead.Kind(in.Header[0]) >= streamhead.FirstOther && streamhead.Kind(in.Header[0]) <= streamhead.LastOther {
		if r.deps.Other == nil || a.relay {
			r.refuse(a, in, "not_served", mux.CodeNoSuchService)
			return
		}
		s := in.Accept()
		defer s.Close()
		r.deps.Other(ctx, in.Header, s, a.dev.ID)
		return
	}
	h, err := streamhead.Parse(in.Header)
	switch {
	case err != nil:
		r.refuse(a, in, "head", mux.CodeProtocol)
	case h.Kind == streamhead.Open && !a.relay:
		r.open(ctx, a, in, h, a.dev.ID)
	case h.Kind == streamhead.Hop && a.relay:
		r.open(ctx, a, in, h, h.Caller)
	case h.Kind == streamhead.Bulk && !a.relay:
		r.openBulk(ctx, a, in, h)
	case h.Kind == streamhead.Presence && !a.relay:
		r.tellPresence(a, in)
	default:
		r.refuse(a, in, "head", mux.CodeProtocol)
	}
}

// refuse answers a stream with a code.
func (r *Relay) refuse(a *attachment, in *mux.Incoming, why string, code mux.Code) {
	r.count.streamsRefused.WithLabelValues(why).Inc()
	r.log.Debug("stream refused", zap.String("device", a.dev.Name), zap.String("reason", why))
	in.Refuse(code)
}

// Reload takes over rules, ends the sessions of devices that are not known any more, and resets the streams that
// the rules do not let pass now. The registry has been replaced before.
func (r *Relay) Reload(rules Rules) {
	var gone []*attachment
	var forbidden []*flow
	r.mu.Lock()
	r.rules = rules
	for _, a := range r.sessions {
		a.opens.set(float64(rules.Limits.Opens))
		a.bytes.set(float64(rules.Limits.Bandwidth))
		if now, ok := r.who(a.dev.ID); !ok || now.relay != a.relay || now.dev.Name != a.dev.Name {
			gone = append(gone, a)
		}
	}
	for f := range r.flows {
		if _, _, _, err := r.allowedLocked(f.From, f.To, f.Service); err != nil {
			forbidden = append(forbidden, f)
		}
	}
	r.mu.Unlock()
	for _, a := range gone {
		a.s.Close(mux.CodeLockedOut)
	}
	for _, f := range forbidden {
		f.reset(mux.CodeLockedOut)
	}
}

// Expel ends the sessions of devices that are shut out now, and returns how many there were.
func (r *Relay) Expel() int {
	var gone []*attachment
	r.mu.Lock()
	for _, a := range r.sessions {
		if r.deps.Deny != nil && r.deps.Deny(a.dev) {
			gone = append(gone, a)
		}
	}
	r.mu.Unlock()
	for _, a := range gone {
		a.s.Close(mux.CodeLockedOut)
	}
	return len(gone)
}

// Drain takes no new devices, and asks those that are attached to go elsewhere.
func (r *Relay) Drain() {
	r.mu.Lock()
	r.draining = true
	var all []*attachment
	for _, a := range r.sessions {
		all = append(all, a)
	}
	r.mu.Unlock()
	for _, a := range all {
		a.s.GoAway(0)
	}
}

// Wait returns when all sessions have ended, which they do when the contexts that they were given end.
func (r *Relay) Wait() { r.running.Wait() }

// codeOf returns the code by which one stream's end is told to the other.
func codeOf(err error) mux.Code {
	var reset *mux.ResetError
	if errors.As(err, &reset) {
		return reset.Code
	}
	switch {
	case errors.Is(err, mux.ErrAway):
		return mux.CodeOffline
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, mux.ErrGoAway):
		return mux.CodeTryLater
	case errors.Is(err, context.Canceled):
		return mux.CodeCanceled
	}
	return mux.CodeHostNotReachable
}
