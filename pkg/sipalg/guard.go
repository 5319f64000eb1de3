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
	// sweepMisses is how many requests for somebody that is not here make a sweep: the sender is banned.
	sweepMisses = 30
	missWindow  = time.Minute
)

// source is what the guard knows of one sending host.
type source struct {
	name   string
	tokens float64
	seen   time.Time
	banned time.Time // until
	misses int
	window time.Time
}

// sourceOf returns the entry of a host. When the table is full, strangers share one entry.
func (c *Core) sourceOf(a netip.Addr) *source {
	a = a.Unmap()
	s := c.sources[a]
	if s == nil {
		if len(c.sources) >= maxSources {
			a = netip.Addr{}
			if s = c.sources[a]; s != nil {
				return s
			}
		}
		s = &source{name: a.String(), tokens: float64(c.limits.MessagesPerSecond), seen: c.now}
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
	if s := c.sources[a]; s != nil && s.banned.After(c.now) {
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

// charge takes one message from the sender's allowance; false means that it has none left.
// Configured servers are exempt.
func (c *Core) charge(f flow.Flow) bool {
	rate := float64(c.limits.MessagesPerSecond)
	a := f.Remote.Addr().Unmap()
	if rate <= 0 || c.servers[a] {
		return true
	}
	s := c.sourceOf(a)
	s.tokens = min(rate, s.tokens+rate*c.now.Sub(s.seen).Seconds())
	s.seen = c.now
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// suspect counts a request for somebody that is not here. A challenge (401, 407) never counts: it is
// how every honest registration begins.
func (c *Core) suspect(f flow.Flow) {
	if c.nets[f.Network].Trusted || c.cfg.Ban == 0 || c.servers[f.Remote.Addr().Unmap()] {
		return
	}
	s := c.sourceOf(f.Remote.Addr())
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
			c.ban(c.sourceOf(f.Remote.Addr()), f, "user_agent")
			c.drop("scanner")
			return true
		}
	}
	return false
}

func (c *Core) ban(s *source, f flow.Flow, why string) {
	s.banned = c.now.Add(c.cfg.Ban)
	s.seen = c.now
	c.log.Warn("banned", zap.Stringer("client", f.Remote.Addr()), zap.String("network", f.Network),
		zap.String("reason", why), zap.Duration("for", c.cfg.Ban))
}

func (c *Core) sweepSources() {
	for a, s := range c.sources {
		if c.now.Sub(s.seen) > sourceLife && !s.banned.After(c.now) {
			delete(c.sources, a)
		}
	}
}
