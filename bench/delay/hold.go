package delay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// holdEnv marks the process that holds packets; its value is a Config, its descriptors 3 and 4 are the devices.
const holdEnv = "BENCH_DELAY_HOLD"

// maxPacket is the longest that a device gives: a header of virtio and 64 KiB.
const maxPacket = 10 + 64<<10

// maxPackets bounds those that wait in a direction.
const maxPackets = 1 << 16

// Serve holds packets, if this is the process for that, and then ends it; else it does nothing.
func Serve() {
	text := os.Getenv(holdEnv)
	if text == "" {
		return
	}
	if err := serve(text); err != nil {
		fmt.Fprintln(os.Stderr, "bench/delay:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(text string) error {
	var c Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	runtime.GOMAXPROCS(5) // nobody waits for a turn
	failed := make(chan error, 4)
	ways := []*way{newWay(3, 4, c), newWay(4, 3, c)}
	for _, w := range ways {
		go func() { failed <- w.take() }()
		go func() { failed <- w.give() }()
	}
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin) // until the other end closes it
		failed <- err
	}()
	if err := <-failed; err != nil {
		return err
	}
	var s Stats
	for _, w := range ways {
		w.mu.Lock()
		s.Packets, s.Dropped, s.Late = s.Packets+w.stats.Packets, s.Dropped+w.stats.Dropped, s.Late+w.stats.Late
		s.Latest = max(s.Latest, w.stats.Latest)
		w.mu.Unlock()
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// way is one direction. Packets lie in buf, one behind the other, where they were read; one that does not fit before
// the end lies at the beginning again.
type way struct {
	from, to int
	c        Config
	start    time.Time
	buf      []byte
	scratch  []byte // for what is dropped

	mu      sync.Mutex
	more    sync.Cond
	packets [maxPackets]packet // a ring
	first   int
	n       int
	next    int           // in buf, where the next is read to
	free    time.Duration // with a rate: when what has come has gone, since start
	stats   Stats
}

type packet struct {
	due    time.Duration // since start
	at, to int           // in buf
}

func newWay(from, to int, c Config) *way {
	w := &way{from: from, to: to, c: c, start: time.Now(), buf: make([]byte, c.Limit+maxPacket), scratch: make([]byte, maxPacket)}
	w.more.L = &w.mu
	return w
}

// take reads packets as they come.
func (w *way) take() error {
	runtime.LockOSThread()
	for {
		b := w.room()
		n, err := read(w.from, b)
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		w.took(b, n)
	}
}

// room returns where the next packet is to be read to: scratch, if it will be dropped.
func (w *way) room() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	oldest := w.packets[w.first].at
	switch {
	case w.n == 0:
		w.next = 0
	case w.n == maxPackets:
		return w.scratch
	case w.next <= oldest: // it has begun anew before them
		if oldest-w.next < maxPacket {
			return w.scratch
		}
	case len(w.buf)-w.next < maxPacket:
		if oldest < maxPacket {
			return w.scratch
		}
		w.next = 0
	}
	return w.buf[w.next : w.next+maxPacket]
}

// took queues what was read to b.
func (w *way) took(b []byte, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.Packets++
	now := time.Since(w.start)
	begins := max(now, w.free)
	if &b[0] == &w.scratch[0] || w.c.Rate > 0 && begins-now > w.c.Queue {
		w.stats.Dropped++
		return
	}
	if w.c.Rate > 0 {
		w.free = begins + time.Duration(float64(n)*8e9/w.c.Rate)
		begins = w.free
	}
	w.packets[(w.first+w.n)%maxPackets] = packet{begins + w.c.OneWay, w.next, w.next + n}
	w.n++
	w.next += n
	w.more.Signal()
}

// give writes each packet when it is due.
func (w *way) give() error {
	runtime.LockOSThread()
	for {
		p := w.oldest()
		for left := p.due - time.Since(w.start); left > 0; left = p.due - time.Since(w.start) {
			ts := unix.NsecToTimespec(int64(left))
			if err := unix.Nanosleep(&ts, nil); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("sleep: %w", err)
			}
		}
		_, err := unix.Write(w.to, w.buf[p.at:p.to])
		w.gave(time.Since(w.start)-p.due, err)
	}
}

// oldest waits for the packet that is due next. It stays queued, so its bytes stay.
func (w *way) oldest() packet {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.n == 0 {
		w.more.Wait()
	}
	return w.packets[w.first]
}

// gave forgets the packet that was written, or that the other device did not take.
func (w *way) gave(late time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.first, w.n = (w.first+1)%maxPackets, w.n-1
	if err != nil {
		w.stats.Dropped++
	}
	if late > time.Millisecond {
		w.stats.Late++
	}
	w.stats.Latest = max(w.stats.Latest, late)
}

func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
