package sipalg

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/imfilter"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// The requests that the edge makes itself: OPTIONS to clients and servers, BYE to a call that hangs,
// ACK and BYE to an answer that cannot be relayed.

// ownRequest is what such a request says.
type ownRequest struct {
	method, ruri, from, to, callID string
	cseq                           uint32
	routes                         []string
}

// sendOwn sends a request of the edge; done is told the final status.
func (c *Core) sendOwn(r ownRequest, h hop, done func(c *Core, status int)) {
	var dest flow.Flow
	switch {
	case h.status != 0:
		done(c, int(h.status))
		return
	case h.flow.Remote.IsValid():
		dest = h.flow
	case len(h.targets) > 0:
		dest = flow.Flow{Network: h.targets[0].Network, Proto: h.targets[0].Proto, Remote: h.targets[0].Addr}
	default:
		done(c, 404)
		return
	}
	l := c.localFor(dest.Network, dest.Proto, dest.Remote.Addr())
	if l == nil {
		done(c, 503)
		return
	}
	t := &tx{method: r.method, hop: h, done: done, up: flow.Flow{Network: l.network}}
	c.addTx(t)
	if len(h.targets) > 0 && !h.flow.Remote.IsValid() {
		t.target = h.targets[0]
	}
	t.buf = r.appendTo(make([]byte, 0, 700), l, dest.Proto, t.id)
	t.built()
	if r.method == "ACK" {
		c.transmit(t, l, dest)
		c.end(t)
		return
	}
	c.sentRequest(t, dest.Proto)
	c.transmit(t, l, dest)
}

func (r ownRequest) appendTo(b []byte, l *local, p flow.Proto, id uint64) []byte {
	b = append(append(append(append(b, r.method...), ' '), r.ruri...), " SIP/2.0\r\n"...)
	b = appendHex(appendHex32(append(b, l.viaFor(p)...), 0), id)
	b = append(b, branchTail...)
	for _, v := range r.routes {
		b = append(append(append(b, "Route: "...), v...), "\r\n"...)
	}
	b = append(append(append(b, "From: "...), r.from...), "\r\nTo: "...)
	b = append(append(append(b, r.to...), "\r\nCall-ID: "...), r.callID...)
	b = appendUint(append(b, "\r\nCSeq: "...), uint64(r.cseq))
	b = append(append(append(b, ' '), r.method...), "\r\nMax-Forwards: 70\r\nUser-Agent: edged\r\nContent-Length: 0\r\n\r\n"...)
	return b
}

// options is an OPTIONS from the edge itself, as it is known at l, to a URI.
func (c *Core) options(uri string, l *local) ownRequest {
	return ownRequest{
		method: "OPTIONS", ruri: uri, from: "<sip:edge@" + l.hostport + ">;tag=" + string(appendHex(nil, c.newID())),
		to: "<" + uri + ">", callID: string(appendHex(nil, c.newID())) + "@edge", cseq: 1,
	}
}

// minKeepalive is the shortest interval that the pings of a client adapt to.
const minKeepalive = 10 * time.Second

// ping keeps a client's NAT binding open; its answer proves that the binding lives. Where none comes the
// interval is halved: the NAT forgets sooner than we thought.
func (c *Core) ping(b *binding) {
	h := c.toAlias(b.alias)
	l := c.localFor(b.alias.network, h.flow.Proto, h.flow.Remote.Addr())
	if l == nil || !h.flow.Remote.IsValid() {
		return // the next registration starts the pings again
	}
	if b.interval == 0 {
		b.interval = c.cfg.Keepalive
	}
	c.start(&b.keepalive, b.interval)
	if b.signs { // it would not answer
		c.out.sendCopy(h.flow, []byte("\r\n\r\n"))
		return
	}
	c.sendOwn(c.options(string(b.alias.uri), l), h, func(c *Core, status int) {
		if status == 408 && b.interval > minKeepalive {
			b.interval = max(b.interval/2, minKeepalive)
			c.log.Info("client does not answer pings", zap.String("aor", b.aor), zap.Duration("interval", b.interval))
		}
	})
}

