// Package pinholetest is an [pinhole.Opener] in memory for the tests of the ALGs. It
// opens no socket and moves no packet: it hands out addresses, and remembers what was
// asked, declared and closed.
//
//	o := pinholetest.New(nets, 50000)
//	... run the ALG over o ...
//	o.Leases()[0].Remote(pinhole.Far)   what the answer said
//	o.Count()                           0, or something leaked
//
// Ports are the same in every run: each local address counts up by two from the base, and of a
// range that a request names the lowest free one is taken, so golden files can hold them. Addresses
// are refused by the policy of the relay. Lease.Connect plays the connections of a TCP lease.
package pinholetest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Opener grants leases in memory. Its methods may be called concurrently.
type Opener struct {
	nets pinhole.Networks
	base uint16

	mu     sync.Mutex
	next   map[netip.Addr]uint16
	leases []*Lease
	count  int
	tags   uint32 // of leases at shared ports
	fail   error
	limit  int
	allow  map[string][]netip.Prefix
}

var (
	_ pinhole.Opener = (*Opener)(nil)
	_ pinhole.Lease  = (*Lease)(nil)
)

// New returns an Opener whose first port at each local address is base, made even.
func New(nets pinhole.Networks, base uint16) *Opener {
	return &Opener{nets: nets, base: base &^ 1, next: make(map[netip.Addr]uint16)}
}

// Fail makes every later Open and Fork return err wrapped (e.g. pinhole.ErrExhausted); nil ends that.
func (o *Opener) Fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail = err
}

// Limit sets how many leases an owner may have open at once; more get pinhole.ErrLimit. 0 means any number.
func (o *Opener) Limit(perOwner int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limit = perOwner
}

// Allow adds hosts that anybody at the network may name, as allow_targets of the relay does.
func (o *Opener) Allow(network string, hosts ...netip.Prefix) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.allow == nil {
		o.allow = make(map[string][]netip.Prefix)
	}
	o.allow[network] = append(o.allow[network], hosts...)
}

// Leases returns all leases ever granted, forks too, in the order of their opening.
func (o *Opener) Leases() []*Lease {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.leases)
}

// Count returns the number of leases that are open now.
func (o *Opener) Count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

// Open grants a lease, or returns an error as the relay would.
func (o *Opener) Open(ctx context.Context, r pinhole.Request) (pinhole.Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.refusedLocked(r.Owner); err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	l := &Lease{o: o, Request: r, opened: time.Now()}
	for _, s := range []pinhole.Side{pinhole.Near, pinhole.Far} {
		local, err := o.localLocked(r, s)
		if err != nil {
			return nil, fmt.Errorf("open: %w", err)
		}
		l.local[s] = local
	}
	o.addLocked(l)
	return l, nil
}

func (o *Opener) addLocked(l *Lease) {
	o.leases = append(o.leases, l)
	o.count++
}

func (o *Opener) refusedLocked(owner string) error {
	if o.fail != nil {
		return o.fail
	}
	n := 0
	for _, l := range o.leases {
		if !l.closed && l.Request.Owner == owner {
			n++
		}
	}
	if o.limit > 0 && n >= o.limit {
		return fmt.Errorf("owner %q has %d: %w", owner, n, pinhole.ErrLimit)
	}
	return nil
}

// localLocked takes the next even port of the bound address, or one of those asked for.
func (o *Opener) localLocked(r pinhole.Request, s pinhole.Side) (pinhole.Local, error) {
	bind, public, err := o.nets.Local(r.Networks[s], r.Families[s])
	if err != nil {
		return pinhole.Local{}, err
	}
	if port := r.Shared[s]; port != 0 {
		o.tags++
		return pinhole.Local{Addr: netip.AddrPortFrom(public, port), RTCP: netip.AddrPortFrom(public, port+1), Tag: o.tags}, nil
	}
	if r.Kind == pinhole.TCP {
		if r.Listen[s.Other()] && !r.Listen[s] {
			return pinhole.Local{Addr: netip.AddrPortFrom(public, 0)}, nil
		}
		if r.Ports != [2]uint16{} {
			return o.askedLocked(r, s, bind)
		}
	}
	port, ok := o.next[bind]
	if !ok {
		port = o.base
	}
	if port < o.base {
		return pinhole.Local{}, pinhole.ErrExhausted
	}
	o.next[bind] = port + 2
	l := pinhole.Local{Addr: netip.AddrPortFrom(public, port)}
	if r.Kind == pinhole.RTP {
		l.RTCP = netip.AddrPortFrom(public, port+1)
	}
	return l, nil
}

// askedLocked takes the lowest free port of the range that the request names, at each address of the network
// in turn where each is known by its own.
func (o *Opener) askedLocked(r pinhole.Request, s pinhole.Side, first netip.Addr) (pinhole.Local, error) {
	nw := o.nets[r.Networks[s]]
	for _, a := range nw.Addresses {
		public := nw.Public(a)
		if pinhole.FamilyOf(a) != pinhole.FamilyOf(first) || public != a && a != first {
			continue
		}
		for port := uint32(r.Ports[0]); port > 0 && port <= uint32(r.Ports[1]); port++ {
			if l := netip.AddrPortFrom(public, uint16(port)); !o.ownPortLocked(l) {
				return pinhole.Local{Addr: l}, nil
			}
		}
	}
	return pinhole.Local{}, pinhole.ErrExhausted
}

func (o *Opener) ownPortLocked(a netip.AddrPort) bool {
	return slices.ContainsFunc(o.leases, func(l *Lease) bool {
		for s, p := range l.local {
			if !l.closed && !l.accepted[s] && (p.Addr == a || p.RTCP == a) {
				return true
			}
		}
		return false
	})
}
