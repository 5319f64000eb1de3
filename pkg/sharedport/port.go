package sharedport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/pinhole"
)

// Match is which connections a listener gets.
type Match struct {
	Kind
	// Names are server names of TLS, each a host name in lower case or "*." and one, which stands for one label more.
	// Empty: those of the kind that no other listener names.
	Names []string
}

// key finds a listener; name is "" for the rest of the kind.
type key struct {
	Kind
	name string
}

// Deps are what a port works with.
type Deps struct {
	// TLS gives the configuration of each handshake, for legacy clients too or not; nil: TLS does not end at this
	// port, and nothing inside it can be asked for.
	TLS func(legacy bool) *tls.Config
	// Count may be that of other ports too.
	Count *Counters
}

// Port is a TCP port that services share.
type Port struct {
	ln   net.Listener
	deps Deps
	cfg  atomic.Pointer[Config]
	log  *zap.Logger

	// byKey and parts are complete before Serve.
	byKey map[key]*listener
	parts []*listener

	said gate.Said // who was refused

	mu      sync.Mutex // guards what follows
	pending int
	sources map[netip.Prefix]int
}

// New returns a port on a listener of TCP connections, which it owns.
func New(ln net.Listener, cfg Config, deps Deps, log *zap.Logger) *Port {
	p := &Port{
		ln: ln, deps: deps, log: log, byKey: map[key]*listener{}, sources: map[netip.Prefix]int{},
	}
	p.Configure(cfg)
	return p
}

// Configure takes over limits, switches and trust, for new connections.
func (p *Port) Configure(cfg Config) {
	cfg = cfg.Completed()
	p.cfg.Store(&cfg)
}

// EndsTLS tells whether TLS ends at this port, but for the names that a listener of [TLS] has.
func (p *Port) EndsTLS() bool { return p.deps.TLS != nil }

// Listener returns the listener of what is of one of the kinds. Call it before Serve. A kind, or a name of it, that
// another listener has already is an error.
func (p *Port) Listener(list ...Match) (net.Listener, error) {
	l := &listener{addr: p.ln.Addr(), conns: make(chan net.Conn), done: make(chan struct{})}
	for _, m := range list {
		for _, kind := range m.Each() {
			if kind.Outer == OverTLS && !p.EndsTLS() || kind == (Kind{OverTCP, TLS}) && len(m.Names) == 0 && p.EndsTLS() {
				return nil, fmt.Errorf("share %v: %s: TLS ends at the service or at the port", l.addr, kind)
			}
			for _, name := range orRest(m.Names) {
				k := key{kind, name}
				if have := p.byKey[k]; have != nil && have != l {
					return nil, fmt.Errorf("share %v: two services want %s %s", l.addr, kind, name)
				}
				p.byKey[k] = l
			}
		}
	}
	p.parts = append(p.parts, l)
	return l, nil
}

// orRest returns the names, or the one that stands for what nobody names.
func orRest(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}

// Serve hands connections out until ctx ends; then it closes the port. Its listeners are closed by their owners, whose
// own end may be a little later, or when the port fails. Connections that were handed out are their owners' too.
func (p *Port) Serve(ctx context.Context) error {
	var open sync.WaitGroup
	defer open.Wait()
	err := gate.Accept(ctx, p.ln, func(conn net.Conn) { p.accepted(ctx, conn, &open) }, func(err error) {
		p.log.Warn("connection not accepted", zap.Stringer("listener", p.ln.Addr()), zap.Error(err))
	})
	if err != nil {
		for _, l := range p.parts {
			l.end()
		}
		return fmt.Errorf("share %v: %w", p.ln.Addr(), err)
	}
	return nil
}

// accepted has a connection looked at, if there is room.
func (p *Port) accepted(ctx context.Context, conn net.Conn, open *sync.WaitGroup) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		conn.Close()
		return
	}
	v := &visitor{p: p, cfg: p.cfg.Load(), tcp: tcp, conn: tcp, remote: pinhole.AddrPortOf(tcp.RemoteAddr())}
	v.trusted = v.cfg.trusts(v.remote.Addr())
	v.source = prefixOf(v.remote.Addr())
	if why := p.admit(v.cfg, v.source, v.trusted); why != "" {
		v.refuse(why)
		return
	}
	open.Go(func() { v.serve(ctx) })
}

// admit makes room for a connection of which it is not known what it is, or says why there is none. A balancer is
// no source of its own: whom it tells of is counted then.
func (p *Port) admit(cfg *Config, source netip.Prefix, trusted bool) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.pending >= cfg.MaxPending:
		return "max_pending"
	case !trusted && p.sources[source] >= cfg.PerSource:
		return "per_source"
	case !trusted:
		p.sources[source]++
	}
	p.pending++
	return ""
}

// recount moves a pending connection from its balancer to the source that it told; false if that has too many.
func (p *Port) recount(cfg *Config, source netip.Prefix) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sources[source] >= cfg.PerSource {
		return false
	}
	p.sources[source]++
	return true
}

// release gives a pending connection's room back; counted says that its source was counted.
func (p *Port) release(source netip.Prefix, counted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending--
	if !counted {
		return
	}
	if p.sources[source]--; p.sources[source] <= 0 {
		delete(p.sources, source)
	}
}

// prefixOf returns what counts as one source: an address of IPv4, or the /64 that a host of IPv6 has to itself.
func prefixOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits)
	return p
}

// listener is a service's part of a port.
type listener struct {
	addr  net.Addr
	conns chan net.Conn // unbuffered: a connection is somebody's at any time
	once  sync.Once
	done  chan struct{}
}

// Accept waits for a connection.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, fmt.Errorf("accept %v: %w", l.addr, net.ErrClosed)
	}
}

// Close ends Accept. The port stays open for the others.
func (l *listener) Close() error {
	l.end()
	return nil
}

func (l *listener) end() { l.once.Do(func() { close(l.done) }) }

// Addr returns the port's address.
func (l *listener) Addr() net.Addr { return l.addr }

var _ net.Listener = (*listener)(nil)
