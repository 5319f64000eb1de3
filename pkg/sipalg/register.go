package sipalg

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// A binding is one registered Contact, as far as the edge must know it: to find the client again, to
// keep its NAT binding open, and to answer for an absent registrar's own routing.
type binding struct {
	aor       string // address-of-record: To without parameters, lower-case host
	user      string
	host      string
	alias     *alias
	network   string // of the registrar
	callID    string
	cseq      uint32
	granted   time.Duration
	at        time.Time
	expires   time.Time
	timer     timer // expiry
	keepalive timer
	interval  time.Duration // of the pings, as learnt; 0 = as configured
	restored  bool          // read back after a restart, the flow may be gone
	signs     bool          // the client answers nothing that is not signed
}

const maxBindings = 1 << 18

// registerResponse rewrites the Contacts of a registrar's answer back to what the client wrote, and
// keeps the bindings that it tells of (RFC 3261 §10.3).
func (c *Core) registerResponse(t *tx) {
	m := &c.m
	ok := m.Status()/100 == 2
	aor, user, host := c.aor()
	if !c.authoritative(t, host) {
		// Its Contacts lead back, but nobody is found here by an address that is another registrar's.
		user += "?" + t.down.Remote.Addr().String()
		aor = user + "@" + host
	}
	n, _ := m.CSeq()
	for el := range m.Elements(sipmsg.Contact) {
		na, err := sipmsg.ParseNameAddr(el.Value)
		if err != nil {
			continue
		}
		u, err := sipmsg.ParseURI(na.URI)
		if err != nil {
			continue
		}
		a := c.aliasOf(u)
		if a == nil || a.network != t.up.Network {
			continue
		}
		c.ed.ReplaceSpan(na.URI, a.uri)
		if ok {
			c.bind(t, a, binding{aor: aor, user: user, host: host, cseq: n}, contactExpires(m, na))
		}
	}
	if ok {
		c.unbindMissing(t, aor, user)
	}
}

// authoritative tells whether whoever answered the REGISTER speaks for a domain: the server that is
// configured for it, or, for a domain that nobody knows here, whom the Request-URI named.
func (c *Core) authoritative(t *tx, host string) bool {
	switch {
	case c.domains[host] != nil:
		return t.hop.domain == c.domains[host].host
	case t.hop.domain != "":
		return true
	}
	if len(t.hop.routes) > 0 || c.m2.Parse(t.buf[:t.outLen]) != nil {
		return false
	}
	u, err := sipmsg.ParseURI(c.m2.RequestURI())
	_, maddr := u.Param("maddr")
	return err == nil && !maddr && strings.EqualFold(string(u.Host), host)
}

// aor returns the address-of-record of the REGISTER's answer at hand.
func (c *Core) aor() (aor, user, host string) {
	u, err := sipmsg.ParseURI(c.m.To().URI)
	if err != nil {
		return "", "", ""
	}
	user, host = string(u.User), strings.ToLower(string(u.Host))
	return user + "@" + host, user, host
}

// contactExpires returns the lifetime that the registrar granted.
func contactExpires(m *sipmsg.Message, na sipmsg.NameAddr) time.Duration {
	if v, ok := na.Param("expires"); ok {
		if n, ok := parseUint(v); ok {
			return time.Duration(n) * time.Second
		}
	}
	if n, ok := m.Expires(); ok {
		return time.Duration(n) * time.Second
	}
	return time.Hour // RFC 3261 §10.3 item 7 leaves the default to the registrar
}

// bind keeps a binding, or renews it. A Contact that another flow of the same host had before moves here.
func (c *Core) bind(t *tx, a *alias, nb binding, exp time.Duration) {
	key := bindingKey(nb.aor, a)
	b := c.bindings[key]
	if exp <= 0 {
		if b != nil {
			c.unbind(b, "unregistered")
		}
		return
	}
	if b != nil && a != b.alias {
		c.unbind(b, "replaced")
		b = nil
	}
	// Only a Contact of this very REGISTER renews: the answer lists the bindings of other devices too.
	if !c.sentContact(t, a) {
		return
	}
	if b == nil {
		if len(c.bindings) >= maxBindings {
			c.drop("binding_table_full")
			return
		}
		b = &binding{alias: a}
		a.hold()
		b.timer.fire = func(c *Core) { c.unbind(b, "expired") }
		b.keepalive.fire = func(c *Core) { c.ping(b) }
		c.bindings[key] = b
		c.users[nb.user] = append(c.users[nb.user], b)
		c.log.Info("registered", zap.String("aor", nb.aor), zap.Stringer("client", t.up.Remote),
			zap.Stringer("transport", t.up.Proto), zap.Duration("expires", exp))
	}
	b.aor, b.user, b.host, b.cseq = nb.aor, nb.user, nb.host, nb.cseq
	b.callID, b.signs = string(c.m.CallID()), signed(&c.m)
	b.network, b.at, b.granted, b.expires, b.restored = t.down.Network, c.now, exp, c.now.Add(exp), false
	a.binding = b
	c.bindAlias(a, t.up, true)
	c.start(&b.timer, exp)
	if c.cfg.Keepalive > 0 && !t.up.Proto.Stream() && a.nat {
		c.start(&b.keepalive, c.cfg.Keepalive)
	}
	c.store(b, false)
}

