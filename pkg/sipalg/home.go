package sipalg

import (
	"net/netip"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// A home is the server to which a client's REGISTER was redirected (301, 302). Microsoft's clients drop the
// connection then and dial the host of the Contact, which is the edge, with their domain in the Request-URI as
// before: only the edge knows that another server is meant.
type home struct {
	alias  *alias // the redirection's Contact
	domain string // as configured, for which it holds
	until  time.Time
}

// homeKey is a client: one host may have several users.
type homeKey struct {
	network string
	host    netip.Addr
	from    string // URI of From
}

const (
	// maxHomes bounds the table: about 400 bytes each.
	maxHomes = 1 << 16
	// homeLife is how long a home is remembered after its last use.
	homeLife = 12 * time.Hour
)

// keepHome remembers that the redirection at hand, from a configured server, leads t's client to a.
func (c *Core) keepHome(t *tx, f flow.Flow, a *alias) {
	if t.method != "REGISTER" || t.hop.domain == "" || !c.servers[f.Remote.Addr().Unmap()] || c.m.Status() > 302 || len(c.m.From().URI) > maxName {
		return
	}
	k := homeKey{t.up.Network, t.up.Remote.Addr().Unmap(), string(c.m.From().URI)}
	c.forgetHome(k)
	if len(c.homes) >= maxHomes {
		c.drop("home_table_full")
		return
	}
	a.hold()
	c.homes[k] = &home{alias: a, domain: t.hop.domain, until: c.now.Add(homeLife)}
}

// toHome returns the way to the home of whoever sent the request at hand, if it has one in the domain d.
func (c *Core) toHome(f flow.Flow, d *domain) (hop, bool) {
	if len(c.homes) == 0 {
		return hop{}, false
	}
	k := homeKey{f.Network, f.Remote.Addr().Unmap(), string(c.m.From().URI)}
	m := c.homes[k]
	if m == nil || m.domain != d.host {
		return hop{}, false
	}
	u, err := sipmsg.ParseURI(m.alias.uri)
	h := c.toAlias(m.alias)
	if err != nil || h.status != 0 {
		c.forgetHome(k)
		return hop{}, false
	}
	m.until = c.now.Add(homeLife)
	if h.domain == "" && uriProto(u) == 0 && len(d.servers) > 0 && d.servers[0].Proto != 0 {
		h.by(d.servers[0].Proto, u.Port) // it says nothing of the transport: the same as of the first server
	}
	h.ruri, h.domain, h.home = nil, d.host, true
	return h, true
}

// by fixes the transport of a hop that leaves it open.
func (h *hop) by(p flow.Proto, port uint16) {
	h.open = false
	h.need.Proto = p
	for i := range h.targets {
		h.targets[i].Proto = p
		h.targets[i].Addr = addrPort(h.targets[i].Addr.Addr(), portOr(port, p))
	}
}

// homeFailed forgets a home that cannot be reached: the first server decides anew.
func (c *Core) homeFailed(t *tx) {
	raw := t.raw
	if raw == nil {
		raw = t.buf[:t.outLen]
	}
	if !t.hop.home || c.m2.Parse(raw) != nil {
		return
	}
	c.forgetHome(homeKey{t.up.Network, t.up.Remote.Addr().Unmap(), string(c.m2.From().URI)})
}

func (c *Core) forgetHome(k homeKey) {
	if m := c.homes[k]; m != nil {
		c.releaseAlias(m.alias)
		delete(c.homes, k)
	}
}

func (c *Core) sweepHomes() {
	for k, m := range c.homes {
		if m.until.Before(c.now) {
			c.forgetHome(k)
		}
	}
}
