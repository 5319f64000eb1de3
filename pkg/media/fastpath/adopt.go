package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A daemon that was killed leaves its flows to the program, which goes on as long as the lease lasts. The next
// daemon puts its own program in the place of the old one, with the same maps, and keeps the flows that are
// in use. They have no sockets: RTCP and whatever else goes up meets nobody, and the kernel answers it with an
// ICMP error. They have no call either: only silence ends them.

// adopted is a flow of an earlier run. It is guarded by the path's mutex.
type adopted struct {
	// reverse is the other direction, which keeps this one alive too.
	reverse tcKey
	// device is where its packets come by, last when the last one did, on the program's clock.
	device uint32
	last   uint64
	// back and forth are the ways to the source and to the destination.
	back, forth *way
}

// addr returns the address that the program compares.
func (k *tcKey) addr() netip.AddrPort { return addrPort(k.Local.Word, k.Port) }

func addrPort(w [4]uint32, p uint16) netip.AddrPort {
	var b [16]byte
	for i, word := range w {
		binary.NativeEndian.PutUint32(b[4*i:], word)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, p)))
}

func (v *tcFlow) source() netip.AddrPort { return addrPort(v.Src.Word, v.Sport) }
func (v *tcFlow) out() netip.AddrPort    { return addrPort(joined(v.NewSrcHead, v.NewSrc), v.NewSport) }
func (v *tcFlow) to() netip.AddrPort     { return addrPort(joined(v.NewDstHead, v.NewDst), v.NewDport) }

// survey is what is found at the start.
type survey struct {
	flows map[tcKey]tcFlow
	now   uint64
	idle  time.Duration
	// own are the configured addresses; devices have the program.
	own     []netip.Addr
	devices map[int]*device
}

// Why a flow of an earlier run is not kept; these are logged.
const (
	fateIdle    = "idle"
	fateAddress = "address_not_configured"
	fateDevice  = "device_not_configured"
	fateWay     = "way_unknown"
)

// fate tells why a flow is not kept, "" if it is.
func (s *survey) fate(k tcKey) string {
	v := s.flows[k]
	switch {
	case k.Proto != unix.IPPROTO_UDP || !slices.Contains(s.own, k.addr().Addr()) || !slices.Contains(s.own, v.out().Addr()):
		return fateAddress
	case s.devices[int(v.Device)] == nil:
		return fateDevice
	case v.Hop >= maxWays:
		return fateWay
	}
	last := v.Last
	if r, ok := s.flows[reverseOf(&v)]; ok {
		last = max(last, r.Last)
	}
	if silent(s.now, last, s.idle) {
		return fateIdle
	}
	return ""
}

// reverseOf returns the key of the other direction of a flow.
func reverseOf(v *tcFlow) tcKey { return keyOf(v.out()) }

// silent tells whether the last packet came too long ago.
func silent(now, last uint64, idle time.Duration) bool {
	return now > last && now-last >= uint64(idle)
}

// adopt takes over the flows of an earlier run that are in use, and removes the others.
func (p *Path) adopt(c clock) error {
	s := survey{flows: make(map[tcKey]tcFlow), now: c.ns, idle: p.idle, own: p.addrs, devices: p.kern.devices}
	err := p.kern.each(func(k tcKey, v *tcFlow) { s.flows[k] = *v })
	if err != nil {
		return err
	}
	removed := make(map[string]int)
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := range s.flows {
		why := s.fate(k)
		if why == "" {
			why = p.adoptLocked(k, s.flows[k])
		}
		if why != "" {
			removed[why]++
			if _, _, err := p.kern.take(k); err != nil {
				return fmt.Errorf("remove a flow of an earlier run: %w", err)
			}
		}
	}
	// Only now all places are known that are taken.
	for k, a := range p.adopted {
		v := s.flows[k]
		a.back = p.wayLocked(wayKey{v.source().Addr(), k.addr().Addr()})
	}
	if len(s.flows) > 0 {
		p.log.Info("kernel media path: flows of an earlier run", zap.Int("adopted", len(p.adopted)),
			zap.Int("removed", len(s.flows)-len(p.adopted)), zap.Any("why", removed))
	}
	return nil
}

