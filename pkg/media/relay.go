package media

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
)

// sweepInterval is how often idle leases are looked for.
const sweepInterval = time.Second

// Relay grants pinholes. Its methods may be called concurrently.
type Relay struct {
	pin  PinholeConfig
	cfg  Config
	nets pinhole.Networks
	path Path
	log  *zap.Logger
	// epoch is the zero of the times in counters.
	epoch time.Time
	// work waits for the goroutines of TCP pinholes.
	work sync.WaitGroup

	joiner Joiner
	// watch is told of ports, see WatchPorts; it may be nil.
	watch func(tcp bool, port netip.AddrPort, open bool)
	// identity is the certificate of DTLS-SRTP.
	identity tls.Certificate

	mu     sync.Mutex
	closed bool
	nextID uint64
	leases map[*lease]struct{}
	ports  map[*clientPort]struct{}
	fronts map[*front]struct{}
	owners map[string]int
	pools  map[poolKey]*pool
	totals totals
	// shared are the ports at which leases meet, see shared.go.
	shared map[netip.AddrPort]*sharedPorts
	// taps are those who want to see packets, see tap.go.
	taps []*tap
}

// poolKey names a pool: the relay's own ports at an address, or those that requests ask for.
type poolKey struct {
	addr netip.Addr
	tcp  bool
	// asked is the range of a request, zero for the configured one.
	asked PortRange
}

var _ pinhole.Opener = (*Relay)(nil)

// New checks both sections and returns a relay that moves UDP packets with path. Serve must run for
// packets to move and for timers.
func New(pin PinholeConfig, cfg Config, nets pinhole.Networks, path Path, log *zap.Logger) (*Relay, error) {
	errs := []error{pin.Validate(), cfg.Validate()}
	for name := range pin.AllowTargets {
		if _, ok := nets[name]; !ok {
			errs = append(errs, Fault{"pinholes.allow_targets." + name, "no such network"})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	identity, err := newIdentity()
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return &Relay{
		identity: identity,
		pin:      pin, cfg: cfg, nets: nets, path: path, log: log, epoch: time.Now(),
		leases: make(map[*lease]struct{}),
		ports:  make(map[*clientPort]struct{}),
		fronts: make(map[*front]struct{}),
		owners: make(map[string]int),
		pools:  make(map[poolKey]*pool),
		totals: newTotals(),
		shared: make(map[netip.AddrPort]*sharedPorts),
		joiner: splice.Copier{},
	}, nil
}

// Serve moves packets and runs the timers until ctx ends; then it closes every lease, waits for its
// goroutines and returns nil. It returns an error if the path fails.
func (r *Relay) Serve(ctx context.Context) error {
	pathCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	failed := make(chan error, 1) // holds the one result of the path
	go r.servePath(pathCtx, failed)
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if c, ok := r.path.(carrier); ok {
				c.Refresh()
			}
			r.sweep(time.Now())
		case err := <-failed:
			r.closeAll()
			if err == nil {
				err = errors.New("ended by itself")
			}
			return fmt.Errorf("path: %w", err)
		case <-ctx.Done():
			r.closeAll()
			stop()
			return <-failed
		}
	}
}

func (r *Relay) servePath(ctx context.Context, failed chan<- error) { failed <- r.path.Serve(ctx) }

func (r *Relay) closeAll() {
	r.mu.Lock()
	r.closed = true
	for l := range r.leases {
		l.closeLocked()
	}
	for p := range r.ports {
		// Its owner gets to know it by reading.
		_ = p.closeLocked()
	}
	for f := range r.fronts {
		_ = f.closeLocked()
	}
	r.closeSharedLocked()
	r.mu.Unlock()
	r.work.Wait()
}

// Open binds the ports of a lease.
func (r *Relay) Open(ctx context.Context, req pinhole.Request) (pinhole.Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.openLocked(req, nil)
	if err != nil {
		r.totals.refuse(err)
		return nil, fmt.Errorf("open: %w", err)
	}
	return l, nil
}

// openLocked opens a lease, or a fork that shares the Far end of parent.
func (r *Relay) openLocked(req pinhole.Request, parent *lease) (*lease, error) {
	if err := r.mayOpenLocked(req.Owner); err != nil {
		return nil, err
	}
	for s := range req.Networks {
		if _, _, err := r.nets.Local(req.Networks[s], req.Families[s]); err != nil {
			return nil, err
		}
	}
	r.nextID++
	l := r.newLease(req, r.nextID)
	l.tap.Store(r.tapOfLocked(req.Label))
	var err error
	if l.ends[pinhole.Near], err = r.openEndLocked(req, pinhole.Near, l.id); err != nil {
		return nil, err
	}
	if parent != nil {
		l.ends[pinhole.Far] = parent.ends[pinhole.Far]
		l.remote[pinhole.Near], l.reachable[pinhole.Near] = parent.remote[pinhole.Near], parent.reachable[pinhole.Near]
	} else if l.ends[pinhole.Far], err = r.openEndLocked(req, pinhole.Far, l.id); err != nil {
		r.releaseEndLocked(l.ends[pinhole.Near])
		return nil, err
	}
	r.leases[l] = struct{}{}
	r.owners[req.Owner]++
	l.joinLocked()
	if err := l.publishLocked(); err != nil {
		l.closeLocked()
		return nil, resourceError(err)
	}
	return l, nil
}

// poolLocked returns the ports at a bound address, those of the range asked if it is not zero.
func (r *Relay) poolLocked(addr netip.Addr, tcp bool, asked PortRange) *pool {
	if asked == r.pin.TCP {
		asked = PortRange{}
	}
	k := poolKey{addr, tcp, asked}
	p := r.pools[k]
	if p == nil {
		ports := r.pin.UDP
		switch {
		case asked != PortRange{}:
			ports = asked
		case tcp:
			ports = r.pin.TCP
		}
		p = newPool(addr, ports)
		p.watch = func(port, count uint16, open bool) { r.watchPorts(tcp, netip.AddrPortFrom(addr, port), count, open) }
		if o, ok := r.path.(occupier); ok && !tcp {
			p.occupied = func(port uint16) bool { return o.Occupied(netip.AddrPortFrom(addr, port)) }
		}
		r.pools[k] = p
	}
	return p
}

// ownPortLocked tells whether a is a port of a lease, by its bound or its advertised address.
func (r *Relay) ownPortLocked(a netip.AddrPort) bool {
	for _, nw := range r.nets {
		for _, bound := range nw.Addresses {
			if bound != a.Addr() && nw.Public(bound) != a.Addr() {
				continue
			}
			for k, p := range r.pools {
				if k.addr == bound && p.holds(a.Port()) {
					return true
				}
			}
		}
	}
	return false
}

// sweep closes or reports the leases that are idle at now.
func (r *Relay) sweep(now time.Time) {
	var idle []func()
	r.mu.Lock()
	for l := range r.leases {
		if l.tcp != nil {
			l.tcp.sweepLocked(now)
		}
		l.expireLocked(now)
		far := l.ends[pinhole.Far]
		is := far.idleLocked(now)
		if far.idled == is {
			continue
		}
		far.idled = is
		if l.req.OnIdle != nil {
			idle = append(idle, func() { l.req.OnIdle(is) })
		}
		if !is {
			continue
		}
		r.log.Info("pinhole idle", zap.String("owner", l.req.Owner), zap.String("label", l.req.Label))
		if l.req.OnIdle != nil {
			continue
		}
		for _, m := range far.membersLocked() {
			m.closeLocked()
		}
	}
	r.mu.Unlock()
	for _, f := range idle {
		f()
	}
}
