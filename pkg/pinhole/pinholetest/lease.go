package pinholetest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Declared is one call of Lease.Declare.
type Declared struct {
	Side   pinhole.Side
	Remote pinhole.Remote
	// Err is what the call returned.
	Err error
}

// Lease is a granted lease. Its methods may be called concurrently.
type Lease struct {
	// Request is what was asked; a fork has its parent's.
	Request pinhole.Request
	// Parent is the lease that this one was forked from, nil if none.
	Parent *Lease

	o      *Opener
	local  [2]pinhole.Local
	opened time.Time

	// guarded by o.mu
	remote   [2]pinhole.Remote
	declared []Declared
	stats    [2]pinhole.StreamStats
	idled    bool
	// accepted are the ends whose one connection has come.
	accepted [2]bool
	closed   bool
	summary  pinhole.Summary
}

// Local returns the address of the edge at side s.
func (l *Lease) Local(s pinhole.Side) pinhole.Local { return l.local[s] }

// Declare remembers r if the policy lets the peer name it.
func (l *Lease) Declare(s pinhole.Side, r pinhole.Remote) error {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	err := l.declareLocked(s, r)
	l.declared = append(l.declared, Declared{Side: s, Remote: r, Err: err})
	return err
}

func (l *Lease) declareLocked(s pinhole.Side, r pinhole.Remote) error {
	if l.closed {
		return pinhole.ErrClosed
	}
	p := pinhole.Policy{Networks: l.o.nets, Allow: l.o.allow, OwnPort: l.o.ownPortLocked}
	if _, err := p.Check(l.Request.Networks[s], r); err != nil {
		return fmt.Errorf("declare: %w", err)
	}
	l.remote[s] = r
	return nil
}

// Fork returns a lease with the same Far address and a Near one of its own.
func (l *Lease) Fork() (pinhole.Lease, error) {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	if l.closed {
		return nil, pinhole.ErrClosed
	}
	if err := l.o.refusedLocked(l.Request.Owner); err != nil {
		return nil, fmt.Errorf("fork: %w", err)
	}
	near, err := l.o.localLocked(l.Request, pinhole.Near)
	if err != nil {
		return nil, fmt.Errorf("fork: %w", err)
	}
	f := &Lease{o: l.o, Request: l.Request, Parent: l, opened: time.Now()}
	f.local = [2]pinhole.Local{near, l.local[pinhole.Far]}
	f.remote[pinhole.Near] = l.remote[pinhole.Near]
	l.o.addLocked(f)
	return f, nil
}

// Close ends the lease. A second call returns the same summary and counts nothing.
func (l *Lease) Close() pinhole.Summary {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.o.count--
		l.summary = pinhole.Summary{Opened: l.opened, Closed: time.Now(), From: l.stats}
	}
	return l.summary
}

// Remote returns what was last accepted by Declare at side s.
func (l *Lease) Remote(s pinhole.Side) pinhole.Remote {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	return l.remote[s]
}

// Declared returns every call of Declare, refused ones too.
func (l *Lease) Declared() []Declared {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	return slices.Clone(l.declared)
}

// Closed tells whether Close was called.
func (l *Lease) Closed() bool {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	return l.closed
}

// SetStats sets the counters that Close will return for what came from side s.
func (l *Lease) SetStats(s pinhole.Side, st pinhole.StreamStats) {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	l.stats[s] = st
}

// Connect does what the relay does when a connection comes at a side and its other half is had: it has
// the connection admitted, gives the port back if the lease is for one, and serves the pair until that ends.
// It closes both, and returns why the connection was refused, nil if it was not.
func (l *Lease) Connect(ctx context.Context, from pinhole.Side, conns [2]net.Conn) error {
	defer conns[0].Close()
	defer conns[1].Close()
	if admit := l.Request.Admit; admit != nil {
		c, err := admit(ctx, from, conns[from])
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		conns[from] = c
	}
	if !l.accept(from) {
		return fmt.Errorf("connect: %w", pinhole.ErrClosed)
	}
	if l.Request.Serve != nil {
		l.Request.Serve(ctx, conns, l.moved)
	}
	return nil
}

// accept tells whether a connection may be taken at a side, which it is.
func (l *Lease) accept(s pinhole.Side) bool {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	if l.closed || l.accepted[s] || l.local[s].Addr.Port() == 0 {
		return false
	}
	l.accepted[s] = l.Request.Once
	return true
}

func (l *Lease) moved(from pinhole.Side, n int) {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	l.stats[from].Bytes += uint64(n)
}

// Idle does what the relay does when no packet came for too long: it calls OnIdle, once until Busy, or
// closes the lease if there is none. It does nothing with a closed lease.
func (l *Lease) Idle() {
	switch {
	case !l.changeIdle(true):
	case l.Request.OnIdle != nil:
		l.Request.OnIdle(true)
	default:
		l.Close()
	}
}

// Busy does what the relay does when packets come again.
func (l *Lease) Busy() {
	if l.changeIdle(false) && l.Request.OnIdle != nil {
		l.Request.OnIdle(false)
	}
}

func (l *Lease) changeIdle(idle bool) (changed bool) {
	l.o.mu.Lock()
	defer l.o.mu.Unlock()
	changed = l.idled != idle && !l.closed
	l.idled = idle
	return changed
}
