package splice

import (
	"golang.org/x/sys/unix"
)

const (
	// maxPipes bounds the pipes of a loop, idlePipes those that are kept empty. Only a direction whose
	// reader does not keep up holds a pipe for longer than a round.
	maxPipes, idlePipes = 1024, 16
	// pipeSize is asked of the kernel, which grants less to users that have much already. A pipe has a
	// slot for each 4 KiB of it, and a segment of 1,448 bytes takes a slot.
	pipeSize = 1 << 20
	// pipeRest is how long nobody asks for a pipe after one could not be made.
	pipeRest = 1e9 // ns
)

// pipe is where the kernel keeps spliced bytes.
type pipe struct{ r, w, size int }

// pipes is the supply of a loop.
type pipes struct {
	idle []*pipe
	// made counts all that exist.
	made int
	// restUntil is when, in the loop's clock, one may be made again.
	restUntil int64
}

// get returns an empty pipe, nil if there is none now.
func (s *pipes) get(now int64) *pipe {
	if n := len(s.idle); n > 0 {
		p := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return p
	}
	if s.made >= maxPipes || now < s.restUntil {
		return nil
	}
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		s.restUntil = now + pipeRest // out of descriptors
		return nil
	}
	s.made++
	// What it has without that is enough to work.
	_, _ = unix.FcntlInt(uintptr(fd[0]), unix.F_SETPIPE_SZ, pipeSize)
	size, err := unix.FcntlInt(uintptr(fd[0]), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		size = 1 << 16
	}
	return &pipe{fd[0], fd[1], size}
}

// put takes a pipe back; one that still holds bytes is closed.
func (s *pipes) put(p *pipe, empty bool) {
	if empty && len(s.idle) < idlePipes {
		s.idle = append(s.idle, p)
		return
	}
	s.discard(p)
}

func (s *pipes) discard(p *pipe) {
	unix.Close(p.r)
	unix.Close(p.w)
	s.made--
}

func (s *pipes) close() {
	for _, p := range s.idle {
		s.discard(p)
	}
	s.idle = nil
}