// lookAgain is how often a server's name is looked up where servers are not probed.
const lookAgain = time.Minute

// probeServer asks a configured server whether it is there (OPTIONS), so that calls need not wait to find out.
func (c *Core) probeServer(u *upstream) {
	c.start(&u.probe, cmp.Or(c.cfg.Probe, lookAgain))
	if _, numeric := parseAddr([]byte(u.Host)); !numeric {
		c.lookup(u) // names move; the resolver knows how long they stay
	}
	if len(u.targets) == 0 || c.cfg.Probe == 0 {
		return
	}
	tg := u.targets[0]
	l := c.localFor(tg.Network, tg.Proto, tg.Addr.Addr())
	if l == nil {
		return
	}
	c.sendOwn(c.options("sip:"+tg.Addr.String(), l), hop{network: u.network, targets: []flow.Target{tg}}, func(c *Core, status int) {
		switch {
		case status == 408 || status == 503:
			if !u.down.After(c.now) {
				c.log.Warn("server does not answer", zap.String("server", u.Host), zap.Stringer("address", tg.Addr), zap.Int("status", status))
			}
			u.down = c.now.Add(2 * c.cfg.Probe)
		default:
			if u.down.After(c.now) {
				c.log.Info("server answers again", zap.String("server", u.Host))
			}
			u.down = time.Time{}
		}
	})
}

// markDown keeps new requests away from a server that did not answer.
func (c *Core) markDown(t *tx) {
	if up := t.up; t.key != 0 && !c.nets[up.Network].Trusted && !c.servers[up.Remote.Addr().Unmap()] {
		return // what a stranger sends may deserve no answer
	}
	const pause = 30 * time.Second
	for _, d := range c.domains {
		for _, u := range d.servers {
			if slices.Contains(u.targets, t.target) {
				u.down = c.now.Add(pause)
			}
		}
	}
}

// hangup ends a call from the middle: a BYE to each side.
func (c *Core) hangup(s *session, reason string) {
	if s.ending || c.sessions[s.id] != s || s.answered.IsZero() || len(s.dialogs) == 0 {
		return
	}
	s.ending, s.reason = true, reason
	c.log.Info("call ended by the edge", zap.String("call_id", s.callID), zap.String("reason", reason))
	left := 2
	answered := func(c *Core, _ int) {
		if left--; left == 0 {
			c.endSession(s, reason, 200)
		}
	}
	for side := pinhole.Near; side <= pinhole.Far; side++ {
		r := ownRequest{method: "BYE", callID: s.callID, from: s.to, to: s.from, cseq: s.cseq[side.Other()] + 1, routes: s.routes[side]}
		if side == pinhole.Far {
			r.from, r.to = s.from, s.to
		}
		h := refuse(480, "")
		if a := s.contacts[side]; a != nil {
			r.ruri = string(a.uri)
			h = c.toContact(s, side)
		}
		if c.absent(s, side) { // it is told, but what it answers will not be read
			c.sendOwn(r, h, func(*Core, int) {})
			answered(c, 0)
			continue
		}
		c.sendOwn(r, h, answered)
	}
}

// killAnswer ends what a callee believes to be a call: ACK and BYE to the 2xx at hand.
func (c *Core) killAnswer(t *tx, f flow.Flow) {
	m := &c.m
	from, _ := m.Find(sipmsg.From)
	to, _ := m.Find(sipmsg.To)
	n, _ := m.CSeq()
	r := ownRequest{method: "ACK", from: string(from), to: string(to), callID: string(m.CallID()), cseq: n}
	r.routes = c.routesToCallee(t)
	contact, _ := m.Find(sipmsg.Contact)
	na, err := sipmsg.ParseNameAddr(contact)
	if err != nil {
		return
	}
	r.ruri = string(na.URI)
	h := hop{network: f.Network, flow: f}
	if len(r.routes) > 0 {
		h = c.toRoute(f.Network, r.routes[0])
	}
	c.sendOwn(r, h, func(*Core, int) {})
	r.method, r.cseq = "BYE", n+1
	c.sendOwn(r, h, func(*Core, int) {})
}

