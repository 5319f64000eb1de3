package groove

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/splice"
)

// Deps are what a server works with.
type Deps struct {
	// Tunnel is the name under which Virtual serves, in small letters; "" is none. It goes before a relay of that name.
	Tunnel string
	// Virtual owns a virtual connection for Tunnel from then on. When ctx ends, the connection ends too, and Run waits for
	// Virtual.
	Virtual func(context.Context, *Conn)
	// Joiner joins connections with published relays.
	Joiner Joiner
	// Other owns a connection of which a request came that is not Groove's, with that request still to be read; nil:
	// 404. Limits and the server's end apply to it until it is closed.
	Other func(net.Conn)
	// Dial connects to a relay; nil is [net.Dialer]'s.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Joiner is [splice.Joiner].
type Joiner interface {
	Join(ctx context.Context, a, b net.Conn, o splice.Options) splice.Result
}

// Server is the end of the carriage that relays have. Its methods may be called concurrently.
type Server struct {
	cfg   Config
	deps  Deps
	log   *zap.Logger
	count counters
	gate  *gate.Gate
	said  gate.Said
	wake  chan struct{} // there is something in ready; holds one, for that is enough
	work  sync.WaitGroup

	mu       sync.Mutex // guards what follows, and virtual connections
	live     map[string]*virtual
	used     guids
	halfOpen int
	sources  map[netip.Addr]int // half-open ones
	ready    []ready            // established, to be served
	rawOpen  int
	conns    map[*client]struct{} // of TCP
	stopped  bool
}

// ready is a virtual connection that is to be served.
type ready struct {
	v    *virtual
	conn *Conn
}

// New returns a server; its listeners and handlers work while Run does.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("groove: %w", err)
	}
	cfg = cfg.Completed()
	if deps.Dial == nil {
		deps.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return &Server{
		cfg: cfg, deps: deps, log: log, count: newCounters(), wake: make(chan struct{}, 1),
		gate: gate.New(mostClients(cfg), cfg.PerSource),
		live: map[string]*virtual{}, used: guids{until: map[string]time.Time{}}, sources: map[netip.Addr]int{}, conns: map[*client]struct{}{},
	}, nil
}

const (
	// headTime is how long a request's header may take, bodyTime its body and the sending of a response.
	headTime, bodyTime = 10 * time.Second, 30 * time.Second
	dialTimeout        = 10 * time.Second
	sweepTime          = time.Second
)

// Run serves virtual connections and looks after them until ctx ends; then it closes all that the server has. It can
// be called once.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	var serving sync.WaitGroup
	for {
		select {
		case <-ctx.Done():
			s.stop()
			serving.Wait()
			s.work.Wait()
			return nil
		case now := <-tick.C:
			s.sweep(now)
		case <-s.wake:
			for _, r := range s.taken() {
				serving.Go(func() { s.serve(ctx, r) })
			}
		}
	}
}

func (s *Server) taken() []ready {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.ready
	s.ready = nil
	return list
}

// stop ends all connections.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, v := range slices.Collect(maps.Values(s.live)) {
		s.endLocked(v, endShutdown)
	}
	for c := range s.conns {
		s.work.Go(func() { c.conn.Close() })
	}
}

// Open returns how many connections are established.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live) - s.halfOpen + s.rawOpen
}

// Busy returns how many of them are with relays that are published.
func (s *Server) Busy() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.rawOpen
	for _, v := range s.live {
		if v.established && v.relay != s.deps.Tunnel {
			n++
		}
	}
	return n
}

// Drain refuses new TCP connections.
func (s *Server) Drain() { s.gate.Drain() }

