// Package transport carries SIP messages over UDP, TCP, TLS, WS and WSS. It cuts
// streams into messages, keeps connections and their limits, answers keep-alives,
// and finds or makes the connection to a target. It is no transaction layer:
// nothing is retransmitted, no Via is read, and only a request whose end cannot be
// found is answered here, for after it nothing more can come.
//
//	socket ── ServePacket / Serve ──► whole messages ──► Handler.Receive(flow, raw)
//	                                  connection ends ─► Handler.Closed(flow)
//	proxy core ── Send(flow, raw) ──────────► that socket or connection
//	proxy core ── SendTo(target, raw, done) ─► open connection, else dial
//
// Sockets are made by the caller; only dialled connections are made here.
package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// Errors that a caller branches on.
var (
	// ErrGone: the flow's connection has ended, or its listener is not served.
	ErrGone = errors.New("the flow is gone")
	// ErrSlow: too many bytes wait for the peer; the connection is closed.
	ErrSlow = errors.New("the peer is too slow")
	// ErrBusy: the system's or the configuration's limit of connections or of bytes on their way is reached.
	ErrBusy = errors.New("a transport limit is reached")
	// ErrNoListener: the network has no listener of the target's transport and address family.
	ErrNoListener = errors.New("no listener of this transport and family")
)

// Handler takes what arrives. Its methods may be called concurrently, but the messages of one
// flow come in order, one at a time. It must not block for long: a UDP socket has one reader.
type Handler interface {
	// Receive takes one whole message; raw is valid during the call only, and may be changed.
	Receive(f flow.Flow, raw []byte)
	// Closed tells that a stream connection has ended. It is called once per connection, dialled
	// or accepted, after its last Receive.
	Closed(f flow.Flow)
}

// Verifier is what a Handler may be too, to learn who has shown a certificate.
type Verifier interface {
	// Verified tells that the client of an accepted connection has proved, by a certificate of a trusted
	// authority, to be whom it names. It is called before the connection's first Receive.
	Verified(f flow.Flow, cert *x509.Certificate)
}

// TLSSource gives the TLS configurations. It is asked for each handshake, so that new
// certificates are used at once. What it returns must not be changed afterwards.
type TLSSource interface {
	// Server returns the configuration of a network's TLS or WSS listener (its certificates by
	// SNI, whether clients must show one, the oldest version of TLS: 1.2 where it says nothing), nil if
	// there is none.
	Server(network string, p flow.Proto) *tls.Config
	// Client returns the configuration for dialling from a network; the oldest version of TLS is 1.2 where it
	// says nothing. ServerName is set here. Nil means the system's roots and no client certificate.
	Client(network string) *tls.Config
}

// Transport holds the sockets and connections of all networks. Create it with [New].
type Transport struct {
	nets  pinhole.Networks
	tls   TLSSource
	h     Handler
	log   *zap.Logger
	cfg   atomic.Pointer[Config]
	count counters
	descs descs
	bufs  sync.Pool // *[firstBuf]byte
	seq   atomic.Uint64

	mu      sync.RWMutex // guards what follows
	socks   map[sockKey][]*packetSock
	locals  []local
	conns   map[uint64]*conn
	peers   map[peerKey]*conn
	dials   map[peerKey]*dialling
	in, out int                // connections admitted and dialled, those in their handshakes included
	sources map[netip.Addr]int // accepted connections by source
	serving int                // Serve and ServePacket calls that run
	changed chan struct{}      // closed when serving grows
	dialCtx context.Context    //nolint:containedctx // no request's: it lives while serving > 0
	stop    context.CancelFunc
	dialled sync.WaitGroup // dials and dialled connections
}

// local is a listener's own address.
type local struct {
	network string
	proto   flow.Proto
	addr    netip.AddrPort
	owner   any // the packetSock or server
}

