package ils

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// maxEntries bounds the registry.
	maxEntries = 16384
	// maxPerHost bounds the names of one inside host.
	maxPerHost = 32
	// maxResolved bounds the outside hosts whose last lookup is remembered.
	maxResolved = 8192
	// pendingClaim is how long an address of the pool is kept for a registration not yet confirmed.
	pendingClaim = time.Minute
)

// Protocol says what an inbound connection is for.
type Protocol uint8

const (
	// H323 is call signalling, 1720 unless the entry says another port.
	H323 Protocol = iota
	// T120 is data conferencing, 1503 unless the entry says another port.
	T120
)

// Entry is an inside host that a directory knows by name.
type Entry struct {
	// Name is the first of its names, in lower case: cn, often user@example.org.
	Name string `json:"name"`
	// Host is the inside host.
	Host netip.Addr `json:"host"`
	// Ports are where the host takes calls, by [Protocol].
	Ports [2]uint16 `json:"ports"`
	// Public is its own address of the pool; not valid if it shares the network's.
	Public netip.Addr `json:"public,omitzero"`
	// Expires is when the entry ends unless it is refreshed.
	Expires time.Time `json:"expires"`
}

// Addr returns where the host takes calls of a protocol.
func (e Entry) Addr(p Protocol) netip.AddrPort { return netip.AddrPortFrom(e.Host, e.Ports[p]) }

// Registry knows the inside hosts that registered at a directory, so that calls from outside find them. Its
// methods may be called concurrently.
type Registry struct {
	lifetime, memory time.Duration
	pool             []netip.Addr

	mu       sync.Mutex // guards what follows
	byName   map[string]*record
	perHost  map[netip.Addr]int
	byPool   map[netip.Addr]*claim
	byClient map[netip.Addr]resolution
	sweepAt  time.Time
	changed  bool // since the last snapshot
}

type record struct {
	Entry
	names []string
}

type claim struct {
	name    string
	expires time.Time
}

type resolution struct {
	name    string
	expires time.Time
}

func newRegistry(c Config) *Registry {
	return &Registry{
		lifetime: c.Lifetime, memory: c.Memory, pool: slices.Clone(c.Pool),
		byName: map[string]*record{}, perHost: map[netip.Addr]int{}, byPool: map[netip.Addr]*claim{}, byClient: map[netip.Addr]resolution{},
	}
}

// Lookup returns the entry of a name: the cn, or the mailbox, in any case.
func (r *Registry) Lookup(name string) (Entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookupLocked(foldName(name), time.Now())
}

func (r *Registry) lookupLocked(name string, now time.Time) (Entry, bool) {
	if e := r.byName[name]; e != nil && now.Before(e.Expires) {
		return e.Entry, true
	}
	return Entry{}, false
}

// At returns the entry that has an address of the pool to itself.
func (r *Registry) At(public netip.Addr) (Entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.atLocked(public, time.Now())
}

func (r *Registry) atLocked(public netip.Addr, now time.Time) (Entry, bool) {
	if c := r.byPool[public]; c != nil && now.Before(c.expires) {
		return r.lookupLocked(c.name, now)
	}
	return Entry{}, false
}

// Resolved returns the one entry that an outside host looked up last, while that is remembered.
func (r *Registry) Resolved(client netip.Addr) (Entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resolvedLocked(client, time.Now())
}

func (r *Registry) resolvedLocked(client netip.Addr, now time.Time) (Entry, bool) {
	if res, ok := r.byClient[client.Unmap()]; ok && now.Before(res.expires) {
		return r.lookupLocked(res.name, now)
	}
	return Entry{}, false
}

// Route finds the inside host for a call from client that arrived at the edge's address local: by the name
// that is called, if the call says one; by local, if it is of the pool; by what client looked up last. An
// unknown name that is not empty is no reason to give up: callers put all kinds of text there.
func (r *Registry) Route(called string, local, client netip.Addr, p Protocol) (netip.AddrPort, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if e, ok := r.lookupLocked(foldName(called), now); ok {
		return e.Addr(p), true
	}
	if e, ok := r.atLocked(local.Unmap(), now); ok {
		return e.Addr(p), true
	}
	e, ok := r.resolvedLocked(client, now)
	return e.Addr(p), ok
}

