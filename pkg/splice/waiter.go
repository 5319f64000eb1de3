package splice

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// many events in a round mean that more have come meanwhile, so that asking without blocking pays.
	many = 8
	// long is from when on a wait is better left to the runtime's poller. A system call that blocks for more
	// than 20 µs has its processor taken away, and to get one back wakes up another thread of the runtime.
	// The poller costs a second epoll_wait and a switch of goroutines instead.
	long = 50 * time.Microsecond
	// yields is how many rounds run without blocking before other goroutines get a turn.
	yields = 64
)

// waiter waits for events of an epoll descriptor.
type waiter struct {
	events [events]unix.EpollEvent
	n      int // events of the last wait
	errno  unix.Errno
	// file is the epoll descriptor as the runtime's poller knows it.
	file    *os.File
	raw     syscall.RawConn
	look    func(fd uintptr) bool
	limited bool // file has a deadline
	// lasted is how long the last blocking wait took, busy how many did not block since.
	lasted time.Duration
	busy   int
}

// newWaiter takes the descriptor over.
func newWaiter(epoll int) (*waiter, error) {
	w := &waiter{file: os.NewFile(uintptr(epoll), "epoll")}
	var err error
	if w.raw, err = w.file.SyscallConn(); err != nil {
		w.file.Close()
		return nil, fmt.Errorf("epoll: %w", err)
	}
	w.look = func(fd uintptr) bool {
		w.n, w.errno = poll(int(fd), w.events[:])
		return w.n > 0 || w.errno != 0
	}
	return w, nil
}

// wait returns the number of events, 0 after timeout (ms; -1: never).
func (w *waiter) wait(epoll, timeout int) (int, error) {
	if timeout == 0 || w.n >= many {
		if w.n, w.errno = poll(epoll, w.events[:]); w.n > 0 || w.errno != 0 || timeout == 0 {
			if w.busy++; w.busy >= yields {
				w.busy = 0
				runtime.Gosched()
			}
			return w.result()
		}
	}
	w.busy = 0
	begun := time.Now()
	if w.lasted < long {
		n, err := unix.EpollWait(epoll, w.events[:], timeout)
		w.n, w.errno = max(n, 0), 0
		if err != nil {
			errors.As(err, &w.errno)
		}
	} else if err := w.park(timeout); err != nil {
		return 0, err
	}
	w.lasted = time.Since(begun)
	return w.result()
}

func (w *waiter) result() (int, error) {
	if w.errno != 0 && w.errno != unix.EINTR {
		return 0, os.NewSyscallError("epoll_wait", w.errno)
	}
	return w.n, nil
}

// park waits as a goroutine that reads from a connection does.
func (w *waiter) park(timeout int) error {
	var until time.Time
	if timeout > 0 {
		until = time.Now().Add(time.Duration(timeout) * time.Millisecond)
	}
	if timeout > 0 || w.limited {
		w.limited = timeout > 0
		if err := w.file.SetReadDeadline(until); err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
	}
	w.n, w.errno = 0, 0
	if err := w.raw.Read(w.look); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("epoll: %w", err)
	}
	return nil
}
