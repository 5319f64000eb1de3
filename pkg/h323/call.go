package h323

import (
	"cmp"
	"encoding/hex"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
)

// call is one call: the caller is Near, the called party Far.
type call struct {
	id string // callIdentifier in hexadecimal, for people
	// ref is the call reference, which both connections share.
	ref   uint16
	guid  h225.ID
	hasID bool
	legs  [2]*leg // nil once a connection has ended
	keys  [2]callKey
	host  [2]netip.Addr // where signalling comes from
	// dialer is who connects for H.245 and T.120: the caller itself where a gatekeeper stands between.
	dialer [2]netip.Addr
	// trusted is the side of an inside gatekeeper, which speaks for all endpoints of its network.
	trusted [2]bool
	// traverses are the sides behind a NAT of their own, which the edge helps (H.460.18).
	traverses [2]bool
	// multiplexes are those of them whose media may share one port.
	multiplexes [2]bool
	// inviting is where the side that has spoken last is to connect for H.245; mostly not valid.
	inviting netip.AddrPort
	// owner pays for the pinholes and counts against the limit per source.
	owner  netip.Addr
	nets   [2]string
	target netip.AddrPort
	caller string // what it calls itself
	called string

	started, connected, stopped time.Time
	released                    bool
	reason                      string
	cause                       int
	// until is when the call's present state ends by itself; zero: it does not.
	until time.Time
	// joined counts the H.245 connections in use.
	joined int

	channels map[channelKey]*channel
	sessions []*session
	controls []*control
	streams  []Stream
}

// side tells which party a connection leads to.
func (k *call) side(l *leg) pinhole.Side {
	if k.legs[pinhole.Near] == l {
		return pinhole.Near
	}
	return pinhole.Far
}

// Record describes a call that has ended.
type Record struct {
	CallID                      string
	Caller, Called              string
	From, To                    netip.AddrPort
	Networks                    [2]string // the caller's, the called party's
	Started, Connected, Stopped time.Time
	// Reason is of the ReleaseComplete, or the edge's own for a call that it ended.
	Reason string
	// Cause is the cause of the ReleaseComplete (Q.850, 1-127); 0 if it had none, or if there was no such message.
	Cause   int
	Streams []Stream
}

// Stream is what one pinhole of a call has carried: media, or the data of a T.120 conference.
type Stream struct {
	Kind pinhole.Kind
	pinhole.Summary
}

// setup begins a call.
func (c *Core) setup(now time.Time, l *leg, m *h225.Message, second byte, out *Output) {
	c.counts.setups++
	if reason := c.admit(l, m); reason != "" {
		c.refuseSetup(l, m, reason, out)
		return
	}
	to, reason := c.route(now, l, m)
	if reason != "" {
		c.refuseSetup(l, m, reason, out)
		return
	}
	if c.sources[c.owner(l, to)] >= c.cfg.PerSource {
		c.refuseSetup(l, m, refusedLimit, out)
		return
	}
	k := &call{
		ref: m.CallRef, target: to.addr, started: now, until: now.Add(answerTime),
		host: [2]netip.Addr{l.remote.Addr(), to.addr.Addr()}, nets: [2]string{l.network, to.network},
		keys:     [2]callKey{{m.CallRef, false}, {m.CallRef, true}},
		channels: make(map[channelKey]*channel),
	}
	for s, host := range k.host {
		k.trusted[s] = c.gatekeeperOf(k.nets[s], host)
	}
	k.dialer, k.owner = [2]netip.Addr{c.caller(l, m), k.host[pinhole.Far]}, c.owner(l, to)
	k.guid, k.hasID = m.CallID()
	k.id = hex.EncodeToString(k.guid[:])
	k.caller, k.called = callerName(m), cmp.Or(append(calledNames(m), to.addr.String())...)
	far := c.reach(now, k, to, out)
	if far == nil {
		c.refuseSetup(l, m, refusedUnreachable, out)
		return
	}
	k.legs = [2]*leg{l, far}
	l.calls[k.keys[pinhole.Near]], far.calls[k.keys[pinhole.Far]] = k, k
	c.calls[k] = struct{}{}
	c.sources[k.owner]++
	c.log.Info("call", zap.String("call", k.id), zap.Stringer("from", l.remote), zap.Stringer("to", to.addr), zap.String("called", k.called))
	c.relay(now, k, pinhole.Near, m, second, out)
}

