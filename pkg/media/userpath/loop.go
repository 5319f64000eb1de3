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
	// slot holds any UDP datagram.
	slot = 1 << 16
	// interest is edge-triggered: a level-triggered socket is looked at again in the next epoll_wait,
	// which with thousands of them costs a cache miss or more per packet. So a socket that may not be
	// empty after its turn must be rearmed.
	interest = unix.EPOLLIN | 1<<31 // EPOLLET, which x/sys has as a negative number
	// maxErrors bounds the ICMP errors that are read from a socket per round.
	maxErrors = 16
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
	in, out [batch]mmsghdr
	inVec   [batch]unix.Iovec
	outVec  [batch]unix.Iovec
	// sending are the flows of the packets in out.
	sending [batch]*media.Flow
	control [256]byte
	now     time.Time
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
		l.out[i].hdr.Iov = &l.outVec[i]
		l.out[i].hdr.SetIovlen(1)
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
	n, errno := recvmmsg(e.socket.FD, l.in[:])
	if errno != 0 {
		return errno == unix.EAGAIN
	}
	flows := e.flows.Load()
	queued := 0
	for i := range n {
		l.names[i].Len = l.in[i].hdr.Namelen
		l.in[i].hdr.Namelen = uint32(len(l.names[i].Raw))
		f := flows.first
		if !f.From.Equal(&l.names[i]) {
			if f = media.Pick(flows.all, &l.names[i], l.now); f == nil {
				continue
			}
			flows = e.flows.Load()
		}
		size := int(l.in[i].len)
		f.Counters.Receive(l.now, l.buffers[i*slot:i*slot+size])
		if !f.To.Valid() {
			f.Counters.Drop(media.NoPeer, 1)
			continue
		}
		if queued > 0 && l.sending[0].Out != f.Out {
			l.flush(queued)
			queued = 0
		}
		l.queue(queued, f, i, size)
		queued++
	}
	l.flush(queued)
	return n < batch
}

// queue makes packet i the next to leave.
func (l *loop) queue(at int, f *media.Flow, i, size int) {
	l.sending[at] = f
	l.outVec[at].Base = l.inVec[i].Base
	l.outVec[at].SetLen(size)
	l.out[at].hdr.Name = &f.To.Raw[0]
	l.out[at].hdr.Namelen = f.To.Len
}

// flush sends the first n queued packets, which leave by one socket.
func (l *loop) flush(n int) {
	if n == 0 {
		return
	}
	fd := l.sending[0].Out.FD
	retried := false
	for at := 0; at < n; {
		sent, errno := sendmmsg(fd, l.out[at:n])
		if errno == 0 {
			at += sent
			retried = false
			continue
		}
		if (pendingError(errno) || errno == unix.EINTR) && !retried {
			// The error of an earlier packet (ICMP): reading it has cleared it.
			retried = true
			continue
		}
		l.sending[at].Counters.Drop(reason(errno), 1)
		at++
		retried = false
		if errno == unix.EAGAIN {
			for ; at < n; at++ {
				l.sending[at].Counters.Drop(media.Congested, 1)
			}
		}
	}
	clear(l.sending[:n])
}

func pendingError(errno unix.Errno) bool {
	return errno == unix.ECONNREFUSED || errno == unix.EHOSTUNREACH || errno == unix.ENETUNREACH ||
		errno == unix.EMSGSIZE || errno == unix.EPROTO || errno == unix.EACCES
}

func reason(errno unix.Errno) media.Reason {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return media.Congested
	case unix.EMSGSIZE:
		return media.TooBig
	}
	return media.SendError
}

// readErrors reads ICMP errors from the socket's error queue, and tells whether that has emptied it.
func (l *loop) readErrors(e *entry) (empty bool) {
	var name media.Sockaddr
	for range maxErrors {
		hdr := &l.in[0].hdr
		hdr.Name, hdr.Namelen = &name.Raw[0], uint32(len(name.Raw))
		hdr.Control = &l.control[0]
		hdr.SetControllen(len(l.control))
		_, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(e.socket.FD),
			uintptr(unsafe.Pointer(hdr)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		control := l.control[:min(int(hdr.Controllen), len(l.control))]
		name.Len = hdr.Namelen
		hdr.Name, hdr.Namelen, hdr.Control = &l.names[0].Raw[0], uint32(len(l.names[0].Raw)), nil
		hdr.SetControllen(0)
		hdr.Flags = 0
		if errno != 0 {
			// Also clears an error that has no message in the queue.
			_, _ = unix.GetsockoptInt(e.socket.FD, unix.SOL_SOCKET, unix.SO_ERROR)
			return true
		}
		if unreachable(control) {
			l.refused(e, &name)
		}
	}
	return false
}

// refused counts the error at the flow whose peer could not be reached.
func (l *loop) refused(e *entry, peer *media.Sockaddr) {
	for _, f := range e.flows.Load().all {
		if f.Owns(peer) {
			f.Counters.Unreachable(l.now)
			return
		}
	}
}

// unreachable tells whether control messages hold a struct sock_extended_err {errno u32, origin,
// type, code, pad u8, ...} with an ICMP error that says that the peer can not be reached.
func unreachable(control []byte) bool {
	for len(control) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(control) {
			return false
		}
		data := control[unix.CmsgLen(0):max(size, unix.CmsgLen(0))]
		isErr := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR ||
			h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR
		if isErr && len(data) >= 8 {
			errno, origin := unix.Errno(binary.NativeEndian.Uint32(data)), data[4]
			return (origin == unix.SO_EE_ORIGIN_ICMP || origin == unix.SO_EE_ORIGIN_ICMP6) &&
				(errno == unix.ECONNREFUSED || errno == unix.EHOSTUNREACH || errno == unix.ENETUNREACH)
		}
		control = control[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(control)):]
	}
	return false
}
