package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
)

// clientWay is the way to a client, as the program knows it.
type clientWay struct {
	way *way
	// told tells whether tcp_clients has it. It is taken from there first, and the way left only once no
	// connection uses it, as the program may be about to.
	told, used bool
}

// tend keeps the rules in force; the worker calls it often. Once a second it looks at everything.
func (a *forwards) tend(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, err := readClock()
	if err != nil || a.closed {
		return
	}
	if now.Sub(a.swept) >= lookEvery {
		a.swept = now
		a.expireLocked(now)
		a.placeLocked()
		if err := a.sweepLocked(c.ns); err != nil {
			a.path.log.Error("kernel forwards: connections not read", zap.Error(err))
		}
	}
	for _, f := range a.list {
		if f != nil && f.inherited.IsZero() {
			f.troubleLocked(f.supplyLocked(c.ns))
		}
	}
}

// placeLocked looks where the rules' addresses are, and how their targets are reached.
func (a *forwards) placeLocked() {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		a.path.log.Error("kernel forwards: addresses not read", zap.Error(err))
		return
	}
	at := make(map[netip.Addr]int)
	for _, l := range list {
		if ip, ok := netip.AddrFromSlice(l.IP); ok {
			at[ip.Unmap()] = l.LinkIndex
		}
	}
	on := false
	for _, f := range a.list {
		if f == nil {
			continue
		}
		on = true
		why := f.placeLocked(at[f.rule.Listen.Addr()])
		if why != f.why {
			a.path.log.Info("kernel forward", zap.String("name", f.rule.Name), zap.Stringer("listen", f.rule.Listen),
				zap.Stringer("to", f.rule.To), zap.Bool("in_force", why == ""), zap.String("why_not", why))
		}
		f.why = why
	}
	if on {
		err := a.path.kern.objs.TcpOn.Set(uint32(1))
		if err != nil {
			a.path.log.Error("kernel forwards", zap.Error(err))
		}
	}
}

// placeLocked finds the rule's place; it says why there is none.
func (f *Forward) placeLocked(device int) string {
	p := f.all.path
	if f.way == nil {
		f.way = p.way(f.rule.To, netip.AddrPortFrom(f.rule.From, 0))
	}
	l, err := p.ways.link(device)
	p.mu.Lock()
	defer p.mu.Unlock()
	// What goes up for want of a way is up to user space.
	f.value.Device, f.value.Hop = 0, f.way.slot+1
	switch {
	case !f.inherited.IsZero():
		return f.why
	case device == 0:
		return fmt.Sprintf("no device has %s", f.rule.Listen.Addr())
	case err != nil:
		return err.Error()
	case f.way.why != "":
		return f.way.why
	case p.kern.devices[device] == nil || p.kern.devices[int(f.way.hop.Device)] == nil:
		return noProgram
	}
	f.value.Device, f.value.Mtu = uint32(device), uint32(l.Attrs().MTU)
	return ""
}

// troubleLocked logs what keeps the rule from its ports, once.
func (f *Forward) troubleLocked(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != f.trouble {
		f.trouble = text
		f.complain("ports", err)
	}
}

// supplyLocked sees to it that the program has ports, and writes the rule.
func (f *Forward) supplyLocked(now uint64) error {
	k := f.all.path.kern
	var n tcCounts
	if err := k.objs.TcpCounts.Lookup(f.value.Index, &n); err != nil {
		return err
	}
	f.ports.take(n.Taken, now)
	list, err := f.ports.next(n.Taken, now)
	for _, free := range list {
		place := f.ports.give(free)
		if err := k.objs.TcpPorts.Put(f.value.First+place, uint32(port(free))); err != nil {
			return err
		}
	}
	f.value.Given = f.ports.given
	return errors.Join(err, f.writeLocked())
}

// writeLocked tells the program what has changed of the rule.
func (f *Forward) writeLocked() error {
	if f.value == f.written {
		return nil
	}
	f.written = f.value
	return f.all.path.kern.objs.TcpRules.Put(&f.key, &f.value)
}

