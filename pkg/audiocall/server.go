// Package audiocall relays NetMeeting's audio call control of the time before H.323: TCP 1731, and UDP on dynamic ports
// between the same two hosts. The protocol has no public syntax, so nothing is read and nothing rewritten: it is
// no ALG, and works only where peers take each other's address from the connection, and ports from the configured ones.
//
//	TCP 1731   caller ─► target? ─► dialled, copied both ways: a pair of hosts
//	UDP port P host of a pair ─► edge, P ─► the other host of the pair, P; from all others dropped
//
// It is off unless configured.
package audiocall

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// maxConnections bounds the connections of all callers.
	maxConnections = 1024
	dialTime       = 10 * time.Second
	// wellKnown is the port of targets that a directory names.
	wellKnown = 1731
)

// Directory knows who is where inside.
type Directory interface {
	// Route returns the host for a call that arrives at the edge's address local and comes from caller.
	Route(local, caller netip.Addr) (netip.Addr, bool)
}

// Deps are what the server needs from others.
type Deps struct {
	Networks pinhole.Networks
	// RouteTo names the network by which an address is reached, "" if none; nil: only subnets count.
	RouteTo func(netip.Addr) string
	// Directory may be nil.
	Directory Directory
	// Connections bounds the connections of one source address; 0 = no limit.
	Connections int
}

// Server relays. All methods may be called concurrently.
type Server struct {
	cfg   Config
	deps  Deps
	log   *zap.Logger
	gate  *gate.Gate
	count counters

	mu    sync.RWMutex // guards what follows
	pairs map[end]*pair
	socks map[sock]net.PacketConn
}

// end is a host of a pair.
type end struct {
	network string
	host    netip.Addr
}

// pair are two hosts that have connections; open is how many.
type pair struct {
	ends [2]end
	open int
	// taken says that the first of the ends has called the other itself, and the edge has taken that on its way.
	taken bool
}

// sock names a UDP socket of the edge's.
type sock struct {
	network string
	port    uint16
	family  pinhole.Family
}

// New checks the configuration and returns a server without listeners.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	return &Server{
		cfg: cfg, deps: deps, log: log, gate: gate.New(maxConnections, deps.Connections), count: newCounters(),
		pairs: make(map[end]*pair), socks: make(map[sock]net.PacketConn),
	}, nil
}

// Drain has new connections refused; those that are open go on.
func (s *Server) Drain() { s.gate.Drain() }

// Open returns how many connections there are.
func (s *Server) Open() int { return s.gate.Open() }

// SetPerSource changes the limit of one source address, for new connections; 0 = none.
func (s *Server) SetPerSource(n int) { s.gate.SetPerSource(n) }

// Why connections are refused: labels of metrics.
var (
	errRoute = errors.New("route") // nobody is known to answer
	errLoop  = errors.New("loop")  // the target is the edge itself
	errDial  = errors.New("dial")
	errBusy  = errors.New("busy") // one of the hosts has a connection with another: datagrams could not be told apart
)

// ServeListener relays the connections that ln, a TCP listener on the named network, accepts, until ctx ends
// and all of them have ended.
func (s *Server) ServeListener(ctx context.Context, network string, ln net.Listener) error {
	return s.gate.Serve(ctx, ln, func(ctx context.Context, c net.Conn) {
		began := time.Now()
		var octets [2]atomic.Int64
		err := s.serve(ctx, network, c, &octets)
		f := []zap.Field{zap.Stringer("client", c.RemoteAddr()), zap.Duration("duration", time.Since(began)),
			zap.Int64("from_client", octets[0].Load()), zap.Int64("from_target", octets[1].Load())}
		if err != nil {
			s.count.drop(reason(err))
			f = append(f, zap.Error(err))
		}
		s.log.Info("audio call control ended", f...)
	}, s.count.drop)
}

func reason(err error) string {
	for _, e := range []error{errRoute, errLoop, errDial, errBusy} {
		if errors.Is(err, e) {
			return e.Error()
		}
	}
	return "connection"
}