func bindingKey(aor string, a *alias) string { return aor + " " + string(a.token[:]) }

// sentContact tells whether the REGISTER that was sent on named this alias.
func (c *Core) sentContact(t *tx, a *alias) bool {
	return bytes.Contains(t.buf[:t.outLen], a.token[:])
}

// unbindMissing forgets this client's bindings that the answer does not list any more: "Contact: *",
// or expiry at the registrar.
func (c *Core) unbindMissing(t *tx, aor, user string) {
	if aor == "" {
		return
	}
	for _, b := range slices.Clone(c.users[user]) {
		if b.aor != aor || b.alias.network != t.up.Network || bytes.Contains(c.m.Raw(), b.alias.token[:]) {
			continue
		}
		if _, any := c.m.Find(sipmsg.Contact); any || c.wildcard(t) || c.sentContact(t, b.alias) {
			c.unbind(b, "unregistered")
		}
	}
}

// wildcard tells whether the REGISTER that was sent on removes all bindings.
func (c *Core) wildcard(t *tx) bool {
	return c.m2.Parse(t.buf[:t.outLen]) == nil && func() bool {
		v, ok := c.m2.Find(sipmsg.Contact)
		return ok && len(v) == 1 && v[0] == '*'
	}()
}

func (c *Core) unbind(b *binding, why string) {
	key := bindingKey(b.aor, b.alias)
	if c.bindings[key] != b {
		return
	}
	delete(c.bindings, key)
	c.stop(&b.timer)
	c.stop(&b.keepalive)
	if b.alias.binding == b {
		b.alias.binding = nil
	}
	c.releaseAlias(b.alias)
	rest := slices.DeleteFunc(c.users[b.user], func(o *binding) bool { return o == b })
	if len(rest) == 0 {
		delete(c.users, b.user)
	} else {
		c.users[b.user] = rest
	}
	c.log.Info("registration ended", zap.String("aor", b.aor), zap.String("reason", why))
	c.store(b, true)
}

// registered finds the client that a Request-URI names by its address-of-record; with the edge's own
// address as host the user alone must be unambiguous. The last registered device of a user wins.
func (c *Core) registered(u sipmsg.URI, own bool) *binding {
	var best *binding
	for _, b := range c.users[string(u.User)] {
		if !own && !strings.EqualFold(b.host, string(u.Host)) {
			continue
		}
		if best != nil && own && best.aor != b.aor {
			return nil
		}
		if best == nil || b.at.After(best.at) {
			best = b
		}
	}
	return best
}

// earlyRefresh answers a REGISTER that only repeats a binding which the registrar has granted for
// longer: same flow, Call-ID and Contact, higher CSeq, less than half of the lifetime gone.
func (c *Core) earlyRefresh(f flow.Flow, via *sipmsg.Via) bool {
	if !c.cfg.EarlyRefresh || signedByClient(&c.m) { // who signs wants the registrar's signature back
		return false
	}
	var v []byte
	n := 0
	for el := range c.m.Elements(sipmsg.Contact) {
		v = el.Value
		n++
	}
	na, err := sipmsg.ParseNameAddr(v)
	if err != nil || n != 1 {
		return false
	}
	if exp, ok := na.Param("expires"); ok && string(exp) == "0" {
		return false
	}
	if n, ok := c.m.Expires(); ok && n == 0 {
		return false
	}
	a := c.aliasFor(f, na.URI, true)
	cseq, _ := c.m.CSeq()
	if a == nil || a.binding == nil {
		return false
	}
	b := a.binding
	if b.restored || b.callID != string(c.m.CallID()) || cseq <= b.cseq || !a.sameFlow(f) || c.now.Sub(b.at) > b.granted/2 {
		return false
	}
	b.cseq = cseq
	left := appendUint(nil, uint64(b.expires.Sub(c.now).Seconds()))
	c.buf = c.appendReply(c.buf[:0], f, via, 200, "OK", []byte("edge"),
		"Contact: <"+string(a.uri)+">;expires="+string(left), "Expires: "+string(left))
	c.out.sendCopy(backFlow(f, via), c.buf)
	return true
}

// sameFlow tells whether f is the way to the alias; without a NAT the client may send from another
// port than it listens on.
func (a *alias) sameFlow(f flow.Flow) bool {
	return a.flow.Conn == f.Conn && a.flow.Network == f.Network && a.flow.Remote.Addr() == f.Remote.Addr() &&
		(!a.nat || a.flow.Remote == f.Remote)
}
