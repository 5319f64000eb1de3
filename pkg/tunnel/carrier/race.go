package carrier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// runner is one attempt of a race, as it has ended.
type runner struct {
	way way
	c   *Carrier
	p   probed
	err error
}

// retryEvery is how often a race tries its first way again, after that has failed and while others still run: a relay that
// restarts refuses connections for a moment, and what is dropped elsewhere takes long to fail.
const retryEvery = time.Second

// race tries the ways in order, each a step later than the one before, or at once when one has failed. The first that
// gets through and is not slow wins. If none is left, the fastest of the slow does.
func (d *Dialer) race(ctx context.Context, ways []way) (*Carrier, way, error) {
	racing, stop := context.WithCancel(ctx)
	done := make(chan runner)
	best, faults := runner{}, map[way]error{}
	step, again := time.NewTimer(0), time.NewTicker(retryEvery)
	defer step.Stop()
	defer again.Stop()
	next, running, first := 0, 0, false // first: the first way is running
	start := func(i int) {
		go d.run(racing, ways[i], done)
		running++
		first = first || i == 0
	}
	for running > 0 || next < len(ways) {
		select {
		case <-again.C:
			if next == len(ways) && !first {
				start(0)
			}
		case <-step.C:
			if next < len(ways) {
				start(next)
				next++
				step.Reset(d.step())
			}
		case r := <-done:
			running--
			first = first && r.way != ways[0]
			if r.err == nil && !r.p.slow {
				d.settle(r, best, running, stop, done)
				return r.c, r.way, nil
			}
			faults[r.way] = d.lost(r)
			best = faster(best, r)
			step.Reset(0)
		}
	}
	if best.c != nil {
		d.settle(best, runner{}, 0, stop, done)
		return best.c, best.way, nil
	}
	stop()
	if ctx.Err() != nil {
		return nil, way{}, context.Cause(ctx)
	}
	var list []error
	for _, w := range ways {
		list = append(list, faults[w])
	}
	return nil, way{}, errors.Join(list...)
}

func (d *Dialer) step() time.Duration {
	if d.Step == 0 {
		return 250 * time.Millisecond
	}
	return d.Step
}

func (d *Dialer) run(ctx context.Context, w way, done chan<- runner) {
	c, p, err := d.try(ctx, w)
	done <- runner{w, c, p, err}
}

// lost notes why an attempt did not win, and returns that.
func (d *Dialer) lost(r runner) error {
	err := r.err
	if err == nil {
		err = fmt.Errorf("slow: %v for an echo, %v for 64 KiB", r.p.echo, r.p.cross)
		d.report(r.way, "slow", r.p)
	} else {
		d.report(r.way, "failed", r.p)
	}
	d.log().Debug("rung does not get through", zap.Stringer("rung", r.way.rung), zap.Stringer("path", r.way.proxy), zap.Error(err))
	return fmt.Errorf("%v: %w", r.way, err)
}

// faster returns the faster of two slow ones and closes the other.
func faster(a, b runner) runner {
	if b.c == nil {
		return a
	}
	if a.c == nil {
		return b
	}
	if b.p.cross < a.p.cross {
		a, b = b, a
	}
	b.c.Close()
	return a
}

// settle ends the race: everybody else stops, and who arrives too late is closed.
func (d *Dialer) settle(won, slow runner, running int, stop context.CancelFunc, done <-chan runner) {
	d.report(won.way, "won", won.p)
	d.log().Info("tunnel carrier", zap.Stringer("rung", won.way.rung), zap.Stringer("path", won.way.proxy), zap.Duration("echo", won.p.echo))
	stop()
	if slow.c != nil {
		slow.c.Close()
	}
	if running > 0 {
		go d.sweep(running, done)
	}
}

// sweep waits for those that still run; the race's end has cancelled them.
func (d *Dialer) sweep(running int, done <-chan runner) {
	for range running {
		if r := <-done; r.c != nil {
			r.c.Close()
			d.report(r.way, "lost", r.p)
		}
	}
}
