package fastpath

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
)

const (
	// lookEvery is how often routes and neighbours are looked at, restEvery how often at most.
	lookEvery = time.Second
	restEvery = 100 * time.Millisecond
	// noProgram is a reason.
	noProgram = "the device to the peer has no program"
)

// work brings streams into the kernel, and keeps their ways true, until ctx ends.
func (p *Path) work(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	var watching sync.WaitGroup
	defer watching.Wait()
	p.watch(ctx, &watching)
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	var looked, rerouted time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
			p.install()
			p.installChannels()
			p.tcp.tend(time.Now())
		case now := <-tick.C:
			if due, routes := p.due(now, looked, rerouted); due {
				p.refreshWays(now, routes)
				if looked = now; routes {
					rerouted = now
				}
			}
			p.tcp.tend(now)
		}
	}
}

// due tells whether neighbours must be looked at, and whether routes too: these once a second at most,
// as a router's table may never rest.
func (p *Path) due(now, looked, rerouted time.Time) (due, routes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	routes = p.rerouted && now.Sub(rerouted) >= lookEvery
	due = p.changed || routes || now.Sub(looked) >= lookEvery
	if routes {
		p.rerouted = false
	}
	if due {
		p.changed = false
	}
	return due, routes
}

// watch has changes of routes and neighbours noticed soon. Where it fails, the timer still finds them.
func (p *Path) watch(ctx context.Context, watching *sync.WaitGroup) {
	neighbours, routes := make(chan netlink.NeighUpdate), make(chan netlink.RouteUpdate)
	if err := netlink.NeighSubscribe(neighbours, ctx.Done()); err != nil {
		p.log.Warn("kernel media path: neighbours are not watched", zap.Error(err))
	} else {
		watching.Go(func() { drain(p, neighbours, &p.changed) })
	}
	if err := netlink.RouteSubscribe(routes, ctx.Done()); err != nil {
		p.log.Warn("kernel media path: routes are not watched", zap.Error(err))
	} else {
		watching.Go(func() { drain(p, routes, &p.rerouted) })
	}
}

// drain ends when netlink closes ch, which it does when the context of work ends.
func drain[T any](p *Path, ch <-chan T, noticed *bool) {
	for range ch {
		p.mu.Lock()
		*noticed = true
		p.mu.Unlock()
	}
}

// install brings the streams that were changed into the kernel.
func (p *Path) install() {
	for {
		st, r := p.next()
		if st == nil {
			return
		}
		back, forth := p.way(r.from, r.in), p.way(r.to, r.out)
		p.mu.Lock()
		if why := p.putLocked(st, r, back, forth); why != "" {
			st.why = why
			p.leaveLocked(back)
			p.leaveLocked(forth)
		}
		p.mu.Unlock()
	}
}

// next returns a stream that is to be brought into the kernel, and its route; nil if there is none.
func (p *Path) next() (*stream, route) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for st := range p.dirty {
		delete(p.dirty, st)
		switch why := p.reasonLocked(st); {
		case why != "":
			p.takeLocked(st, why)
		case !st.on:
			return st, routeOf(st)
		}
	}
	return nil, route{}
}

func routeOf(st *stream) route {
	f := st.flow
	return route{from: f.From.AddrPort(), in: st.sock.Local, out: f.Out.Local, to: f.To.AddrPort()}
}

// putLocked puts the stream into the kernel unless it has changed since it was looked at; else it says
// why not.
func (p *Path) putLocked(st *stream, r route, back, forth *way) string {
	switch why := p.reasonLocked(st); {
	case p.kern == nil || p.streams[st.sock] != st:
		return "closed"
	case why != "":
		return why
	case st.on || routeOf(st) != r:
		return "being looked at" // it is dirty again
	case back.why != "":
		return back.why
	case forth.why != "":
		return forth.why
	case p.kern.devices[int(back.hop.Device)] == nil:
		return noProgram
	}
	st.counters = st.flow.Counters
	v := r.value(st.counters.IsRTP(), p.dscp)
	v.Device, v.Hop = back.hop.Device, forth.slot
	v.Mac = p.kern.devices[int(v.Device)].mac
	if c, err := readClock(); err == nil {
		v.Last = c.ns // so that a daemon that finds it knows how old it is at most
	}
	key := keyOf(st.sock.Local)
	p.abandonLocked(key)
	st.counters.HandOver(true)
	if err := p.kern.objs.Flows.Put(&key, &v); err != nil {
		st.counters.HandOver(false)
		p.log.Debug("kernel flow refused", zap.Stringer("local", st.sock.Local), zap.Error(err))
		return err.Error()
	}
	st.on, st.key, st.seen, st.back, st.forth = true, key, v, back, forth
	p.byKey[key] = st
	return ""
}

// Refresh implements what the relay asks for before it looks for idle leases: the lease of the program
// is renewed, and the counters get to know what it has carried.
func (p *Path) Refresh() {
	c, err := readClock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kern == nil {
		return
	}
	if err == nil {
		err = p.kern.renew(c)
	}
	if err != nil {
		p.log.Error("kernel media path: lease not renewed", zap.Error(err))
		return
	}
	var unknown []tcKey
	err = p.kern.each(func(k tcKey, v *tcFlow) {
		if st, a := p.byKey[k], p.adopted[k]; st != nil {
			p.tell(st, v, c)
		} else if a != nil {
			a.last = v.Last
		} else {
			unknown = append(unknown, k)
		}
	})
	if err != nil {
		p.log.Error("kernel media path: flows not read", zap.Error(err))
	}
	for _, k := range unknown {
		if _, _, err := p.kern.take(k); err != nil {
			p.log.Error("kernel media path: unknown flow not removed", zap.Error(err))
		}
	}
	p.refreshChannelsLocked(c)
	p.ageLocked(c.ns)
}

// tellLocked adds the last figures of a stream to its counters.
func (p *Path) tellLocked(st *stream, v *tcFlow) {
	c, err := readClock()
	if err != nil {
		p.log.Error("kernel media path: no clock", zap.Error(err))
		return
	}
	p.tell(st, v, c)
}

func (p *Path) tell(st *stream, v *tcFlow, c clock) {
	st.counters.Add(v.since(&st.seen, c))
	st.seen = *v
}

var _ interface { //nolint:interfacebloat // all that the relay and its tests ask of a path
	media.Path
	Refresh()
	Carries(*media.Socket) (string, string)
	Occupied(netip.AddrPort) bool
	BindChannel(*media.Socket, uint16, *media.Flow)
	UnbindChannel(*media.Flow)
	CarriesChannel(*media.Flow) (string, string)
} = (*Path)(nil)
