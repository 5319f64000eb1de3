package sipalg

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// hop is where a request goes next, or why it goes nowhere.
type hop struct {
	status int16 // refused with this status
	named  bool  // need comes from a message, not from the configuration
	open   bool  // the transport was left open: large requests may change to TCP
	home   bool  // to the server that a redirection named (home.go)
	pops   int16 // own Route values to remove
	reason string

	network string
	flow    flow.Flow     // the way, if there is one already
	targets []flow.Target // else the addresses to try
	need    server        // else the name to resolve
	domain  string        // the configured domain that it is for
	ruri    []byte        // replaces the Request-URI; nil = as it is
	routes  []string      // Route values to add: those that were hidden
}

func refuse(status int16, reason string) hop { return hop{status: status, reason: reason} }

// domain is a compiled [Domain].
type domain struct {
	network string
	host    string // resolved itself, if there is no server
	servers []*upstream
}

// upstream is one configured server.
type upstream struct {
	server
	network string
	targets []flow.Target // its addresses, as far as they are known
	down    time.Time     // not used until then, unless there is no other
	probe   timer
	query   uint64
}

// route decides where a request outside of any dialog goes (RFC 3261 §16.4, §16.5).
func (c *Core) route(f flow.Flow) hop {
	pops, next := c.ownRoutes()
	if next != nil && c.nets[f.Network].Trusted && !f.Called.IsValid() {
		// A preloaded Route beyond the edge.
		h := c.toURI(c.networkOf(*next, f.Network), *next)
		h.pops = pops
		return h
	}
	h := c.routeURI(f)
	h.pops = pops
	return h
}

func (c *Core) routeURI(f flow.Flow) hop {
	u := *c.m.Target()
	if isIM(u) { // RFC 3859, 3860: the host is where a sip URI has it
		u = asSIP(u)
	}
	if a := c.aliasOf(u); a != nil {
		return c.toAlias(a)
	}
	trusted := c.nets[f.Network].Trusted
	own := c.ownHost(u.Host)
	if d := c.domainOf(u.Host); d != nil && (d.network != f.Network || trusted) {
		if h, ok := c.toHome(f, d); ok {
			return h
		}
		if !trusted {
			u.Port = 0 // strangers reach the domain's SIP service, no other port of its hosts
		}
		return c.toDomain(d, u, false)
	}
	if c.m.Method() != "REGISTER" && !(own && trusted && c.domains["*"] != nil) {
		if b := c.registered(u, own); b != nil {
			return c.toAlias(b.alias)
		}
	}
	if d := c.domains["*"]; d != nil && (d.network != f.Network || trusted) && (own || trusted) {
		return c.toDomain(d, u, own)
	}
	switch {
	case own:
		return refuse(404, "Not Found")
	case !trusted:
		return refuse(403, "Relaying Denied")
	}
	if f.Called.IsValid() {
		return c.toCalled(f)
	}
	return c.toURI(c.networkOf(u, f.Network), u)
}

// toCalled goes where the client has sent the request to itself, before a transparent listener took it: to its server or proxy,
// however it found that.
func (c *Core) toCalled(f flow.Flow) hop {
	network := c.nets.Of(f.Called.Addr())
	if network == "" && c.routeTo != nil {
		network = c.routeTo(f.Called.Addr())
	}
	tg := flow.Target{Network: network, Proto: f.Proto, Addr: f.Called}
	if network == "" || !c.mayReach(tg) {
		c.drop("target_forbidden")
		return refuse(403, "Relaying Denied")
	}
	return hop{network: network, targets: []flow.Target{tg}}
}

// domainOf returns the configured domain with this name in any case, nil if there is none.
func (c *Core) domainOf(host []byte) *domain {
	b := c.keyBuf[:0]
	for _, h := range host {
		if h >= 'A' && h <= 'Z' {
			h |= 0x20
		}
		b = append(b, h)
	}
	c.keyBuf = b
	return c.domains[string(b)]
}

// networkOf names the network on which a URI's host is, seen from another one.
func (c *Core) networkOf(u sipmsg.URI, from string) string {
	host := u.Host
	if v, ok := u.Param("maddr"); ok {
		host = v
	}
	if a, ok := parseAddr(host); ok {
		if n := c.nets.Of(a); n != "" {
			return n
		}
		if c.routeTo != nil {
			if n := c.routeTo(a); n != "" {
				return n
			}
		}
	}
	// A name: the untrusted network is where names are resolved.
	best := ""
	for name, n := range c.nets {
		if name != from && (best == "" || !n.Trusted && c.nets[best].Trusted || n.Trusted == c.nets[best].Trusted && name < best) {
			best = name
		}
	}
	return best
}

