package media

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// inbox keeps datagrams for whoever reads a socket in the path's stead.
type inbox struct {
	// limit bounds the bytes that are kept, each datagram with its overhead.
	limit int

	mu     sync.Mutex
	filled sync.Cond
	queue  []datagram
	size   int
	closed bool
	// deadline ends reads, timer wakes them then.
	deadline time.Time
	timer    *time.Timer
}

type datagram struct {
	b    []byte
	from netip.AddrPort
}

// datagramCost is what a kept datagram takes besides its bytes.
const datagramCost = 64

func (q *inbox) init(limit int) {
	q.limit = limit
	q.filled.L = &q.mu
}

// put keeps a copy of b, and tells whether there was room.
func (q *inbox) put(b []byte, src *Sockaddr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.size+len(b)+datagramCost > q.limit {
		return false
	}
	q.size += len(b) + datagramCost
	q.queue = append(q.queue, datagram{append([]byte(nil), b...), src.AddrPort()})
	q.filled.Signal()
	return true
}

// get waits for a datagram and copies what fits into b.
func (q *inbox) get(b []byte) (n int, from netip.AddrPort, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.closed:
			return 0, from, net.ErrClosed
		case !q.deadline.IsZero() && !time.Now().Before(q.deadline):
			return 0, from, os.ErrDeadlineExceeded
		case len(q.queue) > 0:
			d := q.queue[0]
			q.queue[0] = datagram{}
			if q.queue = q.queue[1:]; len(q.queue) == 0 {
				q.queue = nil // most clients never come back for more
			}
			q.size -= len(d.b) + datagramCost
			return copy(b, d.b), d.from, nil
		}
		q.filled.Wait()
	}
}

// setDeadline ends reads at t; the zero time never does.
func (q *inbox) setDeadline(t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	q.deadline = t
	if !t.IsZero() && !q.closed {
		q.timer = time.AfterFunc(time.Until(t), q.wake)
	}
	q.filled.Broadcast()
}

func (q *inbox) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.filled.Broadcast()
}

func (q *inbox) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed, q.queue, q.size = true, nil, 0
	if q.timer != nil {
		q.timer.Stop()
	}
	q.filled.Broadcast()
}
