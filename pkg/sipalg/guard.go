package sipalg

import (
	"bytes"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

const (
	// maxSources bounds the table of senders: about 200 bytes each.
	maxSources = 1 << 16
	// sourceLife is how long a silent sender is remembered.
	sourceLife = 2 * time.Minute
	// goodLife is how long a host is known for an accepted call or registration.
	goodLife = 20 * time.Minute
	// sweepMisses is how many requests for somebody that is not here make a sweep: the sender is banned.
	sweepMisses = 30
	missWindow  = time.Minute
)

// source is what the guard knows of one sending host.
type source struct {
	tokens float64
	seen   time.Time
	banned time.Time // until
	good   time.Time // when a call or registration of it was accepted last
	misses int
	window time.Time
}

// sourceKey is what one sender is: an address; outside, the /64 that an IPv6 host may roam in.
func (c *Core) sourceKey(f flow.Flow) netip.Addr {
	a := f.Remote.Addr().Unmap().WithZone("")
	if a.Is6() && !c.nets[f.Network].Trusted && !c.servers[a] {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// sourceOf returns the entry of a sender. When the table is full, strangers share one entry: senders of
// datagrams can forge their addresses. Those of a trusted network do not suffer from it.
func (c *Core) sourceOf(f flow.Flow) *source {
	a := c.sourceKey(f)
	s := c.sources[a]
	if s == nil {
		full := len(c.sources) >= maxSources
		if full && (!c.nets[f.Network].Trusted || len(c.sources) >= 2*maxSources) {
			a = netip.Addr{}
			if s = c.sources[a]; s != nil {
				return s
			}
		}
		s = &source{tokens: float64(c.limits.MessagesPerSecond), seen: c.now}
		c.sources[a] = s
	}
	return s
}

// refuse returns the reason for which nothing of f is read at all, "" if there is none.
func (c *Core) refuse(f flow.Flow) string {
	a := f.Remote.Addr().Unmap()
	if acl, ok := c.cfg.Access[f.Network]; ok && !acl.permits(a) {
		return "access_denied"
	}
	if c.deny != nil && c.deny.Addr(a) {
		return "banned_by_operator"
	}
	if s := c.sources[c.sourceKey(f)]; s != nil && s.banned.After(c.now) {
		return "banned"
	}
	return ""
}

func (a Access) permits(ip netip.Addr) bool {
	for _, p := range a.Deny {
		if p.Contains(ip) {
			return false
		}
	}
	for _, p := range a.Allow {
		if p.Contains(ip) {
			return true
		}
	}
	return len(a.Allow) == 0
}

// What a message costs of its sender's allowance: messages within a dialog and retransmissions little.
const (
	costNew    = 1
	costDialog = 0.1
)

// charge takes the cost of a message from the sender's allowance; false means that it has not so much left.
// Configured servers are exempt.
func (c *Core) charge(f flow.Flow, cost float64) bool {
	rate := float64(c.limits.MessagesPerSecond)
	a := f.Remote.Addr().Unmap()
	if rate <= 0 || c.servers[a] {
		return true
	}
	s := c.sourceOf(f)
	s.tokens = min(rate, s.tokens+rate*c.now.Sub(s.seen).Seconds())
	s.seen = c.now
	if s.tokens < cost {
		return false
	}
	s.tokens -= cost
	return true
}

const (
	// maxHops bounds the Via, Route and Record-Route values of a message: Max-Forwards begins with 70.
	maxHops = 128
	// maxText bounds what a session or alias keeps of one header field.
	maxText = 4 << 10
	// maxTransactions and maxHeld (bytes) bound what all transactions take; strangers get three quarters.
	maxTransactions = 1 << 18
	maxHeld         = 256 << 20
)

// overlong tells whether the message at hand has header fields that no honest one has, and that would cost
// too much to edit or to keep.
func (c *Core) overlong() bool {
	m := &c.m
	if len(m.Raw()) <= maxText {
		return false
	}
	for _, id := range [...]sipmsg.HeaderID{sipmsg.HeaderVia, sipmsg.Route, sipmsg.RecordRoute} {
		n := 0
		for range m.Elements(id) {
			if n++; n > maxHops {
				return true
			}
		}
	}
	from, _ := m.Find(sipmsg.From)
	to, _ := m.Find(sipmsg.To)
	return len(from) > maxText || len(to) > maxText || len(m.CallID()) > maxText
}

// crowded tells whether there is no room for another transaction of the sender.
func (c *Core) crowded(f flow.Flow) bool {
	n, held := len(c.client), c.held
	if !c.nets[f.Network].Trusted && !c.servers[f.Remote.Addr().Unmap()] {
		n, held = n+n/3, held+held/3
	}
	return n >= maxTransactions || held >= maxHeld
}

// suspect counts a request for somebody that is not here. A challenge (401, 407) never counts: it is
// how every honest registration begins.
func (c *Core) suspect(f flow.Flow) {
	if c.nets[f.Network].Trusted || c.cfg.Ban == 0 || c.servers[f.Remote.Addr().Unmap()] {
		return
	}
	s := c.sourceOf(f)
	if c.now.Sub(s.window) > missWindow {
		s.window, s.misses = c.now, 0
	}
	if s.misses++; s.misses >= sweepMisses {
		c.ban(s, f, "sweep")
	}
}

// scanner bans a sender whose User-Agent gives it away. Its message gets no answer.
func (c *Core) scanner(f flow.Flow) bool {
	if c.nets[f.Network].Trusted || c.cfg.Ban == 0 || c.servers[f.Remote.Addr().Unmap()] {
		return false
	}
	ua, ok := c.m.Find(sipmsg.UserAgent)
	if !ok {
		return false
	}
	ua = bytes.ToLower(ua[:min(len(ua), 64)])
	for _, s := range c.cfg.Scanners {
		if bytes.HasPrefix(ua, []byte(s)) {
			c.ban(c.sourceOf(f), f, "user_agent")
			c.drop("scanner")
			return true
		}
	}
	return false
}

// vouch notes that somebody's call or registration was accepted.
func (c *Core) vouch(f flow.Flow) {
	if !c.nets[f.Network].Trusted {
		c.sourceOf(f).good = c.now
	}
}

// ban takes nothing more from a sender for a while. The address of a datagram can be forged: a host whose
// calls or registrations were accepted lately is not shut out by what somebody writes in its name.
func (c *Core) ban(s *source, f flow.Flow, why string) {
	if !f.Proto.Stream() && c.now.Sub(s.good) < goodLife {
		c.drop("ban_spared")
		return
	}
	s.banned = c.now.Add(c.cfg.Ban)
	s.seen = c.now
	c.log.Warn("banned", zap.Stringer("client", f.Remote.Addr()), zap.String("network", f.Network),
		zap.String("reason", why), zap.Duration("for", c.cfg.Ban))
}

func (c *Core) sweepSources() {
	for a, s := range c.sources {
		if c.now.Sub(s.seen) > sourceLife && !s.banned.After(c.now) && c.now.Sub(s.good) > goodLife {
			delete(c.sources, a)
		}
	}
}
