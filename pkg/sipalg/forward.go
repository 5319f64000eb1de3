package sipalg

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// growth is how much longer a request usually gets, in bytes.
const growth = 320

// maxDatagram is the size from which a request with an open transport goes by TCP: 200 bytes below
// the Ethernet MTU (RFC 3261 §18.1.1).
const maxDatagram = 1300

// launch sends a transaction's request to its next hop, after its name is resolved if it must be.
// The core's message is the request.
func (c *Core) launch(t *tx) {
	h := &t.hop
	if h.need.Host != "" && len(h.targets) == 0 && !h.flow.Remote.IsValid() {
		t.raw = bytes.Clone(c.m.Raw())
		c.waiting[t.id] = t
		c.out.items = append(c.out.items, item{resolve: &query{id: t.id, network: h.network, server: h.need}})
		c.sentRequest(t, flow.TCP) // only its end matters: no name, no request
		return
	}
	chosen := flow.Proto(0)
	if h.open && len(h.targets) > 0 && len(c.m.Raw()) > maxDatagram-200 {
		chosen = h.targets[0].Proto
		h.targets = withTCP(h.targets)
	}
	t.targets = h.targets
	var dest flow.Flow
	if h.flow.Remote.IsValid() {
		dest = h.flow
	} else {
		if len(t.targets) == 0 {
			c.finalLocal(t, 404, "Not Found")
			return
		}
		t.target, t.targets = t.targets[0], t.targets[1:]
		dest = flow.Flow{Network: t.target.Network, Proto: t.target.Proto, Remote: t.target.Addr}
	}
	l := c.localFor(dest.Network, dest.Proto, dest.Remote.Addr())
	if l == nil {
		c.finalLocal(t, 503, "No Listener On Network "+dest.Network)
		return
	}
	switch {
	case h.flow.Remote.IsValid() && h.flow.Local.IsValid():
		l = c.localOf(h.flow)
	case chosen == flow.UDP:
		// TCP is for this large request only; Contact and Record-Route do not bind the dialog to it.
		l = cmp.Or(c.localFor(dest.Network, chosen, dest.Remote.Addr()), l)
	}
	if t.session == nil && t.room != nil {
		if t.session = c.newSession(t, l.network); t.session == nil {
			c.finalLocal(t, 482, "Request Merged") // RFC 3261 §8.2.2.2; a spiral or two are legal
			return
		}
	}
	status, reason := c.build(t, l, dest)
	if status != 0 {
		if t.method == "ACK" && t.session != nil {
			c.hangup(t.session, "answer refused") // nobody can be told otherwise
		}
		c.finalLocal(t, status, reason)
		return
	}
	if t.silent() {
		t.session, t.done = nil, nil // its end means nothing to the call
		c.transmit(t, l, dest)
		c.end(t)
		return
	}
	c.sentRequest(t, dest.Proto)
	c.transmit(t, l, dest)
}

// transmit gives the built request to the transport.
func (c *Core) transmit(t *tx, l *local, dest flow.Flow) {
	switch {
	case t.hop.flow.Remote.IsValid():
		c.sentBy(t, t.hop.flow)
		c.out.send(t.down, t.buf[:t.outLen], t.id)
	case dest.Proto == flow.UDP:
		c.sentBy(t, flow.Flow{Network: l.network, Proto: flow.UDP, Local: l.bind, Remote: dest.Remote})
		c.out.send(t.down, t.buf[:t.outLen], t.id)
	default:
		tg := t.target
		c.out.items = append(c.out.items, item{target: &tg, tx: t.id, data: t.buf[:t.outLen]})
	}
}

// withTCP puts a TCP try before each UDP one.
func withTCP(in []flow.Target) []flow.Target {
	out := make([]flow.Target, 0, 2*len(in))
	for _, t := range in {
		if t.Proto == flow.UDP {
			tcp := t
			tcp.Proto = flow.TCP
			out = append(out, tcp)
		}
		out = append(out, t)
	}
	return out
}

