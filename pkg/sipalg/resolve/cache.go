package resolve

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// retry is how long the failure of all servers is remembered, so that a storm of requests
	// does not become a storm of questions.
	retry = 5 * time.Second
	// stale is how long records that have expired still serve while no server answers (RFC 8767),
	// and hold is how long they do before the servers are asked again.
	stale = time.Hour
	hold  = 30 * time.Second
	// maxFlights is how many questions may be under way.
	maxFlights = 512
	// minNegative is how long a denial without an SOA is believed.
	minNegative = 30 * time.Second
	// evictSample is how many entries are looked at to find one to forget.
	evictSample = 16
)

// askFunc asks the DNS. ttl is how long the answer holds, also that of a denial (ErrNotFound).
type askFunc func(ctx context.Context, name string, typ uint16) (records []dns.RR, ttl time.Duration, err error)

type question struct {
	name string
	typ  uint16
}

type entry struct {
	records []dns.RR // never changed
	err     error    // ErrNotFound for a denial
	until   time.Time
	expiry  time.Time // until, before a failure of the servers put it off
}

func (e entry) holds() bool { return time.Now().Before(e.until) }

// cache remembers record sets for their TTL, and asks each question once at a time.
type cache struct {
	ask     askFunc
	size    int
	timeout time.Duration // of one question with all its attempts
	maxTTL  time.Duration
	negTTL  time.Duration
	flights singleflight.Group
	flying  atomic.Int64

	mu      sync.Mutex
	entries map[question]entry
}

func newCache(cfg Config, ask askFunc) *cache {
	return &cache{
		ask: ask, size: cfg.CacheSize, maxTTL: cfg.MaxTTL, negTTL: cfg.NegativeTTL,
		timeout: cfg.Timeout * time.Duration(cfg.Attempts) * maxServers,
		entries: map[question]entry{},
	}
}

// get returns the records of a name, at least one if err is nil. They must not be changed.
func (c *cache) get(ctx context.Context, name string, typ uint16) ([]dns.RR, error) {
	q := question{key(name), typ}
	if e, ok := c.find(q); ok && e.holds() {
		return e.records, e.err
	}
	// The question outlives the one who asked first: others may wait for its answer.
	ch := c.flights.DoChan(dns.TypeToString[typ]+" "+q.name, func() (any, error) {
		shared, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
		defer cancel()
		return c.refresh(shared, q), nil
	})
	select {
	case res := <-ch:
		e := res.Val.(entry)
		return e.records, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *cache) find(q question) (entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[q]
	return e, ok
}

// refresh asks, and remembers the answer.
func (c *cache) refresh(ctx context.Context, q question) entry {
	if e, ok := c.find(q); ok && e.holds() {
		return e // another flight landed between the look into the cache and this one
	}
	if c.flying.Add(1) > maxFlights {
		c.flying.Add(-1)
		return entry{err: fmt.Errorf("%w: too many questions are under way", ErrUnavailable)}
	}
	defer c.flying.Add(-1)
	records, ttl, err := c.ask(ctx, q.name, q.typ)
	now := time.Now()
	e := entry{records: records, err: err}
	switch {
	case err == nil:
		e.until = now.Add(min(ttl, c.maxTTL))
	case errors.Is(err, ErrNotFound):
		e.until = now.Add(min(ttl, c.negTTL))
	default:
		e.until = now.Add(retry)
		if old, ok := c.find(q); ok && old.err == nil && now.Before(old.expiry.Add(stale)) {
			old.until = now.Add(hold)
			c.store(q, old)
			return old
		}
	}
	e.expiry = e.until
	c.store(q, e)
	return e
}

func (c *cache) store(q question, e entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[q]; !ok && len(c.entries) >= c.size {
		c.evictLocked()
	}
	c.entries[q] = e
}

// evictLocked forgets the entry that ends first among a few: maps begin their iteration anywhere.
func (c *cache) evictLocked() {
	var oldest question
	n := 0
	for q, e := range c.entries {
		if n == 0 || e.until.Before(c.entries[oldest].until) {
			oldest = q
		}
		if n++; n == evictSample {
			break
		}
	}
	delete(c.entries, oldest)
}
