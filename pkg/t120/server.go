// Package t120 relays T.120 (data conferencing: NetMeeting's whiteboard, sharing, files, chat) on 1503 and on the
// addresses that H.245 has negotiated: the front of each connection is checked, X.224 class 0 (T.123), then
// T.125's connect PDU, then T.124's in it; by the conference's name, or by who calls, it is decided whether
// and where it goes. It is no MCS or GCC provider, and no RDP gateway: RDP has the same front and passes if allowed.
//
//	accept ─► CR ─► target? ── known ──────────────────────► dial, CR ─► CC ─► Connect-Initial ─► open
//	                  └─ not yet: CC, Connect-Initial, target ─► dial, CR ─► CC ┘      │ each checked
//	open: T.124's addresses hidden in what is read │ RDP, TLS, "pass": nothing read, Joiner
//
// front.go is the inner half; this file and stream.go have the sockets.
package t120

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

// maxConnections bounds the connections of all callers.
const maxConnections = 8192

// Router says where a call goes. It may be called concurrently.
type Router interface {
	// Route returns the target of a call; false if it knows none. It is asked first with what the transport
	// says, and again with T.124's names if nobody knew.
	Route(c Call) (netip.AddrPort, bool)
}

// Joiner moves the rest of two streams of which nothing is read any more.
type Joiner interface {
	// Join writes what was read already to the other side, then all that comes, with half-closes, until both
	// sides have ended or nothing has come for idle (0: for ever). It owns the connections from then on, and
	// returns how many octets came from each side, prefix included.
	Join(ctx context.Context, conns [2]net.Conn, prefix [2][]byte, idle time.Duration) (octets [2]uint64, err error)
}

// Deps are what the server needs from others.
type Deps struct {
	Networks pinhole.Networks
	// Router may be nil: then only the configuration says where calls go.
	Router Router
	// Joiner may be nil: then the server copies itself.
	Joiner Joiner
	// Dial connects to a target; nil: TCP from whatever address the kernel chooses.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// DialAs connects to a target from a client's own address, for KeepSource; nil: it is as if that were not set.
	DialAs func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)
	// Connections bounds the connections of one source address; 0 = no limit.
	Connections int
}

// Server relays T.120. All methods may be called concurrently.
type Server struct {
	cfg   Config
	deps  Deps
	log   *zap.Logger
	count *counters

	gate *gate.Gate

	mu sync.Mutex // guards what follows
	// conferences may be several under one key: each called host counts its ids for itself.
	conferences map[conferenceKey][]conference
	// announced are the conferences that session descriptions tell of, by who is expected to call.
	announced     map[announceKey][]*announcement
	announcements int
}

// conferenceKey names a conference's first connection to those that are added to it: who called, and the id
// that he was given (T.125 §7, calledConnectId).
type conferenceKey struct {
	client netip.Addr
	id     uint32
}

type conference struct {
	target netip.AddrPort
	owner  *session // whose it is
}

// New checks the configuration and returns a server without listeners.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	if deps.Dial == nil {
		deps.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		}
	}
	return &Server{
		cfg: cfg, deps: deps, log: log, count: newCounters(), gate: gate.New(maxConnections, deps.Connections),
		conferences: map[conferenceKey][]conference{},
		announced:   map[announceKey][]*announcement{},
	}, nil
}

// Collector returns the metrics.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

// ServeListener relays the connections that ln, a TCP listener on the named network, accepts, until ctx ends
// and all of them have ended.
func (s *Server) ServeListener(ctx context.Context, network string, ln net.Listener) error {
	return s.gate.Serve(ctx, ln, func(ctx context.Context, conn net.Conn) { s.serve(ctx, network, conn) }, s.count.drop)
}

// Drain has new connections refused; those that are open go on.
func (s *Server) Drain() { s.gate.Drain() }

// Open returns how many accepted connections there are; channels that H.245 has opened are not among them.
func (s *Server) Open() int { return s.gate.Open() }

