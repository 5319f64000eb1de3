package turn

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/peerpolicy"
	"edged.dev/edged/pkg/turn/sourcelimit"
)

const (
	// maxConnections bounds the stream connections of all clients.
	maxConnections = 16384
	handshakeTime  = 5 * time.Second
	// authTime is how long a stream client has for its first signed request, and how long a connection without allocation
	// may be silent.
	authTime = 10 * time.Second
)

// Deps are what the server needs from others.
type Deps struct {
	Networks pinhole.Networks
	// Ports grants relay ports.
	Ports pinhole.PortOpener
	// Streams opens sockets of relayed TCP (RFC 6062); nil: it is not served.
	Streams StreamOpener
	// OwnPort tells whether an own address and port are a relay port of another service, which clients may
	// reach; nil: none is.
	OwnPort func(netip.AddrPort) bool
	// Own lists the addresses of the host that no network names; nil: there are none.
	Own func(netip.Addr) bool
	// Dialect is asked first for every datagram of a UDP socket, and tells whether it was its own (MS-TURN, whose clients
	// send data as it is); it must not keep the slice. nil: there is none.
	Dialect func(front net.PacketConn, from netip.AddrPort, datagram []byte) bool
	// Connections bounds the stream connections of one source; 0 = no limit.
	Connections int
	// Deny says who is shut out; nil: nobody.
	Deny Denier
	// Users and Secrets are what the files of the configuration hold.
	Users   map[string]string
	Secrets []string
	// Directory knows further users; nil: there are none.
	Directory Directory
}

// Denier says who is shut out. Its methods may be called concurrently, for each datagram, and must not block.
type Denier interface {
	Addr(a netip.Addr) bool
	User(name string) bool
}

// Expel ends the allocations of those whom [Deps.Deny] shuts out now, and returns how many there were.
func (s *Server) Expel() int {
	if s.deps.Deny == nil {
		return 0
	}
	s.mu.RLock()
	var list []*allocation
	for _, a := range s.allocs {
		if a.live.Load() && s.shutOut(a) { // what is only being opened sees to that itself
			list = append(list, a)
		}
	}
	s.mu.RUnlock()
	for _, a := range list {
		a.close()
	}
	return len(list)
}

// shutOut tells whether the client or its user is shut out.
func (s *Server) shutOut(a *allocation) bool {
	return s.deps.Deny != nil && (s.deps.Deny.Addr(a.from.client.Addr()) || s.deps.Deny.User(a.user))
}

// StreamOpener opens the sockets of relayed TCP connections. Both calls are for the same local port: they must let
// it be bound more than once (SO_REUSEPORT).
type StreamOpener interface {
	// Listen opens a relay port at an address; the caller closes it.
	Listen(ctx context.Context, at netip.Addr) (net.Listener, error)
	// Dial connects from a relay port to a peer.
	Dial(ctx context.Context, from, to netip.AddrPort) (net.Conn, error)
}

// Server serves. All methods may be called concurrently.
type Server struct {
	cfg    Config
	deps   Deps
	log    *zap.Logger
	gate   *gate.Gate
	nonces *nonces
	peers  *peerpolicy.Policy
	count  *counters
	// challenge and binding bound answers to who has proved nothing.
	challenge, binding *sourcelimit.Limiter
	// published are advertised addresses of relay ports, by bound ones and the other way round.
	advertised, bound map[netip.Addr]netip.Addr
	users             atomic.Pointer[credentials]
	asking            *asking // nil: there is no directory
	quota             atomic.Pointer[Quota]

	mu       sync.RWMutex // guards what follows
	draining bool
	allocs   map[tuple]*allocation
	byID     map[string]*allocation
	perUser  map[string]int
	reserved map[[8]byte]*reservation
	joins    map[uint32]*allocation // RFC 6062 connection IDs
	fronts   map[netip.AddrPort]net.PacketConn
}

// New checks the configuration and returns a server without listeners.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	own := func(a netip.Addr) bool { return deps.Networks.Own(a) || deps.Own != nil && deps.Own(a) }
	s := &Server{
		cfg: cfg, deps: deps, log: log, gate: gate.New(maxConnections, deps.Connections), nonces: newNonces(), count: newCounters(),
		peers: peerpolicy.New(peerpolicy.Config{
			Allow: cfg.Peers.Allow, Only: cfg.Peers.Only, Deny: cfg.Peers.Deny, DenyPorts: cfg.Peers.DenyPorts,
			TCPPorts: cfg.Peers.TCPPorts, Own: own, OwnPort: deps.OwnPort,
		}),
		challenge: sourcelimit.New(cfg.Challenges, 2*cfg.Challenges), binding: sourcelimit.New(cfg.Bindings, 2*cfg.Bindings),
		advertised: map[netip.Addr]netip.Addr{}, bound: map[netip.Addr]netip.Addr{},
		allocs: map[tuple]*allocation{}, byID: map[string]*allocation{}, perUser: map[string]int{},
		reserved: map[[8]byte]*reservation{}, joins: map[uint32]*allocation{}, fronts: map[netip.AddrPort]net.PacketConn{},
	}
	if deps.Directory != nil {
		s.asking = newAsking(deps.Directory, cfg.Realm, log)
	}
	for _, n := range deps.Networks {
		for _, a := range n.Addresses {
			if public := n.Public(a); public != a {
				s.advertised[a] = public
				if _, taken := s.bound[public]; !taken {
					s.bound[public] = a
				}
			}
		}
	}
	return s, s.Reload(cfg, deps.Users, deps.Secrets)
}

