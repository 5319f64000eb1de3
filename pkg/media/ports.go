package media

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// pool is the ports of one range at one address. It is guarded by the relay's mutex.
type pool struct {
	addr netip.Addr
	r    PortRange
	// used has a bit for each port that is taken or resting.
	used []uint64
	// n counts the taken ones.
	n int
	// resting are released ports in the order of their release; those before woken are free again.
	resting []resting
	woken   int
	// occupied tells whether something else uses a port, such as a flow of an earlier run; nil: nothing does.
	occupied func(port uint16) bool
	// watch is told of ports that are taken and released; nil: nobody is.
	watch func(port, count uint16, open bool)
}

type resting struct {
	port, count uint16
	until       time.Time
}

func newPool(addr netip.Addr, r PortRange) *pool {
	return &pool{addr: addr, r: r, used: make([]uint64, (r.Size()+63)/64)}
}

func (p *pool) taken(port uint16) bool {
	i := port - p.r.First
	return p.used[i/64]&(1<<(i%64)) != 0
}

func (p *pool) mark(port, count uint16, on bool) {
	for i := port - p.r.First; i < port-p.r.First+count; i++ {
		if on {
			p.used[i/64] |= 1 << (i % 64)
		} else {
			p.used[i/64] &^= 1 << (i % 64)
		}
	}
}

// take finds count (1 or 2) neighbouring ports, the first of two being even, that are free and that
// bind accepts. It starts at a random port and tries each candidate once: ErrExhausted means that
// there really is none. Any error of bind but EADDRINUSE ends the search.
func (p *pool) take(now time.Time, count uint16, bind func(port uint16) error) (uint16, error) {
	p.wake(now)
	first := uint32(p.r.First)
	if count == 2 {
		first += first % 2
	}
	n := (uint32(p.r.Last) + 1 - first) / uint32(count)
	if n == 0 || p.r.Last < p.r.First {
		return 0, p.exhausted()
	}
	start := rand.Uint32N(n)
	for i := range n {
		port := uint16(first + (start+i)%n*uint32(count))
		if p.taken(port) || count == 2 && p.taken(port+1) || p.occupiedPair(port) {
			continue
		}
		switch err := bind(port); {
		case err == nil:
			p.mark(port, count, true)
			p.n += int(count)
			p.tell(port, count, true)
			return port, nil
		case !errors.Is(err, syscall.EADDRINUSE):
			return 0, err
		}
	}
	return 0, p.exhausted()
}

// occupiedPair tells whether the port or its neighbour, the other one of an RTP pair, is used by something
// else: whoever sends RTP there still sends RTCP beside it.
func (p *pool) occupiedPair(port uint16) bool {
	return p.occupied != nil && (p.occupied(port) || p.occupied(port^1))
}

func (p *pool) exhausted() error {
	return fmt.Errorf("%s ports %s, %d in use, %d releases resting: %w",
		p.addr, p.r, p.n, len(p.resting)-p.woken, pinhole.ErrExhausted)
}

// release returns ports, which rest until the given time.
func (p *pool) release(port, count uint16, until time.Time) {
	p.n -= int(count)
	p.tell(port, count, false)
	p.resting = append(p.resting, resting{port, count, until})
}

// giveBack frees a port at once.
func (p *pool) giveBack(port uint16) {
	p.n--
	p.tell(port, 1, false)
	p.mark(port, 1, false)
}

func (p *pool) tell(port, count uint16, open bool) {
	if p.watch != nil {
		p.watch(port, count, open)
	}
}

// wake frees the ports that have rested enough.
func (p *pool) wake(now time.Time) {
	for p.woken < len(p.resting) && !now.Before(p.resting[p.woken].until) {
		r := p.resting[p.woken]
		p.mark(r.port, r.count, false)
		p.woken++
	}
	// Moved only when half is free, so that it costs little per port.
	if p.woken > len(p.resting)/2 {
		p.resting = append(p.resting[:0], p.resting[p.woken:]...)
		p.woken = 0
	}
}

// holds tells whether a port of the range is taken.
func (p *pool) holds(port uint16) bool {
	return port >= p.r.First && port <= p.r.Last && p.taken(port)
}