// SetPerSource changes the limit of one source address, for new connections; 0 = none.
func (s *Server) SetPerSource(n int) { s.gate.SetPerSource(n) }

// serve relays one accepted connection.
func (s *Server) serve(ctx context.Context, network string, conn net.Conn) {
	call := Call{Network: network, Client: pinhole.AddrPortOf(conn.RemoteAddr()), Local: pinhole.AddrPortOf(conn.LocalAddr())}
	c := s.session(call, s.deps.Joiner)
	c.streams[0] = newStream(conn)
	defer c.end(ctx)
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	setup, cancel := context.WithTimeout(ctx, s.cfg.Setup)
	defer cancel()
	abort := context.AfterFunc(setup, c.expire)
	if c.err = c.connect(setup); c.err != nil {
		c.refuse(c.err)
	} else {
		c.err = c.relay(ctx, func() { abort() })
	}
	abort()
}

// ServePair relays between two connections that are up already, until both have ended or ctx ends: a T.120 channel
// that H.245 has opened. It has the form of [pinhole.Request.Serve]; either side may be the caller.
func (s *Server) ServePair(ctx context.Context, conns [2]net.Conn, moved func(from pinhole.Side, octets int)) {
	call := Call{Client: pinhole.AddrPortOf(conns[0].RemoteAddr()), Local: pinhole.AddrPortOf(conns[0].LocalAddr())}
	c := s.session(call, nil)
	c.streams = [2]*stream{newStream(conns[0]), newStream(conns[1])}
	c.moved = moved
	defer c.end(ctx)
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	c.err = c.relay(ctx, func() {})
}

// route finds the target of a call.
func (s *Server) route(c Call) (netip.AddrPort, error) {
	to, ok := netip.AddrPort{}, false
	if s.passing(c) {
		to, ok = c.Local, true // TPROXY: where it was going anyway
	}
	if !ok {
		to, ok = s.cfg.Conferences[strings.ToLower(c.Conference)]
	}
	if !ok && s.deps.Router != nil {
		to, ok = s.deps.Router.Route(c)
	}
	if !ok {
		to, ok = s.cfg.Targets[c.Network]
	}
	switch {
	case !ok:
		return to, errRoute
	case s.deps.Networks.Own(to.Addr()):
		return to, fmt.Errorf("%w: %v", errLoop, to)
	}
	return to, nil
}

// passing tells whether the edge was not called itself, but took the connection on its way. That counts for callers of
// trusted networks only: others reach what is configured or registered.
func (s *Server) passing(c Call) bool {
	return s.deps.Networks[c.Network].Trusted && !s.deps.Networks.Own(c.Local.Addr()) && !c.Local.Addr().IsLoopback()
}

// decide applies the policy.
func (s *Server) decide(c *Call, rdp bool) error {
	switch {
	case rdp && !s.cfg.RDP:
		return errRDP
	case !s.cfg.allowed(c.Conference, c.Client.Addr()):
		return errPolicy
	}
	return nil
}

// added returns the target of the conference that a Connect-Additional belongs to, not a valid one if it is none
// that is known. Conferences of one id on several hosts cannot be told apart: errAmbiguous.
func (s *Server) added(client netip.Addr, id uint32) (to netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conferences[conferenceKey{client, id}] {
		if to.IsValid() && c.target != to {
			return netip.AddrPort{}, errAmbiguous
		}
		to = c.target
	}
	return to, nil
}

// confers tells whether the client is in a conference, to which further connections may belong.
func (s *Server) confers(client netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.conferences {
		if k.client == client {
			return true
		}
	}
	return false
}

// note remembers a conference while its first connection lives.
func (s *Server) note(k conferenceKey, target netip.AddrPort, owner *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conferences[k] = append(s.conferences[k], conference{target, owner})
}

func (s *Server) forget(k conferenceKey, owner *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(s.conferences[k], func(c conference) bool { return c.owner == owner })
	if len(left) == 0 {
		delete(s.conferences, k)
		return
	}
	s.conferences[k] = left
}
