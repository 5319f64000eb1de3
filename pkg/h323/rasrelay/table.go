package rasrelay

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/h323/gatekeeper"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

// endpoint is one that the gatekeeper has registered, or is being asked to.
type endpoint struct {
	id         string // the gatekeeper's; empty until it has confirmed
	host       netip.Addr
	network    string
	local      netip.AddrPort // the edge's socket that it speaks to
	ras        netip.AddrPort // where it takes requests
	signalling netip.AddrPort // where it takes calls
	door       Door
	// home is where the gatekeeper takes calls.
	home netip.AddrPort
	// aliases are those that the gatekeeper has confirmed, offered those of the last RRQ.
	aliases, offered []string
	heard, until     time.Time
}

// table finds endpoints.
type table struct {
	byID    map[string]*endpoint
	byAddr  map[netip.AddrPort]*endpoint // by where they take calls
	byRAS   map[netip.AddrPort]*endpoint
	byDoor  map[netip.AddrPort]*endpoint
	byAlias map[string]*endpoint
	hosts   map[netip.Addr]int
	calls   map[h225.ID]callOf
}

// callOf is a call that an endpoint has told the gatekeeper of.
type callOf struct {
	ep *endpoint
	at time.Time
}

func newTable() table {
	return table{
		byID: make(map[string]*endpoint), byAddr: make(map[netip.AddrPort]*endpoint), byRAS: make(map[netip.AddrPort]*endpoint),
		byDoor: make(map[netip.AddrPort]*endpoint), byAlias: make(map[string]*endpoint), hosts: make(map[netip.Addr]int),
		calls: make(map[h225.ID]callOf),
	}
}

func (t *table) add(e *endpoint) {
	t.byAddr[e.signalling] = e
	t.byDoor[e.door.Addr()] = e
	t.hosts[e.host]++
}

// confirm enters what the gatekeeper has confirmed.
func (t *table) confirm(e *endpoint, id string) {
	if t.byAddr[e.signalling] != e {
		return // removed in the meantime
	}
	if old := t.byID[id]; old != nil && old != e {
		t.remove(old)
	}
	t.unlist(e)
	e.id, e.aliases = id, e.offered
	t.byID[id], t.byRAS[e.ras] = e, e
	for _, a := range e.aliases {
		t.byAlias[a] = e
	}
}

// unlist removes everything by which an endpoint is found but its address.
func (t *table) unlist(e *endpoint) {
	if t.byID[e.id] == e {
		delete(t.byID, e.id)
	}
	for at, o := range t.byRAS {
		if o == e {
			delete(t.byRAS, at)
		}
	}
	for _, a := range e.aliases {
		if t.byAlias[a] == e {
			delete(t.byAlias, a)
		}
	}
}

func (t *table) remove(e *endpoint) {
	if t.byAddr[e.signalling] != e {
		return
	}
	t.unlist(e)
	delete(t.byAddr, e.signalling)
	delete(t.byDoor, e.door.Addr())
	if t.hosts[e.host]--; t.hosts[e.host] <= 0 {
		delete(t.hosts, e.host)
	}
	for id, c := range t.calls {
		if c.ep == e {
			delete(t.calls, id)
		}
	}
	e.door.Close()
}

// callTime is how long it is remembered whose a call is; an IRR or BRQ makes it longer.
const callTime = 24 * time.Hour

func (t *table) noteCall(id h225.ID, e *endpoint, now time.Time) {
	if _, known := t.calls[id]; known || len(t.calls) < maxRoutes {
		t.calls[id] = callOf{e, now}
	}
}

func (t *table) ofCall(id h225.ID) *endpoint { return t.calls[id].ep }

// quietest returns the endpoint that has not been heard of for longest: the one whose life a gatekeeper asks about
// when it names none.
func (t *table) quietest() *endpoint {
	var best *endpoint
	for _, e := range t.byID {
		if best == nil || e.heard.Before(best.heard) || e.heard.Equal(best.heard) && e.id < best.id {
			best = e
		}
	}
	return best
}

func fold(alias string) string { return strings.ToLower(strings.TrimPrefix(alias, "h323:")) }

func terminalAliases(in received) (out []string) {
	for _, a := range in.Aliases(nil) {
		if a.Field == "terminalAlias" && a.Text != "" && len(out) < maxAliases {
			out = append(out, fold(a.Text))
		}
	}
	return out
}

// h225CallAddress returns where an endpoint takes calls.
func h225CallAddress(in received) (netip.AddrPort, bool) {
	return gatekeeper.CallAddress(in.Message, in.from)
}

// rasAddress returns where an endpoint takes requests: what it names of its own host, else where it sends from.
func rasAddress(in received) netip.AddrPort {
	for _, a := range in.Addresses(nil) {
		if a.Field == h245.RasAddress && a.AddrPort.Addr() == in.from.Addr() && a.AddrPort.Port() != 0 {
			return a.AddrPort
		}
	}
	return in.from
}

// routeKey finds where an admitted call goes: by its callIdentifier, or its conferenceID for those of version 1.
type routeKey struct {
	host netip.Addr
	id   h225.ID
}

type route struct {
	to    netip.AddrPort
	until time.Time
}

func (r *Relay) admit(p *pending, to netip.AddrPort, now time.Time) {
	for _, id := range [...]h225.ID{p.call, p.conf} {
		if id == (h225.ID{}) || len(r.routes) >= maxRoutes {
			continue
		}
		r.routes[routeKey{p.peer.Addr(), id}] = route{to, now.Add(routeTime)}
	}
}

