package userpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
)

const (
	// batch is how many packets one socket may give per round; the rest waits its turn.
	batch = 32
	// events is how many sockets a round may serve.
	events = 256
	// spare is how many buffers must be free for a socket.
	spare = 8
	// slot holds any UDP datagram.
	slot = 1 << 16
	// interest is edge-triggered: a level-triggered socket is looked at again in the next epoll_wait,
	// which with thousands of them costs a cache miss or more per packet. So a socket that may not be
	// empty after its turn must be rearmed.
	interest = unix.EPOLLIN | 1<<31 // EPOLLET, which x/sys has as a negative number
	// notesSize holds the control messages that come with a packet.
	notesSize = 64
)

// loop moves the packets of its share of the sockets.
type loop struct {
	path *Path
	// epoll is the epoll descriptor as the scheduler's poller knows it: a loop that waits there is a parked
	// goroutine. In a system call that blocks it would keep the runtime's monitor thread awake, which at
	// 50 packets/s costs several times as much as the packets.
	epoll *os.File
	wait  syscall.RawConn
	// poll is look, n how many sockets it has found ready, fd the descriptor.
	poll func(fd uintptr) bool
	n    int
	fd   int
	done atomic.Bool
	// round is odd while the loop looks at sockets, see grave.
	round atomic.Uint64

	events  [events]unix.EpollEvent
	ready   [events]*entry
	sets    [events]*flowSet
	touched int
	buffers []byte
	names   [batch]media.Sockaddr
	notes   [batch][notesSize]byte
	in      [batch]mmsghdr
	inVec   [batch]unix.Iovec
	control [256]byte
	now     time.Time
	queue   queue
	// used is how many of the buffers the queue holds from sockets before.
	used    int
	scratch *media.Scratch
}

func newLoop(p *Path) (*loop, error) {
	l := &loop{path: p, buffers: make([]byte, batch*slot)}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l.fd, l.epoll = fd, os.NewFile(uintptr(fd), "epoll")
	// It fails if the poller does not know the descriptor, which would be no wait at all.
	if err := l.epoll.SetReadDeadline(time.Time{}); err != nil {
		l.close()
		return nil, err
	}
	if l.wait, err = l.epoll.SyscallConn(); err != nil {
		l.close()
		return nil, err
	}
	l.poll = l.look
	for i := range batch {
		l.inVec[i].Base = &l.buffers[i*slot]
		l.inVec[i].SetLen(slot)
		l.in[i].hdr.Name = &l.names[i].Raw[0]
		l.in[i].hdr.Namelen = uint32(len(l.names[i].Raw))
		l.in[i].hdr.Iov = &l.inVec[i]
		l.in[i].hdr.SetIovlen(1)
		l.in[i].hdr.Control = &l.notes[i][0]
		l.in[i].hdr.SetControllen(notesSize)
	}
	return l, nil
}

func (l *loop) close() {
	// It may have been closed by an earlier call.
	_ = l.epoll.Close()
}

func (l *loop) stop() {
	l.done.Store(true)
	// It ends the wait, now or when it begins. It can only fail if the loop has ended by itself.
	_ = l.epoll.SetReadDeadline(time.Unix(1, 0))
}

func (l *loop) serve(ended chan<- error) { ended <- l.run() }

// run serves rounds until stop.
func (l *loop) run() error {
	for !l.done.Load() {
		if l.look(uintptr(l.fd)) {
			// Packets may keep the loop busy for long: other goroutines run between rounds.
			runtime.Gosched()
		} else if err := l.wait.Read(l.poll); errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		} else if err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
		n := l.n
		l.round.Add(1)
		l.now = time.Now()
		l.warm(n)
		for i := range n {
			l.serveSocket(l.ready[i], l.events[i].Events)
		}
		l.flush()
		l.round.Add(1)
		if l.path.buried.Load() > 0 {
			l.path.reap()
		}
	}
	return nil
}

// look tells whether sockets are ready, and puts them into events. It never blocks.
func (l *loop) look(fd uintptr) bool {
	n, _, _ := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, fd, uintptr(unsafe.Pointer(&l.events[0])), events, 0, 0, 0)
	l.n = max(0, int(n)) // -1 if a signal came
	return l.n > 0
}

// warm finds the entries of the ready sockets, and reads a word of each thing that their packets will
// touch. With thousands of sockets none of it is in a cache: read one by one, packet after packet, the
// misses add up; read in a tight loop, the core has many under way at once.
func (l *loop) warm(n int) {
	for i := range n {
		l.ready[i] = l.path.table.get(int(l.events[i].Fd))
	}
	for i := range n {
		l.sets[i] = nil
		if e := l.ready[i]; e != nil {
			l.sets[i] = e.flows.Load()
		}
	}
	touched := 0
	for i := range n {
		if s := l.sets[i]; s != nil {
			touched += s.first.Out.FD + int(s.first.To.Len)
		}
	}
	for i := range n {
		if s := l.sets[i]; s != nil {
			touched += s.first.Counters.Warm()
		}
	}
	l.touched = touched
}

func (l *loop) serveSocket(e *entry, ready uint32) {
	if e == nil {
		return // deleted since
	}
	empty := true
	if ready&unix.EPOLLERR != 0 {
		empty = l.readErrors(e)
	}
	if !l.relay(e) || !empty {
		l.rearm(e)
	}
}

// rearm makes epoll look at the socket anew: if it is not empty, it will be ready in the next round.
func (l *loop) rearm(e *entry) {
	ev := unix.EpollEvent{Events: interest, Fd: int32(e.socket.FD)}
	// It fails if the socket was deleted just now.
	_ = unix.EpollCtl(l.fd, unix.EPOLL_CTL_MOD, e.socket.FD, &ev)
}