// sweepLocked looks at all connections, ends those that are over and keeps the ways to the clients.
func (a *forwards) sweepLocked(now uint64) error {
	all, err := a.readLocked()
	if err != nil {
		return err
	}
	for _, c := range a.clients {
		c.used = false
	}
	for f, conns := range all {
		if f == nil {
			continue
		}
		f.live = conns
		for port, c := range conns {
			banned := f.review && !f.rule.allows(addrPort(c.client().Client.Word, 0).Addr())
			if banned || c.over(now) {
				f.complain("end", f.endLocked(port, c, now, banned))
				continue
			}
			f.ports.out[port] = now
			if c.have[1] {
				a.clientLocked(c.client())
			}
		}
		f.review = false
		for _, port := range f.ports.lost(now) {
			f.ports.rest(port, now, now)
			f.value.Ended++
			f.value.Lapsed++
		}
	}
	for _, f := range a.list {
		if f != nil && all[f] == nil {
			clear(f.live)
		}
	}
	a.forgetLocked()
	return nil
}

// readLocked returns the connections of each rule by port; what belongs to no rule is removed.
func (a *forwards) readLocked() (map[*Forward]map[uint16]*conn, error) {
	k := a.path.kern
	all := make(map[*Forward]map[uint16]*conn)
	for _, f := range a.list {
		if f != nil {
			all[f] = make(map[uint16]*conn)
		}
	}
	keys, values := make([]tcTuple, lookAt), make([]tcConn, lookAt)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := k.objs.TcpConns.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, fmt.Errorf("read connections: %w", err)
		}
		for i := range n {
			v := &values[i]
			f := (*Forward)(nil)
			if v.Rule < maxRules {
				f = a.list[v.Rule]
			}
			if f == nil {
				if err := k.objs.TcpConns.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					return nil, fmt.Errorf("remove a connection without a rule: %w", err)
				}
				continue
			}
			port := portOf(&keys[i], v)
			c := all[f][port]
			if c == nil {
				c = &conn{forward: f, port: port}
				all[f][port] = c
			}
			side := v.from()
			c.have[side], c.keys[side], c.values[side] = true, keys[i], *v
		}
		if err != nil {
			return all, nil
		}
	}
}

// endLocked removes a connection, unless a packet has passed after it was looked at and it may go on.
func (f *Forward) endLocked(port uint16, c *conn, now uint64, banned bool) error {
	for side, have := range c.have {
		var v tcConn
		if !have || banned {
			continue
		}
		if err := f.all.path.kern.objs.TcpConns.Lookup(&c.keys[side], &v); err == nil && v.Last != c.values[side].Last {
			f.ports.out[port] = now
			return nil
		}
	}
	if err := f.all.takeLocked(c); err != nil {
		return err
	}
	delete(f.live, port)
	f.ports.rest(port, c.last(), now)
	for side := range f.done {
		f.done[side].add(&c.values[side])
	}
	f.value.Ended++
	if c.values[0].Flags&connCounted == 0 {
		f.value.Lapsed++
	}
	return nil
}

// takeLocked takes a connection out of the kernel, the client's direction first, and notes its last figures.
func (a *forwards) takeLocked(c *conn) error {
	for side, have := range c.have {
		if !have {
			continue
		}
		m := a.path.kern.objs.TcpConns
		err := m.LookupAndDelete(&c.keys[side], &c.values[side])
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			err = m.Delete(&c.keys[side]) // before 5.14
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove a connection: %w", err)
		}
	}
	return nil
}

// clientLocked has the program know the way to a client.
func (a *forwards) clientLocked(k tcClient) {
	c := a.clients[k]
	if c == nil {
		client, local := addrPort(k.Client.Word, 0), addrPort(k.Local.Word, 0)
		c = &clientWay{way: a.path.way(client, local)}
		a.clients[k] = c
	}
	c.used = true
	if c.told {
		return
	}
	if err := a.path.kern.objs.TcpClients.Put(&k, c.way.slot+1); err == nil {
		c.told = true
	}
}

// forgetLocked leaves the ways to clients that have no connections any more.
func (a *forwards) forgetLocked() {
	for k, c := range a.clients {
		switch {
		case c.used:
		case c.told:
			err := a.path.kern.objs.TcpClients.Delete(&k)
			if c.told = err != nil && !errors.Is(err, ebpf.ErrKeyNotExist); c.told {
				a.path.log.Error("kernel forwards: way to a client not removed", zap.Error(err))
			}
		default:
			a.path.mu.Lock()
			a.path.leaveLocked(c.way)
			a.path.mu.Unlock()
			delete(a.clients, k)
		}
	}
}
