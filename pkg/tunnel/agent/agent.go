package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// Deps are what an agent works with.
type Deps struct {
	Key device.Key
	// Uplink is where the relay is; the agent runs it.
	Uplink *uplink.Uplink
	// Bulk dials the relay of a session with a ticket, by a way that can be spliced; nil, or an error: everything stays
	// in the session.
	Bulk func(ctx context.Context, ticket bulk.Ticket) (bulk.Carrier, error)
	// Handlers serve services in the process itself, beside those of the configuration, whose allow lists they share by
	// name: a handler's service needs an item under services with no target of its own.
	Handlers map[string]Served
}

// Served is a service in the process itself.
type Served struct {
	Datagrams bool
	Allow     func(device.ID) bool
	Serve     Handler
}

// Agent is one device's end of the tunnel.
type Agent struct {
	deps  Deps
	cfg   atomic.Pointer[Config]
	log   *zap.Logger
	count *counters
	dial  net.Dialer

	mu     sync.Mutex
	served map[[16]byte]*Conn // that may move, by token
}

// New returns an agent for a valid configuration.
func New(cfg Config, deps Deps, log *zap.Logger) *Agent {
	a := &Agent{deps: deps, log: log, count: newCounters(), served: map[[16]byte]*Conn{}, dial: net.Dialer{Timeout: handshakeTime / 2}}
	a.cfg.Store(&cfg)
	return a
}

// Reload takes over devices and services, for new streams. Forwards and relays stay as they are.
func (a *Agent) Reload(cfg Config) {
	now := *a.cfg.Load()
	now.Devices, now.Services, now.Applications.Routes = cfg.Devices, cfg.Services, cfg.Applications.Routes
	a.cfg.Store(&now)
}

// Run keeps the session with the relay, and serves other devices, until ctx ends.
func (a *Agent) Run(ctx context.Context) error { return a.deps.Uplink.Run(ctx, a.session) }

// session serves what the relay offers until the session ends.
func (a *Agent) session(ctx context.Context, s *mux.Session) {
	var open sync.WaitGroup
	defer open.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		in, err := s.Accept(ctx)
		if err != nil {
			return
		}
		open.Go(func() { a.offered(ctx, in) })
	}
}

// offered serves one stream that another device opened.
func (a *Agent) offered(ctx context.Context, in *mux.Incoming) {
	h, err := streamhead.Parse(in.Header)
	if err == nil && h.Kind == streamhead.BulkOffer {
		a.offeredBulk(ctx, in, h)
		return
	}
	if err != nil || h.Kind != streamhead.Offer || h.Datagrams != in.Datagrams {
		a.refuse(in, h, "head", mux.CodeProtocol)
		return
	}
	serve, why := a.find(h)
	if serve == nil {
		a.refuse(in, h, why, mux.CodeNoSuchService)
		return
	}
	stream := in.Accept()
	cfg, err := device.EndServerTLS(a.deps.Key, h.Peer)
	var c *Conn
	if err == nil {
		c, err = handshake(ctx, stream, cfg, false, h.Datagrams, h.Peer, nil)
	}
	if err != nil {
		a.count.refused.WithLabelValues("handshake").Inc()
		a.log.Warn("stream refused", zap.String("service", h.Service), zap.Stringer("peer", h.Peer), zap.Error(err))
		stream.Reset(mux.CodeWrongDevice)
		return
	}
	a.count.served.WithLabelValues(h.Service).Inc()
	defer a.movable(c)()
	serve(ctx, c)
}

// find returns what serves a head, or why nothing does. Whether a service exists is not told to those who may not
// reach it.
func (a *Agent) find(h streamhead.Head) (Handler, string) {
	if own, ok := a.deps.Handlers[h.Service]; ok {
		if own.Datagrams != h.Datagrams || !own.Allow(h.Peer) {
			return nil, "not_allowed"
		}
		return own.answered, ""
	}
	cfg := a.cfg.Load()
	s, ok := cfg.Services[h.Service]
	switch {
	case !ok:
		return nil, "no_service"
	case (s.UDP != "") != h.Datagrams:
		return nil, "kind"
	case !cfg.allows(s, h.Peer):
		return nil, "not_allowed"
	case s.UDP != "":
		return func(ctx context.Context, c *Conn) { a.serveUDP(ctx, c, s) }, ""
	}
	return func(ctx context.Context, c *Conn) { a.serveTCP(ctx, c, s) }, ""
}

