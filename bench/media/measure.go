package main

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// trial is what happened at one rate.
type trial struct {
	// arrived came in time; total came before the next trial. Sockets can hold more packets than a trial
	// sends, so without the difference a relay would seem as fast as its buffers are large.
	sent, arrived, total uint64
	took                 time.Duration
	cpu                  time.Duration
	mallocs              uint64
}

func (t trial) loss() float64 { return 1 - float64(t.arrived)/float64(t.sent) }

func (t trial) rate() float64 { return float64(t.arrived) / t.took.Seconds() }

// ruin is the loss after which a product is started afresh.
const ruin = 0.3

// search looks for the highest rate that a product carries with at most 1 % loss: upwards from a low
// rate until it loses, then between the last two. The climb is slow because an overload can do lasting
// harm: rtpengine gives a flooded socket up. So both products are started afresh after a heavy loss.
type search struct {
	rig     *rig
	product string
	streams int
	size    int
	length  time.Duration
	gw      gateway
	gen     *generator
	best    trial
}

func (r *rig) measure(product string, streams, size int, length time.Duration) (result, error) {
	s := &search{rig: r, product: product, streams: streams, size: size, length: length}
	if err := s.start(); err != nil {
		return result{}, err
	}
	defer s.stop()
	rate, step := firstRate, climb
	for steps := 0; steps < maxSteps && step > 1.06; steps++ {
		good, err := s.try(rate)
		if err != nil {
			return result{}, err
		}
		switch {
		case good:
			rate *= step
		case s.best.sent == 0:
			rate /= 2
		default:
			rate, step = rate/math.Sqrt(step), math.Sqrt(step)
		}
	}
	if s.best.sent == 0 {
		return result{}, errors.New("no rate without loss was found")
	}
	res := result{rate: s.best.rate(), cost: float64(s.best.cpu) / float64(s.best.total), allocs: -1}
	if _, ok := s.gw.mallocs(); ok {
		res.allocs = float64(s.best.mallocs) / float64(s.best.total)
	}
	return res, nil
}

// start starts the product, and lets each stream be heard once, so that no trial pays for latching.
func (s *search) start() error {
	var err error
	switch s.product {
	case "edged":
		s.gw, err = s.rig.startRelay(s.streams)
	default:
		s.gw, err = s.rig.startRTPEngine(s.streams)
	}
	if err != nil {
		return err
	}
	if s.gen, err = newGenerator(s.rig, s.gw.ports(), s.size); err != nil {
		return err
	}
	rate := max(2000, 2.5*float64(s.streams))
	_, _, err = s.gen.run(rate, max(100*time.Millisecond, time.Duration(float64(s.streams)/rate*1.2*float64(time.Second))))
	time.Sleep(settle)
	return err
}

func (s *search) stop() {
	if s.gen != nil {
		s.gen.close()
	}
	if s.gw != nil {
		s.gw.stop()
	}
}

// try tells whether the product carries the rate. A trial that fails is made a second time, for the
// machine may have been busy with something else, or the generator with it.
func (s *search) try(rate float64) (bool, error) {
	for range 2 {
		t, err := s.rig.try(s.gw, s.gen, rate, s.length)
		if err != nil {
			return false, err
		}
		asked := float64(t.sent) / t.took.Seconds()
		if s.rig.verbose {
			fmt.Printf("  %-9s asked %7.0f sent %7.0f arrived %7.0f packets/s, %5.2f %% lost, %5.0f ns/packet\n", s.product, rate,
				asked, t.rate(), 100*t.loss(), float64(t.cpu)/float64(max(t.total, 1)))
		}
		if t.loss() <= lossLimit {
			if t.rate() > rateOf(s.best) {
				s.best = t
			}
			if asked > 0.97*rate {
				return true, nil
			}
		}
		if t.loss() >= ruin {
			s.stop()
			if err := s.start(); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

func rateOf(t trial) float64 {
	if t.took == 0 {
		return 0
	}
	return t.rate()
}

// try sends at a rate for a time and counts what arrives.
func (r *rig) try(gw gateway, g *generator, rate float64, length time.Duration) (trial, error) {
	before, err := r.sunk()
	if err != nil {
		return trial{}, err
	}
	cpu, err := r.cpu(gw.pid())
	if err != nil {
		return trial{}, err
	}
	mallocs, _ := gw.mallocs()
	var t trial
	t.sent, t.took, err = g.run(rate, length)
	if err != nil {
		return t, err
	}
	time.Sleep(grace)
	inTime, err := r.sunk()
	if err != nil {
		return t, err
	}
	time.Sleep(settle)
	cpuAfter, err := r.cpu(gw.pid())
	if err != nil {
		return t, err
	}
	after, err := r.sunk()
	if err != nil {
		return t, err
	}
	mallocsAfter, _ := gw.mallocs()
	// More than was sent are packets that had waited since the trial before.
	t.arrived, t.total = min(inTime-before, t.sent), after-before
	t.cpu, t.mallocs = cpuAfter-cpu, mallocsAfter-mallocs
	return t, nil
}

// generatorAlone measures the generator and the first link without a relay: what the rig can give.
func (r *rig) generatorAlone(length time.Duration) (float64, error) {
	if _, err := run("ip", "netns", "exec", r.gw, "nft", "add table ip alone; "+
		"add chain ip alone in { type filter hook prerouting priority -400; }; add rule ip alone in udp dport 1-65535 drop"); err != nil {
		return 0, err
	}
	g, err := newGenerator(r, []uint16{50000}, 172)
	if err != nil {
		return 0, err
	}
	defer g.close()
	sent, took, err := g.run(maxRate, length)
	if err != nil {
		return 0, err
	}
	if _, err := run("ip", "netns", "exec", r.gw, "nft", "delete table ip alone"); err != nil {
		return 0, err
	}
	return float64(sent) / took.Seconds(), nil
}
