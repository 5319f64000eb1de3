package msturn

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

const (
	// maxData bounds a datagram of a peer or client, in octets.
	maxData = 16 << 10
	// maxConnections bounds the connections of clients.
	maxConnections = 10000
)

// Deps are what the server needs from others.
type Deps struct {
	Networks pinhole.Networks
	Ports    pinhole.PortOpener
	// Streams makes the TCP sockets of relay ports; nil: clients on TCP get no port.
	Streams Streams
	Peers   Peers
	// Challenge tells whether a source that has not signed may be answered once more.
	Challenge func(netip.Addr) bool
	// Connections bounds the connections of one source; 0 = any.
	Connections int
}

// Server is an MS-TURN server. Its methods may be called concurrently.
type Server struct {
	cfg   Config
	deps  Deps
	core  *core
	log   *zap.Logger
	count *counters
	gate  *gate.Gate

	// ports waits for those who read relay ports. A client's port outlives what opened it.
	ports sync.WaitGroup
	mu    sync.Mutex // guards what follows
	live  map[*allocation]struct{}
	// serving counts the Serve calls; when the last one ends all ports are closed.
	serving int
}

// New checks the configuration and returns a server without listeners.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, deps: deps, log: log, count: newCounters(), gate: gate.New(maxConnections, deps.Connections), live: map[*allocation]struct{}{}}
	s.core = &core{
		users: newUsers(cfg.Realm, cfg.Users, cfg.Secrets), peers: deps.Peers, challenge: deps.Challenge, maxUser: cfg.PerUser, kbits: cfg.Bandwidth,
		allocs: map[tuple]*allocation{}, perUser: map[string]*account{},
	}
	return s, nil
}

// Collector returns the metrics.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

// Learn has credentials of another service taken until their time is over; user is for whose limits they count. It returns
// false if there are too many.
func (s *Server) Learn(name string, password []byte, user string, until time.Time) bool {
	return s.core.users.learn(time.Now(), name, password, user, until)
}

// Open returns how many allocations there are.
func (s *Server) Open() int { return s.core.open() }

// Drain has new connections and allocations refused; those that are open go on.
func (s *Server) Drain() {
	s.gate.Drain()
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	s.core.draining = true
}

// SetPerSource changes the limit of connections of one source.
func (s *Server) SetPerSource(n int) { s.gate.SetPerSource(n) }

// client is the way back to a client. Its methods may be called concurrently.
type client interface {
	message(b []byte) error // a message of the protocol
	bare(b []byte) error    // data of the active peer
}

// datagrams is a client on UDP.
type datagrams struct {
	pc net.PacketConn
	to *net.UDPAddr
}

func (d datagrams) message(b []byte) error {
	_, err := d.pc.WriteTo(b, d.to)
	return err
}

func (d datagrams) bare(b []byte) error { return d.message(b) }

// Run keeps the ports of clients that come by [Server.Receive] until ctx ends, and closes them then.
func (s *Server) Run(ctx context.Context) error {
	defer s.enter()()
	<-ctx.Done()
	return nil
}

// ServePacket serves clients that come to pc, which is on the named network and for nobody else, until ctx ends.
func (s *Server) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	defer s.enter()()
	return gate.Packets(ctx, pc, maxData+1, func(from net.Addr, b []byte) {
		if len(b) > maxData {
			s.count.drop("too_long")
		} else if !s.Receive(ctx, network, pc, pinhole.AddrPortOf(from), b) {
			s.count.drop("foreign")
		}
	})
}

// enter counts a Serve call in and returns what counts it out.
func (s *Server) enter() (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.serving++
	return func() {
		s.mu.Lock()
		s.serving--
		if s.serving == 0 {
			for a := range s.live {
				a.out.Close()
			}
		}
		last := s.serving == 0
		s.mu.Unlock()
		if last {
			s.ports.Wait()
		}
	}
}

// Receive takes a datagram from a socket that serves other protocols too; answers go out by front, which is
// a pointer. It returns false if the datagram is not for this server: neither a message of its protocol nor data
// of a client that has chosen a peer. b is not used afterwards.
func (s *Server) Receive(ctx context.Context, network string, front net.PacketConn, from netip.AddrPort, b []byte) bool {
	c := datagrams{front, net.UDPAddrFromAddrPort(from)}
	return s.take(ctx, network, tuple{front, from}, c, b, false)
}

// take does what the core says about a message or data.
func (s *Server) take(ctx context.Context, network string, from tuple, c client, b []byte, bare bool) (mine bool) {
	v := s.core.receive(time.Now(), from, b, bare)
	if v.drop != "" {
		s.count.drop(v.drop)
	}
	if v.grant != nil {
		v.reply = s.grant(ctx, network, &v, c)
	}
	if v.reply != nil {
		s.count.answer(v.reply)
		if err := c.message(v.reply); err != nil {
			s.count.drop("client_unreachable")
		}
	}
	if v.end != nil {
		v.end.out.Close()
	}
	if v.from != nil {
		s.forward(&v)
	}
	return v.mine
}

