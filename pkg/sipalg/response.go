package sipalg

import (
	"bytes"
	"net/netip"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// response takes a response from a next hop (RFC 3261 §16.7).
func (c *Core) response(f flow.Flow) {
	m := &c.m
	via, ok := m.TopVia()
	if !ok || !bytes.HasPrefix(via.Branch, []byte(branchMagic)) || len(via.Branch) != len(branchMagic)+24 {
		c.drop("response_not_ours")
		return
	}
	id, ok := parseHex(via.Branch[len(branchMagic)+8:])
	t := c.client[id]
	if !ok || t == nil {
		c.drop("response_unmatched")
		return
	}
	if t.sent && t.down.Network != f.Network || !t.sent && t.target.Network != f.Network {
		c.drop("response_wrong_network")
		return
	}
	_, method := m.CSeq()
	if method != t.method {
		if method != "CANCEL" {
			c.drop("response_wrong_method")
		} else if c.credits[t.id] != nil {
			c.cancelAnswered(t)
		}
		return
	}
	if !t.sent {
		c.sentBy(t, f)
	}
	c.clientResponse(t, f)
}

// clientResponse runs the client transaction (§17.1, RFC 6026).
func (c *Core) clientResponse(t *tx, f flow.Flow) {
	status := c.m.Status()
	switch {
	case status < 200:
		if t.state >= txCompleted {
			return
		}
		c.provisional(t)
		if status == 100 || t.key == 0 {
			return
		}
	case t.state == txCompleted:
		if t.invite && status >= 300 {
			c.sendAck(t, &c.m) // the next hop did not get it
		}
		return
	case t.state == txAccepted && status >= 300:
		return
	case t.invite && status >= 300:
		c.sendAck(t, &c.m)
	}
	if s := t.session; s != nil && c.sessions[s.id] != s && status < 300 && t.invite && t.dialog == nil {
		c.drop("response_after_end") // a 2xx repeated after the BYE must not open pinholes again
		return
	}
	c.forgetEnded(t)
	if t.key == 0 {
		c.finished(t, status)
		if t.done != nil {
			t.done(c, status)
		}
		return
	}
	if status == 503 && t.state == txTrying && len(t.targets) > 0 {
		c.markDown(t)
		c.nextTarget(t, 503)
		return
	}
	c.forwardResponse(t, f)
}

// forwardResponse sends a response back the way its request came.
func (c *Core) forwardResponse(t *tx, f flow.Flow) {
	m, e := &c.m, &c.ed
	status := m.Status()
	up := c.localOf(t.up)
	if up == nil {
		return
	}
	e.Reset(m)
	body, err := c.rewriteResponseBody(t, f, up)
	if err != nil {
		c.mediaRefused(t, f, err)
		return
	}
	body = c.editResponseContent(t, f, up, body)
	for el := range m.Elements(sipmsg.HeaderVia) {
		e.DeleteElement(el)
		break
	}
	if hidden := t.buf[t.outLen:]; len(hidden) > 0 {
		e.Prepend(hidden[:len(hidden)-2])
	}
	if t.method == "REGISTER" && status/100 != 3 {
		c.registerResponse(t)
	} else {
		c.editRecordRoute(t, f, up)
		if err := c.responseContacts(t, f, up); err != nil {
			c.mediaRefused(t, f, err)
			return
		}
	}
	if body != nil {
		e.ReplaceBody(body)
	}
	if t.back.Proto.Stream() {
		e.EnsureContentLength() // a datagram may do without
	}
	if status >= 200 && !(t.invite && status < 300) {
		t.resp = e.AppendTo(make([]byte, 0, len(m.Raw())+256))
		c.out.send(t.back, t.resp, 0)
	} else {
		c.buf = e.AppendTo(c.buf[:0])
		if t.invite && status < 200 {
			t.resp = append(t.resp[:0:0], c.buf...)
		}
		c.out.sendCopy(t.back, c.buf)
	}
	if status/100 == 2 && t.method == "REGISTER" {
		c.keepServer(f)
	}
	if status/100 == 2 && (t.invite || t.method == "REGISTER") {
		c.vouch(t.up)
		c.vouch(f)
	}
	c.observe(t, f, status)
	if status >= 200 && t.state < txCompleted {
		c.finished(t, status)
	} else if status >= 200 {
		t.status = status
	}
}

// responseContacts puts the edge in the place of the Contact of whoever answered. The Contacts of a
// redirection name somebody else: they lead there, through the edge.
func (c *Core) responseContacts(t *tx, f flow.Flow, up *local) error {
	if status := c.m.Status(); status >= 300 && status < 400 {
		n := 0
		for el := range c.m.Elements(sipmsg.Contact) {
			na, err := sipmsg.ParseNameAddr(el.Value)
			if err != nil {
				continue
			}
			u, err := sipmsg.ParseURI(na.URI)
			if err != nil || !sipScheme(u) || len(u.Host) == 0 {
				continue
			}
			if n++; n > maxContacts || len(na.URI) > maxContactURI {
				return pinhole.ErrLimit
			}
			a := c.aliasBy(f.Network, netip.Addr{}, na.URI)
			if a == nil {
				return pinhole.ErrLimit
			}
			a.free = a.free || c.servers[f.Remote.Addr().Unmap()]
			if n == 1 {
				c.keepHome(t, f, a)
			}
			c.body = appendAlias(c.body[:0], u, a, up)
			c.ed.ReplaceSpan(na.URI, c.body)
		}
		return nil
	}
	return c.editContacts(t, f, up, pinhole.Side(t.fromSide).Other(), t.hop.flow.Remote.IsValid())
}

// editRecordRoute turns our Record-Route value to the caller's network, hides the proxies of a trusted
// network from the caller, and gives the caller back those of its own that were hidden from the callee.
func (c *Core) editRecordRoute(t *tx, f flow.Flow, up *local) {
	hide := c.hides(f.Network, t.up.Network)
	for el := range c.m.Elements(sipmsg.RecordRoute) {
		if !c.isRecord(el.Value, t) {
			if hide {
				c.ed.DeleteElement(el)
			}
			continue
		}
		b := c.appendRecord(c.body[:0], t.session, up, f.Network)
		if s := t.session; s != nil && t.dialog == nil && c.hides(t.up.Network, f.Network) {
			for _, r := range s.routes[t.fromSide] {
				b = append(append(b, ", "...), r...)
			}
		}
		c.ed.ReplaceElement(el, b)
		c.body = b
		return
	}
}

// isRecord tells whether a Record-Route value is the one that t's request was given.
func (c *Core) isRecord(v []byte, t *tx) bool {
	s, network := c.recordOf(v)
	return s != nil && s == t.session || t.session == nil && network != "" && network == t.up.Network
}

// mediaRefused ends a call whose answer cannot be relayed: letting it through would give one-way audio.
func (c *Core) mediaRefused(t *tx, f flow.Flow, err error) {
	status, reason := c.mediaStatus(err)
	c.log.Warn("answer refused", zap.Error(err), zap.ByteString("call_id", c.m.CallID()), zap.Stringer("peer", f.Remote))
	if c.m.Status() < 200 {
		c.drop("early_media_refused")
		return
	}
	answered := t.invite && c.m.Status() < 300
	if answered {
		c.killAnswer(t, f)
	}
	c.finalLocal(t, status, reason)
	if answered && t.dialog != nil {
		c.hangup(t.session, "answer refused") // the callee has been told so already: the call is over
	}
}
