package main

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"edged.dev/edged/bench/veth"
)

const (
	// The search begins at firstRate packets/s and climbs by the factor climb. It is slow because an overload
	// can do lasting harm: rtpengine gives a flooded socket up.
	firstRate, climb = 25e3, 1.6
	maxSteps         = 11
	// A rate is carried if no more than lossLimit is lost, and 99 % are not later than lateLimit.
	lossLimit, lateLimit = 0.01, 20 * time.Millisecond
	// ruin is the loss after which a relay is started afresh.
	ruin = 0.3
	// steadyRate is that at which delays are compared, packets/s; in so many parts.
	steadyRate  = 50e3
	steadyParts = 5
	// tries is how often a trial is made that something else disturbed.
	tries = 4
	// patience is how long streams may take to be where they belong.
	patience = 20 * time.Second
)

// result is one measurement of one mode.
type result struct {
	// rate is in packets/s, cost in ns of CPU per packet; allocs is per packet, -1 if not known.
	rate, cost, allocs float64
	// p50 and p99 are delays in µs at steadyRate, steady the cost there; 0 if not measured.
	p50, p99, steady float64
}

// caseKey is what is sent.
type caseKey struct {
	streams, size, burst int
	// kind is kindRTP, or who sends by TURN.
	kind string
}

// The kinds of cases.
const (
	kindRTP    = "rtp"
	kindClient = "client" // to peers
	kindPeer   = "peer"   // to clients
)

func (k caseKey) String() string {
	s := fmt.Sprintf("%d streams of %d bytes", k.streams, k.size)
	if k.streams == 1 {
		s = fmt.Sprintf("1 stream of %d bytes", k.size)
	}
	if k.kind != kindRTP {
		s += " from the " + k.kind
	}
	if k.burst > 1 {
		s += fmt.Sprintf(", bursts of %d", k.burst)
	}
	return s
}

// bout is a mode that carries a case.
type bout struct {
	*rig
	mode
	caseKey
	gateway *gateway
	best    trial
}

// measure returns what a mode makes of a case; with steady also of steadyRate for that time.
func (r *rig) measure(m mode, k caseKey, length, steady time.Duration) (result, error) {
	b := &bout{rig: r, mode: m, caseKey: k}
	if err := b.begin(); err != nil {
		return result{}, err
	}
	defer b.end()
	var res result
	if m.process() {
		if err := b.prove(); err != nil {
			return res, err
		}
	}
	if steady > 0 && m.name != modeDrop {
		if err := b.steady(&res, steady); err != nil {
			return res, err
		}
	}
	if err := b.findBest(length); err != nil {
		return res, err
	}
	res.rate, res.cost, res.allocs = b.best.rate(), b.best.cost(), -1
	if b.gateway.mallocs != nil && b.best.arrived > 0 {
		res.allocs = float64(b.best.mallocs) / float64(b.best.arrived)
	}
	return res, nil
}

// steady measures delays. They are medians of several short trials: what else the machine does comes in bursts, and one
// would spoil the 99th percentile of all.
func (b *bout) steady(res *result, length time.Duration) error {
	var p50, p99, costs []float64
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	for range steadyParts {
		t, err := b.try(steadyRate, length/steadyParts)
		if err != nil {
			return err
		}
		p50, p99, costs = append(p50, us(t.percentile(50))), append(p99, us(t.percentile(99))), append(costs, t.cost())
	}
	res.p50, res.p99, res.steady = middle(p50), middle(p99), middle(costs)
	return nil
}

// process tells whether a process sends the packets, and so leaves their checksums to the network card.
func (m mode) process() bool { return !m.flood }

// begin opens the way, and lets each stream be heard once, so that no trial pays for what is done once.
func (b *bout) begin() error {
	var err error
	if b.gateway, err = b.start(b.rig, b.caseKey); err != nil {
		return err
	}
	g := b.gateway
	t := traffic{
		srcMAC: b.genMAC, dstMAC: b.inMAC, src: netip.MustParseAddr(genAddr), dst: g.addr, to: g.ports,
		size: b.size, burst: b.burst,
	}
	skip := uint32(0)
	switch b.kind {
	case kindClient:
		t.channel = channelHeader(b.size)
	case kindPeer:
		skip = channelLen
	}
	err = errors.Join(b.aim(t), b.objs.Skip.Set(skip))
	for late := time.Now().Add(patience); err == nil; {
		if !b.turn { // whose streams need not be heard first
			if err = b.greet(b.gen, genAddr, g.addr.String(), g.ports); err != nil {
				break
			}
			if err = b.greet(b.sink, sinkAddr, gwOutAddr, g.far); err != nil {
				break
			}
		}
		time.Sleep(settle)
		if g.ready == nil {
			return nil
		}
		var is bool
		var why string
		if is, why, err = b.settled(); is {
			return nil
		}
		if err == nil && time.Now().After(late) {
			err = fmt.Errorf("%w: %s", errUnavailable, why)
		}
	}
	b.end()
	return err
}