// retarget sends the built request to t.target instead, with a Via of its transport and a new branch.
func (c *Core) retarget(t *tx) bool {
	l := c.localFor(t.target.Network, t.target.Proto, t.target.Addr.Addr())
	if l == nil || t.outLen == 0 {
		return false
	}
	lineEnd := bytes.Index(t.buf, []byte("\r\n")) + 2
	delete(c.client, t.id)
	hash := bytes.Clone(t.buf[int(t.viaEnd)-len(branchTail)-24:][:8])
	t.id = c.newID()
	c.client[t.id] = t
	nb := make([]byte, 0, len(t.buf)+64)
	nb = append(nb, t.buf[:lineEnd]...)
	nb = append(append(nb, l.viaFor(t.target.Proto)...), hash...)
	nb = append(appendHex(nb, t.id), branchTail...)
	end := len(nb)
	nb = append(nb, t.buf[t.viaEnd:]...)
	t.outLen += end - int(t.viaEnd)
	t.viaEnd = int32(end)
	t.buf = nb
	c.leaveCarrier(t)
	t.sent, t.hop.flow = false, flow.Flow{}
	c.sentRequest(t, t.target.Proto)
	c.transmit(t, l, flow.Flow{Network: t.target.Network, Proto: t.target.Proto, Remote: t.target.Addr})
	return true
}

// branchTail ends our Via: the next hop shall answer to where we send from (RFC 3581).
const branchTail = ";rport\r\n"

func (l *local) viaFor(p flow.Proto) string {
	if p == l.proto {
		return l.via
	}
	return "Via: SIP/2.0/" + p.Via() + " " + l.hostport + ";branch=" + branchMagic
}

// build writes the request as it is sent on (RFC 3261 §16.6) into t.buf. It returns the status with
// which the request must be refused instead, 0 if none.
func (c *Core) build(t *tx, l *local, dest flow.Flow) (status int, reason string) {
	m, e := &c.m, &c.ed
	e.Reset(m)
	body, err := c.rewriteRequestBody(t, l, dest)
	if err != nil {
		return c.mediaStatus(err)
	}
	if body, status, reason = c.editRequestContent(t, l, dest, body); status != 0 {
		return status, reason
	}
	if t.hop.ruri != nil {
		e.ReplaceRequestURI(t.hop.ruri)
	}
	vias := c.editVias(t, l, dest.Proto)
	c.editRoutes(t, l)
	c.editMaxForwards()
	if err := c.editContacts(t, t.up, l, pinhole.Side(t.fromSide), t.method == "REGISTER" || c.oneVia()); err != nil {
		return 503, "Too Many Contacts"
	}
	c.editReferTo(l)
	if body != nil {
		e.ReplaceBody(body)
	}
	if dest.Proto.Stream() || len(t.targets) > 0 {
		e.EnsureContentLength() // a datagram may do without, a stream may not
	}
	if cap(t.buf) == 0 {
		t.buf = make([]byte, 0, len(m.Raw())+len(vias)+growth)
	}
	t.buf = e.AppendTo(t.buf[:0])
	t.built()
	t.buf = append(t.buf, vias...)
	t.raw = nil
	return 0, ""
}

// built takes note that buf holds the request as it is sent on, with our Via below the start line.
func (t *tx) built() {
	t.outLen = len(t.buf)
	line := bytes.Index(t.buf, []byte("\r\n")) + 2
	t.viaEnd = int32(line + bytes.Index(t.buf[line:], []byte("\r\n")) + 2)
}

// hides tells whether what a network says of its own hosts stays there when a message leaves for another.
func (c *Core) hides(from, to string) bool {
	return c.cfg.HideTopology && c.nets[from].Trusted && !c.nets[to].Trusted
}

// editVias completes the top Via and puts ours above, or instead of all others where they are
// hidden; it returns the hidden ones as header lines.
func (c *Core) editVias(t *tx, l *local, p flow.Proto) (hidden []byte) {
	m, e := &c.m, &c.ed
	hide := c.hides(t.up.Network, l.network)
	via, _ := m.TopVia()
	hash := c.loopHash()
	b := append(c.buf[:0], l.viaFor(p)...)
	b = appendHex(appendHex32(b, hash), t.id)
	b = append(b, branchTail[:len(branchTail)-2]...)
	n := len(b)
	first := true
	for el := range m.Elements(sipmsg.HeaderVia) {
		switch {
		case hide:
			b = append(b, "Via: "...)
			if first {
				b = c.appendVia(b, via, t.up)
			} else {
				b = append(b, el.Value...)
			}
			b = append(b, "\r\n"...)
			e.DeleteElement(el)
		case first:
			c.buf2 = c.appendVia(c.buf2[:0], via, t.up)
			if !bytes.Equal(c.buf2, el.Value) {
				e.ReplaceElement(el, c.buf2)
			}
		}
		first = false
	}
	c.buf = b
	e.Prepend(b[:n])
	return b[n:]
}