// reach returns the connection to the called party: one that is there, that is being made, or that an endpoint behind
// a NAT is asked to make. Nil: it cannot be had.
func (c *Core) reach(now time.Time, k *call, to destination, out *Output) *leg {
	k.traverses[pinhole.Near] = c.traverses(k.host[pinhole.Near])
	if to.leg != nil {
		return to.leg
	}
	if c.gatekeeper != nil {
		if network, at, ok := c.gatekeeper.Behind(to.addr); ok {
			k.traverses[pinhole.Far] = true
			return c.ring(now, k, network, at, out)
		}
	}
	return c.dial(to, out)
}

// admit returns why a Setup is refused whatever it calls, "" if it is not.
func (c *Core) admit(l *leg, m *h225.Message) string {
	switch {
	case m.Tree == nil || m.Body != h225.Setup:
		return refusedMalformed
	case c.draining || len(c.calls) >= c.cfg.MaxCalls || len(l.calls) >= maxLegCalls:
		return refusedLimit
	case c.cfg.Signed == SignedRefuse && m.Protection() == h225.Signed:
		return refusedSigned
	}
	return ""
}

// gatekeeperOf tells whether a host is the configured gatekeeper, on a network that is trusted.
func (c *Core) gatekeeperOf(network string, host netip.Addr) bool {
	return c.outer != nil && c.nets[network].Trusted && host == c.cfg.Gatekeeper.Addr()
}

// caller returns the host of the caller: the one that it names where the Setup may come from a gatekeeper, on a
// network that is not trusted or from the configured one.
func (c *Core) caller(l *leg, m *h225.Message) netip.Addr {
	at := c.nets.Of(l.remote.Addr())
	if c.nets[l.network].Trusted && !c.gatekeeperOf(l.network, l.remote.Addr()) {
		return l.remote.Addr()
	}
	for _, a := range m.Addresses(nil) {
		host := a.AddrPort.Addr()
		if a.Field == h245.SourceCallSignalAddress && a.Carrier == "" && host.IsGlobalUnicast() &&
			!c.nets.Own(host) && c.nets.Of(host) == at && host.Is4() == l.remote.Addr().Is4() {
			return host
		}
	}
	return l.remote.Addr()
}

// owner returns who pays for a call: the caller's host, or the called endpoint's if it is the gatekeeper that calls,
// as it does for everybody.
func (c *Core) owner(l *leg, to destination) netip.Addr {
	if c.outer != nil && l.remote.Addr() == c.cfg.Gatekeeper.Addr() {
		return to.addr.Addr()
	}
	return l.remote.Addr()
}

// callerName returns what the caller calls itself.
func callerName(m *h225.Message) string {
	for _, a := range m.Aliases(nil) {
		if a.Field == "sourceAddress" && a.Text != "" {
			return a.Text
		}
	}
	if b, ok := m.Element(q931.CallingNumber); ok {
		return digits(b)
	}
	return ""
}

func (c *Core) refuseSetup(l *leg, m *h225.Message, reason string, out *Output) {
	c.counts.refuse(reason)
	c.log.Info("call refused", zap.Stringer("from", l.remote), zap.String("reason", reason), zap.Strings("called", calledNames(m)))
	c.sendTo(l, c.release(m, releaseReasons[reason]), out)
}

// releaseReason is how a refusal is said: the ReleaseCompleteReason and the Q.931 cause (H.225.0 table 5).
type releaseReason struct {
	name  string
	cause byte
}

var reasonInvalid = releaseReason{"undefinedReason", 81} //nolint:gochecknoglobals // a value: invalid call reference

var releaseReasons = map[string]releaseReason{ //nolint:gochecknoglobals // a table
	refusedUnknown:     {"unreachableDestination", 3},
	refusedLoop:        {"unreachableDestination", 3},
	refusedUnreachable: {"unreachableDestination", 3},
	refusedDial:        {"unreachableDestination", 3},
	refusedLimit:       {"adaptiveBusy", 34},
	refusedSigned:      {"noPermission", 47},
	refusedMedia:       {"gatewayResources", 47},
	refusedTimeout:     {"undefinedReason", 102},
	refusedMalformed:   {"undefinedReason", 100},
	hungUp:             {"undefinedReason", 16}, // normal call clearing
}

// release answers a message with a ReleaseComplete.
func (c *Core) release(m *h225.Message, r releaseReason) []byte {
	guid, ok := m.CallID()
	return c.releaseOf(m.CallRef, !m.FromDest, guid, ok, r)
}

func (c *Core) releaseOf(ref uint16, fromDest bool, guid h225.ID, hasID bool, r releaseReason) []byte {
	fields := []per.Field{
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")),
		per.F("reason", per.Alternative(r.name, per.Nothing())),
	}
	if hasID {
		fields = append(fields, per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(guid[:])))))
	}
	cause := q931.Element{ID: q931.Cause, Contents: []byte{0x80, 0x80 | r.cause}}
	b, err := h225.Build(nil, q931.ReleaseComplete, ref, fromDest, []q931.Element{cause}, h225.Info(h225.ReleaseComplete, per.Fields(fields...)))
	if err != nil {
		c.log.Error("release complete not built", zap.Error(err))
		return nil
	}
	return b
}

