package gatekeeper

import (
	"crypto/rand"
	"encoding/base32"
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/pkg/h323/h225"
)

const (
	// minLifetime is the least lifetime that an endpoint may ask for: it refreshes before that.
	minLifetime = 10 * time.Second
	maxAliases  = 32
	// An endpoint of which another one of its host wants an alias is taken for gone when it has not answered goneAsks
	// requests in goneTime.
	goneAsks = 2
	goneTime = 3 * time.Second
	// maxProbes bounds the requests that wait to be sent.
	maxProbes  = 64
	sweepEvery = time.Second
)

// endpoint is a registered endpoint.
type endpoint struct {
	id         string
	host       netip.Addr
	network    string
	aliases    []string
	signalling netip.AddrPort
	ras        netip.AddrPort
	until      time.Time
	// asks are how often it was asked whether it is still there, since asked, without an answer.
	asks  int
	asked time.Time
	// traversal tells that it is behind a NAT and connects when told of a call (H.460.18).
	traversal bool
}

// table finds endpoints by identifier and by alias.
type table struct {
	byID         map[string]*endpoint
	byAlias      map[string]*endpoint
	bySignalling map[netip.AddrPort]*endpoint
	perHost      map[netip.Addr]int
	traversal    map[netip.Addr]int // how many of a host are behind a NAT
	swept        time.Time
}

func newTable() *table {
	return &table{byID: make(map[string]*endpoint), byAlias: make(map[string]*endpoint), bySignalling: make(map[netip.AddrPort]*endpoint), perHost: make(map[netip.Addr]int), traversal: make(map[netip.Addr]int)}
}

// fold makes names alike that differ in case only.
func fold(alias string) string { return strings.ToLower(strings.TrimPrefix(alias, "h323:")) }

// add registers an endpoint, which may say which identifier it had. One that is registered already replaces itself. It
// returns an alias that another one has, and that, or whether the table is full; then nothing has changed.
func (t *table) add(e *endpoint, had string, limit, perHost int) (taken string, rival *endpoint, full bool) {
	before := t.same(e, had)
	for _, a := range e.aliases {
		if o := t.byAlias[a]; o != nil && o != before {
			return a, o, false
		}
	}
	if before != nil {
		e.id = before.id
		t.remove(before)
	}
	if len(t.byID) >= limit || t.perHost[e.host] >= perHost {
		return "", nil, true
	}
	if e.id == "" {
		e.id = newID()
	}
	t.byID[e.id], t.bySignalling[e.signalling] = e, e
	t.perHost[e.host]++
	if e.traversal {
		t.traversal[e.host]++
	}
	for _, a := range e.aliases {
		t.byAlias[a] = e
	}
	return "", nil, false
}

// same returns what an endpoint was registered as before, perhaps before it was started again: it takes calls at the same
// address, or knows its identifier, or asks for its alias from the same port.
func (t *table) same(e *endpoint, had string) *endpoint {
	if o := t.bySignalling[e.signalling]; o != nil {
		return o
	}
	if o := t.byID[had]; o != nil && o.host == e.host {
		return o
	}
	for _, a := range e.aliases {
		if o := t.byAlias[a]; o != nil && o.ras == e.ras {
			return o
		}
	}
	return nil
}

// gone tells whether an endpoint has not answered when it was asked.
func (e *endpoint) gone(now time.Time) bool {
	return now.After(e.until) || e.asks >= goneAsks && now.Sub(e.asked) >= goneTime
}

// newID returns an endpointIdentifier that nobody can guess: whoever knows it may unregister the endpoint.
func newID() string {
	var b [10]byte
	_, _ = rand.Read(b[:])
	return base32.StdEncoding.EncodeToString(b[:])
}

func (t *table) remove(e *endpoint) {
	delete(t.byID, e.id)
	delete(t.bySignalling, e.signalling)
	if t.perHost[e.host]--; t.perHost[e.host] <= 0 {
		delete(t.perHost, e.host)
	}
	if e.traversal {
		if t.traversal[e.host]--; t.traversal[e.host] <= 0 {
			delete(t.traversal, e.host)
		}
	}
	for _, a := range e.aliases {
		if t.byAlias[a] == e {
			delete(t.byAlias, a)
		}
	}
}

// at returns the endpoint of a host that has one of the aliases.
func (t *table) at(host netip.Addr, aliases []h225.Alias) *endpoint {
	for _, a := range aliases {
		if e := t.byAlias[fold(a.Text)]; e != nil && e.host == host {
			return e
		}
	}
	return nil
}

// sweep removes those whose lifetime has ended.
func (t *table) sweep(now time.Time) {
	if now.Sub(t.swept) < sweepEvery {
		return
	}
	t.swept = now
	for _, e := range t.byID {
		if now.After(e.until) {
			t.remove(e)
		}
	}
}
