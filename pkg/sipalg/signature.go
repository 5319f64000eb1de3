package sipalg

import (
	"bytes"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// Microsoft's clients and servers sign messages with keys that the edge has not ([MS-SIPAE]): clients in
// Authorization or Proxy-Authorization, servers in Authentication-Info or Proxy-Authentication-Info.
//
//	signed:      Call-ID, CSeq, From URI and tag, To URI and tag, Expires, P-Asserted-Identity, status
//	not signed:  body, Content-Type, Contact, Via, Record-Route, Route, Request-URI, all others

// signed tells whether a message carries such a signature, or the steps towards one.
func signed(m *sipmsg.Message) bool {
	return signedByClient(m) || signs(m, sipmsg.AuthenticationInfo) || signs(m, sipmsg.ProxyAuthenticationInfo)
}

func signedByClient(m *sipmsg.Message) bool {
	return signs(m, sipmsg.Authorization) || signs(m, sipmsg.ProxyAuthorization)
}

// signs tells whether the scheme of one of the header fields with an id is one that signs messages.
func signs(m *sipmsg.Message, id sipmsg.HeaderID) bool {
	if _, ok := m.Find(id); !ok {
		return false
	}
	for i := range m.Len() {
		if h := m.Header(i); h.ID == id && signingScheme(h.Value) {
			return true
		}
	}
	return false
}

func signingScheme(v []byte) bool {
	end := bytes.IndexAny(v, " \t\r\n,")
	if end < 0 {
		return false
	}
	for _, scheme := range [...]string{"NTLM", "Kerberos", "TLS-DSK"} {
		if len(scheme) == end && bytes.EqualFold(v[:end], []byte(scheme)) {
			return true
		}
	}
	return false
}

// noteSignature remembers of a connection that its client signs, by a request that comes straight from it.
func (c *Core) noteSignature(f flow.Flow) {
	if f.Conn == 0 || !signedByClient(&c.m) || !c.oneVia() {
		return
	}
	if s := c.connOf(f); s != nil {
		s.signed = true
	}
}

// signedLeg tells whether the sender of the message at hand signs.
func (c *Core) signedLeg(f flow.Flow) bool {
	s := c.conns[f.Conn]
	return s != nil && s.signed || signed(&c.m)
}

// unheard tells whether an answer of the edge itself to req would be lost: a client that has signed on ignores
// final answers without the server's signature, but 401 and those to REGISTER. They are withheld and counted;
// what could be done instead is done where they come from: refused contents are edited, CANCELs are answered
// by the server.
func (c *Core) unheard(req *sipmsg.Message, status int, f flow.Flow) bool {
	if status < 200 || status == 401 || req.Method() == "REGISTER" || !signedByClient(req) {
		return false
	}
	c.drop("answer_unsigned")
	c.log.Info("answer withheld: it could not be signed", zap.ByteString("call_id", req.CallID()),
		zap.String("method", methodLabel(req.Method())), zap.Int("status", status), zap.Stringer("client", f.Remote))
	return true
}

// maxCredentials bounds what is kept of a CANCEL, in bytes: a signature takes 300.
const maxCredentials = 1 << 10

// keepCredentials keeps the header lines by which the CANCEL at hand, for t, is signed: the edge's own CANCEL
// to the next hop has the same fields that they cover.
func (c *Core) keepCredentials(t *tx) {
	if t.state >= txCompleted || c.credits[t.id] != nil {
		return
	}
	var lines []byte
	for i := range c.m.Len() {
		if h := c.m.Header(i); h.ID == sipmsg.Authorization || h.ID == sipmsg.ProxyAuthorization {
			lines = append(lines, h.Line...)
		}
	}
	if len(lines) <= maxCredentials && c.held < maxHeld {
		c.credits[t.id] = lines
		c.held += len(lines)
	}
}

// cancelAnswered passes the answer at hand to t's CANCEL back, for its signature.
func (c *Core) cancelAnswered(t *tx) {
	if c.m.Status() < 200 || c.m2.Parse(t.buf[:t.outLen]) != nil {
		return
	}
	c.ed.Reset(&c.m)
	for el := range c.m.Elements(sipmsg.HeaderVia) {
		c.ed.DeleteElement(el)
	}
	own := true
	for el := range c.m2.Elements(sipmsg.HeaderVia) {
		if !own {
			c.ed.Prepend(append([]byte("Via: "), el.Value...))
		}
		own = false
	}
	if hidden := t.buf[t.outLen:]; len(hidden) > 0 {
		c.ed.Prepend(hidden[:len(hidden)-2])
	}
	if t.back.Proto.Stream() {
		c.ed.EnsureContentLength()
	}
	c.buf = c.ed.AppendTo(c.buf[:0])
	c.out.sendCopy(t.back, c.buf)
}
