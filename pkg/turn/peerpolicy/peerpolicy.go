// Package peerpolicy judges to which peers TURN clients may have packets relayed. A relay that sends anywhere
// is a way around every firewall, so by default whatever is not a public unicast address is refused, however it is
// written (IPv4 inside of IPv6, NAT64, 6to4, Teredo), and so are the edge's own addresses, except ports that a
// relay has granted there: two clients of one server reach each other.
//
//	address ─► own? ─► allow ─► deny ─► special purpose (IANA)? ─► "" or the reason
//	   └─ IPv4 embedded in it: judged as well
//
// It keeps no state but the live relay ports, and does no I/O.
package peerpolicy

import (
	"net/netip"
	"slices"
	"sync"
)

// Reasons why a peer is refused, as the reason label of metrics.
const (
	Own       = "own_address"
	Denied    = "denied"
	Special   = "special_address"
	Encoded   = "encoded_address" // IPv4-mapped: it would be IPv4 in the guise of IPv6
	Port      = "denied_port"
	NotListed = "not_allowed"
)

// Config is the policy of one server.
type Config struct {
	// Allow are peers that are not refused as special, e.g. the hosts inside.
	Allow []netip.Prefix
	// Only has every peer refused that is not in Allow.
	Only bool
	// Deny are peers that are refused though Allow has them.
	Deny []netip.Prefix
	// DenyPorts are the UDP ports to which nothing is sent.
	DenyPorts []uint16
	// TCPPorts are the ports below 1024 to which clients may have TCP connections made (RFC 6062).
	TCPPorts []uint16
	// Own tells whether an address is the edge's, bound or advertised.
	Own func(netip.Addr) bool
	// OwnPort tells whether an own address and port are a live relay port of somebody else's; nil: none is.
	OwnPort func(netip.AddrPort) bool
}

// Policy judges peers. Its methods may be called concurrently.
type Policy struct {
	cfg     Config
	special []netip.Prefix

	mu     sync.RWMutex // guards what follows
	relays map[netip.AddrPort]int
	hosts  map[netip.Addr]int
}

// New returns a policy.
func New(cfg Config) *Policy {
	return &Policy{cfg: cfg, special: specialPurpose(), relays: map[netip.AddrPort]int{}, hosts: map[netip.Addr]int{}}
}

// Relay says that an own address and port (bound or advertised) became a relay port, or is none any more. Calls count.
func (p *Policy) Relay(at netip.AddrPort, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	by := 1
	if !on {
		by = -1
	}
	if p.relays[at] += by; p.relays[at] <= 0 {
		delete(p.relays, at)
	}
	if p.hosts[at.Addr()] += by; p.hosts[at.Addr()] <= 0 {
		delete(p.hosts, at.Addr())
	}
}

// Permission judges an address for which a permission is asked: "" or the reason why not. An own address may be
// permitted while it has relay ports; [Policy.Packet] then lets pass what goes to these.
func (p *Policy) Permission(a netip.Addr) string {
	if a.Is4In6() {
		return Encoded
	}
	if p.cfg.Own != nil && p.cfg.Own(a) {
		p.mu.RLock()
		defer p.mu.RUnlock()
		if p.hosts[a] > 0 {
			return ""
		}
		return Own
	}
	return p.address(a)
}

// Packet judges an address and port to which a datagram is to be sent: "" or the reason why not. It allocates nothing.
func (p *Policy) Packet(to netip.AddrPort) string {
	if why := p.peer(to); why != "" {
		return why
	}
	if to.Port() == 0 || slices.Contains(p.cfg.DenyPorts, to.Port()) {
		return Port
	}
	return ""
}

// Connect judges an address and port to which a TCP connection is to be made: "" or the reason why not.
func (p *Policy) Connect(to netip.AddrPort) string {
	if why := p.peer(to); why != "" {
		return why
	}
	if to.Port() < 1024 && !slices.Contains(p.cfg.TCPPorts, to.Port()) {
		return Port
	}
	return ""
}

func (p *Policy) peer(to netip.AddrPort) string {
	a := to.Addr()
	if a.Is4In6() {
		return Encoded
	}
	if p.cfg.Own != nil && p.cfg.Own(a) {
		p.mu.RLock()
		live := p.relays[to] > 0
		p.mu.RUnlock()
		if live || p.cfg.OwnPort != nil && p.cfg.OwnPort(to) {
			return ""
		}
		return Own
	}
	return p.address(a)
}

// address judges an address that is not the edge's as it is written.
func (p *Policy) address(a netip.Addr) string {
	a = a.WithZone("")
	if !a.IsValid() || a.IsUnspecified() {
		return Special
	}
	if contains(p.cfg.Deny, a) {
		return Denied
	}
	allowed := contains(p.cfg.Allow, a)
	if p.cfg.Only && !allowed {
		return NotListed
	}
	if !allowed && contains(p.special, a) {
		return Special
	}
	for inner := range embedded(a) {
		if p.cfg.Own != nil && p.cfg.Own(inner) {
			return Own
		}
		if contains(p.cfg.Deny, inner) {
			return Denied
		}
		if !contains(p.cfg.Allow, inner) && contains(p.special, inner) {
			return Special
		}
	}
	return ""
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, n := range list {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// embedded yields the IPv4 addresses that packets to an IPv6 address may be turned to: NAT64 (RFC 6052 §2.1), 6to4 (RFC
// 3056 §2), Teredo's server and client (RFC 4380 §4), ISATAP (RFC 5214 §6.1), IPv4-compatible (RFC 4291 §2.5.5.1).
func embedded(a netip.Addr) func(yield func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		if !a.Is6() {
			return
		}
		b := a.As16()
		v4 := func(at int, flip byte) netip.Addr {
			return netip.AddrFrom4([4]byte{b[at] ^ flip, b[at+1] ^ flip, b[at+2] ^ flip, b[at+3] ^ flip})
		}
		switch {
		case b[0] == 0x20 && b[1] == 0x02:
			yield(v4(2, 0))
		case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0:
			_ = yield(v4(4, 0)) && yield(v4(12, 0xff))
		case [12]byte(b[:12]) == [12]byte{0, 0x64, 0xff, 0x9b}, [12]byte(b[:12]) == [12]byte{}:
			yield(v4(12, 0))
		case b[8]&^3 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
			yield(v4(12, 0))
		}
	}
}

// specialPurpose are the addresses of IANA's special-purpose registries (RFC 6890), multicast and what is reserved. Those
// whose meaning is an IPv4 address inside, 64:ff9b::/96 and 2002::/16, are judged by that.
func specialPurpose() []netip.Prefix {
	var out []netip.Prefix
	for _, text := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"::/96", "::ffff:0:0/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16",
		"fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	} {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}