// settled waits a while for the streams to be where they belong.
func (b *bout) settled() (is bool, why string, err error) {
	for range 20 {
		if is, why, err = b.gateway.ready(); is || err != nil {
			return is, why, err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false, why, nil
}

func (b *bout) end() {
	if b.gateway != nil {
		b.gateway.stop()
	}
	b.gateway = nil
}

// prove has the gateway complete the checksums of what programs send, which is otherwise the network card's
// work, and has them verified.
func (b *bout) prove() error {
	offload := func(on string) error {
		_, err := veth.Run("ip", "netns", "exec", b.gw, "ethtool", "-K", b.outDev, "tx", on)
		return err
	}
	if err := offload("off"); err != nil {
		return err
	}
	t, err := b.try(10e3, 200*time.Millisecond)
	if err == nil && t.verified == 0 {
		err = fmt.Errorf("no checksum could be verified: %d of %d packets arrived", t.arrived, t.sent)
	}
	return errors.Join(err, offload("on"))
}

// findBest finds what the mode can do at most.
func (b *bout) findBest(length time.Duration) (err error) {
	if b.flood {
		return b.flooded(length)
	}
	rate, step := firstRate, climb
	for steps := 0; steps < maxSteps && step > 1.06; steps++ {
		good, err := b.carries(rate, length)
		switch {
		case err != nil:
			return err
		case good:
			rate *= step
		case b.best.sent == 0:
			rate /= 2
		default:
			rate, step = rate/math.Sqrt(step), math.Sqrt(step)
		}
	}
	if b.best.sent == 0 {
		return errors.New("no rate without loss was found")
	}
	return nil
}

// flooded sends as fast as possible. Of trials that were disturbed the one with most work counts. The floor is never
// at its limit.
func (b *bout) flooded(length time.Duration) error {
	for range tries {
		t, err := b.try(0, length)
		if err != nil {
			return err
		}
		if t.cpu > b.best.cpu {
			b.best = t
		}
		if t.loss() < 0.05 || !t.disturbed() || b.name == modeDrop {
			break
		}
	}
	if b.best.arrived == 0 {
		return errors.New("nothing arrived")
	}
	return b.carriedByKernel()
}

// carriedByKernel finds out the packets of edged's kernel paths that came from a socket all the same. A right checksum may
// look unfinished, but one in 65,536 only.
func (b *bout) carriedByKernel() error {
	if t := b.best; b.ours && t.unfinished > 2+t.verified/100 {
		return fmt.Errorf("%d of %d packets were sent by a socket, not by the kernel", t.unfinished, t.unfinished+t.verified)
	}
	return nil
}

// carries tells whether the rate is carried. A trial that fails is made a second time, and more often if it was disturbed,
// for the machine may have been busy with something else, or the generator with it.
func (b *bout) carries(rate float64, length time.Duration) (bool, error) {
	for n := range tries {
		t, err := b.try(rate, length)
		if err != nil {
			return false, err
		}
		if t.loss() <= lossLimit && t.percentile(99) <= lateLimit {
			if t.rate() > b.best.rate() {
				b.best = t
			}
			if t.asked() > 0.97*rate {
				return true, nil
			}
		}
		if t.loss() >= ruin {
			b.end()
			if err := b.begin(); err != nil {
				return false, err
			}
		}
		if n > 0 && !t.disturbed() {
			break
		}
	}
	return false, nil
}

// try sends at a rate for a time and counts what arrives.
func (b *bout) try(rate float64, length time.Duration) (t trial, err error) {
	at, g := b.objs.Sunk, b.gateway
	if b.name == modeDrop {
		at = b.objs.Discarded
	}
	before, delaysBefore, err := b.received(at)
	if err != nil {
		return t, err
	}
	mallocs, err := g.allocations()
	if err != nil {
		return t, err
	}
	cpu, err := b.cpu(g.pid)
	if err != nil {
		return t, err
	}
	if t, err = b.send(rate, length); err != nil {
		return t, err
	}
	time.Sleep(settle)
	cpuAfter, err := b.cpu(g.pid)
	if err != nil {
		return t, err
	}
	mallocsAfter, err := g.allocations()
	if err != nil {
		return t, err
	}
	after, delays, err := b.received(at)
	if err != nil {
		return t, err
	}
	for i := range delays {
		delays[i] -= delaysBefore[i]
	}
	t.arrived, t.cpu, t.mallocs, t.delays = after.Packets-before.Packets, cpuAfter-cpu, mallocsAfter-mallocs, delays
	t.verified, t.bad, t.unfinished = after.Verified-before.Verified, after.Bad-before.Bad, after.Unfinished-before.Unfinished
	b.verified += t.verified
	b.bad += t.bad
	if b.verbose {
		fmt.Printf("  %-9s asked %8.0f sent %8.0f arrived %8.0f packets/s, %5.2f %% lost, busy %3.0f %%, %5.0f ns/packet, p50 %v p99 %v, %d verified, %d bad, %d unfinished\n",
			b.name, rate, t.asked(), t.rate(), 100*t.loss(), 100*t.cpu.Seconds()/t.took.Seconds(), t.cost(), t.percentile(50), t.percentile(99), t.verified, t.bad, t.unfinished)
	}
	return t, nil
}

// allocations returns how many allocations a relay has made, 0 if that cannot be known.
func (g *gateway) allocations() (uint64, error) {
	if g.mallocs == nil {
		return 0, nil
	}
	return g.mallocs()
}
