package turn

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// CHANGE-REQUEST (RFC 5780 §7.2).
const (
	changeIP   = 4
	changePort = 2
)

// bindingRequest answers a Binding request (RFC 8489 §10): 32 octets for IPv4. With an alternate port it is also one of RFC
// 5780's servers.
func (s *Server) bindingRequest(o origin, m *message) {
	if !s.binding.Allow(o.client.Addr()) {
		s.count.suppressed.Inc()
		return
	}
	others, discovers := s.discovery(o)
	known := func(t uint16) bool { return understood(t) || discovers && t == attrChangeRequest }
	if list := m.unknown(known); len(list) > 0 {
		answer{s: s, o: o, m: m}.unknown(list)
		return
	}
	s.count.bindings.Inc()
	w := compose(nil, success, binding, m.txid()).address(attrXORMappedAddress, o.client, true)
	if !discovers {
		answer{s: s, o: o, m: m}.send(w)
		return
	}
	var change uint32
	if v := m.get(attrChangeRequest); v != nil {
		change = binary.BigEndian.Uint32(v)
	}
	from := others.from(change)
	s.mu.RLock()
	pc := s.fronts[from]
	s.mu.RUnlock()
	if pc == nil {
		s.count.drop("no_front")
		return
	}
	w.address(attrMappedAddress, o.client, false).address(attrResponseOrigin, s.advertisedOf(from), false)
	w.address(attrOtherAddress, s.advertisedOf(others.from(changeIP|changePort)), false).fingerprint(m.fingerprint)
	if _, err := pc.WriteTo(w.b, net.UDPAddrFromAddrPort(o.client)); err != nil {
		s.count.drop("send")
	}
}

// square are the four sockets of NAT behaviour discovery, seen from the one that was asked.
type square struct {
	at        netip.AddrPort
	otherIP   netip.Addr
	otherPort uint16
}

// from returns the socket that answers what CHANGE-REQUEST asks for.
func (q square) from(change uint32) netip.AddrPort {
	ip, port := q.at.Addr(), q.at.Port()
	if change&changeIP != 0 {
		ip = q.otherIP
	}
	if change&changePort != 0 {
		port = q.otherPort
	}
	return netip.AddrPortFrom(ip, port)
}

// discovery returns the other sockets of NAT behaviour discovery, if the socket that was asked is one of them.
func (s *Server) discovery(o origin) (square, bool) {
	if s.cfg.AlternatePort == 0 || o.stream {
		return square{}, false
	}
	pair := discoveryAddresses(s.deps.Networks[o.ep.network])
	if len(pair) < 2 {
		return square{}, false
	}
	q := square{at: o.local, otherIP: pair[0]}
	switch o.local.Addr() {
	case pair[0]:
		q.otherIP = pair[1]
	case pair[1]:
	default:
		return square{}, false
	}
	for _, l := range s.cfg.Listen {
		if l.Proto != "udp" || l.Network != o.ep.network {
			continue
		}
		switch o.local.Port() {
		case l.Port:
			q.otherPort = s.cfg.AlternatePort
		case s.cfg.AlternatePort:
			q.otherPort = l.Port
		}
		if q.otherPort != 0 {
			return q, true
		}
	}
	return square{}, false
}
