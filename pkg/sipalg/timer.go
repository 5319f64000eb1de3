package sipalg

import (
	"container/heap"
	"time"
)

// Timer values of RFC 3261 §17 (Table 4) and what a proxy adds (§16.6 item 11, Timer C).
const (
	t1         = 500 * time.Millisecond
	t2         = 4 * time.Second
	t4         = 5 * time.Second
	timeout64  = 64 * t1 // Timers B, F, H, J, L, M
	timerC     = 185 * time.Second
	ackWait    = timeout64
	sweepEvery = 10 * time.Second
)

// timer is an entry of the core's heap. The zero value is stopped.
type timer struct {
	when  time.Time
	fire  func(c *Core) // or, without a closure for each of many:
	tx    *tx
	call  *session
	index int // position in the heap + 1; 0 = stopped
}

func (t *timer) fired(c *Core) {
	switch {
	case t.tx != nil && t == &t.tx.clientTimer:
		c.clientFired(t.tx)
	case t.tx != nil:
		c.serverFired(t.tx)
	case t.call != nil:
		c.hangup(t.call, "no sign of life")
	default:
		t.fire(c)
	}
}

// timers is a heap of running timers, soonest first.
type timers []*timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].when.Before(h[j].when) }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}
func (h *timers) Push(x any) {
	t := x.(*timer)
	*h = append(*h, t)
	t.index = len(*h)
}
func (h *timers) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = 0
	return t
}

// start (re)arms t to fire after d.
func (c *Core) start(t *timer, d time.Duration) {
	t.when = c.now.Add(d)
	if t.index > 0 {
		heap.Fix(&c.timers, t.index-1)
		return
	}
	heap.Push(&c.timers, t)
}

// stop disarms t.
func (c *Core) stop(t *timer) {
	if t.index > 0 {
		heap.Remove(&c.timers, t.index-1)
	}
}

// Tick fires all timers that are due.
func (c *Core) Tick(now time.Time, out *Output) {
	c.begin(now, out)
	for len(c.timers) > 0 && !c.timers[0].when.After(now) {
		t := heap.Pop(&c.timers).(*timer)
		t.fired(c)
	}
}
