package sipalg

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// malformed answers or drops what could not be parsed (RFC 4475 §3.1.2 has the cases).
func (c *Core) malformed(f flow.Flow, err error) {
	var e *sipmsg.Error
	if !errors.As(err, &e) {
		e = &sipmsg.Error{Reason: "malformed"}
	}
	c.drop("malformed_" + e.Reason)
	if !c.charge(f, costNew) || e.Status == 0 || !c.m.IsRequest() || c.m.Method() == "ACK" || c.m.Method() == "BENOTIFY" {
		return
	}
	// Where only From, To or Call-ID is missing, the answer has no more than the request, but a Via.
	if !c.m.Answerable() && !strings.HasPrefix(e.Reason, "missing_") {
		return
	}
	if via, ok := c.m.TopVia(); ok {
		c.log.Debug("malformed request refused", zap.Stringer("peer", f.Remote), zap.String("reason", e.Reason))
		c.reply(f, via, e.Status, e.Text)
	}
}

// request takes a well-formed request (RFC 3261 §16.3).
func (c *Core) request(f flow.Flow) {
	m := &c.m
	via, ok := m.TopVia()
	if !ok {
		c.drop("no_via")
		return
	}
	key := c.serverKey(m, via, f)
	t := c.findServer(key)
	if !c.charge(f, costDialog) || m.Method() == "CANCEL" && t == nil && !c.charge(f, costNew) {
		c.drop("rate_limited")
		return
	}
	switch m.Method() {
	case "ACK":
		if t != nil && t.status >= 300 {
			c.acked(t)
			return
		}
		c.ack(f, via)
		return
	case "CANCEL":
		c.cancelRequest(f, via, t)
		return
	}
	if t != nil {
		c.retransmitted(t)
		return
	}
	inDialog := len(m.To().Tag()) > 0
	if !inDialog && !c.charge(f, costNew-costDialog) {
		c.drop("rate_limited")
		return
	}
	if c.scanner(f) || m.Method() != "BYE" && c.barred(f, via) { // his dialogs have ended: a tag may be made up
		return
	}
	if m.Method() == "NEGOTIATE" {
		// It asks for compression of this hop ([MS-SIPCOMP]; it comes with Max-Forwards 0): what is compressed
		// cannot be rewritten.
		c.drop("refused_405")
		c.reply(f, via, 405, "Compression Not Offered", "Allow: REGISTER, INVITE, ACK, CANCEL, BYE, OPTIONS, MESSAGE, SUBSCRIBE, NOTIFY, INFO, SERVICE")
		return
	}
	if status, reason, extra := c.admissible(); status != 0 {
		c.drop("refused_" + reasonLabel(status))
		c.reply(f, via, status, reason, extra...)
		return
	}
	if inDialog {
		c.unstrict()
		via, _ = c.m.TopVia()
	}
	c.dispatch(f, via, key, inDialog)
}

// unstrict undoes what a strict router did (RFC 3261 §16.4): the edge's own Record-Route value stands in
// the Request-URI, and the real Request-URI is the last Route value.
func (c *Core) unstrict() {
	u, err := sipmsg.ParseURI(c.m.RequestURI())
	if err != nil || len(u.User) > 0 || c.ownURI(u) == nil {
		return
	}
	if _, ok := u.Param("lr"); !ok {
		return
	}
	var last sipmsg.Element
	for el := range c.m.Elements(sipmsg.Route) {
		last = el
	}
	na, err := sipmsg.ParseNameAddr(last.Value)
	if err != nil {
		return
	}
	c.ed.Reset(&c.m)
	c.ed.ReplaceRequestURI(na.URI)
	c.ed.DeleteElement(last)
	c.ed.PrependBefore(sipmsg.Route, slices.Concat([]byte("Route: <"), c.m.RequestURI(), []byte(">")))
	if raw := c.ed.AppendTo(nil); c.m2.Parse(raw) == nil {
		_ = c.m.Parse(raw) // it has just been parsed
	}
}

