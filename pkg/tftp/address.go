package tftp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tftp/invitation"
	"edged.dev/edged/pkg/tftp/msnftp"
)

// addressFields are where an invitation may hold an address.
func addressFields() []invitation.Field {
	return []invitation.Field{
		invitation.IPAddress, invitation.Port, invitation.PortX,
		invitation.IPAddressInternal, invitation.PortInternal, invitation.PortXInternal,
	}
}

// acceptLocked remembers the keys that an acceptance brings, and puts the edge in the place of the client that it
// says is listening.
func (e *Editor) acceptLocked(now time.Time, c Content, inv *invitation.Invitation) Verdict {
	k := keyOf(c, inv.Value(invitation.Cookie))
	t := e.byKey[k]
	switch {
	case t == nil: // denied where nothing was to be remembered, or of before a restart
		return e.cancelLocked(c, nil, k.cookie, reasonUnknown)
	case t.denied != "":
		return e.cancelLocked(c, t, k.cookie, t.denied)
	case t.foreign:
		return Verdict{}
	}
	if !learn(&t.encryptionKey, inv.Value(invitation.EncryptionKey)) || !learn(&t.hashKey, inv.Value(invitation.HashKey)) {
		return e.cancelLocked(c, t, k.cookie, reasonKeys)
	}
	if !addressed(inv) {
		return Verdict{}
	}
	s, reason := e.saidLocked(c, t, inv)
	if reason == "" {
		reason = e.openLocked(now, c, t, s)
	}
	if reason != "" {
		return e.cancelLocked(c, t, k.cookie, reason)
	}
	return Verdict{Body: rewrite(inv, t.local)}
}

// learn takes a key, once, whoever says it: a client takes one of its peer also where it has chosen its own before, and the
// edge would look at something else than it reads. It tells whether there is still but one.
func learn(key *string, said string) bool {
	if *key == "" && len(said) < maxKeyText {
		*key = said
	}
	return said == "" || *key == said
}

// maxKeyText bounds the text of a key: clients write 24 octets in base64.
const maxKeyText = 128

// addressed tells whether an invitation holds an address.
func addressed(inv *invitation.Invitation) bool { return slices.ContainsFunc(addressFields(), inv.Has) }

// withoutAddress returns an invitation without the addresses that it has no use for, as it is no acceptance; nil if there
// are none.
func withoutAddress(inv *invitation.Invitation) []byte {
	if !addressed(inv) {
		return nil
	}
	var none []invitation.Change
	for _, f := range addressFields() {
		none = append(none, invitation.Change{Field: f, Remove: true})
	}
	return inv.Edit(none...)
}

// rewrite puts an address into an invitation.
func rewrite(inv *invitation.Invitation, local netip.AddrPort) []byte {
	port := int(local.Port())
	return inv.Edit(
		invitation.Change{Field: invitation.IPAddress, Value: local.Addr().String()},
		invitation.Change{Field: invitation.Port, Value: strconv.Itoa(port)},
		invitation.Change{Field: invitation.PortX, Value: strconv.Itoa(port ^ invitation.PortMask)},
		invitation.Change{Field: invitation.IPAddressInternal, Remove: true},
		invitation.Change{Field: invitation.PortInternal, Remove: true},
		invitation.Change{Field: invitation.PortXInternal, Remove: true},
	)
}

// saidLocked reads where a client listens. What the edge itself has written there when the message came by before
// (two clients inside whose registrar is outside) is taken for what it stands for.
func (e *Editor) saidLocked(c Content, t *transfer, inv *invitation.Invitation) (s said, reason string) {
	target, ok := target(inv)
	if !ok {
		return s, reasonAddress
	}
	s = said{
		network: c.Sender.Network, source: c.Sender.Addr, trusted: c.Sender.Trusted, owner: e.ownerOf(c), target: target,
		authCookie: inv.Value(invitation.AuthCookie), receives: t.receiverSpeaks(c, inv),
	}
	if len(s.authCookie) == 0 || len(s.authCookie) > 64 {
		return s, reasonMalformed
	}
	if before := e.byLocal[target]; before != nil && before.key.cookie == t.key.cookie && before.said.authCookie == s.authCookie {
		s = before.said
		if before != t {
			e.endLocked(before, resultReplaced) // a proxy between has changed the Call-ID
		}
		return s, ""
	}
	switch a := target.Addr(); {
	case e.nets.Own(a):
		return s, reasonOwnAddress
	case !clientPorts().has(target.Port()) && !e.cfg.Ports.has(target.Port()):
		return s, reasonPort
	case !e.mayName(s):
		return s, reasonTarget
	}
	return s, ""
}

// mayName tells whether a client may be dialled at the address that was said: its own, or one that does not
// lie in another network. The relay would believe a server, and any host outside, more than that.
func (e *Editor) mayName(s said) bool {
	a := s.remote().Addr.Addr()
	if a == s.source {
		return true
	}
	if of := e.nets.Of(a); of != "" || !a.IsGlobalUnicast() {
		return of == s.network
	}
	if e.routeTo == nil {
		return true
	}
	of := e.routeTo(a)
	return of == s.network || !e.nets[of].Trusted // there may be several ways outside
}

// target reads IP-Address, and Port or else PortX.
func target(inv *invitation.Invitation) (netip.AddrPort, bool) {
	host := inv.Value(invitation.IPAddress)
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	text, mask := inv.Value(invitation.Port), uint16(0)
	if !inv.Has(invitation.Port) {
		text, mask = inv.Value(invitation.PortX), invitation.PortMask
	}
	port, err := strconv.ParseUint(text, 10, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(port)^mask), err == nil
}