// adoptLocked keeps a flow, and its way at the place where the flow looks for it.
func (p *Path) adoptLocked(k tcKey, v tcFlow) string {
	w := p.inheritWayLocked(wayKey{v.to().Addr(), v.out().Addr()}, v.Hop)
	if w == nil {
		return fateWay
	}
	if d := p.kern.devices[int(v.Device)]; d.xdp != nil && d.mac != v.Mac { // the earlier run had no XDP
		if err := p.placeLocked(k, v.Device); err != nil {
			p.leaveLocked(w)
			return fateWay
		}
	}
	p.adopted[k] = &adopted{reverse: reverseOf(&v), device: v.Device, last: v.Last, forth: w}
	return ""
}

func (p *Path) slotLocked(slot uint32) *way {
	if int(slot) >= len(p.bySlot) {
		return nil
	}
	return p.bySlot[slot]
}

// occupyLocked enters a way at its own place.
func (p *Path) occupyLocked(w *way) {
	p.known[wayKey{w.dst, w.src}] = w
	for len(p.bySlot) <= int(w.slot) {
		p.free = append(p.free, uint32(len(p.bySlot)))
		p.bySlot = append(p.bySlot, nil)
	}
	p.free = slices.DeleteFunc(p.free, func(slot uint32) bool { return slot == w.slot })
	p.bySlot[w.slot] = w
}

// wayLocked returns a way for the worker to look up, with a reference.
func (p *Path) wayLocked(k wayKey) *way {
	w := p.known[k]
	if w == nil {
		w = &way{dst: k.dst, src: k.src}
		p.enterLocked(w)
	}
	w.refs++
	return w
}

// ageLocked removes the adopted flows that have been silent for the idle time.
func (p *Path) ageLocked(now uint64) {
	before := len(p.adopted)
	for k, a := range p.adopted {
		last := a.last
		if r := p.adopted[a.reverse]; r != nil {
			last = max(last, r.last)
		}
		if silent(now, last, p.idle) {
			p.abandonLocked(k)
		}
	}
	if before > 0 && len(p.adopted) == 0 {
		p.log.Info("kernel media path: the last flow of an earlier run has ended")
	}
}

// abandonLocked removes an adopted flow, if there is one with this key.
func (p *Path) abandonLocked(k tcKey) {
	a := p.adopted[k]
	if a == nil {
		return
	}
	delete(p.adopted, k)
	if _, _, err := p.kern.take(k); err != nil {
		p.log.Error("kernel flow not removed", zap.Stringer("local", k.addr()), zap.Error(err))
	}
	p.leaveLocked(a.back)
	p.leaveLocked(a.forth)
}

// turnLocked follows an adopted flow whose packets now come by another device.
func (p *Path) turnLocked(k tcKey, a *adopted) {
	device := a.back.hop.Device
	if device == 0 || device == a.device || p.kern.devices[int(device)] == nil {
		return
	}
	if err := p.placeLocked(k, device); err != nil {
		p.log.Error("kernel flow not changed", zap.Stringer("local", k.addr()), zap.Error(err))
		return
	}
	a.device = device
}

// placeLocked says by which device the packets of an adopted flow come. What is counted between the two steps
// is lost to its figures.
func (p *Path) placeLocked(k tcKey, device uint32) error {
	var v tcFlow
	if err := p.kern.objs.Flows.Lookup(&k, &v); err != nil {
		return err
	}
	v.Device, v.Mac = device, p.kern.devices[int(device)].mac
	return p.kern.objs.Flows.Put(&k, &v)
}

// Adopted returns how many flows of an earlier run are still in the kernel.
func (p *Path) Adopted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.adopted)
}

// Occupied tells whether a flow of an earlier run uses the address: no pinhole may have it.
func (p *Path) Occupied(local netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.adopted[keyOf(local)] != nil
}

// filtersOf returns the devices that have a filter with the handle, and the filters.
func filtersOf(handle uint32) (map[int]*netlink.BpfFilter, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	found := make(map[int]*netlink.BpfFilter)
	for _, l := range links {
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		if err != nil {
			continue // the device has gone, or has no such queueing discipline
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok && b.Name == clsactName && b.Handle == handle {
				found[l.Attrs().Index] = b
			}
		}
	}
	return found, nil
}