// Entries lists the registry by name.
func (r *Registry) Entries() []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweepLocked(time.Now())
	var out []Entry
	for n, e := range r.byName {
		if n == e.Name {
			out = append(out, e.Entry)
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// sweepLocked forgets what has expired, at most once a second: callers come with every message.
func (r *Registry) sweepLocked(now time.Time) {
	if now.Before(r.sweepAt) {
		return
	}
	r.sweepAt = now.Add(time.Second)
	for _, e := range r.byName {
		if !now.Before(e.Expires) {
			r.dropLocked(e)
		}
	}
	for a, c := range r.byPool {
		if !now.Before(c.expires) {
			delete(r.byPool, a)
		}
	}
	for c, res := range r.byClient {
		if !now.Before(res.expires) {
			delete(r.byClient, c)
		}
	}
}

// dropLocked ends an entry and gives its address of the pool back.
func (r *Registry) dropLocked(e *record) {
	r.forgetLocked(e)
	if c := r.byPool[e.Public]; c != nil && c.name == e.Name {
		delete(r.byPool, e.Public)
	}
}

// forgetLocked ends an entry whose address of the pool stays claimed.
func (r *Registry) forgetLocked(e *record) {
	r.changed = true
	for _, n := range e.names {
		if r.byName[n] == e {
			delete(r.byName, n)
		}
	}
	if r.perHost[e.Host]--; r.perHost[e.Host] <= 0 {
		delete(r.perHost, e.Host)
	}
}

// namesOf returns the names of a host, if it is registered only once.
func (r *Registry) namesOf(host netip.Addr) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perHost[host] != 1 {
		return nil
	}
	for _, e := range r.byName {
		if e.Host == host {
			return e.names
		}
	}
	return nil
}

// claimPublic returns the address of the pool that name has or now gets; false if none is free.
func (r *Registry) claimPublic(name string) (netip.Addr, bool) {
	if len(r.pool) == 0 || name == "" {
		return netip.Addr{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	free := netip.Addr{}
	for _, a := range r.pool {
		c := r.byPool[a]
		switch {
		case c != nil && c.name == name:
			c.expires = later(c.expires, now.Add(pendingClaim))
			return a, true
		case !free.IsValid() && (c == nil || !now.Before(c.expires)):
			free = a
		}
	}
	if free.IsValid() {
		r.byPool[free] = &claim{name, now.Add(pendingClaim)}
	}
	return free, free.IsValid()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// registration is what a successful Add or Modify told of an entry.
type registration struct {
	names []string
	host  netip.Addr // not valid: as before
	ports [2]uint16  // 0: as before, or the default
	ttl   time.Duration
}

// register notes a registration. False: the registry, or the host's share of it, is full, or nothing is
// known of the host.
func (r *Registry) register(n registration) bool {
	if len(n.names) == 0 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.sweepLocked(now)
	e := r.byName[n.names[0]]
	switch {
	case e == nil && !n.host.IsValid():
		return false
	case e == nil || n.host.IsValid() && e.Host != n.host:
		if e != nil {
			r.forgetLocked(e)
		}
		if len(r.byName)+len(n.names) > maxEntries || r.perHost[n.host] >= maxPerHost {
			return false
		}
		e = &record{Entry: Entry{Name: n.names[0], Host: n.host, Ports: [2]uint16{H323: portH323, T120: portT120}}}
		r.perHost[n.host]++
	}
	for _, name := range n.names {
		if !slices.Contains(e.names, name) && len(e.names) < maxNames && (r.byName[name] == nil || name == e.Name) {
			e.names = append(e.names, name)
			r.byName[name] = e
		}
	}
	for p, port := range n.ports {
		e.Ports[p] = cmp.Or(port, e.Ports[p])
	}
	e.Expires = now.Add(cmp.Or(n.ttl, r.lifetime))
	r.holdPoolLocked(e)
	r.changed = true
	return true
}

// holdPoolLocked gives the entry the address of the pool that was claimed for it, for as long as it lives.
func (r *Registry) holdPoolLocked(e *record) {
	for a, c := range r.byPool {
		if slices.Contains(e.names, c.name) {
			c.name, c.expires = e.Name, e.Expires
			e.Public = a
		}
	}
}

// refresh prolongs an entry.
func (r *Registry) refresh(name string, ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byName[name]; e != nil {
		e.Expires = time.Now().Add(cmp.Or(ttl, r.lifetime))
		r.holdPoolLocked(e)
		r.changed = true
	}
}

// remove ends an entry.
func (r *Registry) remove(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byName[name]; e != nil {
		r.dropLocked(e)
	}
}

// resolve remembers that an outside host has looked up a name.
func (r *Registry) resolve(client netip.Addr, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.sweepLocked(now)
	if _, had := r.byClient[client]; !had && len(r.byClient) >= maxResolved {
		for c := range r.byClient { // any: a flood of strangers must not keep all others out
			delete(r.byClient, c)
			break
		}
	}
	r.byClient[client] = resolution{name, now.Add(r.memory)}
	r.changed = true
}
