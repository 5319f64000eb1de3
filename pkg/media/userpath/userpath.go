// Package userpath is the [media.Path] that carries every flow: it moves packets
// between sockets in user space, needs no privilege, and is what other paths fall
// back to. It decides nothing: the flows do.
//
//	epoll ─► recvmmsg ─► media.Pick ─► Counters.Receive ─► queue ─► sendmmsg
//
// There is one loop, with one epoll set, per core, and no goroutine per socket. A
// packet costs no allocation and no lock; a loop finds a socket's flows by its
// descriptor through atomic pointers. Bursts of one flow are received and sent in a
// piece where the kernel can (burst.go, queue.go). Deleted sockets are closed when
// every loop has finished the round in which it may have seen them (grave.go).
package userpath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
)

// Path moves packets in user space.
type Path struct {
	table table
	loops []*loop

	mu     sync.Mutex
	closed bool
	graves []grave
	// buried is len(graves), for the loops to look at without the lock.
	buried atomic.Int32
	// merges counts how often the kernel was asked to merge bursts of a socket, or to end it.
	merges atomic.Uint64
}

var _ media.Path = (*Path)(nil)

// entry is a socket that is read.
type entry struct {
	socket *media.Socket
	loop   *loop
	flows  atomic.Pointer[flowSet]

	// Only the loop uses these. overflows is how many packets the receive queue had no room for.
	overflows uint32
	// streak is for how many rounds in a row the packets have come, or not come, in bursts.
	streak uint16
	// merging: the kernel may join a burst (UDP_GRO). single: it refused to send one in a piece.
	merging, single bool
}

// flowSet is what was last Set. Most sockets have one flow: it is found without the slice.
type flowSet struct {
	first *media.Flow
	all   []*media.Flow
}

// New returns a path with n loops; 0 means one per core. Serve must be called to release its descriptors.
func New(n int) (*Path, error) {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	p := &Path{}
	for range n {
		l, err := newLoop(p)
		if err != nil {
			p.closeLoops()
			return nil, fmt.Errorf("epoll loop: %w", err)
		}
		p.loops = append(p.loops, l)
	}
	return p, nil
}

// String returns "user".
func (p *Path) String() string { return "user" }

// Serve runs the loops until ctx ends; then it returns nil and can not be called again.
func (p *Path) Serve(ctx context.Context) error {
	errs := make(chan error, len(p.loops)) // one result of each loop
	for _, l := range p.loops {
		go l.serve(errs)
	}
	var err error
	ended := 0
	select {
	case <-ctx.Done():
	case err = <-errs:
		ended = 1
	}
	for _, l := range p.loops {
		l.stop()
	}
	for ; ended < len(p.loops); ended++ {
		err = errors.Join(err, <-errs)
	}
	p.closeLoops()
	p.reap()
	return err
}

func (p *Path) closeLoops() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, l := range p.loops {
		l.close()
	}
}

// Set implements media.Path. The relay calls it for one socket at a time.
func (p *Path) Set(s *media.Socket, flows []*media.Flow) error {
	set := &flowSet{first: flows[0], all: flows}
	if e := p.table.get(s.FD); e != nil && e.socket == s {
		e.flows.Store(set)
		return nil
	}
	e := &entry{socket: s, loop: p.loops[s.Lease%uint64(len(p.loops))]}
	e.flows.Store(set)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	if err := p.table.put(s.FD, e); err != nil {
		return err
	}
	ev := unix.EpollEvent{Events: interest, Fd: int32(s.FD)}
	if err := unix.EpollCtl(e.loop.fd, unix.EPOLL_CTL_ADD, s.FD, &ev); err != nil {
		p.table.clear(s.FD)
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// Delete implements media.Path.
func (p *Path) Delete(s *media.Socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.table.get(s.FD); e != nil && e.socket == s {
		p.table.clear(s.FD)
		if !p.closed {
			// It can only fail if the descriptor is not in the set, which is what is wanted.
			_ = unix.EpollCtl(e.loop.fd, unix.EPOLL_CTL_DEL, s.FD, nil)
		}
	}
	p.buryLocked(s.FD)
}

// table finds entries by descriptor: chunks are made as descriptors come to be used.
type table struct {
	chunks [4096]atomic.Pointer[[chunkSize]atomic.Pointer[entry]]
}

const chunkSize = 256

func (t *table) get(fd int) *entry {
	if c := t.chunks[uint(fd)/chunkSize%uint(len(t.chunks))].Load(); c != nil {
		return c[uint(fd)%chunkSize].Load()
	}
	return nil
}

func (t *table) put(fd int, e *entry) error {
	if fd < 0 || fd/chunkSize >= len(t.chunks) {
		return fmt.Errorf("descriptor %d: %w", fd, unix.EMFILE)
	}
	c := t.chunks[fd/chunkSize].Load()
	if c == nil {
		c = new([chunkSize]atomic.Pointer[entry])
		t.chunks[fd/chunkSize].Store(c)
	}
	c[fd%chunkSize].Store(e)
	return nil
}

func (t *table) clear(fd int) { t.chunks[fd/chunkSize].Load()[fd%chunkSize].Store(nil) }

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// recvmmsg and sendmmsg never block, so the scheduler need not know of them.
func recvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}