// ownRoutes tells whether the first Route value names the edge, and returns the next one.
func (c *Core) ownRoutes() (pops int16, next *sipmsg.URI) {
	for el := range c.m.Elements(sipmsg.Route) {
		u, err := addressURI(el.Value)
		if err != nil {
			break
		}
		if pops == 0 && c.ownURI(u) != nil {
			pops++
			continue
		}
		return pops, &u
	}
	return pops, nil
}

// routeInDialog decides where a request within a dialog goes: by the Route that the edge recorded,
// by the alias in the Request-URI, or by the session.
func (c *Core) routeInDialog(f flow.Flow) (hop, *session, pinhole.Side) {
	s, network := c.recorded(f)
	pops, next := c.ownRoutes()
	var side pinhole.Side
	if s == nil {
		s = c.sessionOf(&c.m, f)
	}
	if s != nil {
		side = s.sideOf(&c.m)
		network = s.networks[side.Other()]
	}
	u := *c.m.Target()
	a := c.aliasOf(u)
	var h hop
	switch {
	case s != nil && a == nil && next == nil && s.contacts[side.Other()] != nil && (!c.guarded(f.Network, network) || c.served(u)):
		// The sender does not keep our Contact as its target: the session knows the way.
		h = c.toContact(s, side.Other())
	case next != nil && s == nil && a != nil && c.guarded(f.Network, network):
		h = c.toAlias(a) // its flow leads to the proxies that the sender may name
	case network != "" && a == nil && !c.ownHost(u.Host) && c.guarded(f.Network, network),
		next != nil && c.guarded(f.Network, network) && (s == nil || !s.recordedRoute(side.Other(), *next)):
		// A dialog opens the way to its own two ends, to no other host of a trusted network.
		c.drop("stranger_in_dialog")
		h = refuse(403, "Relaying Denied")
	case next != nil && network != "":
		h = c.toURI(network, *next)
	case s != nil && len(s.routes[side.Other()]) > 0 && c.hides(network, f.Network):
		// The sender has never seen these proxies: put their Route values back.
		h = c.toRoute(network, s.routes[side.Other()][0])
		h.routes = s.routes[side.Other()]
	case a != nil:
		h = c.toAlias(a)
	case network != "" && !c.ownHost(u.Host):
		h = c.toURI(network, u)
	case s == nil && a == nil && c.isToken(u):
		// A dialog from before a restart, or long over: nobody beyond could do better.
		return refuse(481, "Call/Transaction Does Not Exist"), nil, 0
	case s == nil:
		h = c.route(f)
		if h.status == 404 || h.status == 403 && c.m.Method() != "REGISTER" {
			h = refuse(481, "Call/Transaction Does Not Exist")
		}
		return h, nil, 0
	default:
		h = refuse(481, "Call/Transaction Does Not Exist")
	}
	if a != nil && h.ruri == nil {
		h.ruri = a.uri
	}
	h.pops = pops
	return h, s, side
}

// served tells whether a URI's host is the edge's own or one that sip.domains names.
func (c *Core) served(u sipmsg.URI) bool {
	return c.ownHost(u.Host) || c.domainOf(u.Host) != nil
}

// guarded tells whether hosts of one network reach those of the other only where they are registered,
// configured or part of a dialog.
func (c *Core) guarded(from, to string) bool { return c.nets[to].Trusted && !c.nets[from].Trusted }

// recordedRoute tells whether a side's own proxies recorded the Route value u.
func (s *session) recordedRoute(side pinhole.Side, u sipmsg.URI) bool {
	return slices.ContainsFunc(s.routes[side], func(r string) bool {
		na, err := sipmsg.ParseNameAddr([]byte(r))
		return err == nil && bytes.Equal(na.URI, u.Value)
	})
}

// toContact goes to a side's Contact by its route set.
func (c *Core) toContact(s *session, side pinhole.Side) hop {
	a := s.contacts[side]
	h := c.toAlias(a)
	if len(s.routes[side]) > 0 {
		h = c.toRoute(s.networks[side], s.routes[side][0])
		h.ruri, h.routes = a.uri, s.routes[side]
	}
	return h
}

