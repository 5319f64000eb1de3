package forwardproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
)

const (
	// requestTime bounds what a client needs to say what it wants, logins included; answerTime what it needs to take the answer.
	requestTime = 15 * time.Second
	answerTime  = 10 * time.Second
)

// Joiner joins two connections, which it owns from then on: [splice.Joiner], or [splice.Copier].
type Joiner interface {
	Join(ctx context.Context, a, b net.Conn, o splice.Options) splice.Result
}

// Deps are what a server works with.
type Deps struct {
	// Dial connects clients with what they ask for.
	Dial   DialFunc
	Joiner Joiner
	// ListenPacket opens the socket of an association at an address of this host, with port 0; nil: UDP ASSOCIATE is refused.
	ListenPacket func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error)
	// Users may be nil.
	Users *Users
	// Connections is the limit of one source where the configuration has none; 0 = none.
	Connections int
}

// Server serves clients. All methods may be called concurrently.
type Server struct {
	deps  Deps
	log   *zap.Logger
	gate  *gate.Gate
	live  atomic.Pointer[settings]
	wrong guesses
	said  gate.Said
	count *counters
	// peers are the peers of all associations.
	peers atomic.Int64

	mu           sync.Mutex // guards what follows
	open         map[*client]struct{}
	associations map[netip.Addr]int
	// bytes came from clients (0) and from destinations (1), on connections that have ended.
	bytes [2]uint64
}

// settings are what may change while connections live.
type settings struct {
	cfg   Config
	users *Users
}

// New checks the configuration and returns a server without listeners. What it allows and denies is the business of Dial.
func New(cfg Config, deps Deps, log *zap.Logger) (*Server, error) {
	if err := cfg.validateServer(); err != nil {
		return nil, err
	}
	s := &Server{
		deps: deps, log: log, gate: gate.New(cfg.MaxConnections, 0), count: newCounters(),
		open: make(map[*client]struct{}), associations: make(map[netip.Addr]int),
	}
	s.Configure(cfg, deps.Users, deps.Connections)
	return s, nil
}

// validateServer finds what a server cannot work with, wherever its configuration came from.
func (c Config) validateServer() error {
	var f pinhole.Faults
	c.validateLimits(&f)
	return f.Err()
}

// Configure takes over the live keys of a configuration that is valid, users, and the limit of one source where the
// configuration has none.
func (s *Server) Configure(cfg Config, users *Users, connections int) {
	s.live.Store(&settings{cfg, users})
	if cfg.PerSource > 0 {
		connections = cfg.PerSource
	}
	s.gate.SetPerSource(connections)
}

// Drain has new connections refused; those that are open go on.
func (s *Server) Drain() { s.gate.Drain() }

// Open returns how many connections there are.
func (s *Server) Open() int { return s.gate.Open() }

// ServeListener serves the connections that ln accepts until ctx ends and all of them have ended. proto is HTTP,
// HTTPS (which comes decrypted, or as a [tls.Conn]) or SOCKS5.
func (s *Server) ServeListener(ctx context.Context, proto string, ln net.Listener) error {
	return s.gate.Serve(ctx, ln, func(ctx context.Context, conn net.Conn) { s.serve(ctx, proto, conn) }, s.count.refuse)
}

// client is a connection from its acceptance to its end.
type client struct {
	s      *Server
	now    *settings
	conn   net.Conn
	r      *bufio.Reader
	proto  string
	source netip.AddrPort
	begun  time.Time

	counters splice.Counters  // of its connection
	packets  [2]atomic.Uint64 // octets of datagrams from the client (0) and from destinations (1)

	mu     sync.Mutex // guards what follows, which [Server.Connections] reads
	user   string
	target string // "" as long as it has none
	udp    bool
}

func (s *Server) serve(ctx context.Context, proto string, conn net.Conn) {
	c := &client{
		s: s, now: s.live.Load(), conn: conn, r: bufio.NewReaderSize(conn, 4096), proto: proto,
		source: pinhole.AddrPortOf(conn.RemoteAddr()), begun: time.Now(),
	}
	s.mu.Lock()
	s.open[c] = struct{}{}
	s.mu.Unlock()
	defer s.leave(c)
	defer context.AfterFunc(ctx, func() { gate.Reset(conn) })()
	conn.SetDeadline(c.begun.Add(requestTime))
	speak := c.serveHTTP
	if proto == SOCKS5 {
		speak = c.serveSOCKS
	}
	if ask, ok := conn.(*tls.Conn); ok {
		if err := ask.HandshakeContext(ctx); err != nil {
			s.count.request(proto, "handshake")
			return
		}
	}
	if err := speak(ctx); err != nil {
		s.count.request(proto, reasonOf(err))
		c.say(c.asked(), err)
	}
}

// asked returns the destination that was asked for, "" if none was.
func (c *client) asked() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.target
}

// moved returns the octets from the client (0) and from destinations (1).
func (c *client) moved() (from [2]uint64) {
	for i := range from {
		from[i] = c.counters.Bytes(i) + c.packets[i].Load()
	}
	return from
}

// say logs why a client got nothing: loudly once in a while where it is an operator's business.
func (c *client) say(target string, err error) {
	level, why := zapcore.DebugLevel, reasonOf(err)
	loud := slices.Contains([]string{notListed, denied, inside, reasonLogin, reasonLocked}, why)
	if loud && c.s.said.Again(c.source.Addr(), time.Now()) {
		level = zapcore.InfoLevel
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.log.Log(level, "request refused", zap.String("protocol", c.proto), zap.Stringer("client", c.source), zap.String("user", c.user),
		zap.String("target", target), zap.String("reason", why), zap.Error(err))
}

func (s *Server) leave(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	for i, n := range c.moved() {
		s.bytes[i] += n
	}
}

// anonymous tells whether the client need not say who it is.
func (c *client) anonymous() bool {
	return slices.ContainsFunc(c.now.cfg.Anonymous, func(p netip.Prefix) bool { return p.Contains(c.source.Addr().WithZone("")) })
}

// login judges a name and a password.
func (c *client) login(name, password string) error {
	if c.s.wrong.locked(c.source.Addr(), time.Now()) {
		return errLocked
	}
	if !c.now.users.check(name, password) {
		c.s.wrong.add(c.source.Addr(), time.Now())
		return errLogin
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.user = name
	return nil
}

// dial connects with a destination.
func (c *client) dial(ctx context.Context, host string, port uint16) (net.Conn, error) {
	c.mu.Lock()
	c.target = joinHostPort(host, port)
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return c.s.deps.Dial(ctx, "tcp", host, port)
}

// join has both talk to each other, and returns when that has ended. What the client has said too early goes first.
func (c *client) join(ctx context.Context, target net.Conn) {
	early, _ := c.r.Peek(c.r.Buffered())
	early = slices.Clone(early) // the buffer goes
	c.r = nil
	c.conn.SetDeadline(time.Time{})
	c.s.count.request(c.proto, "ok")
	end := c.s.deps.Joiner.Join(ctx, c.conn, target, splice.Options{
		Prefix: [2][]byte{early}, Idle: c.now.cfg.Idle, Counters: &c.counters,
	})
	c.s.log.Debug("connection ended", zap.String("protocol", c.proto), zap.Stringer("client", c.source), zap.String("user", c.user),
		zap.String("target", c.target), zap.Duration("lasted", time.Since(c.begun)), zap.Uint64("bytes_from_client", end.Bytes[0]),
		zap.Uint64("bytes_from_target", end.Bytes[1]), zap.Error(end.Err))
}