// refuse ends a call that the edge cannot make: both sides are told.
func (c *Core) refuse(now time.Time, k *call, reason string, out *Output) {
	if !k.released {
		c.counts.refuse(reason)
		c.releaseBoth(now, k, reason, out)
	}
}

// releaseBoth sends a ReleaseComplete to both sides.
func (c *Core) releaseBoth(now time.Time, k *call, reason string, out *Output) {
	for s, l := range k.legs {
		if l != nil && (l.up || s == int(pinhole.Near)) {
			// The caller allocated the reference: towards it the edge is the destination.
			c.sendTo(l, c.releaseOf(k.ref, s == int(pinhole.Near), k.guid, k.hasID, releaseReasons[reason]), out)
		}
	}
	if !k.released {
		k.cause = int(releaseReasons[reason].cause)
	}
	c.releaseCall(now, k, reason)
}

// HangUp ends the calls that match, as an operator asks for; it returns how many there were. Their media ends with their
// connections, a moment later.
func (c *Core) HangUp(now time.Time, match func(*call) bool, out *Output) (n int) {
	for k := range c.calls {
		if !k.released && match(k) {
			n++
			c.releaseBoth(now, k, hungUp, out)
		}
	}
	return n
}

// releaseCall ends what the call has open; its connections stay for a moment.
func (c *Core) releaseCall(now time.Time, k *call, reason string) {
	if k.released {
		return
	}
	k.released, k.reason, k.stopped, k.until = true, reason, now, now.Add(lingerTime)
}

// legGone handles the end of one connection of a call.
func (c *Core) legGone(now time.Time, k *call, l *leg, out *Output) {
	s := k.side(l)
	k.legs[s] = nil
	other := k.legs[s.Other()]
	switch {
	case k.released || other == nil && k.joined == 0:
		c.end(now, k, out)
	case k.joined > 0 && !k.connected.IsZero():
		// H.245 lives on: media too, until its connections end (H.323 §8.1.8).
	default:
		if other != nil && other.up {
			c.sendTo(other, c.releaseOf(k.ref, s == pinhole.Far, k.guid, k.hasID, reasonInvalid), out)
		}
		c.releaseCall(now, k, "connection_lost")
		c.end(now, k, out)
	}
}

// ControlOpened and ControlClosed count the H.245 connections of a call.
func (c *Core) controlOpened(k *call) { k.joined++ }

func (c *Core) controlClosed(now time.Time, k *call, out *Output) {
	k.joined--
	if k.joined > 0 || k.legs[pinhole.Near] != nil && k.legs[pinhole.Far] != nil {
		return
	}
	// Call signalling ended before, at one side at least, and the call lived on by H.245.
	for s, l := range k.legs {
		if l != nil && l.up && !k.released {
			c.sendTo(l, c.releaseOf(k.ref, s == int(pinhole.Near), k.guid, k.hasID, reasonInvalid), out)
		}
	}
	c.releaseCall(now, k, "connection_lost")
	c.end(now, k, out)
}

// expired handles the end of the time that the state of a call may last.
func (c *Core) expired(now time.Time, k *call, out *Output) {
	if k.released {
		c.end(now, k, out)
		return
	}
	c.refuse(now, k, refusedTimeout, out)
}

// end removes the call, its pinholes, and the connections that only it used.
func (c *Core) end(now time.Time, k *call, out *Output) {
	if _, there := c.calls[k]; !there {
		return
	}
	c.releaseCall(now, k, "connection_lost") // unless it is released already
	delete(c.calls, k)
	c.unring(k)
	if c.sources[k.owner]--; c.sources[k.owner] <= 0 {
		delete(c.sources, k.owner)
	}
	c.closeLeases(k)
	for s, l := range k.legs {
		if l != nil {
			delete(l.calls, k.keys[s])
			l.idle = now
			c.closeLeg(l, out)
		}
	}
	out.Records = append(out.Records, Record{
		CallID: k.id, Caller: k.caller, Called: k.called, From: netip.AddrPortFrom(k.host[pinhole.Near], 0), To: k.target,
		Networks: k.nets, Started: k.started, Connected: k.connected, Stopped: k.stopped, Reason: k.reason, Cause: k.cause, Streams: k.streams,
	})
	c.counts.ended++
	c.log.Info("call ended", zap.String("call", k.id), zap.String("reason", k.reason), zap.Duration("lasted", now.Sub(k.started)))
}
