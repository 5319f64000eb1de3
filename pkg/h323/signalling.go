package h323

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
)

// relay passes a message of one party on to the other, with the edge's addresses in it.
func (c *Core) relay(now time.Time, k *call, from pinhole.Side, m *h225.Message, second byte, out *Output) {
	kind, reason := m.Type, m.Reason()
	if k.released && kind != q931.ReleaseComplete {
		c.counts.drop(droppedNoCall)
		return
	}
	if c.cfg.Signed == SignedRefuse && m.Protection() == h225.Signed {
		c.refuse(now, k, refusedSigned, out)
		return
	}
	payload, err := c.rewrite(now, k, from, m)
	if err != nil {
		c.log.Warn("message not passed on", zap.String("call", k.id), zap.Stringer("from", k.host[from]), zap.Error(err))
		if errors.Is(err, per.ErrEdit) || errors.Is(err, per.ErrCheck) {
			c.counts.drop(droppedEdit)
		}
		c.refuse(now, k, refusedMedia, out)
		return
	}
	c.sendPacket(k.legs[from.Other()], second, payload, out)
	if k.inviting.IsValid() {
		c.invite(k, from, k.inviting, out)
		k.inviting = netip.AddrPort{}
	}
	switch kind {
	case q931.Connect:
		if k.connected.IsZero() && from == pinhole.Far {
			k.connected, k.until = now, time.Time{}
			c.counts.connected++
		}
	case q931.ReleaseComplete:
		if reason == "" {
			reason = "normal"
		}
		if b, ok := m.Element(q931.Cause); ok && !k.released {
			k.cause = causeOf(b)
		}
		c.releaseCall(now, k, reason)
	}
}

// causeOf returns the value of the element Cause (Q.931 §4.5.12): it follows octet 3, or 3a if that is there; 0 if it is cut off.
func causeOf(b []byte) int {
	at := 1
	if len(b) > 0 && b[0]&0x80 == 0 {
		at = 2
	}
	if len(b) <= at {
		return 0
	}
	return int(b[at] & 0x7f)
}

// rewrite returns the message for the other party, valid until the next.
func (c *Core) rewrite(now time.Time, k *call, from pinhole.Side, m *h225.Message) ([]byte, error) {
	if m.Tree == nil {
		return c.apply()
	}
	if m.Protection() == h225.Signed {
		c.counts.signed++
		return m.AppendTo(nil), nil
	}
	x := exchange{core: c, call: k, from: from, now: now, tree: m.Tree, editor: c.signalling.Editor(), offer: m.Body == h225.Setup}
	x.multiplexing()
	c.addrs = m.Addresses(c.addrs[:0])
	for _, a := range c.addrs {
		if a.Carrier != "" {
			continue
		}
		if err := x.signalling(a); err != nil {
			return nil, fmt.Errorf("%s: %w", a.Field, err)
		}
	}
	if err := x.carried(m); err != nil {
		return nil, err
	}
	if err := x.declineDirect(); err != nil {
		return nil, err
	}
	if err := x.offerTraversal(m); err != nil {
		return nil, err
	}
	return c.apply()
}

// apply returns the message with its edits, in memory that the next takes.
func (c *Core) apply() ([]byte, error) {
	b, err := c.signalling.Apply(c.edited[:0])
	if err != nil {
		return nil, err
	}
	c.edited = b
	return b, nil
}

// exchange is one message on its way through a call.
type exchange struct {
	core   *Core
	call   *call
	from   pinhole.Side
	now    time.Time
	tree   *per.Tree
	editor *per.Editor
	// offer tells that fastStart holds proposals, of which the other side will take some.
	offer bool
}

// carried edits the H.245 inside of a message of call signalling: any body may have some.
func (x *exchange) carried(m *h225.Message) error {
	var few [16]per.Ref
	for _, r := range m.FastStart(few[:0]) {
		if err := x.fastStart(r); err != nil {
			return fmt.Errorf("fastStart: %w", err)
		}
	}
	x.offer = false
	for _, r := range m.Parallel(m.Tunnelled(few[:0])) {
		if err := x.h245(h245.At(m.Tree, r)); err != nil {
			return fmt.Errorf("tunnelled H.245: %w", err)
		}
	}
	return nil
}

// signalling edits an address of call signalling itself (H.225.0 §7.3).
func (x *exchange) signalling(a h245.Address) error {
	if a.AddrPort.Addr().IsUnspecified() || a.AddrPort.Port() == 0 {
		return nil // nothing is known: "0.0.0.0:0" is seen
	}
	switch a.Field {
	case h245.H245Address:
		return x.controlAddress(a)
	case h245.SourceCallSignalAddress:
		return x.set(a, x.calledBack(a.AddrPort))
	case h245.DestCallSignalAddress:
		if x.from == pinhole.Near {
			return x.set(a, x.call.target)
		}
	case h245.AlternativeAddress:
		return x.alternative(a)
	case h245.TransportID:
		return x.transportID(a)
	}
	return nil
}

