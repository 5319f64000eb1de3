package splice

import (
	"context"
	"encoding/binary"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// events is how many sockets a round may serve.
	events = 256
	// interest is edge-triggered and never changes: a socket is registered once.
	interest = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | 1<<31 // EPOLLET, which x/sys has as a negative number
	// wakeSlot is the number of the eventfd, which no pair has.
	wakeSlot = -1
	// copySize is the most that is moved by copying at once. A read that fills it makes its direction splice.
	copySize = 16 << 10
	// sweepMin and sweepMax bound how often idle pairs are looked for: eight times per idle limit.
	sweepMin, sweepMax = 5 * time.Millisecond, time.Second
)

// phase is what a loop can do for callers.
type phase uint8

const (
	waiting phase = iota // Serve was not called yet: joins are kept
	running
	ended // joins are refused
)

// abort is a pair that is to be reset, with the reason.
type abort struct {
	pair *pair
	why  error
}

// loop serves its share of the pairs.
type loop struct {
	epoll, wake int
	epoch       time.Time

	mu     sync.Mutex
	phase  phase // guarded by mu, as are the next three
	fresh  []*pair
	aborts []abort
	stops  bool

	// The rest belongs to run.
	waiter *waiter
	buffer [copySize]byte
	pipes  pipes
	slots  []*pair
	// free are slots without a pair; vacated become free at the end of the round, as events
	// of it may still name them.
	free, vacated []uint32
	// again are directions with more to do in the next round.
	again, serving []*direction
	// now and wall are the round's time, since epoch and since 1970, in ns.
	now, wall int64
	// sweepAt is when idle pairs are looked for, 0 if none has an idle limit.
	sweepAt int64
}

