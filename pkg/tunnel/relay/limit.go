package relay

import (
	"sync"
	"time"
)

// bucket bounds a rate. It holds what one second brings; who takes more than there is waits.
type bucket struct {
	mu    sync.Mutex
	rate  float64 // a second; 0: no limit
	level float64
	last  time.Time
}

// set changes the rate.
func (b *bucket) set(rate float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate = rate
	b.level = min(b.level, rate)
}

// fillLocked adds what the time since then has brought. A new bucket is full.
func (b *bucket) fillLocked(now time.Time) {
	if b.last.IsZero() {
		b.level = b.rate
	} else {
		b.level = min(b.level+now.Sub(b.last).Seconds()*b.rate, b.rate)
	}
	b.last = now
}

// try takes one if there is one.
func (b *bucket) try(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		return true
	}
	b.fillLocked(now)
	if b.level < 1 {
		return false
	}
	b.level--
	return true
}

// take takes n and returns how long to wait for what was not there.
func (b *bucket) take(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		return 0
	}
	b.fillLocked(now)
	b.level -= float64(n)
	return b.waitLocked(0)
}

// behind returns what take would, and takes nothing.
func (b *bucket) behind(n int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		return 0
	}
	b.fillLocked(now)
	return b.waitLocked(n)
}

// waitLocked returns when n more will be there.
func (b *bucket) waitLocked(n int) time.Duration {
	return time.Duration(max(float64(n)-b.level, 0) / b.rate * float64(time.Second))
}