// set writes an address, if that is known.
func (x *exchange) set(a h245.Address, to netip.AddrPort) error {
	if !to.IsValid() || to == a.AddrPort {
		return nil
	}
	return a.Set(x.editor, x.tree, to)
}

// own returns where the other party reaches the edge for call signalling.
func (x *exchange) own() netip.AddrPort {
	return x.core.own(x.call.nets[x.from.Other()], x.call.host[x.from.Other()])
}

// calledBack returns where the other party can call this one: at its door, if the gatekeeper has registered it.
func (x *exchange) calledBack(named netip.AddrPort) netip.AddrPort {
	k, c := x.call, x.core
	if c.outer != nil && k.host[x.from.Other()] == c.cfg.Gatekeeper.Addr() {
		if at, ok := c.outer.DoorOf(k.host[x.from], named); ok {
			return at
		}
	}
	return x.own()
}

// own returns the listener of a network for a peer's family, as it is advertised.
func (c *Core) own(network string, peer netip.Addr) netip.AddrPort {
	return c.public(network, peer, c.cfg.Listen, signallingPort)
}

// public returns the first listener of a list that is on a network; with the well-known port if none is.
func (c *Core) public(network string, peer netip.Addr, list []pinhole.Listen, port uint16) netip.AddrPort {
	_, public, err := c.nets.Local(network, pinhole.FamilyOf(peer))
	if err != nil {
		return netip.AddrPort{}
	}
	for _, l := range list {
		if l.Network == network {
			port = l.Port
			break
		}
	}
	return netip.AddrPortFrom(public, port)
}

// transportID edits an alias that is an address: one of a party's own host becomes the edge's, the edge's
// becomes the other party's.
func (x *exchange) transportID(a h245.Address) error {
	k, host := x.call, a.AddrPort.Addr()
	switch {
	case x.core.nets.Own(host) && x.from == pinhole.Near:
		return x.set(a, k.target)
	case host == k.host[x.from]:
		return x.set(a, x.own())
	}
	return nil
}

// alternative edits a call forwarding (Facility): the caller will call the edge, and the edge remembers
// whom it was sent to.
func (x *exchange) alternative(a h245.Address) error {
	k, c := x.call, x.core
	if c.nets.Own(a.AddrPort.Addr()) {
		return x.set(a, x.own())
	}
	if !c.forwardable(k.nets[x.from], a.AddrPort.Addr()) {
		return fmt.Errorf("%s: %w", a.AddrPort, pinhole.ErrTarget)
	}
	// A caller must not say where the called party's own calls go.
	if x.from == pinhole.Far {
		c.remember(x.now, k.host[pinhole.Near], forward{to: a.AddrPort, called: append(x.forwardedNames(), k.called)})
	}
	return x.set(a, x.own())
}

// forwardedNames returns by which aliases the forwarded caller is to call.
func (x *exchange) forwardedNames() (names []string) {
	for _, a := range h225.Aliases(nil, x.tree, x.tree.Root()) {
		if a.Field == "alternativeAliasAddress" && a.Text != "" && len(names) < maxForwardNames {
			names = append(names, a.Text)
		}
	}
	return names
}

// forwardable tells whether a party on a network may forward a call to a host: never into another network.
func (c *Core) forwardable(network string, to netip.Addr) bool {
	at := c.nets.Of(to)
	return !to.IsLoopback() && !to.IsMulticast() && !to.IsLinkLocalUnicast() && (at == network || at == "" && !c.nets[network].Trusted)
}

// forward is where the next call of a host goes.
type forward struct {
	to netip.AddrPort
	// called are the names that it calls: calls of the same host to others are not meant.
	called []string
	until  time.Time
}

const (
	// forwardTime is how long a forwarded caller may take to call again.
	forwardTime = 30 * time.Second
	maxForwards = 4096
	// maxForwardNames bounds the aliases of one forwarding.
	maxForwardNames = 8
)

func (c *Core) remember(now time.Time, caller netip.Addr, f forward) {
	if len(c.forwards) >= maxForwards {
		for host, f := range c.forwards {
			if now.After(f.until) {
				delete(c.forwards, host)
			}
		}
	}
	if len(c.forwards) < maxForwards {
		f.until = now.Add(forwardTime)
		c.forwards[caller] = f
	}
}

// forwarded returns where a caller was sent to, once; names are whom it calls now, if it says so.
func (c *Core) forwarded(now time.Time, caller netip.Addr, names []string) (netip.AddrPort, bool) {
	f, ok := c.forwards[caller]
	same := func(name string) bool {
		return slices.ContainsFunc(f.called, func(s string) bool { return strings.EqualFold(s, name) })
	}
	if !ok || len(names) > 0 && !slices.ContainsFunc(names, same) {
		return netip.AddrPort{}, false
	}
	delete(c.forwards, caller)
	return f.to, !now.After(f.until)
}
