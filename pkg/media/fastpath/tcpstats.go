package fastpath

import (
	"net/netip"
	"time"
)

// Traffic is what passed in one direction: packets as they were sent, and bytes of TCP payload.
type Traffic struct{ Packets, Bytes uint64 }

func (t *Traffic) add(v *tcConn) {
	t.Packets += v.Packets
	t.Bytes += v.Bytes
}

// ForwardStats are the figures of a rule. Traffic is that of the last second at most.
type ForwardStats struct {
	// Why tells why the rule is not in force, "" if it is.
	Why string
	// Open are the connections now, HalfOpen those of them without a complete handshake, Total all so far.
	Open, HalfOpen int
	Total          uint64
	// HandedUp are connections left to user space, Dropped packets of carried ones; both by reason.
	HandedUp, Dropped      map[string]uint64
	FromClient, FromTarget Traffic
}

// ForwardConnection is one connection.
type ForwardConnection struct {
	Client netip.AddrPort
	// Source is what the target sees.
	Source netip.AddrPort
	// State is opening, established, half closed, closing or reset.
	State                  string
	Since, Last            time.Time
	FromClient, FromTarget Traffic
}

// Rule returns the rule, completed.
func (f *Forward) Rule() ForwardRule { return f.rule }

// Stats returns the figures now; after Close the last ones of the connections.
func (f *Forward) Stats() (ForwardStats, error) {
	a := f.all
	a.mu.Lock()
	defer a.mu.Unlock()
	s := ForwardStats{Why: f.why, HandedUp: make(map[string]uint64), Dropped: make(map[string]uint64)}
	s.FromClient, s.FromTarget = f.done[0], f.done[1]
	for _, c := range f.live {
		s.FromClient.add(&c.values[0])
		s.FromTarget.add(&c.values[1])
	}
	if a.list[f.value.Index] != f {
		s.Why = "closed"
		return s, nil
	}
	k := a.path.kern
	var n tcCounts
	if err := k.objs.TcpCounts.Lookup(f.value.Index, &n); err != nil {
		return s, err
	}
	s.Total = n.Taken + n.Reopened
	s.Open = int(n.Taken - f.value.Ended)
	s.HalfOpen = max(0, int(n.Taken-n.Completed-f.value.Lapsed))
	for i := range reasons {
		var count uint64
		if err := k.objs.TcpReasons.Lookup(f.value.Index*reasons+uint32(i), &count); err != nil {
			return s, err
		}
		if to := s.HandedUp; count > 0 {
			if i >= handedUp {
				to = s.Dropped
			}
			to[reasonName(i)] = count
		}
	}
	return s, nil
}

// Connections lists the connections as they were a second ago at most.
func (f *Forward) Connections() ([]ForwardConnection, error) {
	c, err := readClock()
	if err != nil {
		return nil, err
	}
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	list := make([]ForwardConnection, 0, len(f.live))
	for _, l := range f.live {
		if !l.have[0] || !l.have[1] {
			continue
		}
		from, to := &l.values[0], &l.values[1]
		fc := ForwardConnection{
			Client: addrPort(to.To.Dst.Word, to.To.Dport), Source: addrPort(from.To.Src.Word, from.To.Sport), State: l.state(),
			Since: c.time(from.Since), Last: c.time(l.last()),
		}
		fc.FromClient.add(from)
		fc.FromTarget.add(to)
		list = append(list, fc)
	}
	return list, nil
}