// answered tells the calling device that it is served, and serves.
func (s Served) answered(ctx context.Context, c *Conn) {
	if err := c.answer(mux.CodeClosed); err != nil {
		c.Reset(mux.CodeHostNotReachable)
		return
	}
	s.Serve(ctx, c)
}

func (c *Config) allows(s Service, peer device.ID) bool {
	return slices.ContainsFunc(s.Allow, func(who string) bool {
		id, err := c.Resolve(who)
		return who == device.Any || err == nil && id.Equal(peer)
	})
}

func (a *Agent) refuse(in *mux.Incoming, h streamhead.Head, why string, code mux.Code) {
	a.count.refused.WithLabelValues(why).Inc()
	a.log.Info("stream refused", zap.String("service", h.Service), zap.Stringer("peer", h.Peer), zap.String("reason", why))
	in.Refuse(code)
}

// Dial reaches a service of another device; name is one under devices, or an ID. A refusal is a *mux.ResetError.
func (a *Agent) Dial(ctx context.Context, name, service string) (*Conn, error) {
	return a.open(ctx, name, service, false)
}

// DialDatagrams is Dial for a service of datagrams.
func (a *Agent) DialDatagrams(ctx context.Context, name, service string) (*Conn, error) {
	return a.open(ctx, name, service, true)
}

func (a *Agent) open(ctx context.Context, name, service string, datagrams bool) (*Conn, error) {
	c, err := a.reach(ctx, name, service, datagrams)
	result := "ok"
	if err != nil {
		result = reason(err)
		err = fmt.Errorf("%s of %s: %w", service, name, err)
	}
	a.count.dialed.WithLabelValues(result).Inc()
	return c, err
}

// reason names an error for a counter.
func reason(err error) string {
	var reset *mux.ResetError
	switch {
	case errors.As(err, &reset):
		return reset.Code.String()
	case errors.Is(err, mux.ErrAway):
		return "relay_away"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "error"
}

func (a *Agent) reach(ctx context.Context, name, service string, datagrams bool) (*Conn, error) {
	peer, err := a.cfg.Load().Resolve(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*handshakeTime)
	defer cancel()
	head, err := (streamhead.Head{Kind: streamhead.Open, Datagrams: datagrams, Peer: peer, Service: service}).MarshalBinary()
	if err != nil {
		return nil, err
	}
	stream, err := a.openRelay(ctx, head, mux.OpenOptions{Datagrams: datagrams})
	if err != nil {
		return nil, err
	}
	cfg, err := device.EndClientTLS(a.deps.Key, peer)
	var c *Conn
	if err == nil {
		c, err = handshake(ctx, stream, cfg, true, datagrams, peer, a.worth(service, datagrams))
	}
	if err == nil {
		err = c.answered(ctx)
	}
	if err != nil {
		stream.Reset(mux.CodeCanceled)
		return nil, err
	}
	return c, nil
}

// OpenRelay opens a stream to the relay itself, whose head is of a kind that is not the agent's.
func (a *Agent) OpenRelay(ctx context.Context, head []byte) (*mux.Stream, error) {
	return a.openRelay(ctx, head, mux.OpenOptions{})
}

func (a *Agent) openRelay(ctx context.Context, head []byte, o mux.OpenOptions) (*mux.Stream, error) {
	if a.deps.Uplink == nil {
		return nil, errNoRelay
	}
	waiting, cancel := context.WithTimeout(ctx, awayTime)
	defer cancel()
	s, err := a.deps.Uplink.Session(waiting)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", mux.ErrAway, err)
	}
	o.Away = awayTime
	return s.Open(ctx, head, o)
}
