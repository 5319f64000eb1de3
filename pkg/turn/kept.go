package turn

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// Allocations of UDP are kept here, without pion: what it holds for one is several times what is needed.
//
//	Allocate ──► open ──► hold ──► pump ─► … lifetime, Refresh 0, the client's connection ──► close
//	CreatePermission ──► permit ──► permissionLife ──► forbid      (RFC 8656 §9)
//	ChannelBind ──► permit, bindChannel ──► channelLife ──► unbindChannel      (RFC 8656 §12)

const (
	permissionLife = 5 * time.Minute
	channelLife    = 10 * time.Minute
)

// term is when something ends. It is guarded by the mutex of its allocation.
type term struct {
	until time.Time
	timer *time.Timer
}

// extendLocked has it end a duration from now; end is called then, and has to ask whether it is over.
func (t *term) extendLocked(d time.Duration, end func()) {
	t.until = time.Now().Add(d)
	if t.timer == nil {
		t.timer = time.AfterFunc(d, end)
		return
	}
	t.timer.Reset(d)
}

// overLocked tells whether it is over: it may have been extended while its timer ran out.
func (t *term) overLocked() bool { return !time.Now().Before(t.until) }

func (t *term) stopLocked() {
	if t != nil && t.timer != nil {
		t.timer.Stop()
	}
}

// hold begins the life of an allocation; false if its endpoint has ended.
func (a *allocation) hold(seconds uint32) bool {
	ep := a.from.ep
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.over {
		return false
	}
	a.granted = seconds
	a.extend(seconds)
	a.s.began(a)
	ep.work.Go(a.pump)
	return true
}

// extend has the allocation end after so many seconds.
func (a *allocation) extend(seconds uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.life.extendLocked(time.Duration(seconds)*time.Second, a.expire)
}

func (a *allocation) expire() {
	a.mu.Lock()
	over := a.life.overLocked()
	a.mu.Unlock()
	if over {
		a.close()
	}
}

// stopTerms ends all timers.
func (a *allocation) stopTerms() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.life.stopLocked()
	for _, t := range a.perms {
		t.stopLocked()
	}
	for _, c := range a.byNumber {
		c.life.stopLocked()
	}
}

// permit gives or extends the permission for an address.
func (a *allocation) permit(peer netip.Addr) {
	a.mu.Lock()
	t, had := a.perms[peer]
	if !had {
		t = &term{}
		a.permitLocked(peer, t)
	}
	t.extendLocked(permissionLife, func() { a.forbid(peer) })
	a.mu.Unlock()
	if !had {
		a.carryTo(peer)
	}
}

func (a *allocation) permitLocked(peer netip.Addr, t *term) {
	if a.perms == nil { // few have one
		a.perms = make(map[netip.Addr]*term, 1)
	}
	a.perms[peer] = t
}

// carryTo has the relay carry the channels to an address, whose permission was over for a while.
func (a *allocation) carryTo(peer netip.Addr) {
	for _, c := range a.channelsTo(peer) {
		a.carry(c)
	}
}

// forbid ends a permission that is over.
func (a *allocation) forbid(peer netip.Addr) {
	a.mu.Lock()
	t := a.perms[peer]
	over := t != nil && t.overLocked()
	if over {
		delete(a.perms, peer)
	}
	a.mu.Unlock()
	if !over {
		return
	}
	for _, c := range a.channelsTo(peer) {
		a.port.Unbind(c.number)
	}
}

// bindChannel binds or extends a channel, and permits its peer; false if the number or the peer is bound otherwise.
func (a *allocation) bindChannel(number uint16, peer netip.AddrPort) bool {
	c, other := a.channelOf(number), a.channelTo(peer)
	if c != other {
		return false
	}
	fresh := c == nil
	if fresh {
		c = &channel{number: number, peer: peer, to: net.UDPAddrFromAddrPort(a.s.boundOf(peer))}
	}
	a.permit(peer.Addr())
	a.mu.Lock()
	if fresh || a.byNumber[number] != c { // it may have ended just now
		fresh = true
		a.enterLocked(c)
	}
	c.life.extendLocked(channelLife, func() { a.unbindChannel(c) })
	a.mu.Unlock()
	if fresh {
		a.carry(c)
	}
	return true
}

func (a *allocation) enterLocked(c *channel) {
	if a.byNumber == nil { // few have one
		a.byNumber, a.byPeer = make(map[uint16]*channel, 1), make(map[netip.AddrPort]*channel, 1)
	}
	a.byNumber[c.number], a.byPeer[c.peer] = c, c
}

// unbindChannel ends a channel that is over.
func (a *allocation) unbindChannel(c *channel) {
	a.mu.Lock()
	over := c.life.overLocked() && a.byNumber[c.number] == c
	if over {
		delete(a.byNumber, c.number)
		delete(a.byPeer, c.peer)
	}
	a.mu.Unlock()
	if over {
		a.port.Unbind(c.number)
	}
}

// began counts and logs an allocation that the client is going to have.
func (s *Server) began(a *allocation) {
	a.live.Store(true)
	s.count.began(a)
	if e := s.log.Check(zap.InfoLevel, "allocation"); e != nil {
		e.Write(zap.String("user", a.user), zap.Stringer("client", a.from.client), zap.String("transport", a.from.ep.scheme),
			zap.Stringer("relayed", a.relayed))
	}
	if s.shutOut(a) { // since it was asked for
		go a.close() // the engine may call this with its locks held
	}
}

// succeed answers with what add appends.
func (r answer) succeed(add func(*composer) *composer) []byte {
	r.s.count.request(r.m.method, 0)
	r.send(add(r.compose(success)))
	return nil
}

func nothing(w *composer) *composer { return w }

// allocated answers an Allocate request, and its repetitions, with what was granted (RFC 8656 §7.2).
func (r answer) allocated(a *allocation) []byte {
	return r.succeed(func(w *composer) *composer {
		w.address(attrXORRelayedAddress, a.relayed, true).uint32(attrLifetime, a.granted).address(attrXORMappedAddress, a.from.client, true)
		if a.token != [8]byte{} {
			w.attr(attrReservationToken, a.token[:])
		}
		return w
	})
}

// refreshed has the allocation last for so many seconds, or ends it (RFC 8656 §8.2).
func (r answer) refreshed(a *allocation, seconds uint32) []byte {
	if seconds == 0 {
		a.close()
	} else {
		a.extend(seconds)
	}
	return r.succeed(func(w *composer) *composer { return w.uint32(attrLifetime, seconds) })
}

// permitted permits all peers of a request (RFC 8656 §10.2).
func (r answer) permitted(a *allocation, peers []netip.AddrPort) []byte {
	for _, p := range peers {
		a.permit(p.Addr().Unmap())
	}
	return r.succeed(nothing)
}

// bound binds a channel (RFC 8656 §12.2).
func (r answer) bound(a *allocation, number []byte, peer netip.AddrPort) []byte {
	if !a.bindChannel(binary.BigEndian.Uint16(number), netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())) {
		return r.refuse(400)
	}
	return r.succeed(nothing)
}

// familyNumber returns the family as REQUESTED-ADDRESS-FAMILY has it (RFC 8656 §18.6).
func (a *allocation) familyNumber() byte {
	if a.family == pinhole.IPv6 {
		return 2
	}
	return 1
}
