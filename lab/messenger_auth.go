//go:build lab

package lab

import (
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// authParam returns a quoted parameter of a credentials or challenge value.
func authParam(value, name string) (string, bool) {
	for _, m := range regexp.MustCompile(`([A-Za-z-]+)="([^"]*)"`).FindAllStringSubmatch(value, -1) {
		if m[1] == name {
			return m[2], true
		}
	}
	return "", false
}

const (
	officeRealm  = "SIP Communications Service"
	officeTarget = "srv.example.org"
)

// sender finds the session that a message belongs to, and checks its signature if the session has keys.
func (o *Office) sender(c *officeConn, m *Message) *session {
	credentials := or(m.Get("Authorization"), m.Get("Proxy-Authorization"))
	opaque, _ := authParam(credentials, "opaque")
	s := o.sessions[opaque]
	response, signed := authParam(credentials, "response")
	switch {
	case s != nil && s.ready && signed:
		crand, _ := authParam(credentials, "crand")
		cnum, _ := authParam(credentials, "cnum")
		if s.auth.fromClient(o.signed(m, crand, cnum)) != strings.ToUpper(response) {
			o.bad = append(o.bad, fmt.Sprintf("bad, of %s: %s", s.auth.user, m.octets()))
		} else {
			o.verified++
		}
	case s != nil && s.ready || o.Signing != 0 && m.Method() != "REGISTER" && !o.hopByHop(m):
		o.bad = append(o.bad, fmt.Sprintf("none: %s", m.octets()))
	}
	if s == nil {
		s = &session{conn: c}
	}
	s.conn = c
	return s
}

// hopByHop tells whether the message may be the edge's own, which cannot sign: a 100, a refusal in the name of a client
// that is gone, the ACK of a refusal, or OPTIONS that asks whether the server lives.
func (o *Office) hopByHop(m *Message) bool {
	switch m.Method() {
	case "OPTIONS":
		return addressOfRecord(m.Get("To")) == ""
	case "ACK":
		return o.invites[param(m.Get("Via"), "branch")] // RFC 3261 17.1.1.3
	}
	return m.Status() == 100 || m.Status() >= 400
}

// signed returns what a signature covers ([MS-SIPAE] 3.1, "signature string").
func (o *Office) signed(m *Message, rnd, num string) string {
	number, method, _ := strings.Cut(m.Get("CSeq"), " ")
	items := []string{"NTLM", rnd, num, officeRealm, officeTarget, m.CallID(), number, strings.TrimSpace(method), uriOf(m.Get("From")), m.Tag("From")}
	if o.Signing >= 3 {
		items = append(items, uriOf(m.Get("To")))
	}
	items = append(items, m.Tag("To"))
	if o.Signing >= 3 {
		identity := or(m.Get("P-Asserted-Identity"), m.Get("P-Preferred-Identity"))
		items = append(items, regexp.MustCompile(`sip:[^>]*`).FindString(identity), regexp.MustCompile(`tel:[^>]*`).FindString(identity))
	}
	items = append(items, m.Get("Expires"))
	if m.Status() != 0 {
		items = append(items, strings.Fields(m.Start)[1])
	}
	return "<" + strings.Join(items, "><") + ">"
}

// send sends a message to a client, signed if the client has keys.
func (o *Office) send(s *session, m *Message) {
	if s.auth != nil && s.ready {
		s.number++
		rnd, num := random(4), fmt.Sprint(s.number)
		m.Fields = append(m.Fields, Field{"Authentication-Info", fmt.Sprintf(
			"NTLM rspauth=%q, srand=%q, snum=%q, opaque=%q, qop=\"auth\", targetname=%q, realm=%q",
			s.auth.toClient(o.signed(m, rnd, num)), rnd, num, s.opaque, officeTarget, officeRealm)})
	}
	b := m.octets()
	o.record(">>", s.conn, b)
	_, _ = s.conn.Write(b)
}

// authenticate takes NTLM's three steps, each of which is a REGISTER; it tells whether the last one is done.
func (o *Office) authenticate(c *officeConn, s *session, m *Message) (*session, bool) {
	token, given := authParam(m.Get("Authorization"), "gssapi-data")
	challenge := fmt.Sprintf("realm=%q, targetname=%q, version=%d", officeRealm, officeTarget, o.Signing)
	switch {
	case !given:
		o.send(&session{conn: c}, m.answer("401 Unauthorized", Field{"WWW-Authenticate", "NTLM " + challenge}))
		return nil, false
	case token == "":
		s = &session{conn: c, auth: newNTLM(), opaque: random(4)}
		o.sessions[s.opaque] = s
		o.send(s, m.answer("401 Unauthorized", Field{"WWW-Authenticate", fmt.Sprintf(
			"NTLM opaque=%q, gssapi-data=%q, %s", s.opaque, base64.StdEncoding.EncodeToString(s.auth.challenge()), challenge)}))
		return nil, false
	}
	err := errors.New("no challenge was sent")
	if s.auth != nil {
		var b []byte
		if b, err = base64.StdEncoding.DecodeString(token); err == nil {
			err = s.auth.accept(b, func(user string) string {
				name, _, _ := strings.Cut(user, "@")
				return "pw-" + strings.ToLower(name)
			})
		}
	}
	if err != nil {
		fmt.Fprintln(o.log, "==== refused:", err)
		o.send(&session{conn: c}, m.answer("403 Forbidden"))
		return nil, false
	}
	s.ready = true
	return s, true
}
