package mux

import (
	"time"

	"go.uber.org/zap"
)

// Config tunes a session. Zero values mean the defaults.
type Config struct {
	Logger *zap.Logger

	StreamWindow    int // what a new stream's sender may send unread: 256 KiB
	MaxStreamWindow int // up to which that doubles where the reader keeps up: 16 MiB
	SessionWindow   int // unread bytes of all streams together: 64 MiB
	Ring            int // sent bytes that are kept until the peer has them: 16 MiB
	MaxStreams      int // streams that the peer may have open at once: 1024
	Backlog         int // of those, how many may wait for Accept: 128

	PingEvery time.Duration // 25 s; each time up to a fifth more or less
	DeadAfter time.Duration // without any byte though something is outstanding: 6 s
	Linger    time.Duration // how long a session waits for its next carrier: 120 s
	Hello     time.Duration // how long the exchange of HELLOs may take: 10 s
}

// maxCredit is the most that may be granted at once, on a stream or the session.
const maxCredit = 1<<31 - 1

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	size := func(v *int, d, lo int) {
		if *v <= 0 {
			*v = d
		}
		*v = max(min(*v, maxCredit/2), lo)
	}
	size(&c.StreamWindow, 256<<10, 1)
	size(&c.MaxStreamWindow, 16<<20, c.StreamWindow)
	size(&c.SessionWindow, 64<<20, c.StreamWindow)
	size(&c.Ring, 16<<20, chunkSize)
	size(&c.MaxStreams, 1024, 1)
	size(&c.Backlog, 128, 1)
	span := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	span(&c.PingEvery, 25*time.Second)
	span(&c.DeadAfter, 6*time.Second)
	span(&c.Linger, 120*time.Second)
	span(&c.Hello, 10*time.Second)
	return c
}

const (
	ackEvery = 256 << 10             // counted bytes
	ackAfter = 20 * time.Millisecond // after the first that is not acknowledged
	lastWord = time.Second           // for writing END
	drain    = 2 * time.Second       // for Close to have the peer acknowledge everything
)