// dispatch finds the next hop and forwards, or refuses.
func (c *Core) dispatch(f flow.Flow, via *sipmsg.Via, key uint64, inDialog bool) {
	m := &c.m
	if m.Method() == "OPTIONS" && c.optionsToEdge(f, via) {
		return
	}
	if c.draining && !inDialog && m.Method() == "INVITE" {
		c.reply(f, via, 503, "Draining", "Retry-After: 30")
		return
	}
	if m.Method() == "REGISTER" && c.earlyRefresh(f, via) {
		return
	}
	if !inDialog && c.answered(f, via) {
		return
	}
	var h hop
	var s *session
	var side pinhole.Side
	if inDialog {
		h, s, side = c.routeInDialog(f)
		if s == nil && !c.charge(f, costNew) { // anybody can write a tag
			c.drop("rate_limited")
			return
		}
	} else {
		h = c.route(f)
	}
	if h.status != 0 {
		if h.status == 404 || h.status == 403 {
			c.suspect(f)
		}
		c.drop("refused_" + reasonLabel(int(h.status)))
		c.reply(f, via, int(h.status), h.reason)
		if s != nil && m.Method() == "BYE" {
			c.endDialog(s, s.dialogOf(m)) // the other side is gone, and this one has hung up
		}
		return
	}
	if c.crowded(f) {
		c.drop("busy")
		c.reply(f, via, 503, "Busy", "Retry-After: 5")
		return
	}
	c.noteSignature(f)
	t := newTx(m.Method() == "INVITE" && !inDialog)
	t.key, t.method, t.invite = key, m.Method(), m.Method() == "INVITE"
	t.up, t.back, t.hop = f, backFlow(f, via), h
	t.session, t.fromSide = s, byte(side)
	if s != nil {
		t.dialog = s.dialogOf(m)
		s.note(m, side, f)
	}
	c.addTx(t)
	t.size = int32(len(m.Raw()))
	c.held += len(m.Raw())
	if t.invite {
		c.trying(t)
	}
	c.launch(t)
}

// trying tells the sender of the INVITE at hand that it has arrived (RFC 3261 §16.2).
func (c *Core) trying(t *tx) {
	via, _ := c.m.TopVia()
	c.buf = c.appendReply(c.buf[:0], t.up, via, 100, "Trying", nil)
	c.out.sendCopy(t.back, c.buf)
}

// admissible makes the checks of RFC 3261 §16.3 that end in a refusal.
func (c *Core) admissible() (status int, reason string, extra []string) {
	m := &c.m
	if n, ok := m.MaxForwards(); ok && n == 0 && !(m.Method() == "OPTIONS" && c.toEdge()) {
		return 483, "Too Many Hops", nil
	}
	var unsupported []byte
	for el := range m.Elements(sipmsg.ProxyRequire) {
		// Microsoft's own tags mean nothing to a proxy that changes no signed field.
		if tag := el.Value; !bytes.HasPrefix(bytes.ToLower(tag), []byte("ms-")) {
			unsupported = append(append(unsupported, tag...), ',')
		}
	}
	if len(unsupported) > 0 {
		return 420, "Bad Extension", []string{"Unsupported: " + string(bytes.TrimSuffix(unsupported, []byte{','}))}
	}
	if u := *m.Target(); !u.IsSIP() && !bytes.EqualFold(u.Scheme, []byte("tel")) && !isIM(u) {
		return 416, "Unsupported URI Scheme", nil
	}
	if c.looped() {
		return 482, "Loop Detected", nil
	}
	return 0, "", nil
}

// reply answers a request statelessly. Its To tag is a function of the transaction, so that
// retransmissions get the same answer.
func (c *Core) reply(f flow.Flow, via *sipmsg.Via, status int, reason string, extra ...string) {
	if c.m.Method() == "BENOTIFY" {
		return // its sender wants no answer ([MS-SIPRE])
	}
	if c.unheard(&c.m, status, f) {
		return
	}
	var tag [16]byte
	appendHex(tag[:0], c.serverKey(&c.m, via, f))
	c.buf = c.appendReply(c.buf[:0], f, via, status, reason, tag[:], extra...)
	c.out.sendCopy(backFlow(f, via), c.buf)
	c.count.failed[reasonLabel(status)]++
}

// appendReply writes a response to the request at hand, with received and rport in its top Via
// (RFC 3261 §18.2.1, RFC 3581 §4).
func (c *Core) appendReply(dst []byte, f flow.Flow, via *sipmsg.Via, status int, reason string, toTag []byte, extra ...string) []byte {
	start := len(dst)
	dst = sipmsg.AppendResponse(dst, &c.m, status, reason, toTag, extra...)
	old := via.Element.Value
	c.body = c.appendVia(c.body[:0], via, f)
	if i := bytes.Index(dst[start:], old); i >= 0 {
		dst = slices.Replace(dst, start+i, start+i+len(old), c.body...)
	}
	return dst
}

