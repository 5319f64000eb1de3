package fastpath

import (
	"errors"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// way returns the way from one of our addresses to a peer, found now if it is new. The caller holds
// a reference until leaveLocked.
func (p *Path) way(dst, src netip.AddrPort) *way {
	k := wayKey{dst.Addr(), src.Addr()}
	p.mu.Lock()
	w := p.known[k]
	if w != nil {
		w.refs++
		p.mu.Unlock()
		return w
	}
	p.mu.Unlock()
	// Only the worker comes here, so nobody else adds it meanwhile.
	hop, err := p.ways.resolve(k.dst, k.src)
	w = &way{dst: k.dst, src: k.src, refs: 1, checked: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enterLocked(w)
	p.updateLocked(w, hop, err)
	return w
}

// enterLocked gives the way a place in the program's table.
func (p *Path) enterLocked(w *way) {
	p.known[wayKey{w.dst, w.src}] = w
	if n := len(p.free); n > 0 {
		w.slot = p.free[n-1]
		p.free = p.free[:n-1]
		p.bySlot[w.slot] = w
		return
	}
	w.slot = uint32(len(p.bySlot))
	p.bySlot = append(p.bySlot, w)
}

// updateLocked tells the program what the way is now; without one its packets go up.
func (p *Path) updateLocked(w *way, hop tcHop, err error) {
	if w.slot >= maxWays {
		err = errors.New("the kernel's table of destinations is full")
	}
	if err != nil {
		hop = tcHop{}
	}
	before := w.why
	if w.why = ""; err != nil {
		w.why = err.Error()
	}
	if w.why != before {
		p.log.Debug("kernel media path: way", zap.Stringer("to", w.dst), zap.String("unusable", w.why))
	}
	if hop == w.hop || w.slot >= maxWays {
		return
	}
	w.hop = hop
	if p.kern == nil {
		return
	}
	if err := p.kern.objs.Hops.Put(w.slot, &hop); err != nil {
		w.why = err.Error()
		p.log.Error("kernel media path: way not written", zap.Stringer("to", w.dst), zap.Error(err))
	}
}

// leaveLocked gives a reference back; the last one frees the place.
func (p *Path) leaveLocked(w *way) {
	if w == nil {
		return
	}
	if w.refs--; w.refs > 0 {
		return
	}
	p.updateLocked(w, tcHop{}, nil)
	delete(p.known, wayKey{w.dst, w.src})
	p.bySlot[w.slot] = nil
	p.free = append(p.free, w.slot)
}

// refreshWays looks at the devices and the neighbours; and, if routes says so, or where a route was not
// looked at for a while, at that.
func (p *Path) refreshWays(now time.Time, routes bool) {
	if err := p.ways.forget(); err != nil {
		p.log.Error("kernel media path", zap.Error(err))
		return
	}
	p.attachDevices()
	p.freshenMACs()
	p.mu.Lock()
	list := make([]*way, 0, len(p.known))
	for _, w := range p.known {
		w.refs++
		list = append(list, w)
	}
	p.mu.Unlock()
	turned := make(map[*way]bool)
	for _, w := range list {
		hop, err := w.hop, error(nil)
		if routes || w.why != "" || now.Sub(w.checked) >= checkEvery {
			hop, err = p.ways.resolve(w.dst, w.src)
			w.checked = now
		} else {
			hop, err = p.ways.freshen(hop)
		}
		p.mu.Lock()
		if w.hop.Device != hop.Device {
			turned[w] = true
		}
		p.updateLocked(w, hop, err)
		p.leaveLocked(w)
		p.mu.Unlock()
	}
	p.reconsider(turned, now)
}

// reconsider has the worker look again at streams whose packets now come by another device, and now and
// then at those that could not be brought into the kernel.
func (p *Path) reconsider(turned map[*way]bool, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	retry := now.Sub(p.retried) >= checkEvery
	if retry {
		p.retried = now
	}
	if !retry && len(turned) == 0 {
		return
	}
	for _, st := range p.streams {
		if st.on && turned[st.back] {
			p.takeLocked(st, "being looked at")
			p.lookLocked(st)
		} else if retry && !st.on && p.reasonLocked(st) == "" {
			p.lookLocked(st)
		}
	}
	p.reconsiderChannelsLocked(turned, retry)
	for k, a := range p.adopted {
		if turned[a.back] {
			p.turnLocked(k, a)
		}
	}
}

// attachDevices puts the program on devices that have got one of the addresses.
func (p *Path) attachDevices() {
	found, _ := devicesOf(p.addrs, p.ways.loopback)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kern == nil || found == nil {
		return
	}
	for index := range p.kern.devices {
		if _, ok := found[index]; !ok {
			p.detachLocked(index)
		}
	}
	for index, name := range found {
		if p.kern.devices[index] != nil {
			continue
		}
		if err := p.kern.attach(index, name); err != nil {
			p.log.Warn("kernel media path: not attached", zap.Error(err))
		} else {
			p.log.Info("kernel media path: device has come", zap.String("device", name))
			p.sayXDP(p.kern.devices[index])
		}
	}
}

// detachLocked takes the program from a device, and the streams that came by it out of the kernel.
func (p *Path) detachLocked(index int) {
	p.log.Info("kernel media path: device has gone", zap.String("device", p.kern.devices[index].name))
	if err := p.kern.detach(index); err != nil {
		p.log.Warn("kernel media path: not detached", zap.Error(err))
	}
	for _, st := range p.streams {
		if st.on && int(st.seen.Device) == index {
			p.takeLocked(st, noProgram)
		}
	}
	for _, c := range p.channels {
		if c.on && int(c.seen.Device) == index {
			p.takeChannelLocked(c, noProgram)
		}
	}
	for k, a := range p.adopted {
		if int(a.device) == index {
			p.abandonLocked(k)
		}
	}
}
