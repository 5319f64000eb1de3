// Package sourcelimit bounds how often something is done for one source prefix, without remembering sources: answers to
// requests that nobody has signed yet, whose source may be forged. Its memory is a table of fixed size; sources that
// meet in one place of it share a budget.
//
//	source ─► /32 or /56 ─► keyed hash ─► one slot (GCRA: when the budget is full again) ─► yes or no
//
// It knows no protocol and does no I/O.
package sourcelimit

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// slots is the size of the table: 128 KiB, and few neighbours for the sources of an ordinary day.
const slots = 1 << 14

// Limiter bounds. Allow may be called concurrently.
type Limiter struct {
	seed     maphash.Seed
	interval time.Duration // between two that are allowed
	burst    time.Duration
	table    []atomic.Int64
	epoch    time.Time
}

// New allows each source perSecond of them, and burst at once. perSecond 0 allows everything.
func New(perSecond, burst int) *Limiter {
	l := &Limiter{seed: maphash.MakeSeed(), epoch: time.Now()}
	if perSecond > 0 {
		l.interval = time.Second / time.Duration(perSecond)
		l.burst = l.interval * time.Duration(max(burst, 1)-1)
		l.table = make([]atomic.Int64, slots)
	}
	return l
}

// Allow tells whether the source may have one more. Ports do not count: a source has many.
func (l *Limiter) Allow(source netip.Addr) bool { return l.allow(source, time.Since(l.epoch)) }

func (l *Limiter) allow(source netip.Addr, now time.Duration) bool {
	if l.interval == 0 {
		return true
	}
	slot := &l.table[maphash.Comparable(l.seed, prefixOf(source))%slots]
	for {
		full := slot.Load()
		from := max(time.Duration(full), now)
		if from-now > l.burst {
			return false
		}
		if slot.CompareAndSwap(full, int64(from+l.interval)) {
			return true
		}
	}
}

// prefixOf returns what one subscriber has: an IPv4 address, a /56 of IPv6.
func prefixOf(a netip.Addr) [16]byte {
	b := a.As16()
	if !a.Unmap().Is4() {
		clear(b[7:])
	}
	return b
}
