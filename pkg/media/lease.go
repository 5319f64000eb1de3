package media

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// lateTime is how long late packets from the source before a re-arming are kept from confirming it
// again. What is still sent from there afterwards is no late packet but the peer's real source.
const lateTime = 3 * time.Second

// lease is a granted pinhole. All but id, req and relay is guarded by the relay's mutex.
type lease struct {
	relay  *Relay
	id     uint64
	req    pinhole.Request
	ends   [2]*end
	legs   [2][2]*leg
	remote [2]pinhole.Remote
	// reachable tells whether the declared address may be sent to before a packet came from it.
	reachable [2]bool
	tcp       *joins
	// tap is shown the packets; nil: nobody is. It is read by the path too.
	tap    atomic.Pointer[tap]
	opened time.Time
	// active is the last time at which signalling began to expect packets.
	active  time.Time
	closed  bool
	summary pinhole.Summary
}

var _ pinhole.Lease = (*lease)(nil)

// leg is one socket's end of a lease: what its peer sends there.
type leg struct {
	lease   *lease
	side    pinhole.Side
	socket  int
	latched netip.AddrPort
	// barred must not be latched until the given time since the relay's epoch, see lateTime.
	barred netip.AddrPort
	until  time.Duration
	// consented is when the peer at latched last made a check, since the relay's epoch.
	consented time.Duration
	flow      *Flow
	Counters
}

func (r *Relay) newLease(req pinhole.Request, id uint64) *lease {
	now := time.Now()
	if req.Idle <= 0 {
		req.Idle = r.pin.Idle
	}
	return &lease{relay: r, id: id, req: req, opened: now, active: now}
}

// joinLocked makes the legs and enters the lease at its ends.
func (l *lease) joinLocked() {
	for s, e := range l.ends {
		e.members = append(e.members, l)
		for c, sock := range e.socks {
			if sock == nil {
				continue
			}
			g := &leg{lease: l, side: pinhole.Side(s), socket: c}
			g.epoch = &l.relay.epoch
			if l.req.Kind == pinhole.RTP {
				g.kind = [...]streamKind{rtpStream, rtcpStream}[c]
				if c == rtp {
					g.rtp = &rtpStats{}
				}
				g.rtcp = l.times(pinhole.Side(s))
			}
			l.legs[s][c] = g
		}
	}
	if a, b := l.legs[0][rtp], l.legs[1][rtp]; a != nil && a.rtcp != nil {
		a.rtcp.other, b.rtcp.other = b.rtcp, a.rtcp
	}
	if l.req.Kind == pinhole.TCP {
		l.tcp = newJoins(l)
	}
}

// times returns the RTCP times of a side, which its two legs share.
func (l *lease) times(s pinhole.Side) *rtcpTimes {
	if g := l.legs[s][rtp]; g != nil {
		return g.rtcp
	}
	return &rtcpTimes{}
}

// Local returns the edge's address at side s, as it is to be written into messages.
func (l *lease) Local(s pinhole.Side) pinhole.Local { return l.ends[s].local }

// Declare takes what signalling says of the peer at s. The zero address together with Quiet (a hold
// by 0.0.0.0, RFC 2543) keeps the address that was declared before. An address of another family than
// the local one gets ErrNetwork.
func (l *lease) Declare(s pinhole.Side, remote pinhole.Remote) error {
	remote.Addr, remote.RTCP = unmap(remote.Addr), unmap(remote.RTCP)
	remote.Source = remote.Source.Unmap()
	r := l.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.closed {
		return pinhole.ErrClosed
	}
	if !remote.Addr.IsValid() && remote.Quiet {
		remote.Addr, remote.RTCP = l.remote[s].Addr, l.remote[s].RTCP
		remote.Trusted = l.remote[s].Trusted
		remote.Source = l.remote[s].Source
	}
	policy := pinhole.Policy{Networks: r.nets, Allow: r.pin.AllowTargets, OwnPort: r.ownPortLocked}
	reachable, err := policy.Check(l.req.Networks[s], remote)
	if err == nil {
		err = l.familyError(s, remote)
	}
	if err == nil {
		err = l.rekeyLocked(s, &remote)
	}
	if err != nil {
		r.totals.refuse(err)
		return fmt.Errorf("declare: %w", err)
	}
	l.declareLocked(s, remote, reachable)
	return nil
}