// recorded reads the edge's own Record-Route value back: the session, or the network beyond.
func (c *Core) recorded(f flow.Flow) (s *session, network string) {
	for el := range c.m.Elements(sipmsg.Route) {
		s, network = c.recordOf(el.Value)
		break
	}
	if s != nil && (s.callID != string(c.m.CallID()) || s.networks[s.sideOf(&c.m)] != f.Network) {
		s = nil
	}
	return s, network
}

// recordOf reads one Route or Record-Route value; nothing if it is not ours.
func (c *Core) recordOf(v []byte) (s *session, network string) {
	u, err := addressURI(v)
	if err != nil || c.ownURI(u) == nil {
		return nil, ""
	}
	if v, ok := u.Param("e"); ok {
		if id, ok := parseHex(v); ok {
			s = c.sessions[id]
		}
	}
	if v, ok := u.Param("n"); ok {
		for name := range c.nets {
			if string(appendHex(nil, c.networkToken(name))) == string(v) {
				network = name
			}
		}
	}
	return s, network
}

// toAlias goes back down the flow that the Contact came from (RFC 5626 §5.3).
func (c *Core) toAlias(a *alias) hop {
	h := hop{network: a.network, ruri: a.uri}
	if a.flow.Remote.IsValid() {
		h.flow = a.flow
		return h
	}
	u, err := sipmsg.ParseURI(a.uri)
	if err != nil {
		return refuse(480, "Temporarily Unavailable")
	}
	if h, ok := c.toClientPort(a, u); ok {
		return h
	}
	if a.nat && a.binding != nil || c.nets[a.network].Trusted && !a.free && !c.itself(a, u) {
		return refuse(480, "Flow Failed")
	}
	if d := c.domainOf(u.Host); d != nil && a.host == (netip.Addr{}) {
		to := c.toDomain(d, u, false) // a redirection to a domain that is configured
		to.ruri = a.uri
		return to
	}
	to := c.toURI(a.network, u)
	to.ruri = a.uri
	return to
}

// isIM tells whether a URI names somebody by im: or pres:.
func isIM(u sipmsg.URI) bool {
	return bytes.EqualFold(u.Scheme, []byte("im")) || bytes.EqualFold(u.Scheme, []byte("pres"))
}

// asSIP returns the sip URI that means the same as an im or pres one.
func asSIP(u sipmsg.URI) sipmsg.URI {
	spec, _, _ := bytes.Cut(u.Opaque, []byte{'?'})
	at := bytes.LastIndexByte(spec, '@')
	u.Scheme, u.User, u.Host = []byte("sip"), spec[:max(at, 0)], spec[at+1:]
	return u
}

// itself tells whether a Contact that a host of a trusted network wrote leads to that host, or, in a
// redirection, to one that is registered; in both cases not to a service port.
func (c *Core) itself(a *alias, u sipmsg.URI) bool {
	ip, ok := parseAddr(u.Host)
	if _, other := u.Param("maddr"); !ok || other || c.ownHost(u.Host) || servicePort(u.Port) {
		return ok && !other && c.ownURI(u) != nil
	}
	if a.host.IsValid() {
		return ip == a.host
	}
	for _, b := range c.bindings {
		if b.alias.network == a.network && b.alias.flow.Remote.Addr() == ip {
			return true
		}
	}
	return false
}

// servicePort tells whether a port belongs to a system service, which no phone is (0: none is said).
func servicePort(port uint16) bool { return port > 0 && port < 1024 }

// toRoute goes to a Route value.
func (c *Core) toRoute(network, route string) hop {
	u, err := addressURI([]byte(route))
	if err != nil {
		return refuse(400, "Bad Route")
	}
	return c.toURI(network, u)
}

// addressURI reads the URI of a Route or Record-Route value.
func addressURI(v []byte) (sipmsg.URI, error) {
	na, err := sipmsg.ParseNameAddr(v)
	if err != nil {
		return sipmsg.URI{}, err
	}
	return sipmsg.ParseURI(na.URI)
}