func newLoop() (*loop, error) {
	l := &loop{epoll: -1, wake: -1, epoch: time.Now()}
	var err error
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(l.epoll, true); err != nil { // for the runtime's poller
		l.close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	if l.waiter, err = newWaiter(l.epoll); err != nil {
		l.close()
		return nil, err
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		l.close()
		return nil, os.NewSyscallError("eventfd", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, l.wake, &ev); err != nil {
		l.close()
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return l, nil
}

// close gives back the loop's own descriptors, after run.
func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.phase = ended
	if l.waiter != nil {
		l.waiter.file.Close()
	} else if l.epoll >= 0 {
		unix.Close(l.epoll)
	}
	if l.wake >= 0 {
		unix.Close(l.wake)
	}
	l.epoll, l.wake = -1, -1
}

// notifyLocked makes the loop look at what was handed to it.
func (l *loop) notifyLocked() {
	if l.phase == running {
		// The counter can not overflow: every round reads it.
		_, _ = unix.Write(l.wake, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

func (l *loop) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stops = true
	l.notifyLocked()
}

// join hands a pair to the loop and waits for its end.
func (l *loop) join(ctx context.Context, p *pair) Result {
	l.mu.Lock()
	if l.phase == ended {
		p.finish(ErrClosed)
	} else {
		l.fresh = append(l.fresh, p)
		l.notifyLocked()
	}
	l.mu.Unlock()
	select {
	case <-p.done:
	case <-ctx.Done():
		l.abort(p, ctx.Err())
		<-p.done
	}
	return p.result
}

// abort resets a pair soon, at once if the loop does not run.
func (l *loop) abort(p *pair, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.phase {
	case waiting:
		for i, q := range l.fresh {
			if q == p {
				l.fresh = append(l.fresh[:i], l.fresh[i+1:]...)
				p.finish(why)
				return
			}
		}
	case running:
		l.aborts = append(l.aborts, abort{p, why})
		l.notifyLocked()
	case ended: // every pair was finished
	}
}

func (l *loop) serve(done chan<- error) { done <- l.run() }

// run serves rounds until stop.
func (l *loop) run() error {
	l.mu.Lock()
	l.phase = running
	l.mu.Unlock()
	err := l.rounds()
	l.mu.Lock()
	l.phase = ended
	fresh := l.fresh
	l.fresh = nil
	l.mu.Unlock()
	for _, p := range fresh {
		p.finish(ErrClosed)
	}
	for _, p := range l.slots {
		if p != nil {
			l.end(p, ErrClosed)
		}
	}
	l.pipes.close()
	return err
}

func (l *loop) rounds() error {
	for !l.take() {
		n, err := l.waiter.wait(l.epoll, l.timeout())
		if err != nil {
			return err
		}
		l.tick()
		l.serving, l.again = l.again, l.serving[:0]
		for i := range n {
			l.event(&l.waiter.events[i])
		}
		for _, d := range l.serving {
			d.queued = false
			l.move(d)
		}
		clear(l.serving)
		if l.sweepAt != 0 && l.now >= l.sweepAt {
			l.sweep()
		}
		l.free = append(l.free, l.vacated...)
		l.vacated = l.vacated[:0]
	}
	return nil
}

func (l *loop) tick() {
	t := time.Now()
	l.now, l.wall = int64(t.Sub(l.epoch)), t.UnixNano()
}

// timeout returns how long the next round may wait, in ms; -1 = for ever.
func (l *loop) timeout() int {
	switch {
	case len(l.again) > 0:
		return 0
	case l.sweepAt == 0:
		return -1
	}
	return max(int((l.sweepAt-l.now)/1e6)+1, 0)
}

// take starts and aborts what was handed over, and tells whether the loop is to end. It is called before
// each wait, so that its lock is taken once a round.
func (l *loop) take() (stop bool) {
	l.mu.Lock()
	fresh, aborts := l.fresh, l.aborts
	l.fresh, l.aborts = nil, nil
	stop = l.stops
	l.mu.Unlock()
	if len(fresh)+len(aborts) > 0 {
		l.tick()
	}
	for _, p := range fresh {
		l.start(p)
	}
	for _, a := range aborts {
		if !a.pair.ended {
			a.pair.aborted = true
			l.end(a.pair, a.why)
		}
	}
	return stop
}

// start registers a pair, and writes its prefixes.
func (l *loop) start(p *pair) {
	if n := len(l.free); n > 0 {
		p.slot = l.free[n-1]
		l.free = l.free[:n-1]
		l.slots[p.slot] = p
	} else {
		p.slot = uint32(len(l.slots))
		l.slots = append(l.slots, p)
	}
	p.last = l.now
	for s, fd := range p.fd {
		// The low bit of the number is the side.
		ev := unix.EpollEvent{Events: interest, Fd: int32(p.slot)<<1 | int32(s)}
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			l.end(p, os.NewSyscallError("epoll_ctl", err))
			return
		}
	}
	if p.idle > 0 {
		l.sweepBy(l.now + sweepStep(p.idle))
	}
	for s := range p.dir {
		d := &p.dir[s]
		if n := len(d.pending); n > 0 && !p.ended && l.counted(d, n) {
			l.move(d)
		}
	}
}

// end closes a pair's sockets, by reset if err is not nil, and forgets it.
func (l *loop) end(p *pair, err error) {
	if p.ended {
		return
	}
	for s, fd := range p.fd {
		// It fails if the pair could not be registered.
		_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, fd, nil)
		l.release(&p.dir[s])
	}
	l.slots[p.slot] = nil
	l.vacated = append(l.vacated, p.slot)
	p.finish(err)
}

// event notes what epoll says of a socket, and serves the directions that it concerns.
func (l *loop) event(ev *unix.EpollEvent) {
	if ev.Fd == wakeSlot {
		var count [8]byte
		_, _ = unix.Read(l.wake, count[:]) // take does what it is about
		return
	}
	p := l.slots[ev.Fd>>1]
	if p == nil {
		return // it ended in this round
	}
	in, out := &p.dir[ev.Fd&1], &p.dir[1-ev.Fd&1]
	if ev.Events&(unix.EPOLLIN|unix.EPOLLPRI|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		in.readable = true
		in.urgent = in.urgent || ev.Events&unix.EPOLLPRI != 0
		in.hangup = in.hangup || ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	}
	if ev.Events&unix.EPOLLERR != 0 && (in.done || in.blocked) {
		// Nobody is going to read that socket now, so nobody would see its error.
		l.failed(in, "socket")
	}
	if out.blocked && ev.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		out.blocked = false
		l.move(out)
	}
	if in.readable && !in.blocked {
		l.move(in)
	}
}

// failed ends a pair if the source of d has an error pending.
func (l *loop) failed(d *direction, what string) {
	n, err := unix.GetsockoptInt(d.src, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		l.end(d.pair, sideError(d.from, what, unix.Errno(n)))
	}
}

// sweep ends the pairs that stood still for too long.
func (l *loop) sweep() {
	l.sweepAt = 0
	for _, p := range l.slots {
		if p == nil || p.idle == 0 {
			continue
		}
		if l.now-p.last >= p.idle {
			l.end(p, ErrIdle)
			continue
		}
		l.sweepBy(l.now + sweepStep(p.idle))
	}
}

func (l *loop) sweepBy(at int64) {
	if l.sweepAt == 0 || at < l.sweepAt {
		l.sweepAt = at
	}
}

func sweepStep(idle int64) int64 { return min(max(idle/8, int64(sweepMin)), int64(sweepMax)) }