// editRoutes removes our Route value, adds hidden ones and records the edge where a dialog may begin.
func (c *Core) editRoutes(t *tx, l *local) {
	m, e := &c.m, &c.ed
	n := int16(0)
	for el := range m.Elements(sipmsg.Route) {
		if n == t.hop.pops {
			break
		}
		e.DeleteElement(el)
		n++
	}
	for _, r := range t.hop.routes {
		e.PrependBefore(sipmsg.Route, append(append(c.body[:0], "Route: "...), r...))
	}
	switch t.method {
	case "INVITE", "SUBSCRIBE", "REFER", "NOTIFY", "UPDATE":
	default:
		return
	}
	if c.hides(t.up.Network, l.network) {
		for el := range m.Elements(sipmsg.RecordRoute) {
			e.DeleteElement(el)
		}
	}
	c.body = c.appendRecord(append(c.body[:0], "Record-Route: "...), t.session, l, t.up.Network)
	e.PrependBefore(sipmsg.RecordRoute, c.body)
}

// appendRecord writes the edge's Record-Route value as one network sees it: a single one, which the
// response carries back with the address of the other network (RFC 3261 §16.7 item 8), so that
// neither learns the other's. It names the session, or the network beyond where there is none.
func (c *Core) appendRecord(b []byte, s *session, l *local, beyond string) []byte {
	b = append(b, l.route...)
	if s != nil {
		b = appendHex(append(b, ";e="...), s.id)
	} else {
		b = appendHex(append(b, ";n="...), c.networkToken(beyond))
	}
	return append(b, '>')
}

// networkToken stands for a network in the Record-Route of the dialog at hand. Nobody can make one for
// another dialog: it would open a trusted network to strangers.
func (c *Core) networkToken(name string) uint64 {
	mac := hmac.New(sha256.New, c.secret)
	mac.Write(c.m.CallID())
	mac.Write(append([]byte{0}, name...))
	return binary.BigEndian.Uint64(mac.Sum(nil))
}

func (c *Core) editMaxForwards() {
	m, e := &c.m, &c.ed
	n, ok := m.MaxForwards()
	if !ok {
		e.Append([]byte("Max-Forwards: 70"))
		return
	}
	for el := range m.Elements(sipmsg.MaxForwards) {
		e.ReplaceElement(el, appendUint(c.body[:0], uint64(max(n-1, 0))))
		return
	}
}

const (
	maxContacts   = 32  // in one message
	maxContactURI = 512 // bytes
)

// editContacts puts the edge in the place of each Contact, so that the far end answers to the edge,
// whatever it thinks of Record-Route. The session of an INVITE remembers it for its side.
func (c *Core) editContacts(t *tx, f flow.Flow, l *local, side pinhole.Side, adjacent bool) error {
	n := 0
	for el := range c.m.Elements(sipmsg.Contact) {
		if len(el.Value) == 1 && el.Value[0] == '*' {
			continue
		}
		na, err := c.m.Address(el)
		if err != nil {
			continue
		}
		u, err := sipmsg.ParseURI(na.URI)
		if err != nil || !sipScheme(u) || len(u.Host) == 0 {
			continue
		}
		if n++; n > maxContacts || len(na.URI) > maxContactURI {
			c.drop("contacts_too_many")
			return pinhole.ErrLimit
		}
		a := c.aliasFor(f, na.URI, adjacent)
		if a == nil {
			return pinhole.ErrLimit
		}
		c.keepContact(t, a, side)
		c.body = appendAlias(c.body[:0], u, a, l)
		c.ed.ReplaceSpan(na.URI, c.body)
	}
	return nil
}

// editReferTo gives the edge's name for somebody in a Refer-To (RFC 3515) the form that the receiver can
// use: he has another edge address before him, or is a neighbour of the one who is named.
func (c *Core) editReferTo(l *local) {
	v, ok := c.m.Find(sipmsg.ReferTo)
	if !ok {
		return
	}
	na, err := sipmsg.ParseNameAddr(v)
	if err != nil {
		return
	}
	u, err := sipmsg.ParseURI(na.URI)
	if err != nil {
		return
	}
	a := c.aliasOf(u)
	if a == nil {
		return
	}
	own, err := sipmsg.ParseURI(a.uri)
	if err != nil {
		return
	}
	if a.network == l.network && !a.nat && a.binding == nil {
		c.body = append(c.body[:0], a.uri...)
	} else {
		c.body = appendAlias(c.body[:0], own, a, l)
	}
	c.ed.ReplaceSpan(na.URI[:len(na.URI)-len(u.Headers)], c.body) // "?Replaces=" stays
}