// serve serves an established virtual connection.
func (s *Server) serve(ctx context.Context, r ready) {
	if r.v.relay == s.deps.Tunnel && s.deps.Virtual != nil {
		s.deps.Virtual(ctx, r.conn)
		return
	}
	defer r.conn.Close()
	to := s.cfg.Relays[r.v.relay]
	back, err := s.deps.Dial(ctx, "tcp", to.String())
	if err != nil {
		s.refuse("relay_unreachable", r.v.source, zap.String("relay", r.v.relay), zap.Error(err))
		return
	}
	s.deps.Joiner.Join(ctx, r.conn, back, splice.Options{Idle: s.cfg.Idle})
}

// serves tells whether a name is one that is served.
func (s *Server) serves(relay string) bool {
	_, ok := s.cfg.Relays[relay]
	return ok || relay != "" && relay == s.deps.Tunnel && s.deps.Virtual != nil
}

// refuse counts a refusal and, for each source once in a while, logs it.
func (s *Server) refuse(why string, source netip.Addr, more ...zap.Field) {
	s.count.refusals.WithLabelValues(why).Inc()
	if s.said.Again(source, time.Now()) {
		s.log.Info("groove request refused", append(more, zap.Stringer("source", source), zap.String("reason", why))...)
	}
}

// ServeListener serves HTTP on a listener until ctx ends and its connections have ended.
func (s *Server) ServeListener(ctx context.Context, ln net.Listener) error {
	return s.gate.Serve(ctx, ln, s.ServeConn, func(why string) { s.count.refusals.WithLabelValues(why).Inc() })
}

// ServeConn serves a connection on which HTTP is spoken, and returns when it has ended.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	s.serveClient(ctx, newClient(s, conn, nil), nil)
}

// ServeHTTP takes over the connections of requests for Groove's URIs; others are not found. It is for a server of
// HTTP/1 that has other handlers too. It returns when the connection has ended.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, err := parseTarget(r.RequestURI)
	hijack, ok := w.(http.Hijacker)
	if errors.Is(err, errNotGroove) || !ok || r.ProtoMajor != 1 {
		at, _ := netip.ParseAddrPort(r.RemoteAddr)
		s.refuse(errNotGroove.Error(), at.Addr())
		http.NotFound(w, r)
		return
	}
	conn, rw, err := hijack.Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	h := &head{first: [3]string{r.Method, r.RequestURI, r.Proto}, length: r.ContentLength, chunked: len(r.TransferEncoding) > 0, persist: !r.Close}
	if h.length == 0 && r.Header.Get("Content-Length") == "" {
		h.length = -1
	}
	s.serveClient(context.WithoutCancel(r.Context()), newClient(s, conn, rw.Reader), h)
}

// serveClient serves the requests of a connection, of which the first has been read if h is not nil.
func (s *Server) serveClient(ctx context.Context, c *client, h *head) {
	if !s.opened(c) {
		return
	}
	defer s.shut(c)
	defer context.AfterFunc(ctx, func() { c.conn.Close() })()
	for {
		if h == nil {
			var err error
			if h, err = c.next(s.cfg.Idle); err != nil {
				c.failed(err)
				return
			}
		}
		if !c.answer(ctx, h) {
			return
		}
		h = nil
	}
}

// opened enters a connection, if there is room; those of listeners have been bounded before.
func (s *Server) opened(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopped:
		return false
	case len(s.conns) >= mostClients(s.cfg):
		s.count.refusals.WithLabelValues(gate.Connections).Inc()
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// mostClients bounds connections of TCP: two for each virtual one.
func mostClients(c Config) int { return 2*c.MaxConnections + maxHalfOpen }

func (s *Server) shut(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	c.conn.Close()
}

// handed is a connection whose bytes that were read come again.
type handed struct {
	net.Conn
	r      io.Reader
	closed func()
}

// Read reads what was read before, then from the connection.
func (h *handed) Read(p []byte) (int, error) { return h.r.Read(p) }

// Close closes the connection.
func (h *handed) Close() error {
	defer h.closed()
	return h.Conn.Close()
}

// NetConn returns the connection.
func (h *handed) NetConn() net.Conn { return h.Conn }
