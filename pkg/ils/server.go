// Package ils is the gateway for the directories of NetMeeting and TAPI: LDAP (RFC 4511; v2: RFC 1777) on 389
// and 1002, with the entries of [MS-TAIL]. It edits the addresses in what passes, and remembers who has
// registered, so that calls from outside find their inside host. It is no LDAP proxy: nothing is cached,
// checked or printed anew, and entries of other directories (Active Directory) pass octet by octet.
//
//	client ──► frame ──► session.request  ──► server      Add, Modify: own address → public one
//	client ◄── session.response ◄── frame ◄── server      entries: public → inside; results: Registry
//	                 │ StartTLS, SASL layer: everything after passes unread
//	H.323, T.120 ──► Registry.Route(called, local, client) ──► inside host
//
// With "server: builtin" the edge is the directory itself (directory.go).
package ils

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// dialTimeout bounds connecting to the directory.
	dialTimeout = 10 * time.Second
	// firstTimeout bounds the wait for a client's first octet; before it no directory is reached.
	firstTimeout = 30 * time.Second
	// maxConnections bounds the connections of all clients.
	maxConnections = 4096
)

// Deps are what the server needs from others.
type Deps struct {
	Networks pinhole.Networks
	// RouteTo names the network by which an address is reached, "" if none; nil: only subnets count.
	RouteTo func(netip.Addr) string
	// Dial connects to a directory, HOST:PORT; nil: TCP from whatever address the kernel chooses.
	Dial func(ctx context.Context, to string) (net.Conn, error)
	// Connections bounds the connections of one source address; 0 = no limit.
	Connections int
	// StateDir keeps the registry over a restart; empty: it is lost.
	StateDir string
}

// Server relays LDAP. All methods may be called concurrently.
type Server struct {
	cfg       Config
	deps      Deps
	log       *zap.Logger
	registry  *Registry
	directory *directory
	count     *counters
	gate      *gate.Gate
	saving    sync.Mutex // one writes the state at a time
}

// New checks the configuration and returns a server without listeners. What was registered before comes back from
// deps.StateDir.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	if deps.Dial == nil {
		deps.Dial = func(ctx context.Context, to string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", to)
		}
	}
	s := &Server{
		cfg: cfg, deps: deps, log: log, registry: newRegistry(cfg), directory: newDirectory(cfg),
		count: newCounters(), gate: gate.New(maxConnections, deps.Connections),
	}
	if deps.StateDir != "" {
		s.load()
	}
	return s, nil
}

// Registry returns who has registered.
func (s *Server) Registry() *Registry { return s.registry }

// Collector returns the metrics.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

// ServeListener relays the connections that ln, a TCP listener on the named network, accepts, until ctx ends
// and all of them have ended.
func (s *Server) ServeListener(ctx context.Context, network string, ln net.Listener) error {
	saving, stop := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	if s.deps.StateDir != "" {
		work.Go(func() { s.saver(saving) })
	}
	return s.gate.Serve(ctx, ln, func(ctx context.Context, conn net.Conn) { s.serve(ctx, network, conn) }, s.count.drop)
}

// SetPerSource changes the limit of one source address, for new connections; 0 = none.
func (s *Server) SetPerSource(n int) { s.gate.SetPerSource(n) }

// sideOf says where an address is: by the subnets, then by the routes, then by there being only one network
// that is not trusted.
func (s *Server) sideOf(a netip.Addr) side {
	name := s.deps.Networks.Of(a)
	if name == "" && s.deps.RouteTo != nil {
		name = s.deps.RouteTo(a)
	}
	if name != "" {
		return side{name, s.deps.Networks[name].Trusted}
	}
	found := 0
	for n, nw := range s.deps.Networks {
		if !nw.Trusted {
			name, found = n, found+1
		}
	}
	if found != 1 {
		return side{}
	}
	return side{network: name}
}

// serve relays one connection.
func (s *Server) serve(ctx context.Context, network string, client net.Conn) {
	defer client.Close()
	log := s.log.With(zap.Stringer("client", client.RemoteAddr()))
	c := &relay{client: client, idle: s.cfg.Idle, limit: s.cfg.MaxMessage}
	c.session = &session{
		cfg: &s.cfg, nets: s.deps.Networks, reg: s.registry, count: s.count, host: pinhole.AddrPortOf(client.RemoteAddr()).Addr(),
		client: side{network, s.deps.Networks[network].Trusted},
	}
	var err error
	if c.early, err = first(ctx, client); len(c.early) == 0 {
		s.refused(ctx, log, err)
		return
	}
	target := s.target(network, client)
	if target == Builtin {
		c.directory, c.session.serverless, c.session.server = s.directory, true, side{inside: true}
	} else {
		dialing, cancel := context.WithTimeout(ctx, dialTimeout)
		server, err := s.deps.Dial(dialing, target)
		cancel()
		if err != nil {
			s.count.drop("dial")
			log.Warn("directory not reached", zap.String("server", target), zap.Error(err))
			return
		}
		defer server.Close()
		c.server, c.session.server = server, s.sideOf(pinhole.AddrPortOf(server.RemoteAddr()).Addr())
	}
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	s.refused(ctx, log, c.run())
}

// refused counts and logs why a connection was refused; nil if it just ended.
func (s *Server) refused(ctx context.Context, log *zap.Logger, err error) {
	if err != nil && ctx.Err() == nil {
		s.count.drop(reason(err))
		log.Info("directory connection refused", zap.String("reason", reason(err)), zap.Error(err))
	}
}

// first waits for the first octet of a client and returns it; none if the client has ended without one.
func first(ctx context.Context, client net.Conn) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	client.SetReadDeadline(time.Now().Add(firstTimeout))
	b := make([]byte, 1)
	n, err := client.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errSilent
	}
	return b[:n], nil
}

// target returns the directory for a connection: where it was going, if it was not going to the edge
// (TPROXY) and comes from a trusted network, or the configured one.
func (s *Server) target(network string, client net.Conn) string {
	to := pinhole.AddrPortOf(client.LocalAddr())
	if to.IsValid() && s.deps.Networks[network].Trusted && !s.deps.Networks.Own(to.Addr()) && !s.isPool(to.Addr()) && !to.Addr().IsLoopback() {
		return to.String()
	}
	return s.cfg.server(network)
}

func (s *Server) isPool(a netip.Addr) bool {
	for _, p := range s.cfg.Pool {
		if p == a {
			return true
		}
	}
	return false
}
