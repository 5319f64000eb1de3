package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// stepTime is the length of one step of the search.
	stepTime = 3 * time.Second
	// steadyRate and steadyTime are the load under which CPU and delay are measured.
	steadyRate = 100
	steadyTime = 6 * time.Second
	// The search multiplies the rate by coarse (in the first round, from firstRate) or by fine (in the
	// others, from near the last result) as long as nothing fails, and ends at precision.
	coarse    = 2.0
	fine      = 1.25
	precision = 1.1
	firstRate = 200
	lastRate  = 20000
	// holdRate is the rate at which calls are set up to be held.
	holdRate = 150
	// holdTime is longer than the measurement of held calls can take.
	holdTime = 10 * time.Minute
)

// round is what one round measured of one contender.
type round struct {
	// capacity is the highest rate, in calls/s, at which no call failed.
	capacity float64
	// cpu is the CPU time of one call.
	cpu time.Duration
	// invite and answer are the delays of the two messages with SDP, sorted.
	invite, answer []time.Duration
}

// measure runs one round on one contender.
// The search begins at guess, which is 0 if nothing is known.
func (r *rig) measure(ctx context.Context, c contender, guess float64) (round, error) {
	var m round
	e, err := r.launch(ctx, c)
	if err != nil {
		return m, err
	}
	defer e.stop()
	for try := 1; ; try++ {
		m = round{}
		if err = r.steady(ctx, e, &m); err == nil {
			break
		}
		note("  %s: %v", c.name, err)
		if try == 3 || ctx.Err() != nil {
			return m, fmt.Errorf("%s: %w", c.name, err)
		}
		if err := e.again(ctx, r); err != nil { // other work on the machine may have spoilt it
			return m, err
		}
	}
	m.capacity, err = r.capacity(ctx, e, guess)
	if err != nil {
		return m, fmt.Errorf("%s: %w", c.name, err)
	}
	return m, nil
}

// steady measures CPU and delay under a load that both contenders bear easily.
func (r *rig) steady(ctx context.Context, e *edge, m *round) error {
	p, err := newProbe(r)
	if err != nil {
		return err
	}
	defer p.close()
	before, err := e.usage()
	if err != nil {
		return err
	}
	n := steadyRate * int(steadyTime/time.Second)
	done := make(chan struct{})
	var o outcome
	go func() {
		defer close(done)
		o, err = r.burst(ctx, steadyRate, n, 3*steadyTime)
	}()
	probes, failures := r.sample(p, m, done)
	if err != nil {
		return err
	}
	after, err := e.usage()
	if err != nil {
		return err
	}
	if o.failed > 0 || o.ok != n || failures > probes/50 {
		return fmt.Errorf("steady load: %+v of %d calls, %d of %d probes failed", o, n, failures, probes)
	}
	m.cpu = (after.cpu - before.cpu) / time.Duration(n+probes)
	return nil
}

// sample makes probe calls until done, and notes their delays.
func (r *rig) sample(p *probe, m *round, done <-chan struct{}) (calls, failures int) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			slices.Sort(m.invite)
			slices.Sort(m.answer)
			return calls, failures
		case <-tick.C:
		}
		calls++
		d, err := p.call(time.Second)
		if err != nil {
			failures++
			continue
		}
		m.invite, m.answer = append(m.invite, d.invite), append(m.answer, d.answer)
	}
}

// capacity searches the highest rate at which no call fails: up by a factor until a rate fails, then
// by halves between the last two.
func (r *rig) capacity(ctx context.Context, e *edge, guess float64) (float64, error) {
	good, bad := 0.0, math.Inf(1)
	rate, growth := guess, fine
	if guess == 0 {
		rate, growth = firstRate, coarse
	}
	for bad/max(good, 1) > precision && rate <= lastRate && rate >= 10 {
		ok, err := r.bears(ctx, e, int(rate))
		if err != nil {
			return 0, err
		}
		if ok {
			good = rate
		} else {
			bad = rate
		}
		switch {
		case good == 0:
			rate = bad / growth
		case math.IsInf(bad, 1):
			rate = good * growth
		default:
			rate = math.Sqrt(good * bad)
		}
	}
	return good, nil
}

// bears tells whether a rate passes. Other work on the machine can spoil a step, so a step that
// fails by a little is tried once more.
func (r *rig) bears(ctx context.Context, e *edge, rate int) (bool, error) {
	n := rate * int(stepTime/time.Second)
	for range 2 {
		o, err := r.burst(ctx, rate, n, stepTime+2*time.Second)
		if err != nil {
			return false, err
		}
		if _, err := e.usage(); err != nil {
			return false, err
		}
		good := o.good(n)
		note("  %-22s %5d calls/s: %d ok, %d failed, %d retransmissions in %.1f s%s", e.name, rate, o.ok, o.failed,
			o.retransmitted, o.elapsed.Seconds(), map[bool]string{false: "  (too much) " + o.why}[good])
		if good {
			return true, nil
		}
		if err := e.again(ctx, r); err != nil {
			return false, err
		}
		if o.failed*20 > n {
			return false, nil // far too much
		}
	}
	return false, nil
}

// good says that all calls passed, in time, and without help from more than one retransmission in
// a thousand calls: a queue that only just holds out is not a rate that an edge bears.
func (o outcome) good(n int) bool {
	return o.failed == 0 && o.ok == n && o.retransmitted*1000 <= n && o.elapsed <= stepTime+ring+talk+stepTime/8
}

// held is what open calls cost.
type held struct {
	calls int
	// perCall is the growth of the proportional set size, in bytes, and of open files per call.
	perCall, files float64
	// total is the whole proportional set size with all calls open, in bytes.
	total int64
}

// hold opens n calls, keeps them and reads the memory of a contender.
func (r *rig) hold(ctx context.Context, c contender, n int) (held, error) {
	e, err := r.launch(ctx, c)
	if err != nil {
		return held{}, err
	}
	defer e.stop()
	before, err := e.usage()
	if err != nil {
		return held{}, err
	}
	g, _, err := r.calls(ctx, holdRate, n, holdTime, holdTime)
	if err != nil {
		return held{}, err
	}
	defer g.stop()
	pause(ctx, time.Duration(n)*time.Second/holdRate+3*time.Second)
	after, err := e.usage()
	if err != nil {
		return held{}, err
	}
	if err := g.exited(); err != nil {
		return held{}, err
	}
	open := (after.files - before.files) / filesPerCall
	if open < n*99/100 {
		return held{}, fmt.Errorf("%s: %d descriptors more, too few for %d calls", c.name, after.files-before.files, n)
	}
	return held{calls: n, perCall: float64(after.memory-before.memory) / float64(n),
		files: float64(after.files-before.files) / float64(n), total: after.memory}, nil
}
