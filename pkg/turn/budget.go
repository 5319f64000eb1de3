package turn

import (
	"sync"
	"time"
)

// budget is a token bucket of octets or packets that holds a second's worth. The zero value has no limit.
type budget struct {
	mu   *sync.Mutex
	rate float64 // a second
	left float64
	at   time.Time
}

// newBudget returns one for a rate; 0: it has no limit.
func newBudget(rate int) budget {
	if rate == 0 {
		return budget{}
	}
	return budget{mu: &sync.Mutex{}, rate: float64(rate), left: float64(rate), at: time.Now()}
}

// limited tells whether there is a limit.
func (b *budget) limited() bool { return b.mu != nil }

// take tells whether n may pass now.
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
