package ils

import (
	"net/netip"
	"strconv"

	"edged.dev/edged/pkg/ils/ber"
	"edged.dev/edged/pkg/pinhole"
)

// isInside tells whether an address means nothing outside: a host of a trusted network, or one of a range
// that is private anyway.
func (s *session) isInside(a netip.Addr) bool {
	if s.nets.Own(a) {
		return false
	}
	if name := s.nets.Of(a); name != "" {
		return s.nets[name].Trusted
	}
	return a.IsPrivate() || a.IsLinkLocalUnicast()
}

// public returns the address that stands for the entry on a network: its own of the pool, or the edge's.
func (s *session) public(names []string, network string) (netip.Addr, bool) {
	for _, n := range names {
		if e, ok := s.reg.Lookup(n); ok && e.Public.IsValid() {
			return e.Public, true
		}
	}
	if len(names) > 0 {
		if a, ok := s.reg.claimPublic(names[0]); ok {
			return a, true
		}
	}
	_, advertise, err := s.nets.Local(network, pinhole.IPv4)
	return advertise, err == nil
}

// translate returns what an address or a port of an entry becomes; false if it stays.
type translate func(names []string, k kind, a netip.Addr, port uint16, p Protocol) (netip.Addr, uint16, bool)

// toServer turns what a client says into what its server is to know.
func (s *session) toServer(names []string, k kind, a netip.Addr, port uint16, p Protocol) (netip.Addr, uint16, bool) {
	switch {
	case s.client.inside && !s.server.inside:
		return s.outward(names, s.server.network, k, a, port, p)
	case !s.client.inside && s.server.inside:
		return s.inward(names, k, a, port, p)
	}
	return a, port, false
}

// toClient turns what a server answers into what its client is to know.
func (s *session) toClient(names []string, k kind, a netip.Addr, port uint16, p Protocol) (netip.Addr, uint16, bool) {
	switch {
	case s.client.inside && !s.server.inside:
		return s.inward(names, k, a, port, p)
	case !s.client.inside && s.server.inside:
		return s.outward(names, s.client.network, k, a, port, p)
	}
	return a, port, false
}

// fromOutside: an outside client registers in an inside directory. It may not write an address there that leads
// inside, for calls follow what the directory says; it gets its own as seen, which its calls need anyway behind a NAT.
func (s *session) fromOutside(_ []string, k kind, a netip.Addr, port uint16, _ Protocol) (netip.Addr, uint16, bool) {
	if k == kindPort || !s.isInside(a) && !s.isPublic(a) {
		return a, port, false
	}
	return s.host, port, true
}

// outward: inside address → public one, the host's port → the edge's.
func (s *session) outward(names []string, network string, k kind, a netip.Addr, port uint16, p Protocol) (netip.Addr, uint16, bool) {
	if k == kindPort {
		public := [2]uint16{H323: s.cfg.Ports.H323, T120: s.cfg.Ports.T120}[p]
		return a, public, public != port
	}
	if !s.isInside(a) && !s.nets.Own(a) {
		return a, port, false
	}
	if len(names) == 0 { // a filter
		names = s.reg.namesOf(a)
	}
	pub, ok := s.public(names, network)
	return pub, port, ok && pub != a
}

// inward: public address of one of ours → the host's own, the edge's port → the host's.
func (s *session) inward(names []string, k kind, a netip.Addr, port uint16, p Protocol) (netip.Addr, uint16, bool) {
	e, ok := s.entryOf(names, a)
	if !ok {
		return a, port, false
	}
	if k == kindPort {
		return a, e.Ports[p], e.Ports[p] != port
	}
	return e.Host, port, s.isPublic(a) && e.Host != a && e.Host.Is4() // an entry has no room for another
}

// isPublic tells whether an address stands for hosts of ours.
func (s *session) isPublic(a netip.Addr) bool {
	if s.nets.Own(a) {
		return true
	}
	for _, p := range s.cfg.Pool {
		if p == a {
			return true
		}
	}
	return false
}

