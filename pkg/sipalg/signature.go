package sipalg

import (
	"bytes"

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

// signs tells whether a header field's scheme is one that signs messages.
func signs(m *sipmsg.Message, id sipmsg.HeaderID) bool {
	v, ok := m.Find(id)
	if !ok {
		return false
	}
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