// appendVia writes a received Via's value with received and rport filled in.
func (c *Core) appendVia(dst []byte, via *sipmsg.Via, f flow.Flow) []byte {
	start := len(dst)
	p, rest, more := bytes.Cut(via.Element.Value, []byte{';'})
	dst = append(dst, bytes.TrimSpace(p)...)
	for more {
		p, rest, more = bytes.Cut(rest, []byte{';'})
		name, _, _ := bytes.Cut(p, []byte{'='})
		name = bytes.TrimSpace(name)
		switch {
		case bytes.EqualFold(name, []byte("received")):
			continue
		case bytes.EqualFold(name, []byte("rport")):
			dst = append(dst, ";rport="...)
			dst = appendUint(dst, uint64(f.Remote.Port()))
			continue
		}
		dst = append(append(dst, ';'), bytes.TrimSpace(p)...)
	}
	if a, ok := parseAddr(via.Host); !ok || a != f.Remote.Addr().Unmap() || via.HasRPort {
		dst = append(dst, ";received="...)
		dst = f.Remote.Addr().Unmap().WithZone("").AppendTo(dst)
	} else if start == len(dst) {
		return via.Element.Value
	}
	return dst
}

// backFlow is where responses go (RFC 3261 §18.2.2, RFC 3581): the source, unless the sender without
// rport is its own neighbour, who may listen on another port than it sends from.
func backFlow(f flow.Flow, via *sipmsg.Via) flow.Flow {
	if f.Proto.Stream() || via.HasRPort {
		return f
	}
	if a, ok := parseAddr(via.Host); ok && a == f.Remote.Addr().Unmap() {
		port := via.Port
		if port == 0 {
			port = 5060
		}
		f.Remote = netip.AddrPortFrom(f.Remote.Addr(), port)
	}
	return f
}

// toEdge tells whether the Request-URI names the edge itself: own host, no user.
func (c *Core) toEdge() bool {
	u, err := sipmsg.ParseURI(c.m.RequestURI())
	return err == nil && len(u.User) == 0 && c.ownURI(u) != nil
}

// optionsToEdge answers a ping of the edge itself.
func (c *Core) optionsToEdge(f flow.Flow, via *sipmsg.Via) bool {
	if !c.toEdge() {
		return false
	}
	status, reason := 200, "OK"
	if c.draining {
		status, reason = 503, "Draining"
	}
	c.buf = c.appendReply(c.buf[:0], f, via, status, reason, []byte("edge"), "Accept: application/sdp", "Supported: outbound")
	c.out.sendCopy(backFlow(f, via), c.buf)
	return true
}

// cancelRequest answers a CANCEL and passes it on (RFC 3261 §16.10).
func (c *Core) cancelRequest(f flow.Flow, via *sipmsg.Via, t *tx) {
	if t == nil {
		c.reply(f, via, 481, "Call/Transaction Does Not Exist")
		return
	}
	if signedByClient(&c.m) {
		c.keepCredentials(t) // the server's own answer goes back
	} else {
		c.buf = c.appendReply(c.buf[:0], f, via, 200, "OK", []byte("edge"))
		c.out.sendCopy(backFlow(f, via), c.buf)
	}
	if t.state >= txCompleted {
		return
	}
	t.cancelled = true
	if t.state == txTrying && !t.sent && t.raw != nil {
		// Nothing has been sent: its name is still being resolved.
		c.finalLocal(t, 487, "Request Terminated")
		return
	}
	c.cancel(t)
}

// looped tells whether this very request has been here before (RFC 5393 §4.2): one of our own
// branches carries the same hash. A spiral has another Request-URI or Route, so another hash.
func (c *Core) looped() bool {
	var h uint32
	for el := range c.m.Elements(sipmsg.HeaderVia) {
		i := bytes.Index(el.Value, []byte(branchMagic))
		if i < 0 || len(el.Value) < i+len(branchMagic)+8 {
			continue
		}
		via, err := sipmsg.ParseVia(el.Value)
		if err != nil || !c.ownHost(via.Host) || !bytes.HasPrefix(via.Branch, []byte(branchMagic)) {
			continue
		}
		if h == 0 {
			h = c.loopHash()
		}
		var hex [8]byte
		if bytes.Equal(via.Branch[len(branchMagic):][:8], appendHex32(hex[:0], h)) {
			return true
		}
	}
	return false
}

func reasonLabel(status int) string {
	return string(appendUint(nil, uint64(status)))
}
