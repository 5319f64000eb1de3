package splice

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"time"
)

// Why a join ended, beside errors of the sockets.
var (
	// ErrIdle says that no byte came from either side for Options.Idle.
	ErrIdle = errors.New("idle for too long")
	// ErrLimit says that a side sent more than its Options.Limit.
	ErrLimit = errors.New("more bytes than allowed")
	// ErrClosed says that the joiner has ended.
	ErrClosed = errors.New("joiner closed")
)

// Options say what a join may do. Index 0 is what comes from a, index 1 what comes from b.
// The zero value has no limits.
type Options struct {
	// Prefix was read from the side already, and is written to the other side before all else.
	// It must not be changed until the join has ended.
	Prefix [2][]byte
	// Limit is how many bytes may come from the side, prefix included; 0 = no limit. The first
	// byte more ends the join with ErrLimit.
	Limit [2]int64
	// Idle ends the join with ErrIdle when no byte came from either side for so long; 0 = never.
	Idle time.Duration
	// Counters, if not nil, are kept up to date while the join lives.
	Counters *Counters
}

func (o *Options) begin() {
	if o.Counters == nil {
		o.Counters = &Counters{}
	}
	o.Counters.last.Store(time.Now().UnixNano())
}

// Counters are live figures of a join. All methods may be called at any time.
type Counters struct {
	bytes, reads [2]atomic.Uint64
	last         atomic.Int64
}

// Bytes returns how many bytes came from a side (0 is a, 1 is b), prefix included.
func (c *Counters) Bytes(from int) uint64 { return c.bytes[from].Load() }

// Reads returns in how many pieces they came.
func (c *Counters) Reads(from int) uint64 { return c.reads[from].Load() }

// Last returns when the last byte came, or when the join began; the zero time before that.
func (c *Counters) Last() time.Time {
	if ns := c.last.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

func (c *Counters) add(from uint8, n int, now int64) {
	c.bytes[from].Add(uint64(n))
	c.reads[from].Add(1)
	c.last.Store(now)
}

// Result is what became of a join.
type Result struct {
	// Bytes came from a and from b.
	Bytes [2]uint64
	// Err is nil if both sides have ended in order; else both were reset.
	Err error
}

// Joiner joins connections. Its methods may be called by any goroutine.
type Joiner struct {
	loops []*loop
	next  atomic.Uint32
}

// New returns a joiner with so many loops; 0 = one for each core. It does nothing before Serve, which
// must be called: it is what gives back the descriptors.
func New(loops int) (*Joiner, error) {
	if loops <= 0 {
		loops = runtime.GOMAXPROCS(0)
	}
	j := &Joiner{}
	for range loops {
		l, err := newLoop()
		if err != nil {
			for _, l := range j.loops {
				l.close()
			}
			return nil, fmt.Errorf("splice: %w", err)
		}
		j.loops = append(j.loops, l)
	}
	return j, nil
}

// Serve moves bytes until ctx ends; what is joined then is reset. It can be called once.
func (j *Joiner) Serve(ctx context.Context) error {
	ended := make(chan error, len(j.loops)) // room for one result of each
	for _, l := range j.loops {
		go l.serve(ended)
	}
	var first error
	left := len(j.loops)
	select {
	case <-ctx.Done():
	case first = <-ended: // only after an error of epoll
		left--
	}
	for _, l := range j.loops {
		l.stop()
	}
	for range left {
		if err := <-ended; first == nil {
			first = err
		}
	}
	for _, l := range j.loops {
		l.close()
	}
	if first != nil {
		return fmt.Errorf("splice: %w", first)
	}
	return nil
}

// Join owns both connections from now on. It returns when both have ended in order, or have been
// reset: after an error of either, at a limit, or when ctx ends. What a side was sent before its half of the
// stream ended still arrives after an end of ctx.
//
// A *net.TCPConn is closed at once: its descriptor moves to a loop. Other connections, and TCP when
// no descriptor is left to do so, are copied by two goroutines; half-closing them takes a CloseWrite
// method, without which the end of one direction ends the join.
func (j *Joiner) Join(ctx context.Context, a, b net.Conn, o Options) Result {
	o.begin()
	ta, ok := a.(*net.TCPConn)
	tb, both := b.(*net.TCPConn)
	if ok && both {
		if p, err := newPair(ta, tb, o); err == nil {
			return j.loops[int(j.next.Add(1))%len(j.loops)].join(ctx, p)
		}
	}
	return copyBoth(ctx, a, b, o)
}