func (l *lease) familyError(s pinhole.Side, remote pinhole.Remote) error {
	local := pinhole.FamilyOf(l.ends[s].bound)
	for _, a := range []netip.AddrPort{remote.Addr, remote.RTCP} {
		if a.IsValid() && pinhole.FamilyOf(a.Addr()) != local {
			return fmt.Errorf("%s at an IPv%d end: %w", a, local, pinhole.ErrNetwork)
		}
	}
	return nil
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

func (l *lease) declareLocked(s pinhole.Side, remote pinhole.Remote, reachable bool) {
	old := [2]netip.AddrPort{l.declaredLocked(s, rtp), l.declaredLocked(s, rtcp)}
	now := time.Now()
	if l.remote[s].Quiet && !remote.Quiet || l.remote[s].Addr != remote.Addr {
		l.active = now
	}
	other := (l.remote[s].ICE == nil) != (remote.ICE == nil)
	l.remote[s], l.reachable[s] = remote, reachable
	// The source of an asymmetric peer says nothing of where it receives: a new port there changes no source.
	// With ICE the peer goes on where it was nominated, until it is nominated elsewhere (RFC 8445 §9).
	keep := remote.Asymmetric && old[rtp].IsValid() && old[rtp].Addr() == remote.Addr.Addr() || remote.ICE != nil
	for c, g := range l.legs[s] {
		if g != nil && (other || !keep && (old[c] != l.declaredLocked(s, c) || old[rtp] != remote.Addr)) {
			g.rearm(old[c], now)
		}
	}
	l.publishOrLogLocked()
	if l.tcp != nil {
		l.tcp.declared()
	}
}

// publishOrLogLocked is publishLocked for who cannot do anything about an error.
func (l *lease) publishOrLogLocked() {
	if err := l.publishLocked(); err != nil {
		l.relay.log.Error("media path refused a flow", zap.String("label", l.req.Label), zap.Error(err))
	}
}

// rearm forgets the latched source, and bars it for a while.
func (g *leg) rearm(declared netip.AddrPort, now time.Time) {
	g.barred, g.until = g.latched, now.Add(lateTime).Sub(g.lease.relay.epoch)
	if !g.barred.IsValid() {
		g.barred = declared
	}
	g.latched = netip.AddrPort{}
}

// declaredLocked returns where the peer wants to receive at a socket (RFC 3550 §11: RTCP goes to the
// next port unless signalling says otherwise), the zero value if nowhere.
func (l *lease) declaredLocked(s pinhole.Side, c int) netip.AddrPort {
	return declaredOf(&l.remote[s], c)
}

// declaredOf does what declaredLocked does, of one description.
func declaredOf(r *pinhole.Remote, c int) netip.AddrPort {
	switch a := r.Addr; {
	case !a.IsValid() || a.Port() == 0:
		return netip.AddrPort{}
	case c == rtp:
		return a
	case r.RTCP.IsValid():
		return r.RTCP
	case a.Port() < 65535:
		return netip.AddrPortFrom(a.Addr(), a.Port()+1)
	}
	return netip.AddrPort{}
}

// targetLocked returns the socket and the address by which the peer at s gets what is meant for
// socket c: with rtcp-mux (RFC 5761) both are those of RTP.
func (l *lease) targetLocked(s pinhole.Side, c int) (*Socket, netip.AddrPort) {
	declared := l.declaredLocked(s, c)
	if c == rtcp && declared == l.remote[s].Addr {
		c = rtp
	}
	sock := l.ends[s].socks[c]
	if g := l.legs[s][c]; g.latched.IsValid() {
		if l.remote[s].Asymmetric && l.reachable[s] && g.latched.Addr() == declared.Addr() {
			return sock, declared
		}
		return sock, g.latched
	}
	if !l.reachable[s] || l.elsewhereLocked(s, c) || l.remote[s].ICE != nil {
		return sock, netip.AddrPort{}
	}
	return sock, declared
}

// elsewhereLocked tells whether the peer's other socket was seen at a host that is not the declared one.
func (l *lease) elsewhereLocked(s pinhole.Side, c int) bool {
	host := l.hostLocked(s, c)
	return host.IsValid() && host != l.declaredLocked(s, c).Addr()
}

// hostLocked returns the host at which the peer's other socket was latched, if both were declared at
// one host: then both must be latched at one host too.
func (l *lease) hostLocked(s pinhole.Side, c int) netip.Addr {
	other := l.legs[s][1-c]
	if other == nil || !other.latched.IsValid() ||
		l.declaredLocked(s, rtp).Addr() != l.declaredLocked(s, rtcp).Addr() {
		return netip.Addr{}
	}
	return other.latched.Addr()
}

// flowLocked says what is to happen to packets that arrive at the leg.
func (g *leg) flowLocked() *Flow {
	l, s, c := g.lease, g.side, g.socket
	f := &Flow{Counters: &g.Counters, leg: g, tapped: l.tap.Load() != nil}
	g.tagsLocked(f)
	out, to := l.targetLocked(s.Other(), c)
	f.Out, f.To = out, SockaddrOf(to)
	_, peer := l.targetLocked(s, c)
	f.peer = SockaddrOf(peer)
	declared := l.declaredLocked(s, c)
	if checks := g.checksLocked(); checks != nil {
		f.wanted = &wanted{checks: checks}
	}
	switch {
	case g.latched.IsValid():
		f.From = SockaddrOf(g.latched)
	case !declared.IsValid(), l.remote[s].ICE != nil:
	case !l.relay.cfg.Latch:
		f.From = SockaddrOf(declared)
	default:
		f.wanted = g.wantedLocked(declared)
	}
	return f
}

// wantedLocked says who may confirm the source of the leg.
func (g *leg) wantedLocked(declared netip.AddrPort) *wanted {
	w := &wanted{declared: declared, barred: g.barred, until: g.lease.relay.epoch.Add(g.until)}
	if host := g.lease.hostLocked(g.side, g.socket); host.IsValid() {
		w.declared = netip.AddrPortFrom(host, declared.Port())
		w.hosts[0] = host
	} else {
		w.hosts = [2]netip.Addr{declared.Addr(), g.lease.remote[g.side].Source}
	}
	return w
}

// publishLocked gives the path the flows of the lease.
func (l *lease) publishLocked() error {
	if l.req.Kind == pinhole.TCP {
		return nil
	}
	for s := range l.legs {
		for _, g := range l.legs[s] {
			if g != nil {
				g.flow = g.flowLocked()
			}
		}
	}
	for s, e := range l.ends {
		if err := e.setLocked(l.relay.path, pinhole.Side(s)); err != nil {
			return err
		}
	}
	return nil
}

// latch confirms src, unless signalling or another packet has changed the state meanwhile. It
// returns the flow of src, nil if there is none.
func (g *leg) latch(src netip.AddrPort, now time.Time) *Flow {
	r := g.lease.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case g.lease.closed:
		return nil
	case g.latched == src:
		return g.flow
	case g.flow.rank(src, now) == 0:
		return nil
	}
	g.latched = src
	g.lease.publishOrLogLocked()
	r.log.Debug("media source latched", zap.String("label", g.lease.req.Label),
		zap.Stringer("source", src), zap.Stringer("declared", g.lease.declaredLocked(g.side, g.socket)))
	return g.flow
}

