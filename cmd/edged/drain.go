package main

import (
	"context"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// tellDrainEvery is how often a drain says how many calls are left, if their number has changed.
const tellDrainEvery = time.Second

// drainAll takes no new calls and waits until the calls are gone, the time is over, or a second signal comes.
func drainAll(ctx context.Context, o runOptions, ph *phase, services []*service) {
	ph.drain(time.Now().Add(o.drain))
	notifyDraining(o.log, o.drain)
	for _, s := range services {
		if s.drain != nil {
			s.drain()
		}
	}
	limit := time.NewTimer(o.drain)
	defer limit.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	told := drainTold{left: -1}
	for busy(services) > 0 {
		told.tell(o, busy(services))
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		case <-limit.C:
			o.log.Warn("drain ended with calls left", zap.Int("calls", busy(services)))
			return
		case sig := <-o.signals:
			if sig != syscall.SIGHUP {
				o.log.Warn("drain cut short", zap.Int("calls", busy(services)))
				return
			}
		}
	}
	o.log.Info("drained")
}

// drainTold is what the log and systemd have last been told of a drain.
type drainTold struct {
	left int
	at   time.Time
}

// tell says how many calls are left, if that is news.
func (d *drainTold) tell(o runOptions, left int) {
	now := time.Now()
	if left == d.left || now.Sub(d.at) < tellDrainEvery {
		return
	}
	if d.left >= 0 { // what there was at first has been logged
		o.log.Info("draining goes on", zap.Int("calls", left))
	}
	d.left, d.at = left, now
	notifyDrainLeft(o.log, left)
}

// phase says why the daemon is not ready. The zero value is "starting".
type phase struct {
	mu      sync.Mutex
	started bool
	why     string
	until   time.Time // while it drains
}

// set changes the reason; "" means ready.
func (p *phase) set(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started, p.why = true, why
}

func (p *phase) notReady() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.started {
		return "starting"
	}
	return p.why
}

// drain says that calls have until then to end.
func (p *phase) drain(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.started, p.why, p.until = true, "draining", until
}

// draining returns until when calls have to end; ok is false while new ones are taken.
func (p *phase) draining() (until time.Time, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.until, !p.until.IsZero()
}