// serve relays one connection and counts what comes from either side.
func (s *Server) serve(ctx context.Context, network string, c net.Conn, octets *[2]atomic.Int64) error {
	remote, local := pinhole.AddrPortOf(c.RemoteAddr()), pinhole.AddrPortOf(c.LocalAddr())
	to, err := s.target(network, local, remote.Addr())
	if err != nil {
		return err
	}
	far := s.networkOf(to.Addr())
	p, err := s.enter([2]end{{network, remote.Addr()}, {far, to.Addr()}}, to == local)
	if err != nil {
		return err
	}
	defer s.leave(p)
	d := net.Dialer{Timeout: dialTime}
	if bind, _, err := s.deps.Networks.Local(far, pinhole.FamilyOf(to.Addr())); err == nil {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(bind, 0))
	}
	t, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return errors.Join(errDial, err)
	}
	defer t.Close()
	stop := context.AfterFunc(ctx, func() {
		c.Close()
		t.Close()
	})
	defer stop()
	s.copyBoth([2]net.Conn{c, t}, octets)
	return nil
}

// target returns where a connection goes: where it was going if the edge took it on its way from a trusted network, whom
// the caller has looked up or the address called is, the target of the caller's network.
func (s *Server) target(network string, local netip.AddrPort, caller netip.Addr) (to netip.AddrPort, err error) {
	nets := s.deps.Networks
	switch {
	case !nets.Own(local.Addr()) && nets[network].Trusted && !local.Addr().IsLoopback():
		to = local
	default:
		if s.deps.Directory != nil {
			if host, ok := s.deps.Directory.Route(local.Addr(), caller); ok {
				to = netip.AddrPortFrom(host, wellKnown)
				break
			}
		}
		to = s.cfg.Targets[network]
	}
	if !to.IsValid() {
		return to, errRoute
	}
	if nets.Own(to.Addr()) || to.Addr().IsUnspecified() || to.Addr().IsMulticast() || to.Addr().IsLinkLocalUnicast() {
		return to, errLoop
	}
	return to, nil
}

// networkOf returns the network by which a host is reached: by the subnets, by the routes, or the only one that is not
// trusted.
func (s *Server) networkOf(host netip.Addr) string {
	name := s.deps.Networks.Of(host)
	if name == "" && s.deps.RouteTo != nil {
		name = s.deps.RouteTo(host)
	}
	if name != "" {
		return name
	}
	for n, nw := range s.deps.Networks {
		if nw.Trusted {
			continue
		}
		if name != "" {
			return ""
		}
		name = n
	}
	return name
}

// enter notes that two hosts have a connection, so that datagrams of one find the other.
func (s *Server) enter(ends [2]end, taken bool) (*pair, error) {
	if s.cfg.UDP == (Ports{}) {
		return &pair{}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pairs[ends[0]]
	if o := s.pairs[ends[1]]; p != o || p != nil && p.ends != ends && p.ends != [2]end{ends[1], ends[0]} {
		return nil, errBusy
	}
	if p == nil {
		p = &pair{ends: ends, taken: taken}
		s.pairs[ends[0]], s.pairs[ends[1]] = p, p
	}
	p.open++
	return p, nil
}

func (s *Server) leave(p *pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.open--; p.open > 0 {
		return
	}
	for _, e := range p.ends {
		delete(s.pairs, e)
	}
}

// copyBoth moves octets until both directions have ended, or nothing has passed for Idle.
func (s *Server) copyBoth(conns [2]net.Conn, octets *[2]atomic.Int64) {
	idle := time.AfterFunc(s.cfg.Idle, func() {
		conns[0].Close()
		conns[1].Close()
	})
	defer idle.Stop()
	var work sync.WaitGroup
	for from := range 2 {
		work.Go(func() {
			dst, src := conns[1-from], conns[from]
			buf := make([]byte, 16<<10)
			for {
				n, err := src.Read(buf)
				if n > 0 {
					octets[from].Add(int64(n))
					idle.Reset(s.cfg.Idle)
					if _, werr := dst.Write(buf[:n]); werr != nil {
						src.Close()
						return
					}
				}
				if err != nil {
					finish(dst, errors.Is(err, io.EOF))
					return
				}
			}
		})
	}
	work.Wait()
}

// finish tells a side that nothing more comes.
func finish(c net.Conn, orderly bool) {
	if t, ok := c.(*net.TCPConn); ok && orderly {
		_ = t.CloseWrite() // it may be closed already
		return
	}
	c.Close()
}
