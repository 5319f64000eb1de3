package h323

import (
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
)

// Where a Setup goes, by the first of these that knows (H.323 §8.1):
//
//	the endpoint through whose door the call came
//	the original destination, if the connection was not made to the edge itself (transparent) and the caller's network is
//	trusted
//	where the caller was sent to by a Facility a moment ago (alternativeAddress)
//	where another gatekeeper wants the call, which it has admitted (ACF)
//	the called aliases in order, then the called party number, in the static table, then among the registered
//	endpoints
//	destCallSignalAddress, if it is not the edge's own and the caller's network is trusted
//	the directory (ILS): by name, by the edge's address that was called, by what the caller looked up last
//	the gatekeeper that the caller is registered with, if that is another one
//	the default of the caller's network
//
// A caller on an untrusted network reaches only what is configured or registered.

// Directory knows who is where besides the static table.
type Directory interface {
	// Route returns where a call goes that names somebody, arrives at the edge's address local, and comes
	// from caller; called may be empty.
	Route(called string, local, caller netip.Addr) (netip.AddrPort, bool)
}

// destination is where a call goes.
type destination struct {
	network string
	addr    netip.AddrPort
	// leg is the connection to it, if there is one already.
	leg *leg
}

// route returns where the call goes, or the reason of the refusal for metrics.
func (c *Core) route(now time.Time, l *leg, m *h225.Message) (destination, string) {
	if p := l.partner; p != nil {
		return destination{p.network, p.remote, p}, ""
	}
	if !c.nets.Own(l.local.Addr()) && c.nets[l.network].Trusted {
		return c.towards(l, l.local)
	}
	names := calledNames(m)
	if to, ok := c.forwarded(now, l.remote.Addr(), names); ok {
		return c.towards(l, to)
	}
	if to, ok := c.admitted(now, l, m); ok {
		return c.towards(l, to)
	}
	for _, name := range names {
		if to, ok := c.static(name); ok {
			return c.towards(l, to)
		}
		if to, ok := c.registered(now, name); ok {
			return c.towards(l, to)
		}
	}
	if to := named(m); to.IsValid() && !c.nets.Own(to.Addr()) && c.nets[l.network].Trusted {
		return c.towards(l, to)
	}
	if c.directory != nil {
		if to, ok := c.directory.Route(strings.Join(names[:min(1, len(names))], ""), l.local.Addr(), l.remote.Addr()); ok {
			return c.towards(l, to)
		}
	}
	if c.outer != nil {
		if to, ok := c.outer.Home(l.remote.Addr()); ok {
			return c.towards(l, to)
		}
	}
	if to, ok := c.cfg.Default[l.network]; ok {
		return c.towards(l, netip.AddrPort(to))
	}
	return destination{}, refusedUnknown
}

// towards finds the network of a target. It refuses the edge itself, which would be a loop.
func (c *Core) towards(l *leg, to netip.AddrPort) (destination, string) {
	if c.nets.Own(to.Addr()) || nobody(to.Addr()) || to.Addr().IsLoopback() && !l.remote.Addr().IsLoopback() || to.Port() == 0 {
		return destination{}, refusedLoop
	}
	network := c.networkOf(l.network, to.Addr())
	if _, _, err := c.nets.Local(network, pinhole.FamilyOf(to.Addr())); err != nil {
		return destination{}, refusedUnreachable
	}
	return destination{network: network, addr: to}, ""
}

// nobody tells whether an address is no single host's.
func nobody(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// networkOf returns the network by which a host is reached that somebody on the network from names.
func (c *Core) networkOf(from string, host netip.Addr) string {
	network := c.nets.Of(host)
	if network == "" && c.routeTo != nil {
		network = c.routeTo(host)
	}
	if network == "" {
		network = c.elsewhere(from)
	}
	return network
}

// elsewhere returns the only network that is not trusted, where unknown addresses are; "" if there are several.
func (c *Core) elsewhere(from string) string {
	found := ""
	for name, n := range c.nets {
		if n.Trusted || name == from {
			continue
		}
		if found != "" {
			return ""
		}
		found = name
	}
	return found
}

// static looks a name up in the configured table.
func (c *Core) static(name string) (netip.AddrPort, bool) {
	if to, ok := c.aliases[strings.ToLower(name)]; ok {
		return to, true
	}
	best, at := "", netip.AddrPort{}
	for _, p := range c.prefixes {
		if strings.HasPrefix(strings.ToLower(name), p.prefix) && (!at.IsValid() || len(p.prefix) > len(best)) {
			best, at = p.prefix, p.to
		}
	}
	return at, at.IsValid()
}

// prefix is a key of the table that ended with "*".
type prefix struct {
	prefix string
	to     netip.AddrPort
}

// compile makes the tables of the aliases.
func (c *Core) compile() {
	c.aliases, c.prefixes = make(map[string]netip.AddrPort), nil
	for name, to := range c.cfg.Aliases {
		if p, ok := strings.CutSuffix(name, "*"); ok {
			c.prefixes = append(c.prefixes, prefix{strings.ToLower(p), netip.AddrPort(to)})
		} else {
			c.aliases[strings.ToLower(name)] = netip.AddrPort(to)
		}
	}
}

// calledNames returns the aliases that a Setup calls, and the called party number.
func calledNames(m *h225.Message) []string {
	var out []string
	for _, a := range m.Aliases(nil) {
		if a.Text != "" && (a.Field == "destinationAddress" || a.Field == "remoteExtensionAddress") {
			out = append(out, strings.TrimPrefix(a.Text, "h323:"))
		}
	}
	if b, ok := m.Element(q931.CalledNumber); ok {
		if d := digits(b); d != "" {
			out = append(out, d)
		}
	}
	return out
}

// digits returns the digits of a called or calling party number (Q.931 §4.5.8): octets with bit 8
// clear are followed by another octet of type and screening.
func digits(b []byte) string {
	for i, x := range b {
		if x&0x80 != 0 {
			return string(b[i+1:])
		}
	}
	return ""
}

// named returns the destCallSignalAddress of a Setup.
func named(m *h225.Message) netip.AddrPort {
	for _, a := range m.Addresses(nil) {
		if a.Field == h245.DestCallSignalAddress && a.Carrier == "" {
			return a.AddrPort
		}
	}
	return netip.AddrPort{}
}