// New returns a Transport for the networks. tlsConf may be nil where TLS and WSS are not used.
func New(cfg Config, nets pinhole.Networks, tlsConf TLSSource, h Handler, log *zap.Logger) *Transport {
	t := &Transport{
		nets: nets, tls: tlsConf, h: h, log: log, descs: newDescs(),
		socks: map[sockKey][]*packetSock{}, conns: map[uint64]*conn{}, peers: map[peerKey]*conn{},
		dials: map[peerKey]*dialling{}, sources: map[netip.Addr]int{}, changed: make(chan struct{}),
	}
	t.bufs.New = func() any { return new([firstBuf]byte) }
	t.SetLimits(cfg)
	return t
}

// SetLimits replaces the configuration while running. It does not check it: see [Config.Validate].
func (t *Transport) SetLimits(cfg Config) {
	cfg = cfg.withDefaults()
	t.cfg.Store(&cfg)
}

// Send sends one message on a flow and never waits for the peer. raw is copied if it must be kept.
// The error wraps ErrGone, ErrSlow, or is the system's for a datagram that was not taken.
func (t *Transport) Send(f flow.Flow, raw []byte) error {
	if f.Proto == flow.UDP {
		return t.sendPacket(f, raw)
	}
	t.mu.RLock()
	c := t.conns[f.Conn]
	t.mu.RUnlock()
	if c == nil {
		return ErrGone
	}
	return c.send(raw)
}

// LocalFor returns the listener from which requests on a network and transport leave, for Via and
// Contact. The caller applies an advertised address. AnyFamily takes the first listener.
func (t *Transport) LocalFor(network string, p flow.Proto, fam pinhole.Family) (netip.AddrPort, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, l := range t.locals {
		if l.network == network && l.proto == p && (fam == pinhole.AnyFamily || pinhole.FamilyOf(l.addr.Addr()) == fam) {
			return l.addr, true
		}
	}
	return netip.AddrPort{}, false
}

// listen notes the own addresses of a socket that is served from now on.
func (t *Transport) listen(network string, p flow.Proto, addrs []netip.AddrPort, owner any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range addrs {
		t.locals = append(t.locals, local{network, p, a, owner})
	}
	t.serving++
	close(t.changed)
	t.changed = make(chan struct{})
	if t.serving == 1 {
		t.dialCtx, t.stop = context.WithCancel(context.Background())
	}
}

// WaitServing returns once n Serve and ServePacket calls run, so that a message which needs any of
// them finds it; or ctx's error.
func (t *Transport) WaitServing(ctx context.Context, n int) error {
	for {
		t.mu.RLock()
		enough, changed := t.serving >= n, t.changed
		t.mu.RUnlock()
		if enough {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unlisten forgets a socket. The last one takes the dialled connections with it.
func (t *Transport) unlisten(owner any) {
	t.mu.Lock()
	kept := t.locals[:0:0]
	for _, l := range t.locals {
		if l.owner != owner {
			kept = append(kept, l)
		}
	}
	t.locals = kept
	t.serving--
	last := t.serving == 0
	if last {
		t.stop()
	}
	t.mu.Unlock()
	if last {
		t.dialled.Wait()
	}
}

// addresses returns what a socket bound to addr is called in flows: addr itself, or the network's
// address of each family where addr is a wildcard.
func (t *Transport) addresses(network string, addr net.Addr) []netip.AddrPort {
	ap := pinhole.AddrPortOf(addr)
	if !ap.Addr().IsUnspecified() {
		return []netip.AddrPort{ap}
	}
	families := []pinhole.Family{pinhole.IPv4}
	if ap.Addr().Is6() {
		families = append(families, pinhole.IPv6)
	}
	var list []netip.AddrPort
	for _, f := range families {
		if bind, _, err := t.nets.Local(network, f); err == nil {
			list = append(list, netip.AddrPortFrom(bind, ap.Port()))
		}
	}
	if list == nil {
		return []netip.AddrPort{ap}
	}
	return list
}
