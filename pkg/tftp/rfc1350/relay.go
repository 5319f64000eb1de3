// Package rfc1350 relays TFTP on UDP 69 (RFC 1350, options of RFC 2347-2349 and 7440): a client asks the edge, the edge
// asks the server that is configured for the client's network, and each side knows only the edge's ports. It has nothing
// in common with the file transfer of Messenger, which documents call "TFTP over TCP": see its parent package. It keeps
// no files and changes no packet.
//
//	client:C ─ RRQ ─► edge:69        policy, limits, a port on each side
//	                  edge:F ─ RRQ ─► server:69
//	client:C ◄─ DATA ─ edge:N   edge:F ◄─ DATA ─ server:S    S is whatever port answers first
//	client:C ─ ACK ──► edge:N   edge:F ─ ACK ──► server:S    nobody else is heard on N and F
//
// transfer.go is the inner half; this file and pair.go have the sockets.
package rfc1350

import (
	"context"
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
	// linger is how long a transfer is kept after its last ACK, which may get lost.
	linger = 5 * time.Second
	// refusals is how many requests a second are refused with an ERROR: their sources may be forged.
	refusals = 50
)

// Deps are what the relay needs from others.
type Deps struct {
	Networks pinhole.Networks
	// ListenPacket opens a UDP socket; port 0 is any.
	ListenPacket func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error)
	// RouteTo names the network by which an address is reached, "" if none.
	RouteTo func(netip.Addr) string
	// MaxSize is the longest file in octets; 0 = any.
	MaxSize int64
}

// Relay relays TFTP. All methods may be called concurrently.
type Relay struct {
	cfg   Config
	deps  Deps
	log   *zap.Logger
	count *counters

	mu        sync.Mutex // guards what follows
	pairs     map[pairKey]*pair
	active    int                // of pairs, those that are not over
	perSource map[netip.Addr]int // likewise
	maxSize   int64
	draining  bool
	told      int // ERRORs to requests in the second that began at since
	since     time.Time
}

// pairKey names a transfer: its client, and the listener that was asked, or somebody else whom the edge speaks for.
type pairKey struct{ listener, client netip.AddrPort }

// New checks the configuration and returns a relay without listeners.
func New(cfg Config, deps Deps, log *zap.Logger) (*Relay, error) {
	if err := cfg.Validate(deps.Networks); err != nil {
		return nil, err
	}
	return &Relay{cfg: cfg, deps: deps, log: log, count: newCounters(), pairs: map[pairKey]*pair{}, perSource: map[netip.Addr]int{}, maxSize: deps.MaxSize}, nil
}

// Collector returns the metrics.
func (r *Relay) Collector() prometheus.Collector { return collector{r} }

// Open returns how many transfers there are; those that are over and wait for a repetition do not count.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active
}

// Drain has new requests dropped; transfers go on.
func (r *Relay) Drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.draining = true
}

// SetMaxSize changes the longest file, in octets, for new transfers; 0 = any.
func (r *Relay) SetMaxSize(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.maxSize = n
}

func (r *Relay) longest() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.maxSize
}

// ServePacket takes the requests that come to pc, which is bound on the named network, until ctx ends and their
// transfers have ended.
func (r *Relay) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return gate.Packets(ctx, pc, maxRequest+1, func(from net.Addr, b []byte) {
		key := pairKey{pinhole.AddrPortOf(pc.LocalAddr()), pinhole.AddrPortOf(from)}
		if called := pinhole.CalledOf(from); called.IsValid() {
			key.listener = called
		}
		if f := r.ask(ctx, &work, network, key, b); f != nil {
			r.tell(pc, from, f)
		}
	})
}

// ask takes a request. It returns why it is refused, nil if it is not.
func (r *Relay) ask(ctx context.Context, work *sync.WaitGroup, network string, key pairKey, b []byte) *fault {
	req, err := parseRequest(b)
	if err != nil {
		return &fault{codeIllegal, "illegal request", "malformed"}
	}
	if p := r.known(key); p != nil {
		p.ask(b)
		return nil
	}
	to := r.server(network, key.listener)
	if !r.cfg.admits(key.client.Addr()) || !to.IsValid() {
		return &fault{codeAccess, "not allowed", "client"}
	}
	t := newTransfer(req, r.longest())
	f := r.cfg.refuses(req)
	if f == nil {
		f = t.refuse()
	}
	if f == nil {
		f = r.admit(key)
	}
	if f != nil {
		return f
	}
	p, err := r.pair(ctx, key, to, t)
	if err != nil {
		r.log.Warn("no socket for a tftp transfer", zap.Stringer("client", key.client), zap.Error(err))
		r.release(key, nil)
		return &fault{codeUndefined, "busy", "socket"}
	}
	r.start(ctx, work, key, p)
	p.ask(b)
	return nil
}

