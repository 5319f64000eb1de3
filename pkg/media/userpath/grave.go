package userpath

import (
	"golang.org/x/sys/unix"
)

// A loop may still use a socket after Delete: it may have found it, or a flow that leaves by it, just
// before. Closing it then would let the number be reused by a stranger, and packets go there.
// So each loop counts the beginning and the end of each round (odd: in a round). A descriptor that
// left the table can be in use only by the rounds that run at that moment; it is closed when they are over.
type grave struct {
	fd int
	// rounds are the counts of the loops at the time of Delete.
	rounds []uint64
}

// over tells whether no loop is in the round that it was in.
func (g *grave) over(loops []*loop) bool {
	for i, l := range loops {
		if g.rounds[i]&1 == 1 && l.round.Load() == g.rounds[i] {
			return false
		}
	}
	return true
}

// buryLocked closes fd now if no loop is in a round, else after the rounds of now.
func (p *Path) buryLocked(fd int) {
	idle := true
	for _, l := range p.loops {
		idle = idle && l.round.Load()&1 == 0
	}
	if idle {
		unix.Close(fd)
		return
	}
	g := grave{fd: fd, rounds: make([]uint64, len(p.loops))}
	for i, l := range p.loops {
		g.rounds[i] = l.round.Load()
	}
	p.graves = append(p.graves, g)
	p.buried.Store(int32(len(p.graves)))
}

// reap closes what can be closed. Loops call it between rounds.
func (p *Path) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.graves[:0]
	for _, g := range p.graves {
		if g.over(p.loops) {
			unix.Close(g.fd)
		} else {
			kept = append(kept, g)
		}
	}
	p.graves = kept
	p.buried.Store(int32(len(kept)))
}