// Admitted returns where the call of a host goes that the gatekeeper has admitted.
func (r *Relay) Admitted(now time.Time, host netip.Addr, ids ...h225.ID) (netip.AddrPort, bool) {
	for _, id := range ids {
		if to, ok := r.routes[routeKey{host, id}]; ok && !now.After(to.until) {
			return r.resolve(to.to), true
		}
	}
	return netip.AddrPort{}, false
}

// resolve returns the endpoint behind a door, other addresses as they are.
func (r *Relay) resolve(at netip.AddrPort) netip.AddrPort {
	if e := r.table.byDoor[at]; e != nil {
		return e.signalling
	}
	return at
}

// Lookup returns where the registered endpoint with an alias takes calls.
func (r *Relay) Lookup(now time.Time, alias string) (netip.AddrPort, bool) {
	e := r.table.byAlias[fold(alias)]
	if e == nil || now.After(e.until) {
		return netip.AddrPort{}, false
	}
	return e.signalling, true
}

// Home returns where calls of a host go that has registered but not asked: to its gatekeeper (preGrantedARQ).
func (r *Relay) Home(host netip.Addr) (netip.AddrPort, bool) {
	for _, e := range r.table.byID {
		if e.host == host && e.home.IsValid() {
			return e.home, true
		}
	}
	return netip.AddrPort{}, false
}

// DoorOf returns the door of an endpoint of a host; of several, that of who takes calls at the address given.
func (r *Relay) DoorOf(host netip.Addr, signalling netip.AddrPort) (netip.AddrPort, bool) {
	if e := r.table.byAddr[signalling]; e != nil && e.host == host && e.id != "" {
		return e.door.Addr(), true
	}
	var found *endpoint
	for _, e := range r.table.byID {
		if e.host == host && (found == nil || e.id < found.id) {
			found = e
		}
	}
	if found == nil {
		return netip.AddrPort{}, false
	}
	return found.door.Addr(), true
}

// Registrations lists the endpoints that the gatekeeper has confirmed, in no order.
func (r *Relay) Registrations() []gatekeeper.Registration {
	out := make([]gatekeeper.Registration, 0, len(r.table.byID))
	for _, e := range r.table.byID {
		out = append(out, gatekeeper.Registration{
			ID: e.id, Aliases: slices.Clone(e.aliases), Network: e.network, Signalling: e.signalling, Door: e.door.Addr(), Expires: e.until,
		})
	}
	return out
}

// sweep removes what has expired.
func (r *Relay) sweep(now time.Time) {
	if now.Sub(r.swept) < sweepEvery {
		return
	}
	r.swept = now
	for _, e := range r.table.byAddr {
		if now.After(e.until) {
			r.table.remove(e)
		}
	}
	for seq, p := range r.pending {
		if now.After(p.until) {
			r.forget(seq)
		}
	}
	for o, until := range r.asked {
		if now.After(until) {
			delete(r.asked, o)
		}
	}
	for k, to := range r.routes {
		if now.After(to.until) {
			delete(r.routes, k)
		}
	}
	for id, c := range r.table.calls {
		if now.Sub(c.at) > callTime {
			delete(r.table.calls, id)
		}
	}
}

// Sweep removes what has expired; it may be called as often as one likes.
func (r *Relay) Sweep(now time.Time) { r.sweep(now) }

// Close closes all doors.
func (r *Relay) Close() {
	for _, e := range r.table.byAddr {
		r.table.remove(e)
	}
}

// learn remembers what a reply of the gatekeeper's settles.
func (r *Relay) learn(in received, p *pending) {
	switch in.Kind {
	case ras.GCF:
		r.discovered(in)
	case ras.RCF:
		life := defaultLife
		if said, ok := in.TimeToLive(); ok && said > 0 {
			life = said
		}
		if p.ep != nil && in.EndpointID() != "" {
			r.table.confirm(p.ep, in.EndpointID())
			p.ep.until, p.ep.heard = in.now.Add(life+grace), in.now
			p.ep.home = first(in, h245.CallSignalAddress, p.ep.home)
		}
	case ras.RRJ:
		if p.ep != nil && p.ep.id == "" {
			r.table.remove(p.ep)
		}
	case ras.UCF:
		if p.ep != nil {
			r.table.remove(p.ep)
		}
	case ras.ACF:
		if to := first(in, h245.DestCallSignalAddress, netip.AddrPort{}); to.IsValid() && !p.answer {
			r.admit(p, to, in.now)
		}
	case ras.ARJ:
		if to := first(in, h245.CallSignalAddress, netip.AddrPort{}); to.IsValid() && !p.answer {
			r.admit(p, to, in.now) // routeCallToGatekeeper
		}
	}
}

// discovered takes over where the gatekeeper wants its requests, if that is its own host.
func (r *Relay) discovered(in received) {
	at := first(in, h245.RasAddress, netip.AddrPort{})
	if at.Addr() == r.cfg.Gatekeeper.Addr() && at.Port() != 0 && at != r.ras {
		r.ras = at
		r.ports = map[uint16]bool{r.cfg.Gatekeeper.Port(): true, at.Port(): true}
	}
}

// first returns the first usable address of a field, or what stands for it.
func first(in received, f h245.Field, or netip.AddrPort) netip.AddrPort {
	for _, a := range in.Addresses(nil) {
		if a.Field == f && a.AddrPort.Port() != 0 && !a.AddrPort.Addr().IsUnspecified() {
			return a.AddrPort
		}
	}
	return or
}
