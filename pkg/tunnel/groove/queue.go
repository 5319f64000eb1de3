package groove

import (
	"bytes"
	"io"
	"os"
	"sync"
	"time"
)

// queueSize bounds what waits in one direction of a connection of KeepAlive or Polling: two bodies.
const queueSize = 2 * maxBody

// queue holds octets between who writes and who reads them.
type queue struct {
	mu sync.Mutex
	// changed is closed, and replaced, whenever something happens to the queue that somebody waits for.
	changed chan struct{}
	waiting bool
	b       bytes.Buffer
	err     error // what ended it: no more is written; after what is in it, readers get this
}

func newQueue() *queue { return &queue{changed: make(chan struct{})} }

// toldLocked wakes who waits.
func (q *queue) toldLocked() {
	if q.waiting {
		close(q.changed)
		q.changed, q.waiting = make(chan struct{}), false
	}
}

// waitLocked waits for a change, or until a stop is closed; then it returns false. The lock is held before and after.
func (q *queue) waitLocked(stop, stop2 <-chan struct{}) bool {
	changed := q.changed
	q.waiting = true
	q.mu.Unlock()
	defer q.mu.Lock()
	select {
	case <-changed:
		return true
	case <-stop:
	case <-stop2:
	}
	return false
}

// write puts all of p into the queue, as there comes to be room.
func (q *queue) write(p []byte, d *deadline) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	late := d.channel()
	for {
		switch {
		case q.err != nil:
			return n, io.ErrClosedPipe
		case isClosed(late):
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		}
		if room := queueSize - q.b.Len(); room > 0 {
			k := min(room, len(p))
			q.b.Write(p[:k])
			p, n = p[k:], n+k
			q.toldLocked()
			continue
		}
		q.waitLocked(late, nil)
	}
}

// read takes what there is, at least one octet.
func (q *queue) read(p []byte, d *deadline) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	late := d.channel()
	for {
		switch {
		case isClosed(late):
			return 0, os.ErrDeadlineExceeded
		case q.b.Len() > 0:
			n, _ := q.b.Read(p) // it has something
			q.takenLocked()
			return n, nil
		case q.err != nil:
			return 0, q.err
		case len(p) == 0:
			return 0, nil
		}
		q.waitLocked(late, nil)
	}
}

// take takes at most n octets; if there are none it waits, at most until a stop is closed. It returns nothing then,
// and with over if nothing will come any more.
func (q *queue) take(n int, stop, stop2 <-chan struct{}) (b []byte, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.b.Len() == 0 && q.err == nil {
		if !q.waitLocked(stop, stop2) {
			break
		}
	}
	b = bytes.Clone(q.b.Next(n))
	q.takenLocked()
	return b, len(b) == 0 && q.err != nil
}

// takenLocked makes known that there is room, and keeps no memory for nothing.
func (q *queue) takenLocked() {
	if q.b.Len() == 0 {
		q.b = bytes.Buffer{}
	}
	q.toldLocked()
}

// end has nothing more written. What is in the queue can still be read, unless it is dropped.
func (q *queue) end(err error, drop bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	if drop {
		q.b = bytes.Buffer{}
	}
	q.toldLocked()
}

// len returns how many octets wait.
func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.b.Len()
}

// deadline is a time after which a channel is closed. The zero value is none.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	late  chan struct{}
}

// channel returns what is closed at the deadline, whenever that is set.
func (d *deadline) channel() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late == nil {
		d.late = make(chan struct{})
	}
	return d.late
}

// set moves the deadline; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fired := d.timer != nil && !d.timer.Stop()
	d.timer = nil
	if d.late == nil || fired || isClosed(d.late) {
		if fired && d.late != nil && !isClosed(d.late) {
			close(d.late) // its timer's function finds another channel
		}
		d.late = make(chan struct{})
	}
	switch left := time.Until(t); {
	case t.IsZero():
	case left <= 0:
		close(d.late)
	default:
		late := d.late
		d.timer = time.AfterFunc(left, func() { d.pass(late) })
	}
}

// pass closes the channel of a deadline that has come, unless another was set meanwhile.
func (d *deadline) pass(late chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.late == late && !isClosed(late) {
		close(late)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
