package t120

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Session descriptions of Microsoft's clients announce a conference as "m=application 1503 tcp msdata". The port
// is always 1503, so one listener serves all of them, and it is the caller's address that says whose call it is:
//
//	Open ─► Declare(Near, host) ─► Declare(Far, host) ─► either calls the edge, and is brought to the other

// ErrTaken says that the host takes part in another announced conference: its call could be for either.
var ErrTaken = errors.New("the host has announced another conference")

const (
	// maxAnnounced bounds the announced conferences.
	maxAnnounced = 4096
	// announcedIdle is how long an announced conference may go without a connection before it counts as silent.
	announcedIdle = 2 * time.Minute
)

// announceKey names who is expected to call.
type announceKey struct {
	network string
	from    netip.Addr
}

// announcement is a lease whose local addresses are the server's own listeners.
type announcement struct {
	server  *Server
	request pinhole.Request
	root    *announcement // what it was forked from at first; itself if it was not
	local   [2]pinhole.Local
	opened  time.Time

	// guarded by server.mu
	remote   [2]pinhole.Remote
	from     [2]netip.Addr     // who calls from a side; not valid if nobody yet
	to       [2]netip.AddrPort // where a side takes calls; not valid if it is not known, or cannot be reached
	own      [2]bool           // the side is this edge itself: see beyondLocked
	sessions map[*session]struct{}
	timer    *time.Timer
	idle     bool
	closed   bool
	summary  pinhole.Summary
}

// Announcer grants leases for conferences that are announced, on the server's own listeners.
type Announcer struct{ server *Server }

// Announcer returns the opener of announced conferences.
func (s *Server) Announcer() Announcer { return Announcer{s} }

// Open implements [pinhole.Opener] for a conference between a host on each of the two networks. Whatever the kind, the
// local addresses are the listeners on 1503. The error wraps [pinhole.ErrNetwork] where a network has none.
// Declare returns an error that wraps [ErrTaken] while the host is part of another announced conference.
func (o Announcer) Open(_ context.Context, r pinhole.Request) (pinhole.Lease, error) {
	s := o.server
	a := &announcement{server: s, request: r, opened: time.Now(), sessions: map[*session]struct{}{}}
	a.root = a
	for side, network := range r.Networks {
		at, err := s.listenerOf(network, r.Families[side])
		if err != nil {
			return nil, fmt.Errorf("announce: %w", err)
		}
		a.local[side] = pinhole.Local{Addr: at}
	}
	if err := s.announce(a); err != nil {
		return nil, err
	}
	return a, nil
}

