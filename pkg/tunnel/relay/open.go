package relay

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
)

// flow is a stream from one device to another, while it lives.
type flow struct {
	From, To  device.ID
	Service   string
	Datagrams bool
	since     time.Time
	ends      [2]*mux.Stream // the caller's and the called one's
}

func (f *flow) reset(code mux.Code) {
	for _, s := range f.ends {
		s.Reset(code)
	}
}

// refusal is why a stream is not opened.
type refusal struct {
	why  string
	code mux.Code
}

func (e *refusal) Error() string { return e.why }

// allowedLocked returns the two devices, and the called one's attachment if it is here, or a *refusal.
func (r *Relay) allowedLocked(caller, called device.ID, service string) (from, to device.Device, at *attachment, err error) {
	from, known := r.deps.Registry.Lookup(caller)
	if !known {
		return from, to, nil, &refusal{"unknown_caller", mux.CodeLockedOut}
	}
	// Whether a device exists is not told to those who may not reach it.
	if to, known = r.deps.Registry.Lookup(called); !known || !r.rules.Policy.Allows(from, to, service) {
		return from, to, nil, &refusal{"policy", mux.CodeLockedOut}
	}
	return from, to, r.devices[called], nil
}

// open joins a stream to the called device's.
func (r *Relay) open(ctx context.Context, a *attachment, in *mux.Incoming, h streamhead.Head, caller device.ID) {
	r.mu.Lock()
	from, to, at, err := r.allowedLocked(caller, h.Peer, h.Service)
	r.mu.Unlock()
	if err == nil && h.Datagrams != in.Datagrams {
		err = &refusal{"head", mux.CodeProtocol}
	}
	var out *mux.Stream
	if err == nil {
		out, err = r.reach(ctx, at, h, caller)
	}
	if err != nil {
		why := &refusal{"unreachable", codeOf(err)}
		errors.As(err, &why)
		r.log.Info("stream refused", zap.String("from", from.Name), zap.Stringer("to", h.Peer), zap.String("service", h.Service), zap.String("reason", why.why), zap.Stringer("code", why.code))
		r.refuse(a, in, why.why, why.code)
		return
	}
	f := &flow{From: caller, To: h.Peer, Service: h.Service, Datagrams: h.Datagrams, since: time.Now(), ends: [2]*mux.Stream{in.Accept(), out}}
	r.count.opened.WithLabelValues(kindOf(at)).Inc()
	bytes := r.carry(ctx, f, a, at)
	r.log.Info("stream ended", zap.String("from", from.Name), zap.String("to", to.Name), zap.String("service", h.Service),
		zap.Duration("after", time.Since(f.since)), zap.Uint64("bytes_out", bytes[0]), zap.Uint64("bytes_back", bytes[1]))
}

// carry pipes a flow until it has ended. Reload resets it where the rules do not let it pass any more, or here if they
// changed while it was opened.
func (r *Relay) carry(ctx context.Context, f *flow, a, at *attachment) [2]uint64 {
	r.mu.Lock()
	_, _, _, err := r.allowedLocked(f.From, f.To, f.Service)
	if err == nil {
		r.flows[f] = struct{}{}
	}
	r.mu.Unlock()
	if err != nil {
		f.reset(mux.CodeLockedOut)
		return [2]uint64{}
	}
	budgets := []*bucket{a.bytes}
	if at != nil {
		budgets = append(budgets, at.bytes)
	}
	bytes := r.pipe(ctx, f, budgets)
	r.mu.Lock()
	delete(r.flows, f)
	r.mu.Unlock()
	return bytes
}

func kindOf(at *attachment) string {
	if at == nil {
		return "hop"
	}
	return "local"
}

// reach opens a stream to the called device: at its session here, or else at another relay. What came by a hop is not
// passed on.
func (r *Relay) reach(ctx context.Context, at *attachment, h streamhead.Head, caller device.ID) (*mux.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	options := mux.OpenOptions{Datagrams: h.Datagrams, Owner: caller.String(), Away: awayTime}
	if at != nil && !at.relay {
		head, err := (streamhead.Head{Kind: streamhead.Offer, Datagrams: h.Datagrams, Peer: caller, Service: h.Service}).MarshalBinary()
		if err != nil {
			return nil, err
		}
		return at.s.Open(ctx, head, options)
	}
	if h.Kind == streamhead.Hop {
		return nil, &refusal{"offline", mux.CodeOffline}
	}
	head, err := (streamhead.Head{Kind: streamhead.Hop, Datagrams: h.Datagrams, Peer: h.Peer, Caller: caller, Service: h.Service}).MarshalBinary()
	if err != nil {
		return nil, err
	}
	last := error(&refusal{"offline", mux.CodeOffline})
	for _, up := range r.deps.Upstreams {
		s := up.Current()
		if s == nil {
			continue
		}
		out, err := s.Open(ctx, head, options)
		if err == nil {
			return out, nil
		}
		if codeOf(err) != mux.CodeOffline {
			last = err
		}
	}
	return nil, last
}

// Neighbour is one line of what a device is told of the others.
type Neighbour struct {
	ID     device.ID `json:"id"`
	Name   string    `json:"name"`
	Online bool      `json:"online"`
}

// tellPresence tells a device which others it may reach, and whether they are attached here.
func (r *Relay) tellPresence(a *attachment, in *mux.Incoming) {
	list := []Neighbour{}
	r.mu.Lock()
	self, _ := r.deps.Registry.Lookup(a.dev.ID) // its groups may have changed since it was attached
	for _, d := range r.deps.Registry.List() {
		if d.ID != a.dev.ID && r.rules.Policy.Reaches(self, d) {
			list = append(list, Neighbour{d.ID, d.Name, r.devices[d.ID] != nil})
		}
	}
	r.mu.Unlock()
	s := in.Accept()
	defer s.Close()
	s.SetDeadline(time.Now().Add(openTime))
	if err := json.NewEncoder(s).Encode(list); err != nil {
		r.log.Debug("presence not told", zap.String("device", a.dev.Name), zap.Error(err))
	}
}
