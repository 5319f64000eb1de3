package fastpath

import (
	"errors"
	"time"

	"go.uber.org/zap"
)

// A daemon that was killed leaves its rules and connections to the program. The next one holds their ports again and
// looks after the connections, whose rules begin no new ones until Forward is called for them. A rule that nobody
// asks for is removed after a while, its connections too.

// adopt takes over what an earlier run has left. It must come before any way gets a place.
func (a *forwards) adopt(c clock) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.path.kern
	errs := []error{empty(k.objs.TcpAllow), empty(k.objs.TcpClients)}
	found, err := a.rulesLocked()
	errs = append(errs, err)
	for key, v := range found {
		v.Limit = 0
		errs = append(errs, k.objs.TcpRules.Put(&key, &v))
		a.inheritLocked(key, v)
	}
	all, err := a.readLocked()
	errs = append(errs, err)
	for f, conns := range all {
		errs = append(errs, f.adoptLocked(conns, c.ns))
	}
	return errors.Join(errs...)
}

// rulesLocked reads the rules, and removes those that cannot be.
func (a *forwards) rulesLocked() (map[tcKey]tcRule, error) {
	m := a.path.kern.objs.TcpRules
	found := make(map[tcKey]tcRule)
	var key tcKey
	var v tcRule
	all := m.Iterate()
	for all.Next(&key, &v) {
		found[key] = v
	}
	seen := make(map[uint32]bool)
	for key, v := range found {
		if v.Index < maxRules && !seen[v.Index] {
			seen[v.Index] = true
			continue
		}
		delete(found, key)
		if err := m.Delete(&key); err != nil {
			return found, err
		}
	}
	return found, all.Err()
}

// inheritLocked enters a rule of an earlier run, as far as it is known.
func (a *forwards) inheritLocked(key tcKey, v tcRule) {
	rule := ForwardRule{
		Listen: key.addr(), To: addrPort(v.To.Word, v.ToPort), From: addrPort(v.From.Word, 0).Addr(),
		MaxConnections: int(v.Mask + 1), Idle: idleTime,
	}
	rule.Name = rule.Listen.String()
	a.list[v.Index] = &Forward{
		all: a, rule: rule, key: key, value: v, why: "of an earlier run", inherited: time.Now(),
		ports: newPorts(rule.From, int(v.Mask+1), int(v.Mask+1)), live: make(map[uint16]*conn),
	}
}

// adoptLocked takes over the connections of an inherited rule: those whose ports and ways can be kept.
func (f *Forward) adoptLocked(conns map[uint16]*conn, now uint64) error {
	k := f.all.path.kern
	var n tcCounts
	if err := k.objs.TcpCounts.Lookup(f.value.Index, &n); err != nil {
		return err
	}
	f.value.Ended, f.value.Lapsed = n.Taken, n.Taken-n.Completed
	for port, c := range conns {
		if err := f.keepLocked(port, c); err != nil {
			f.complain("adopt", errors.Join(err, f.all.takeLocked(c)))
			continue
		}
		f.live[port] = c
		f.ports.out[port] = now
		f.value.Ended--
		if c.values[0].Flags&connCounted == 0 {
			f.value.Lapsed--
		}
	}
	f.ports.given, f.ports.seen, f.value.Given = n.Taken, n.Taken, n.Taken
	f.written = f.value
	f.all.path.log.Info("kernel forward of an earlier run", zap.Stringer("listen", f.rule.Listen),
		zap.Int("connections", len(f.live)), zap.Int("removed", len(conns)-len(f.live)))
	return k.objs.TcpRules.Put(&f.key, &f.value)
}

// keepLocked holds the connection's port, and its ways at the places where it looks for them.
func (f *Forward) keepLocked(port uint16, c *conn) error {
	if !c.have[0] || !c.have[1] {
		return errors.New("half a connection")
	}
	p, a := f.all.path, f.all
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.way == nil {
		if f.way = p.inheritWayLocked(wayKey{f.rule.To.Addr(), f.rule.From}, c.values[0].Hop-1); f.way == nil {
			return errors.New("the way to the target is unknown")
		}
	}
	if c.values[0].Hop != f.way.slot+1 {
		return errors.New("another way to the target")
	}
	if hop := c.values[1].Hop; hop != 0 {
		client := c.client()
		known := a.clients[client]
		if known == nil {
			at := wayKey{addrPort(client.Client.Word, 0).Addr(), addrPort(client.Local.Word, 0).Addr()}
			w := p.inheritWayLocked(at, hop-1)
			if w == nil {
				return errors.New("the way to the client is unknown")
			}
			known = &clientWay{way: w}
			a.clients[client] = known
		}
		if known.way.slot != hop-1 {
			return errors.New("another way to the client")
		}
	}
	_, err := f.ports.reserve(port)
	return err
}

// inheritWayLocked keeps a way at its place, and returns it with a reference; nil if something else is there.
func (p *Path) inheritWayLocked(at wayKey, slot uint32) *way {
	w := p.known[at]
	switch {
	case w == nil && slot < maxWays && p.slotLocked(slot) == nil:
		w = &way{dst: at.dst, src: at.src, slot: slot}
		if err := p.kern.objs.Hops.Lookup(w.slot, &w.hop); err != nil {
			return nil
		}
		p.occupyLocked(w)
	case w == nil || w.slot != slot:
		return nil
	}
	w.refs++
	return w
}

// claimLocked gives an inherited rule to who asks for it, or makes room for another at its address. The next sweep ends
// the connections of those who may not connect any more.
func (a *forwards) claimLocked(r ForwardRule) (*Forward, error) {
	key := tcpKey(r.Listen)
	for _, f := range a.list {
		if f == nil || f.key != key || f.inherited.IsZero() {
			continue
		}
		if f.rule.To != r.To || f.rule.From != r.From {
			return nil, a.removeLocked(f)
		}
		a.list[f.value.Index] = nil // so that its own ring counts as free
		first, ok := a.ringLocked(uint32(ringSize(r.ports())))
		a.list[f.value.Index] = f
		if !ok {
			return nil, a.removeLocked(f)
		}
		f.rule, f.inherited, f.why, f.review = r, time.Time{}, "being looked at", true
		f.value.First, f.value.Mask = first, uint32(ringSize(r.ports())-1)
		f.value.setLimits(&r)
		f.ports.most, f.ports.ring = r.ports(), make([]uint16, ringSize(r.ports()))
		return f, a.allowLocked(f)
	}
	return nil, nil
}

// expireLocked removes the rules of an earlier run that nobody has asked for.
func (a *forwards) expireLocked(now time.Time) {
	for _, f := range a.list {
		if f != nil && !f.inherited.IsZero() && now.Sub(f.inherited) > leaseTime {
			f.complain("remove", a.removeLocked(f))
			a.path.log.Info("kernel forward of an earlier run removed", zap.Stringer("listen", f.rule.Listen))
		}
	}
}