// forward sends data to a peer.
func (s *Server) forward(v *verdict) {
	switch {
	case !s.core.spend(time.Now(), v.from.account, len(v.data)):
		s.count.drop("bandwidth")
	case v.from.out.send(v.to, v.data) != nil:
		s.count.drop("peer_unreachable")
	default:
		s.count.relayed(toPeer, len(v.data))
	}
}

// grant opens the relay port that an allocation asks for and returns the answer.
func (s *Server) grant(ctx context.Context, network string, v *verdict, c client) []byte {
	a := v.grant
	if s.cfg.Relay != "" {
		network = s.cfg.Relay
	}
	_, _ = rand.Read(a.connect[:]) // never fails
	out, err := s.open(ctx, network, a, c)
	if err != nil {
		s.count.drop("no_port")
		s.log.Info("no relay port", zap.Stringer("client", a.tuple.client), zap.Error(err))
		answer, _ := s.core.opened(time.Now(), &v.request, a, err)
		return answer
	}
	a.out = out
	answer, keep := s.core.opened(time.Now(), &v.request, a, nil)
	if !keep {
		out.discard()
		return answer
	}
	s.deps.Peers.Relay(a.relay, true)
	s.mu.Lock()
	s.live[a] = struct{}{}
	s.mu.Unlock()
	s.ports.Go(func() { s.serveRelay(a, out) })
	s.log.Info("relay port granted", zap.Stringer("client", a.tuple.client), zap.String("user", a.user), zap.Stringer("relay", a.relay))
	return answer
}

// relayPort is an outlet that has not begun.
type relayPort interface {
	outlet
	// serve reads what peers send until the port is closed or its time is over.
	serve()
	// discard closes a port that was not served.
	discard()
}

// open opens a relay port of the client's transport. Its family is IPv4: later versions of the protocol have IPv6.
func (s *Server) open(ctx context.Context, network string, a *allocation, c client) (relayPort, error) {
	if st, ok := c.(*stream); ok {
		return s.openStreams(ctx, network, a, st)
	}
	port, err := s.deps.Ports.OpenPort(ctx, pinhole.PortRequest{
		Owner: "msturn:" + a.user, Label: "MS-TURN of " + a.tuple.client.String(), Network: network, Family: pinhole.IPv4, Client: a.tuple.client,
	})
	if err != nil {
		return nil, err
	}
	a.relay = port.Local().Addr
	return &udpRelay{server: s, of: a, port: port, client: c}, nil
}

// serveRelay runs a relay port to its end.
func (s *Server) serveRelay(a *allocation, out relayPort) {
	out.until(a.ends())
	out.serve()
	s.mu.Lock()
	delete(s.live, a)
	s.mu.Unlock()
	s.deps.Peers.Relay(a.relay, false)
	s.core.ended(a)
	s.log.Info("relay port closed", zap.Stringer("client", a.tuple.client), zap.String("user", a.user), zap.Stringer("relay", a.relay))
}

func (a *allocation) ends() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.until
}

// deliver brings data of a peer to the client.
func (s *Server) deliver(a *allocation, c client, peer netip.AddrPort, data []byte) {
	now := time.Now()
	b, bare := a.fromPeer(now, peer, data)
	switch {
	case b == nil:
		s.count.drop("no_permission")
		return
	case !s.core.spend(now, a.account, len(data)):
		s.count.drop("bandwidth")
		return
	}
	send := c.message
	if bare {
		send = c.bare
	}
	if err := send(b); err != nil {
		s.count.drop("client_unreachable")
		return
	}
	s.count.relayed(toClient, len(data))
}

// udpRelay is the relay port of a client on UDP.
type udpRelay struct {
	server *Server
	of     *allocation
	port   pinhole.Port
	client client
}

func (u *udpRelay) send(to netip.AddrPort, b []byte) error {
	if _, err := u.port.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

func (u *udpRelay) until(t time.Time) { u.port.SetReadDeadline(t) }
func (u *udpRelay) Close() error      { return u.port.Close() }
func (u *udpRelay) discard()          { u.port.Close() }

func (u *udpRelay) serve() {
	defer u.port.Close()
	buf := make([]byte, maxData+1)
	for {
		n, from, err := u.port.ReadFrom(buf)
		switch {
		case err != nil && errors.Is(err, net.ErrClosed), err != nil && !u.of.alive(time.Now()):
			return
		case err != nil:
			u.until(u.of.ends()) // prolonged meanwhile
		case n > maxData:
			u.server.count.drop("too_long")
		default:
			u.server.deliver(u.of, u.client, pinhole.AddrPortOf(from), buf[:n])
		}
	}
}