// Fork returns a lease with a Near end of its own that shares the Far one. It has the Near remote
// of its parent until that is declared anew. The idle timer is one for all branches.
func (l *lease) Fork() (pinhole.Lease, error) {
	r := l.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.closed {
		return nil, pinhole.ErrClosed
	}
	if l.req.Shared != [2]uint16{} {
		return nil, fmt.Errorf("fork at a shared port: %w", pinhole.ErrNetwork)
	}
	f, err := r.openLocked(l.req, l)
	if err != nil {
		r.totals.refuse(err)
		return nil, fmt.Errorf("fork: %w", err)
	}
	return f, nil
}

// Close releases the ports and returns the final counters.
func (l *lease) Close() pinhole.Summary {
	l.relay.mu.Lock()
	defer l.relay.mu.Unlock()
	l.closeLocked()
	return l.summary
}

func (l *lease) closeLocked() {
	if l.closed {
		return
	}
	l.closed = true
	r := l.relay
	delete(r.leases, l)
	r.disownLocked(l.req.Owner)
	for s, e := range l.ends {
		e.members = slices.DeleteFunc(e.members, func(m *lease) bool { return m == l })
		if len(e.members) == 0 {
			r.releaseEndLocked(e)
		} else if err := e.setLocked(r.path, pinhole.Side(s)); err != nil {
			r.log.Error("media path refused a flow", zap.String("label", l.req.Label), zap.Error(err))
		}
	}
	if l.tcp != nil {
		l.tcp.close()
	}
	for s := range l.legs {
		for _, g := range l.legs[s] {
			if g != nil {
				g.guardLocked().close()
			}
		}
	}
	l.summary = pinhole.Summary{Opened: l.opened, Closed: time.Now()}
	for s := range l.summary.From {
		l.summary.From[s] = l.statsLocked(pinhole.Side(s))
	}
	r.totals.add(l)
}

// idleLocked tells whether no packet came for the idle time. While an end is Quiet (hold) silence says
// nothing. Packets to a peer that answers them with ICMP errors only do not count as life.
func (l *lease) idleLocked(now time.Time) bool {
	if l.remote[0].Quiet || l.remote[1].Quiet {
		return false
	}
	last := l.active
	for s := range l.legs {
		for _, g := range l.legs[s] {
			if g == nil || l.legs[1-s][rtp].gone() {
				continue
			}
			if at := g.last.Load(); at > 0 {
				last = later(last, l.relay.epoch.Add(time.Duration(at)))
			}
		}
	}
	if l.tcp != nil {
		last = later(last, l.tcp.latestLocked())
	}
	return now.Sub(last) >= l.req.Idle
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// statsLocked returns what was received at side s, RTP and RTCP together.
func (l *lease) statsLocked(s pinhole.Side) pinhole.StreamStats {
	var st pinhole.StreamStats
	for _, g := range l.legs[s] {
		if g != nil {
			st.Packets += g.packets.Load()
			st.Bytes += g.bytes.Load()
			st.Dropped += g.totalDropped()
		}
	}
	if g := l.legs[s][rtp]; g != nil && g.kind == rtpStream {
		var received int64
		received, st.Lost, st.Jitter = g.quality()
		st.RTT = time.Duration(g.Counters.rtcp.rtt.Load())
		st.MOS = mos(received, st.Lost, st.Jitter, st.RTT)
	}
	if l.tcp != nil {
		st.Bytes, st.Dropped = l.tcp.receivedLocked(s)
	}
	return st
}