// toURI goes to a URI's host on a network (RFC 3263; maddr of RFC 3261 §19.1.1).
func (c *Core) toURI(network string, u sipmsg.URI) hop {
	if network == "" {
		return refuse(404, "Not Found")
	}
	if len(u.Host) == 0 {
		return refuse(404, "No Route For This URI")
	}
	host := u.Host
	if v, ok := u.Param("maddr"); ok && len(v) > 0 {
		host = bytes.Trim(v, "[]")
	}
	p := uriProto(u)
	h := hop{network: network, open: p == 0}
	if a, ok := parseAddr(host); ok {
		h.targets = numericTargets(network, p, addrPort(a, uriPort(u, p)))
		if !c.mayReach(h.targets[0]) {
			c.drop("target_forbidden")
			return refuse(403, "Relaying Denied")
		}
		return h
	}
	h.need, h.named = server{Proto: p, Host: string(host), Port: u.Port}, true
	return h
}

// mayReach tells whether a request may go to an address that a message names, or that a name in a message
// has: it must be a host of that network. The edge's own services, this host and the link are none,
// unless the configuration itself names them.
func (c *Core) mayReach(tg flow.Target) bool {
	a := tg.Addr.Addr().Unmap()
	switch {
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case c.configured(tg):
		return true
	case c.nets.Own(a): // a spiral comes back to a listener
		return slices.ContainsFunc(c.locals, func(l *local) bool { return l.public == tg.Addr || l.bind == tg.Addr })
	case a.IsLoopback() || a.IsLinkLocalUnicast():
		return slices.ContainsFunc(c.nets[tg.Network].Addresses, func(own netip.Addr) bool {
			return own.IsLoopback() == a.IsLoopback() && own.IsLinkLocalUnicast() == a.IsLinkLocalUnicast()
		})
	}
	on := c.nets.Of(a)
	if on == "" && c.routeTo != nil {
		on = c.routeTo(a)
	}
	return on == "" || on == tg.Network
}

// configured tells whether a target is an address of a configured server.
func (c *Core) configured(tg flow.Target) bool {
	for _, d := range c.domains {
		for _, s := range d.servers {
			if s.network == tg.Network && slices.ContainsFunc(s.targets, func(t flow.Target) bool { return t.Addr == tg.Addr }) {
				return true
			}
		}
	}
	return false
}

func numericTargets(network string, p flow.Proto, a netip.AddrPort) []flow.Target {
	if p == 0 {
		p = flow.UDP
	}
	return []flow.Target{{Network: network, Proto: p, Addr: a}}
}

// toDomain goes to a domain's servers, the ones that answer first.
func (c *Core) toDomain(d *domain, u sipmsg.URI, own bool) hop {
	h := hop{network: d.network, domain: d.host}
	if len(d.servers) == 0 {
		h.need, h.open = server{Proto: uriProto(u), Host: d.host, Port: u.Port}, true
		return h
	}
	for _, alive := range []bool{true, false} {
		for _, s := range d.servers {
			if s.down.After(c.now) != alive {
				if h.targets == nil {
					h.targets = slices.Clip(s.targets)
				} else {
					h.targets = append(h.targets, s.targets...)
				}
				h.open = h.open || s.Proto == 0
			}
		}
	}
	if len(h.targets) == 0 {
		h.need = d.servers[0].server
	}
	if own {
		// The client took the edge for its server: the server must find itself in the Request-URI.
		h.ruri = c.ownToServer(u, d.servers[0])
	}
	return h
}

func (c *Core) ownToServer(u sipmsg.URI, s *upstream) []byte {
	b := append([]byte(nil), u.Scheme...)
	b = append(b, ':')
	if len(u.User) > 0 {
		b = append(append(b, u.User...), '@')
	}
	if strings.Contains(s.Host, ":") {
		b = append(append(append(b, '['), s.Host...), ']')
	} else {
		b = append(b, s.Host...)
	}
	if s.Port != 0 {
		b = appendUint(append(b, ':'), uint64(s.Port))
	}
	return append(b, u.Params...) // with their ";"
}

// loopHash covers what decides the way of a request (RFC 5393 §4.2.2). It is compared only within one
// request's list of Vias, so what never changes on the way (Call-ID, tags, CSeq) need not be in it.
func (c *Core) loopHash() uint32 {
	b := append(c.keyBuf[:0], c.m.RequestURI()...)
	for el := range c.m.Elements(sipmsg.Route) {
		b = append(b, el.Value...)
	}
	c.keyBuf = b
	return uint32(maphash.Bytes(c.seed, b))
}
