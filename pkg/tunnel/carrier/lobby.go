package carrier

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

const (
	defaultOpen    = 1024            // connections that are not yet past the preamble
	defaultWaiting = 16384           // connections that wait for that
	freshCount     = 64              // places that are given within freshTime
	freshTime      = time.Second     // by then a device on a good path is past the preamble; who is not waits for its network
	waitTime       = 5 * time.Minute // for a place
	sayWaitEvery   = 3 * time.Second // a device that waits is told so
)

// errFull and the others are why a connection gets no place.
var (
	errFull = errors.New("too many connections wait for a handshake")
	errLate = errors.New("no place in time")
	errLeft = errors.New("the device has left")
)

// places are for connections that have not yet said what they want. Who comes when none is free waits: each source in
// the order of its connections, the sources in turn. So that after a restart of the relay thousands of devices are served
// one after the other, and not all slowly, only a few places are given at a time; a slow one soon counts no more.
// The zero value is nobody.
type places struct {
	mu      sync.Mutex
	all     int // have a place
	fresh   int // of those, were given it within freshTime
	waiting int
	sources map[netip.Prefix]*source
	turns   list.List // of *source, that have somebody waiting

	every time.Duration // between reminders; 0: sayWaitEvery
}

// source is one site.
type source struct {
	from netip.Prefix
	in   int       // places
	line list.List // of chan *place, the oldest first
	turn *list.Element
}

// place is what a connection has.
type place struct {
	of    *source
	fresh bool
	timer *time.Timer
}

// bounds are those of places. One source may have half of each, one at least.
type bounds struct{ places, waiting int }

func (p *places) sourceLocked(from netip.Prefix) *source {
	s := p.sources[from]
	if s == nil {
		s = &source{from: from}
		if p.sources == nil {
			p.sources = map[netip.Prefix]*source{}
		}
		p.sources[from] = s
	}
	return s
}

func (p *places) forgetLocked(s *source) {
	if s.in == 0 && s.line.Len() == 0 {
		delete(p.sources, s.from)
	}
}

// freeLocked tells whether a source may have a place.
func (p *places) freeLocked(s *source, b bounds) bool {
	return p.all < b.places && (!s.from.IsValid() || s.in < max(b.places/2, 1))
}

func (p *places) takeLocked(s *source, b bounds) *place {
	pl := &place{of: s, fresh: true}
	p.all++
	p.fresh++
	s.in++
	pl.timer = time.AfterFunc(freshTime, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.agedLocked(pl)
		p.nextLocked(b)
	})
	return pl
}

func (p *places) agedLocked(pl *place) {
	if pl.fresh {
		pl.fresh = false
		p.fresh--
	}
}

// nextLocked gives places to those who wait, as long as there are some.
func (p *places) nextLocked(b bounds) {
	for blocked := 0; p.fresh < freshCount && blocked < p.turns.Len(); {
		at := p.turns.Front()
		s := at.Value.(*source)
		if !p.freeLocked(s, b) {
			if p.all >= b.places {
				return
			}
			p.turns.MoveToBack(at)
			blocked++
			continue
		}
		first := s.line.Front()
		p.leaveLineLocked(s, first)
		if s.turn != nil {
			p.turns.MoveToBack(at)
		}
		first.Value.(chan *place) <- p.takeLocked(s, b) // it has room
	}
}

func (p *places) leaveLineLocked(s *source, at *list.Element) {
	s.line.Remove(at)
	p.waiting--
	if s.line.Len() == 0 {
		p.turns.Remove(s.turn)
		s.turn = nil
	}
}

// take gives a place at once, or none: nil. It passes those by who wait.
func (p *places) take(from netip.Prefix, b bounds) *place {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.sourceLocked(from)
	defer p.forgetLocked(s)
	if !p.freeLocked(s, b) {
		return nil
	}
	return p.takeLocked(s, b)
}

// wait gives a place, at once or when it is the connection's turn. remind is called from time to time while it waits; its
// error ends that.
func (p *places) wait(ctx context.Context, from netip.Prefix, b bounds, remind func() error) (*place, error) {
	p.mu.Lock()
	s := p.sourceLocked(from)
	if p.turns.Len() == 0 && p.fresh < freshCount && p.freeLocked(s, b) {
		defer p.mu.Unlock()
		return p.takeLocked(s, b), nil
	}
	if p.waiting >= b.waiting || s.from.IsValid() && s.line.Len() >= max(b.waiting/2, 1) {
		defer p.mu.Unlock()
		p.forgetLocked(s)
		return nil, errFull
	}
	given := make(chan *place, 1)
	at := s.line.PushBack(given)
	p.waiting++
	if s.turn == nil {
		s.turn = p.turns.PushBack(s)
	}
	p.nextLocked(b) // those in line before may all be of sources that have what they may have
	p.mu.Unlock()
	return p.inLine(ctx, s, at, remind)
}

// inLine waits for the place of at.
func (p *places) inLine(ctx context.Context, s *source, at *list.Element, remind func() error) (*place, error) {
	given := at.Value.(chan *place)
	every := p.every
	if every == 0 {
		every = sayWaitEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	end := time.Now().Add(waitTime)
	for {
		var err error
		select {
		case pl := <-given:
			return pl, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		case now := <-tick.C:
			if err = remind(); err == nil && now.After(end) {
				err = errLate
			}
		}
		if err == nil {
			continue
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		select {
		case pl := <-given: // just now
			return pl, nil
		default:
		}
		p.leaveLineLocked(s, at)
		p.forgetLocked(s)
		return nil, err
	}
}

// give takes a place back.
func (p *places) give(pl *place, b bounds) {
	pl.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.agedLocked(pl)
	p.all--
	pl.of.in--
	p.nextLocked(b)
	p.forgetLocked(pl.of)
}

func (p *places) taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}

func (p *places) queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting
}

// sourceOf returns what one site may have for itself; the zero value where there is no address.
func sourceOf(a net.Addr) netip.Prefix {
	bits := 32
	at := pinhole.AddrPortOf(a).Addr().Unmap().WithZone("")
	if at.Is6() {
		bits = 64
	}
	p, err := at.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// hungUp tells whether the other end of a TCP connection has closed its direction, also if data before that is unread.
func hungUp(tcp *net.TCPConn) bool {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	fds := []unix.PollFd{{Events: unix.POLLRDHUP}}
	n := 0
	if err := raw.Control(func(fd uintptr) {
		fds[0].Fd = int32(fd)
		n, _ = unix.Poll(fds, 0)
	}); err != nil {
		return true
	}
	return n > 0 && fds[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}