// keepContact remembers a Contact as long as the dialog that it belongs to may need it.
func (c *Core) keepContact(t *tx, a *alias, side pinhole.Side) {
	switch t.method {
	case "INVITE", "UPDATE":
		if s := t.session; s != nil && s.contacts[side] != a && c.sessions[s.id] == s {
			a.hold()
			c.releaseAlias(s.contacts[side])
			s.contacts[side] = a
		}
	case "SUBSCRIBE", "NOTIFY", "REFER":
		life := time.Hour
		if n, ok := c.m.Expires(); ok {
			life = min(time.Duration(n)*time.Second, maxLife)
		}
		a.keep(c.now.Add(life + aliasLife))
	}
}

// oneVia tells whether the request comes straight from a user agent.
func (c *Core) oneVia() bool {
	n := 0
	for range c.m.Elements(sipmsg.HeaderVia) {
		n++
	}
	return n == 1
}

func sipScheme(u sipmsg.URI) bool {
	return bytes.EqualFold(u.Scheme, []byte("sip")) || bytes.EqualFold(u.Scheme, []byte("sips"))
}

// resolved goes on with a transaction whose next hop was a name: to its addresses, if it has any.
func (c *Core) resolved(id uint64, targets []flow.Target) {
	t := c.waiting[id]
	delete(c.waiting, id)
	if t == nil || t.state >= txCompleted || t.raw == nil {
		return
	}
	if t.hop.named && slices.ContainsFunc(targets, func(tg flow.Target) bool { return !c.mayReach(tg) }) {
		c.drop("target_forbidden")
		targets = slices.DeleteFunc(slices.Clone(targets), func(tg flow.Target) bool { return !c.mayReach(tg) })
	}
	if len(targets) == 0 {
		c.homeFailed(t)
		c.finalLocal(t, 503, "Name Not Resolved")
		return
	}
	t.hop.targets = targets
	raw := t.raw
	if c.m.Parse(raw) != nil {
		return
	}
	c.forgetEnded(t)
	c.launch(t)
}

// finalLocal answers a request in the next hop's stead.
func (c *Core) finalLocal(t *tx, status int, reason string) {
	if t.state >= txCompleted {
		return
	}
	if t.silent() {
		c.drop("silent_request_failed")
		c.end(t)
		return
	}
	if t.key == 0 { // the edge's own request
		c.finished(t, status)
		if t.done != nil {
			t.done(c, status)
		}
		return
	}
	if t.raw != nil {
		delete(c.waiting, t.id)
	}
	c.count.failed[reasonLabel(status)]++
	src := t.buf[:t.outLen]
	hidden := t.buf[t.outLen:]
	own := true
	if t.outLen == 0 { // not built yet: the message at hand, or the one that was kept
		own, hidden = false, nil
		src = t.raw
		if src == nil {
			src = bytes.Clone(c.m.Raw())
		}
	}
	var req sipmsg.Message
	if req.Parse(src) != nil && !req.Answerable() {
		c.end(t)
		return
	}
	if c.unheard(&req, status, t.up) {
		c.txFailed(t, status)
		c.finished(t, status)
		return
	}
	var tag [16]byte
	resp := c.refusalOf(t).appendResponse(nil, &req, status, reason, appendHex(tag[:0], t.id))
	if own {
		resp = c.dropOwnVia(resp, hidden)
	}
	t.resp = resp
	c.out.send(t.back, resp, 0)
	c.txFailed(t, status)
	c.finished(t, status)
}

// dropOwnVia removes our Via from a response made from the request as sent on.
func (c *Core) dropOwnVia(resp, hidden []byte) []byte {
	if c.m2.Parse(resp) != nil {
		return resp
	}
	var e sipmsg.Editor
	e.Reset(&c.m2)
	for el := range c.m2.Elements(sipmsg.HeaderVia) {
		e.DeleteElement(el)
		break
	}
	if len(hidden) > 0 {
		e.Prepend(bytes.TrimSuffix(hidden, []byte("\r\n")))
	}
	return e.AppendTo(nil)
}