// receiverSpeaks tells whether an acceptance is of the file's receiver: of who was invited or, where somebody
// invites himself, of who has the other connect.
func (t *transfer) receiverSpeaks(c Content, inv *invitation.Invitation) bool {
	if t.from != t.to {
		return address(c.From) == t.to
	}
	return strings.EqualFold(inv.Value(invitation.SenderConnect), "TRUE")
}

// openLocked opens the pinhole from the receiver of the message to the client that listens, and returns why it
// could not. One that is open already, for a message that came again, stays.
func (e *Editor) openLocked(now time.Time, c Content, t *transfer, s said) (reason string) {
	family := pinhole.FamilyOf(c.Receiver.Local)
	if family == pinhole.AnyFamily {
		family = pinhole.FamilyOf(c.Receiver.Addr)
	}
	if t.lease != nil && t.said == s && t.toward == c.Receiver.Network && pinhole.FamilyOf(t.local.Addr()) == family {
		return ""
	}
	e.releaseLocked(t)
	r := pinhole.Request{
		Owner: s.owner, Label: "file transfer " + printable(c.CallID), Kind: pinhole.TCP,
		Networks: [2]string{s.network, c.Receiver.Network},
		Families: [2]pinhole.Family{pinhole.FamilyOf(s.target.Addr()), family},
		Ports:    [2]uint16{e.cfg.Ports.First, e.cfg.Ports.Last},
		Listen:   [2]bool{pinhole.Far: true}, Once: true,
		Idle: e.cfg.Pending + e.cfg.Idle, OnIdle: func(bool) {}, // both times are kept elsewhere
	}
	if reason := e.carryLocked(t, s, &r); reason != "" {
		return reason
	}
	lease, err := e.opener.Open(context.Background(), r)
	if err != nil {
		return refusal(err)
	}
	if err := errors.Join(lease.Declare(pinhole.Near, s.remote()), lease.Declare(pinhole.Far, dialler(c.Receiver))); err != nil {
		lease.Close()
		return refusal(err)
	}
	t.lease, t.said, t.toward, t.expires = lease, s, c.Receiver.Network, now.Add(e.cfg.Pending)
	t.local = lease.Local(pinhole.Far).Addr
	e.byLocal[t.local] = t
	return ""
}

// carryLocked fills in what the relay calls with the connections of the pinhole, or returns why it cannot.
func (e *Editor) carryLocked(t *transfer, s said, r *pinhole.Request) (reason string) {
	check, reason := e.inspect(t)
	if reason != "" {
		return reason
	}
	t.opening++
	opening := t.opening
	data := &msnftp.Transfer{
		Receiver: pinhole.Far, Cookie: s.authCookie, Plain: e.cfg.Plain, MaxSize: int64(e.cfg.MaxSize), Idle: e.cfg.Idle, Joiner: e.joiner, Check: check,
		Refused: func(host netip.Addr, err error) { e.refusedCaller(t, host, err) },
		Ended: func(o msnftp.Outcome) {
			result, detail := outcome(o.Err)
			e.finished(t, opening, result, detail)
		},
	}
	if s.receives {
		data.Receiver = pinhole.Near
	}
	if t.size >= 0 {
		data.MaxSize = max(t.size, 1) // what was judged; 0 would be any
	}
	r.Admit = data.Admit
	r.Serve = func(ctx context.Context, conns [2]net.Conn, moved func(pinhole.Side, int)) {
		if e.started(t, opening) {
			data.Serve(ctx, conns, moved)
		}
	}
	r.Unjoined = func(err error) { e.finished(t, opening, resultUnreachable, err.Error()) }
	return ""
}

// refusedCaller counts somebody who came to a port and could not say what he must.
func (e *Editor) refusedCaller(t *transfer, host netip.Addr, err error) {
	e.count.refuse(msnftp.Reason(err))
	e.log.Info("file transfer connection refused", zap.Stringer("source", host), zap.String("call_id", printable(t.key.call)), zap.Error(err))
}

// started notes that the connections of a pinhole are joined: the relay has given back its port.
func (e *Editor) started(t *transfer, opening int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byKey[t.key] != t || t.opening != opening || t.lease == nil {
		return false
	}
	t.running = true
	if e.byLocal[t.local] == t {
		delete(e.byLocal, t.local)
	}
	return true
}

// finished ends the transfer if the connection was of its present pinhole; the first result counts.
func (e *Editor) finished(t *transfer, opening int, result, detail string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.opening == opening && t.lease != nil {
		t.detail = printable(detail)
		e.endLocked(t, result)
	}
}

// remote is what the relay is told of the listening client. One behind a NAT says an address that nobody outside
// can reach; its NAT's is tried then, where the port may lead to it.
func (s said) remote() pinhole.Remote {
	to := s.target
	if !s.trusted && s.source.IsValid() && pinhole.Private(to.Addr()) && !pinhole.Private(s.source) &&
		pinhole.FamilyOf(to.Addr()) == pinhole.FamilyOf(s.source) {
		to = netip.AddrPortFrom(s.source, to.Port())
	}
	return pinhole.Remote{Addr: to, Source: s.source, Trusted: s.trusted}
}

// dialler is what the relay is told of the client that connects: its host, unless a server hides that.
func dialler(p Party) pinhole.Remote {
	if p.Trusted {
		return pinhole.Remote{}
	}
	return pinhole.Remote{Source: p.Addr}
}

// refusal returns the reason label for an error of the relay.
func refusal(err error) string {
	switch {
	case errors.Is(err, pinhole.ErrExhausted):
		return reasonExhausted
	case errors.Is(err, pinhole.ErrLimit):
		return reasonLimit
	case errors.Is(err, pinhole.ErrTarget):
		return reasonTarget
	}
	return reasonNetwork
}