// listenerOf returns the address that hosts of a network are to call.
func (s *Server) listenerOf(network string, f pinhole.Family) (netip.AddrPort, error) {
	_, public, err := s.deps.Networks.Local(network, f)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, l := range s.cfg.Listen {
		if l.Network == network {
			return netip.AddrPortFrom(public, l.Port), nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no t120 listener on %q: %w", network, pinhole.ErrNetwork)
}

// announce counts a new announcement.
func (s *Server) announce(a *announcement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gate.Drains():
		return fmt.Errorf("announce: draining: %w", pinhole.ErrExhausted)
	case s.announcements >= maxAnnounced:
		return fmt.Errorf("announce: %w", pinhole.ErrExhausted)
	}
	s.announcements++
	a.timer = time.AfterFunc(a.quiet(), a.expire)
	return nil
}

// quiet is how long the conference may be without a connection.
func (a *announcement) quiet() time.Duration {
	if a.request.Idle > 0 {
		return a.request.Idle
	}
	return announcedIdle
}

// Local implements [pinhole.Lease].
func (a *announcement) Local(side pinhole.Side) pinhole.Local { return a.local[side] }

// Declare implements [pinhole.Lease]: the host at a side calls from r.Addr, and takes calls there.
func (a *announcement) Declare(side pinhole.Side, r pinhole.Remote) error {
	s := a.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.closed {
		return pinhole.ErrClosed
	}
	network := a.request.Networks[side]
	own := s.ownLocked(a, side, r.Addr)
	reachable, err := pinhole.Policy{Networks: s.deps.Networks, OwnPort: func(netip.AddrPort) bool { return own }}.Check(network, r)
	if err != nil {
		return fmt.Errorf("declare: %w", err)
	}
	if own {
		a.withdrawLocked(side)
		a.remote[side], a.to[side], a.own[side] = r, netip.AddrPort{}, true
		return nil
	}
	from, to := r.Source.Unmap(), netip.AddrPort{} // a host behind a NAT calls from where its signalling is seen
	if reachable {
		from, to = r.Addr.Addr().Unmap(), netip.AddrPortFrom(r.Addr.Addr().Unmap(), r.Addr.Port())
	}
	key := announceKey{network, from}
	for _, other := range s.announced[key] {
		if other.root != a.root {
			return fmt.Errorf("declare %v: %w", from, ErrTaken)
		}
	}
	a.withdrawLocked(side)
	a.remote[side], a.from[side], a.to[side], a.own[side] = r, from, to, false
	s.announced[key] = append(s.announced[key], a)
	return nil
}

// ownLocked tells whether a side names the edge's own listener because the same call passes the edge twice: two
// hosts inside call each other through a server outside.
func (s *Server) ownLocked(a *announcement, side pinhole.Side, named netip.AddrPort) bool {
	if named != a.local[side].Addr || a.request.Label == "" {
		return false
	}
	return s.twinLocked(a, side) != nil
}

// twinLocked returns the announcement of the same call's other passage, nil if there is none. What is one's callee
// is the other's caller.
func (s *Server) twinLocked(a *announcement, side pinhole.Side) *announcement {
	for _, list := range s.announced {
		for _, b := range slices.Backward(list) {
			if b.root != a.root && b.request.Label == a.request.Label && b.local[side.Other()].Addr == a.local[side].Addr {
				return b
			}
		}
	}
	return nil
}

// beyondLocked returns where a side takes calls. If that is the edge itself, it is whom the call's other passage leads to.
func (s *Server) beyondLocked(a *announcement, side pinhole.Side) netip.AddrPort {
	if !a.own[side] {
		return a.to[side]
	}
	b := s.twinLocked(a, side)
	if b == nil {
		return netip.AddrPort{}
	}
	return b.to[side]
}

// withdrawLocked forgets who calls from a side.
func (a *announcement) withdrawLocked(side pinhole.Side) {
	if !a.from[side].IsValid() {
		return
	}
	key := announceKey{a.request.Networks[side], a.from[side]}
	list := a.server.announced[key]
	if i := slices.Index(list, a); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	a.server.announced[key] = list
	if len(list) == 0 {
		delete(a.server.announced, key)
	}
	a.from[side] = netip.Addr{}
}

// Fork implements [pinhole.Lease]: another host may answer the same caller. Of those that have answered, the last
// is who the caller is brought to, until the others are closed.
func (a *announcement) Fork() (pinhole.Lease, error) {
	f := &announcement{server: a.server, request: a.request, root: a.root, local: a.local, opened: time.Now(), sessions: map[*session]struct{}{}}
	if err := a.server.announce(f); err != nil {
		return nil, err
	}
	return f, nil
}

// Close implements [pinhole.Lease]. Connections of the conference end.
func (a *announcement) Close() pinhole.Summary {
	s := a.server
	open := a.end()
	var from [2]uint64
	for c := range open {
		c.close()
		n := c.carried()
		from[c.side] += n[0]
		from[c.side.Other()] += n[1]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.summary.From[0].Bytes += from[0]
	a.summary.From[1].Bytes += from[1]
	return a.summary
}

// end withdraws the announcement, and returns its connections, none if it was called before.
func (a *announcement) end() map[*session]struct{} {
	s := a.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	s.announcements--
	a.timer.Stop()
	a.withdrawLocked(pinhole.Near)
	a.withdrawLocked(pinhole.Far)
	a.summary.Opened, a.summary.Closed = a.opened, time.Now()
	open := a.sessions
	a.sessions = nil
	return open
}

// expire tells the owner that there has been no connection for long.
func (a *announcement) expire() {
	s := a.server
	s.mu.Lock()
	waiting := !a.to[0].IsValid() && !a.to[1].IsValid() || a.remote[0].Quiet || a.remote[1].Quiet
	switch {
	case a.closed || len(a.sessions) > 0 || a.idle:
		s.mu.Unlock()
		return
	case waiting:
		a.timer.Reset(a.quiet())
		s.mu.Unlock()
		return
	}
	a.idle = true
	s.mu.Unlock()
	if a.request.OnIdle == nil {
		a.Close()
		return
	}
	a.request.OnIdle(true)
}

// join counts a connection to the conference that its caller has announced, and returns where that takes calls.
func (s *Server) join(c *session) (netip.AddrPort, bool) {
	call := c.front.call
	s.mu.Lock()
	a, side := s.announcementLocked(announceKey{call.Network, call.Client.Addr().Unmap()})
	if a == nil {
		s.mu.Unlock()
		return netip.AddrPort{}, false
	}
	c.announced, c.side = a, side
	a.sessions[c] = struct{}{}
	a.timer.Stop()
	heard := a.idle
	a.idle = false
	to := s.beyondLocked(a, side.Other())
	s.mu.Unlock()
	if heard && a.request.OnIdle != nil {
		a.request.OnIdle(false)
	}
	return to, true
}

// announcementLocked returns the announcement that a caller belongs to, and his side; nil if the other side
// cannot be reached.
func (s *Server) announcementLocked(key announceKey) (*announcement, pinhole.Side) {
	for _, a := range slices.Backward(s.announced[key]) {
		for side := pinhole.Near; side <= pinhole.Far; side++ {
			if a.request.Networks[side] == key.network && a.from[side] == key.from && s.beyondLocked(a, side.Other()).IsValid() {
				return a, side
			}
		}
	}
	return nil, 0
}

// leave takes a connection that has ended out of its announced conference.
func (s *Server) leave(c *session) {
	a := c.announced
	if a == nil {
		return
	}
	n := c.carried()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, in := a.sessions[c]; !in {
		return // the announcement was closed before, and has counted it
	}
	delete(a.sessions, c)
	a.summary.From[c.side].Bytes += n[0]
	a.summary.From[c.side.Other()].Bytes += n[1]
	if len(a.sessions) == 0 {
		a.timer.Reset(a.quiet())
	}
}

// carried returns how many octets the caller and the called have sent.
func (c *session) carried() [2]uint64 {
	c.mu.Lock() // before s.mu, never under it: see upLocked
	defer c.mu.Unlock()
	return [2]uint64{c.octets(0), c.octets(1)}
}

var (
	_ pinhole.Opener = Announcer{}
	_ pinhole.Lease  = (*announcement)(nil)
)