// known returns the transfer that a request is a repetition of. One that is over makes room for the next from
// the same port.
func (r *Relay) known(key pairKey) *pair {
	r.mu.Lock()
	p := r.pairs[key]
	r.mu.Unlock()
	if p == nil || !p.over() {
		return p
	}
	p.close("")
	r.release(key, p)
	return nil
}

// admit counts a transfer in, with nothing under its key yet.
func (r *Relay) admit(key pairKey) *fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.draining:
		return &fault{codeUndefined, "busy", "draining"}
	case r.active >= r.cfg.Transfers:
		return &fault{codeUndefined, "busy", "transfers"}
	case r.perSource[key.client.Addr()] >= r.cfg.PerSource:
		return &fault{codeUndefined, "busy", "per_source"}
	}
	r.pairs[key] = nil
	r.active++
	r.perSource[key.client.Addr()]++
	return nil
}

// retire counts a transfer out that is over. It tells whether there is room for it to wait for a repetition.
func (r *Relay) retire(p *pair) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retireLocked(p)
	return len(r.pairs)-r.active <= r.cfg.Transfers
}

func (r *Relay) retireLocked(p *pair) {
	if p.retired {
		return
	}
	p.retired = true
	r.leaveLocked(p.client.Addr())
}

func (r *Relay) leaveLocked(client netip.Addr) {
	r.active--
	if r.perSource[client]--; r.perSource[client] <= 0 {
		delete(r.perSource, client)
	}
}

// release forgets a transfer, if it is still the one under its key; nil is one that got no sockets.
func (r *Relay) release(key pairKey, p *pair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p == nil {
		r.leaveLocked(key.client.Addr())
	} else {
		r.retireLocked(p)
	}
	if at, ok := r.pairs[key]; ok && at == p {
		delete(r.pairs, key)
	}
}

// server returns where a request goes: to whom it was sent if the edge took it on its way from a trusted network, or to
// the server that is configured; not valid: nowhere.
func (r *Relay) server(network string, asked netip.AddrPort) netip.AddrPort {
	nets, a := r.deps.Networks, asked.Addr()
	if nets.Own(a) {
		return netip.AddrPort(r.cfg.Servers[network])
	}
	if !r.cfg.Transparent || !nets[network].Trusted || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return netip.AddrPort{}
	}
	return asked
}

// pair opens the sockets of a transfer: at the address that the client asked, and on the server's network, or at the
// client's own address.
func (r *Relay) pair(ctx context.Context, key pairKey, to netip.AddrPort, t *transfer) (*pair, error) {
	near, err := r.deps.ListenPacket(ctx, netip.AddrPortFrom(key.listener.Addr(), 0))
	if err != nil {
		return nil, err
	}
	own, _, err := r.deps.Networks.Local(r.deps.RouteTo(to.Addr()), pinhole.FamilyOf(to.Addr()))
	if err != nil { // the route leads by none of the networks
		own = netip.IPv4Unspecified()
		if !to.Addr().Is4() {
			own = netip.IPv6Unspecified()
		}
	}
	if r.cfg.KeepSource && !r.deps.Networks.Own(key.listener.Addr()) {
		own = key.client.Addr()
	}
	far, err := r.deps.ListenPacket(ctx, netip.AddrPortFrom(own, 0))
	if err != nil {
		near.Close()
		return nil, err
	}
	return &pair{relay: r, transfer: t, client: key.client, server: to, conns: [2]net.PacketConn{near, far}, began: time.Now()}, nil
}

// start moves the packets of a transfer until it has ended.
func (r *Relay) start(ctx context.Context, work *sync.WaitGroup, key pairKey, p *pair) {
	r.mu.Lock()
	r.pairs[key] = p
	r.mu.Unlock()
	p.timer = time.AfterFunc(r.cfg.Idle, func() { p.close("timeout") })
	stop := context.AfterFunc(ctx, func() { p.close("shutdown") })
	work.Go(func() {
		p.run()
		stop()
		r.release(key, p)
		p.report()
	})
}

// tell answers a request with an ERROR, but not too many of them.
func (r *Relay) tell(pc net.PacketConn, to net.Addr, f *fault) {
	r.count.drop(f.reason)
	r.mu.Lock()
	if now := time.Now(); now.Sub(r.since) >= time.Second {
		r.since, r.told = now, 0
	}
	r.told++
	quiet := r.told > refusals || r.draining
	r.mu.Unlock()
	if !quiet {
		_, _ = pc.WriteTo(errorPacket(f.code, f.message), to) // a datagram may get lost anyway
	}
}