// relay moves up to a batch of packets from one socket, and tells whether that has emptied it. An error
// of recvmmsg is EAGAIN, or one that an ICMP message left: that is cleared by being read, and says
// nothing of the packets.
func (l *loop) relay(e *entry) (empty bool) {
	if l.used > batch-spare {
		l.flush()
	}
	first, room := l.used, batch-l.used
	n, errno := recvmmsg(e.socket.FD, l.in[first:])
	if errno != 0 {
		return errno == unix.EAGAIN
	}
	packets := 0
	if e.socket.Channels != nil {
		packets = l.carry(e, first, n)
	} else {
		packets = l.pass(e, first, n)
	}
	if l.queue.waits() {
		l.used += n
	} else {
		l.flush()
	}
	l.follow(e, packets)
	return n < room
}

// flush sends what is queued, after which all buffers are free.
func (l *loop) flush() {
	l.queue.flush()
	l.used = 0
}

// pass queues what is to be relayed of n messages, and returns how many packets they were.
func (l *loop) pass(e *entry, first, n int) (packets int) {
	flows := e.flows.Load()
	for i := first; i < first+n; i++ {
		size := l.reset(e, i)
		b := l.message(i)
		packets += segments(b, size)
		f, raw := flows.first, b
		if shared := e.socket.Shared; shared != nil {
			if f, b = shared.Pick(b, &l.names[i], l.now); f == nil {
				continue
			}
			size = len(b)
		} else if !f.From.Equal(&l.names[i]) {
			if f = media.Pick(flows.all, &l.names[i], l.now, b[:min(size, len(b))]); f == nil {
				l.show(e, flows.first, i, raw, size, false)
				continue
			}
			flows = e.flows.Load()
		}
		if f.Tapped() {
			l.show(e, f, i, raw, size, true)
		}
		if f.Protected() {
			l.convert(e, f, b, size)
			continue
		}
		for rest := b; ; rest = rest[size:] {
			f.Counters.Receive(l.now, rest[:min(size, len(rest))])
			if len(rest) <= size {
				break
			}
		}
		if !f.To.Valid() {
			f.Counters.Drop(media.NoPeer, segments(b, size))
			continue
		}
		l.queue.add(e, f, b, size)
	}
	return packets
}

// show shows message i, packets of size bytes, to the tap of a flow if that has one.
func (l *loop) show(e *entry, f *media.Flow, i int, b []byte, size int, relayed bool) {
	if !f.Tapped() {
		return
	}
	if e.socket.Shared != nil {
		size = len(b) // with its tag, which is not counted in size
	}
	for ; len(b) > 0; b = b[min(size, len(b)):] {
		f.Arrived(e.socket, &l.names[i], l.now, b[:min(size, len(b))], relayed)
	}
}

// carry queues what channels carry of n messages, and returns how many packets came in the longest burst of one source.
func (l *loop) carry(e *entry, first, n int) (burst int) {
	streak := 0
	for i := first; i < first+n; i++ {
		size := l.reset(e, i)
		rest := l.message(i)
		if i > first && !l.names[i].Equal(&l.names[i-1]) {
			streak = 0
		}
		streak += segments(rest, size)
		burst = max(burst, streak)
		for {
			b := rest[:min(size, len(rest))]
			if f, data := e.socket.Channels.Pick(b, &l.names[i]); f != nil {
				f.Counters.Receive(l.now, data)
				l.queue.add(e, f, data, len(data))
			}
			if rest = rest[len(b):]; len(rest) == 0 {
				break
			}
		}
	}
	return burst
}

// message returns what was received into buffer i.
func (l *loop) message(i int) []byte { return l.buffers[i*slot : i*slot+int(l.in[i].len)] }

// convert moves packets of size bytes whose protection changes on the way.
func (l *loop) convert(e *entry, f *media.Flow, b []byte, size int) {
	if l.scratch == nil {
		l.scratch = new(media.Scratch) // most edges have no such flow
	}
	l.queue.flush() // the others of the round keep their place
	for ; len(b) > 0; b = b[min(size, len(b)):] {
		if to, out := f.Convert(l.scratch, l.now, b[:min(size, len(b))]); out != nil {
			l.queue.add(e, to, out, len(out))
			l.queue.flush() // the scratch is free again
		}
	}
}

// reset reads what the kernel says about message i, makes its header ready for the next one, and returns
// the size of the packets in it: all but the last have it.
func (l *loop) reset(e *entry, i int) (size int) {
	hdr := &l.in[i].hdr
	l.names[i].Len, hdr.Namelen = hdr.Namelen, uint32(len(l.names[i].Raw))
	size = int(l.in[i].len)
	if hdr.Controllen == 0 {
		hdr.SetControllen(notesSize)
		return size
	}
	for m, rest, ok := nextControl(l.notes[i][:min(int(hdr.Controllen), notesSize)]); ok; m, rest, ok = nextControl(rest) {
		if len(m.data) < 4 {
			continue
		}
		switch value := binary.NativeEndian.Uint32(m.data); {
		case m.is(unix.SOL_SOCKET, unix.SO_RXQ_OVFL):
			// The kernel says how many it was in all, with each packet since the first that was dropped.
			if value != e.overflows {
				e.flows.Load().first.Counters.Drop(media.ReceiveQueue, int(value-e.overflows))
				e.overflows = value
			}
		case m.is(unix.SOL_UDP, unix.UDP_GRO) && value > 0:
			size = min(size, int(value))
		}
	}
	hdr.SetControllen(notesSize)
	return size
}
