package turn

import (
	"sync"
	"time"
)

// budget is a token bucket of octets that holds a second's worth. The zero value has no limit.
type budget struct {
	mu   *sync.Mutex
	rate float64 // octets a second
	left float64
	at   time.Time
}

func newBudget(rate int) budget {
	return budget{mu: &sync.Mutex{}, rate: float64(rate), left: float64(rate), at: time.Now()}
}

// take tells whether n octets may pass now.
func (b *budget) take(n int) bool { return b.mu == nil || b.takeAt(n, time.Now()) }

func (b *budget) takeAt(n int, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.rate, b.left+b.rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.left < float64(n) {
		return false
	}
	b.left -= float64(n)
	return true
}