// silence is word of the relay: a stream of a session has become silent, or is heard again.
type silence struct {
	session uint64
	stream  uint32
	silent  bool
}

// idleFunc returns what the relay calls when a stream becomes silent or is heard again. It only leaves
// word: the outer half brings it in under the lock.
func (s *session) idleFunc(c *Core, stream uint32) func(bool) {
	return func(silent bool) { c.idle(silence{s.id, stream, silent}) }
}

// MediaIdle takes word of a stream's silence. When all streams of a dialog are silent, the call hangs.
func (c *Core) MediaIdle(now time.Time, w silence, out *Output) {
	c.begin(now, out)
	s := c.sessions[w.session]
	if s == nil {
		return
	}
	for _, d := range s.dialogs {
		all := d.confirmed
		for i := range d.streams {
			st := &d.streams[i]
			if st.serial == w.stream {
				st.silent = w.silent
			}
			all = all && (st.lease == nil || st.silent)
		}
		if all && w.silent {
			c.hangup(s, "media timeout")
			return
		}
	}
}

// Configure takes the live part of the configuration: domains, access, scanners, limits.
func (c *Core) Configure(cfg Config, limits Limits) {
	for _, d := range c.domains {
		for _, u := range d.servers {
			c.stop(&u.probe)
			delete(c.lookups, u.query)
		}
	}
	c.cfg, c.limits, c.urls = cfg, limits, imfilter.New(cfg.IMURLs)
	c.domains, c.servers = map[string]*domain{}, map[netip.Addr]bool{}
	for host, d := range cfg.Domains {
		cd := &domain{network: d.Network, host: host}
		for i, text := range append([]string{d.Server}, d.Backups...) {
			sv, err := parseServer(text)
			if i == 0 && text == "" || err != nil {
				continue // Validate has refused a bad one
			}
			u := &upstream{server: sv, network: d.Network}
			u.probe.fire = func(c *Core) { c.probeServer(u) }
			if a, ok := parseAddr([]byte(sv.Host)); ok {
				u.targets = numericTargets(d.Network, sv.Proto, addrPort(a, portOr(sv.Port, sv.Proto)))
			}
			cd.servers = append(cd.servers, u)
		}
		c.domains[strings.ToLower(host)] = cd
	}
	c.judgePeers()
	c.noteServers()
}

// Begin starts the probes and look-ups; call it once, and again after Configure.
func (c *Core) Begin(now time.Time, out *Output) {
	c.begin(now, out)
	for _, d := range c.domains {
		for _, u := range d.servers {
			if len(u.targets) == 0 {
				c.lookup(u)
			}
			if _, numeric := parseAddr([]byte(u.Host)); c.cfg.Probe > 0 || !numeric {
				c.start(&u.probe, cmp.Or(c.cfg.Probe, lookAgain))
			}
		}
	}
}

// noteServers collects the addresses of the configured servers and of verified peers: an address that a name has no more is
// a stranger's.
func (c *Core) noteServers() {
	clear(c.servers)
	for _, d := range c.domains {
		for _, u := range d.servers {
			for _, t := range u.targets {
				c.servers[t.Addr.Addr().Unmap()] = true
			}
		}
	}
	for a := range c.peers {
		c.servers[a] = true
	}
}

// lookup asks for a configured server's addresses.
func (c *Core) lookup(u *upstream) {
	if u.query == 0 {
		u.query = c.newID()
	}
	c.lookups[u.query] = u
	c.out.items = append(c.out.items, item{resolve: &query{id: u.query, network: u.network, server: u.server}})
}

// Resolved takes the answer to a query: the addresses of a name, none if it has none.
func (c *Core) Resolved(now time.Time, id uint64, targets []flow.Target, out *Output) {
	c.begin(now, out)
	if u := c.lookups[id]; u != nil {
		delete(c.lookups, id)
		if len(targets) > 0 {
			u.targets = targets
			c.noteServers()
		}
		return
	}
	c.resolved(id, targets)
}