// entryOf finds the entry by name, or by an address of the pool, or as the one that the client looked up last.
func (s *session) entryOf(names []string, a netip.Addr) (Entry, bool) {
	for _, n := range names {
		if e, ok := s.reg.Lookup(n); ok {
			return e, true
		}
	}
	if len(names) > 0 {
		return Entry{}, false // somebody else's
	}
	if e, ok := s.reg.At(a); ok {
		return e, true
	}
	return s.reg.Resolved(s.host)
}

// edit replaces the addresses and ports of an entry, a modification or a filter.
func (s *session) edit(m message, f facts, to translate) ([]byte, error) {
	names := f.names(m.raw)
	moved := s.moves(m, f, names, to)
	var edits ber.Edits
	protos, ports := f.each(m.raw, kindProto), 0
	for _, v := range f.list {
		raw := v.value.Of(m.raw)
		switch v.kind {
		case kindAddr:
			a, dotted, ok := parseAddr(raw)
			if !ok {
				continue
			}
			b, _, changed := to(names, kindAddr, a, 0, 0)
			if changed && !b.Is4() {
				return nil, errForeign
			}
			if changed {
				edits.Replace(v.value, formatAddr(b, dotted))
			}
		case kindPort:
			i := ports
			ports++
			port, ok := parsePort(raw)
			if !ok || !moved {
				continue
			}
			if _, q, changed := to(names, kindPort, netip.Addr{}, port, protocolOf(port, protos, i)); changed {
				edits.Replace(v.value, strconv.AppendUint(nil, uint64(q), 10))
			}
		}
	}
	if edits.Len() > 0 {
		s.count.rewritten(edits.Len())
	}
	return edits.Apply(m.raw)
}

// moves tells whether the ports of a message are ours to change: its address changes, or it names no
// address and belongs to an entry that we know.
func (s *session) moves(m message, f facts, names []string, to translate) bool {
	addrs := f.each(m.raw, kindAddr)
	for _, v := range addrs {
		if a, _, ok := parseAddr(v); ok {
			if _, _, changed := to(names, kindAddr, a, 0, 0); changed {
				return true
			}
		}
	}
	_, known := s.entryOf(names, netip.Addr{})
	return len(addrs) == 0 && known && len(names) > 0
}

// entry edits a SearchResultEntry, and learns from it: an inside directory says who is inside, and a lookup
// that brings one entry of ours tells whom the client will call.
func (s *session) entry(m message) ([]byte, error) {
	f, err := m.attributes()
	s.mu.Lock()
	p, user := s.pending[m.id], f.ils || s.cfg.Dedicated
	f.ils = f.ils || p != nil && p.ils
	s.mu.Unlock()
	if mine, err := s.mine(f, err); !mine {
		return m.raw, err
	}
	names := f.names(m.raw)
	if user && !s.client.inside && s.server.inside && !s.serverless {
		s.learn(m, f, names)
	}
	if p != nil {
		s.hit(p, m, f, names)
	}
	return s.edit(m, f, s.toClient)
}

// learn registers an entry of an inside directory that its host wrote without passing the edge. The ports are the
// usual ones: which others are open to calls is not for a directory to say.
func (s *session) learn(m message, f facts, names []string) {
	for _, v := range f.each(m.raw, kindAddr) {
		a, _, ok := parseAddr(v)
		if !ok || len(names) == 0 || !s.isInside(a) {
			continue
		}
		s.reg.claimPublic(names[0])
		if !s.reg.register(registration{names: names, host: a, ttl: f.ttl(m.raw)}) {
			s.count.drop("not_registered")
		}
	}
}

// hit counts the entries of a search that have an address, and keeps the last that is ours.
func (s *session) hit(p *pending, m message, f facts, names []string) {
	for _, v := range f.each(m.raw, kindAddr) {
		a, _, ok := parseAddr(v)
		if !ok {
			continue
		}
		e, known := s.entryOf(names, a)
		s.mu.Lock()
		p.hits++
		if known && (s.isPublic(a) || a == e.Host) {
			p.hit = e.Name
		}
		s.mu.Unlock()
	}
}
