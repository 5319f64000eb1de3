package sipalg

import (
	"bytes"
	"net/netip"
	"strings"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// toClientPort is the way to a client whose connection has ended, where its Contact says that connection's own
// port, as Microsoft's clients do. Who used TCP listens there too, and the edge dials it if the client is
// registered; who used TLS is reached by its own connection only.
func (c *Core) toClientPort(a *alias, u sipmsg.URI) (h hop, ok bool) {
	if a.bound.Conn == 0 || u.Port != a.bound.Remote.Port() || servicePort(u.Port) {
		return hop{}, false
	}
	if f := c.newFlowOf(a, u); f.Remote.IsValid() {
		return hop{network: a.network, ruri: a.uri, flow: f}, true
	}
	if a.bound.Proto != flow.TCP { // a server's port, from which it dials too, is another matter
		return refuse(480, "Flow Failed"), u.Port != 5060 && u.Port != 5061
	}
	host := u.Host
	if v, given := u.Param("maddr"); given {
		host = bytes.Trim(v, "[]")
	}
	if ip, numeric := parseAddr(host); !numeric || ip != a.host || !c.registeredFrom(a.network, ip) {
		return hop{}, false
	}
	h = hop{network: a.network, ruri: a.uri, targets: numericTargets(a.network, flow.TCP, addrPort(a.host, u.Port))}
	return h, c.mayReach(h.targets[0])
}

// newFlowOf returns the connection by which the user of a lost one has registered from the same host since, the zero
// flow if there is none or more than one.
func (c *Core) newFlowOf(a *alias, u sipmsg.URI) (f flow.Flow) {
	for _, b := range c.users[string(u.User)] {
		if o := b.alias; o.network != a.network || o.host != a.host || !o.flow.Remote.IsValid() || !strings.EqualFold(b.host, string(u.Host)) {
			continue
		}
		if f.Remote.IsValid() {
			return flow.Flow{}
		}
		f = b.alias.flow
	}
	return f
}

// registeredFrom tells whether a client at a host is registered.
func (c *Core) registeredFrom(network string, host netip.Addr) bool {
	for _, b := range c.bindings {
		if b.alias.network == network && b.alias.host == host {
			return true
		}
	}
	return false
}