// Reload takes over users, secrets and quotas; cfg must be of this server but for the live keys. Allocations live on.
func (s *Server) Reload(cfg Config, users map[string]string, secrets []string) error {
	all := make(map[string]string, len(users)+len(cfg.Users))
	for name, password := range users {
		all[name] = password
	}
	for name, password := range cfg.Users {
		all[name] = string(password)
	}
	c, err := newCredentials(s.cfg.Realm, all, secrets, cfg.StrictExpiry)
	if err != nil {
		return err
	}
	s.users.Store(c)
	s.quota.Store(&cfg.Quota)
	return nil
}

// Peers returns the policy of peers, for servers beside this one.
func (s *Server) Peers() *peerpolicy.Policy { return s.peers }

// SetPerSource changes the limit of connections of one source; 0 = none.
func (s *Server) SetPerSource(n int) { s.gate.SetPerSource(n) }

// Drain has new allocations and connections refused; those that are there go on.
func (s *Server) Drain() {
	s.gate.Drain()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
}

// Open returns how many allocations there are.
func (s *Server) Open() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.allocs)
}

// endpoint is what one socket or listener of clients has: a pion server of its own, since pion takes all
// of them when it is made.
type endpoint struct {
	s       *Server
	network string // of the listener
	relay   string // of the peers
	scheme  string // udp, tcp, tls or dtls, for people

	mu     sync.Mutex // guards what follows
	engine string     // pion's nonce
	asked  time.Time  // when it was got
	over   bool       // there are no new allocations

	work sync.WaitGroup // who relays for allocations
}

func (s *Server) endpoint(network, scheme string) *endpoint {
	ep := &endpoint{s: s, network: network, relay: s.cfg.Relay, scheme: scheme}
	if ep.relay == "" {
		ep.relay = network
	}
	return ep
}

// ServePacket serves pc, a UDP socket of the named network bound to one address, until ctx ends and its allocations have.
func (s *Server) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	conn, err := s.deps.Ports.Front(pc)
	if err != nil {
		pc.Close()
		return fmt.Errorf("front: %w", err)
	}
	f := newPacketFront(s.endpoint(network, "udp"), conn)
	s.mu.Lock()
	s.fronts[f.local] = conn
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.fronts, f.local)
	}()
	return s.serveFront(ctx, f)
}

// serveFront serves until ctx ends, or the socket is closed by somebody else, which is an error.
func (s *Server) serveFront(ctx context.Context, f *packetFront) error {
	if err := f.ep.start(f, nil); err != nil {
		f.conn.Close()
		return err
	}
	select {
	case <-ctx.Done():
	case <-f.ended:
	}
	f.conn.Close()
	<-f.ended
	s.closeAll(f.ep)
	if ctx.Err() == nil {
		return net.ErrClosed
	}
	return nil
}

// Serve serves the connections that ln, which belongs to a tcp or tls listener of the configuration, accepts, until ctx ends
// and all have ended. With conf each begins with a TLS handshake; connections out of which TLS was taken already come without.
func (s *Server) Serve(ctx context.Context, l Listen, ln net.Listener, conf *tls.Config) error {
	ep := s.endpoint(l.Network, l.Proto)
	handed := newHandover(ln.Addr())
	if err := ep.start(nil, handed); err != nil {
		return err
	}
	defer s.closeAll(ep)
	defer handed.Close()
	return s.gate.Serve(ctx, ln, func(ctx context.Context, raw net.Conn) {
		c, err := secure(ctx, raw, conf)
		if err != nil {
			s.count.drop("handshake")
			return
		}
		sc := newStreamConn(ep, c)
		stop := context.AfterFunc(ctx, func() { sc.Close() })
		defer stop()
		if handed.give(ctx, sc) {
			<-sc.closed
		}
	}, s.count.drop)
}

// secure ends TLS if there is a configuration, within handshakeTime.
func secure(ctx context.Context, raw net.Conn, conf *tls.Config) (net.Conn, error) {
	if conf == nil {
		return raw, nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	c := tls.Server(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return c, nil
}

// closeAll ends what is left of an endpoint, and waits for it.
func (s *Server) closeAll(ep *endpoint) {
	ep.mu.Lock()
	ep.over = true
	ep.mu.Unlock()
	s.mu.RLock()
	var list []*allocation
	for _, a := range s.allocs {
		if a.from.ep == ep {
			list = append(list, a)
		}
	}
	s.mu.RUnlock()
	for _, a := range list {
		a.close()
	}
	ep.work.Wait()
}

// handover is the listener that pion accepts from: connections that the guard has taken in.
type handover struct {
	addr  net.Addr
	conns chan net.Conn // not buffered: who gives waits until pion takes
	once  sync.Once
	done  chan struct{}
}

func newHandover(addr net.Addr) *handover {
	return &handover{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handover) give(ctx context.Context, c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-ctx.Done():
	case <-h.done:
	}
	return false
}

// Accept implements [net.Listener].
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements [net.Listener].
func (h *handover) Addr() net.Addr { return h.addr }
