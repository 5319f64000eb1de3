//go:build lab

package lab

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// OfficeConfig says how a server of Messenger's clients behaves.
type OfficeConfig struct {
	Signing int            // version of the message signature (2, 3, 4) that NTLM is demanded with; 0: nobody signs
	TLS     *Certificates  // TLS on port 5061 if set, else TCP on 5060
	Home    netip.AddrPort // where clients are redirected to when they register, if valid
	GRUU    bool           // tell clients a globally routable URI, which they then use as Contact
}

// Office stands for Live Communications Server: the registrar and record-routing proxy of example.org. It reaches
// each client by the connection that the client has registered on, and by no other. With signing it checks every
// message of a client that has signed on, and signs whatever it sends to one.
type Office struct {
	OfficeConfig
	Addr netip.AddrPort
	log  *os.File

	mu       sync.Mutex
	users    map[string]*session       // by address of record
	sessions map[string]*session       // by the opaque of its security association
	contacts map[string]string         // by address of record
	branches map[string]*session       // who sent the request that was passed on with that branch
	invites  map[string]bool           // the branches of INVITEs that came
	verified int                       // messages with a good signature
	bad      []string                  // messages without a good one
	clients  map[string]netip.AddrPort // where users registered from
	callIDs  map[string]string         // of their last REGISTER
}

// session is a client that has registered, or is about to.
type session struct {
	conn   *officeConn
	auth   *ntlm // nil: does not sign
	opaque string
	ready  bool // the client has proved its password
	number int  // of signed messages to the client
}

// officeConn is one connection. The edge may carry several clients on it.
type officeConn struct {
	net.Conn
	remote netip.AddrPort
}

// Office starts a server on the host; it is heard when the call returns, and ends with the test, which fails if a
// signature was bad.
func (h *Host) Office(t testing.TB, c OfficeConfig) *Office {
	t.Helper()
	o := &Office{
		OfficeConfig: c, Addr: h.Addr(4, 5060),
		users: map[string]*session{}, sessions: map[string]*session{}, branches: map[string]*session{}, clients: map[string]netip.AddrPort{},
		callIDs: map[string]string{}, contacts: map[string]string{}, invites: map[string]bool{},
	}
	if c.TLS != nil {
		o.Addr = h.Addr(4, 5061)
	}
	var err error
	o.log, err = os.Create(filepath.Join(h.dir, "office-"+h.Name+".log"))
	must(t, "office", err)
	var ln net.Listener
	must(t, "office", h.Do(func() (err error) {
		ln, err = net.Listen("tcp4", o.Addr.String())
		return err
	}))
	if c.TLS != nil {
		ln = tls.NewListener(ln, c.TLS.config(t, ""))
	}
	var work sync.WaitGroup
	work.Go(func() { o.serve(ln, &work) })
	t.Cleanup(func() { o.stop(t, ln, &work) })
	return o
}

func (o *Office) stop(t testing.TB, ln net.Listener, work *sync.WaitGroup) {
	_ = ln.Close()
	o.mu.Lock()
	for _, s := range o.users {
		_ = s.conn.Close()
	}
	bad := o.bad
	o.mu.Unlock()
	work.Wait()
	for _, b := range bad {
		t.Errorf("signature: %s", b)
	}
	if t.Failed() {
		t.Logf("office:\n%s", tail(o.log.Name(), 6000))
	}
	_ = o.log.Close()
}

func (o *Office) serve(ln net.Listener, work *sync.WaitGroup) {
	conns := map[net.Conn]bool{}
	defer func() {
		for c := range conns {
			_ = c.Close()
		}
	}()
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		conns[conn] = true
		work.Go(func() { o.read(&officeConn{conn, addrPort(conn.RemoteAddr())}) })
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

// read serves one connection until it ends, and forgets who registered on it.
func (o *Office) read(c *officeConn) {
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	for {
		m, err := parseMessage(r, false)
		if err != nil {
			break
		}
		o.mu.Lock()
		o.record("<<", c, m.octets())
		o.route(c, m)
		o.mu.Unlock()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for user, s := range o.users {
		if s.conn == c {
			delete(o.users, user)
		}
	}
}

func (o *Office) record(way string, c *officeConn, b []byte) {
	fmt.Fprintf(o.log, "==== %s %v\n%s\n", way, c.remote, b)
}

// octets returns the message as it is sent.
func (m *Message) octets() []byte {
	var b strings.Builder
	b.WriteString(m.Start + "\r\n")
	for _, f := range m.Fields {
		if canonical(f.Name) != "Content-Length" {
			fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
		}
	}
	fmt.Fprintf(&b, "Content-Length: %d\r\n\r\n%s", len(m.Body), m.Body)
	return []byte(b.String())
}

// without removes all fields of a name.
func (m *Message) without(names ...string) {
	m.Fields = slices.DeleteFunc(m.Fields, func(f Field) bool { return slices.Contains(names, canonical(f.Name)) })
}

// removeTop removes the first value of a list field.
func (m *Message) removeTop(name string) {
	at := slices.IndexFunc(m.Fields, func(f Field) bool { return canonical(f.Name) == name })
	if at < 0 {
		return
	}
	if _, rest, more := strings.Cut(m.Fields[at].Value, ","); more {
		m.Fields[at].Value = strings.TrimSpace(rest)
	} else {
		m.Fields = slices.Delete(m.Fields, at, at+1)
	}
}

func (m *Message) prepend(name, value string) {
	m.Fields = slices.Insert(m.Fields, 0, Field{name, value})
}

// addressOfRecord returns who is meant by in a URI or name-addr: sip:bob@example.org:4711;maddr=... is bob@example.org.
func addressOfRecord(value string) string {
	_, rest, _ := strings.Cut(uriOf(value), ":")
	if i := strings.IndexAny(rest, ";?>"); i >= 0 {
		rest = rest[:i]
	}
	user, host, ok := strings.Cut(rest, "@")
	if !ok {
		return ""
	}
	host, _, _ = strings.Cut(host, ":")
	return strings.ToLower(user + "@" + host)
}

// answer makes the response to a request.
func (m *Message) answer(status string, more ...Field) *Message {
	r := &Message{Start: "SIP/2.0 " + status}
	for _, f := range m.Fields {
		switch canonical(f.Name) {
		case "Via", "From", "Call-Id", "Cseq", "Record-Route":
			r.Fields = append(r.Fields, f)
		case "To":
			if m.Tag("To") == "" {
				f.Value += ";tag=srv" + random(4)
			}
			r.Fields = append(r.Fields, f)
		}
	}
	r.Fields = append(r.Fields, more...)
	return r
}

func random(octets int) string {
	b := make([]byte, octets)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// route does what the server does with a message.
func (o *Office) route(c *officeConn, m *Message) {
	s := o.sender(c, m)
	if m.Status() != 0 {
		if m.Status() != 100 {
			o.respond(m)
		}
		return
	}
	switch m.Method() {
	case "REGISTER":
		o.register(c, s, m)
	case "OPTIONS":
		o.send(s, m.answer("200 OK"))
	case "SUBSCRIBE":
		o.send(s, m.answer("200 OK", Field{"Expires", "600"}, Field{"Event", or(m.Get("Event"), "presence")}, Field{"Contact", "<sip:" + o.Addr.String() + ";transport=" + o.transport() + ">"}))
	case "SERVICE", "PUBLISH":
		o.send(s, m.answer("501 Not Implemented"))
	default:
		o.forward(s, m)
	}
}

func (o *Office) transport() string {
	if o.TLS != nil {
		return "tls"
	}
	return "tcp"
}

// register signs a client on.
func (o *Office) register(c *officeConn, s *session, m *Message) {
	if o.Home.IsValid() {
		o.send(s, m.answer("301 Redirect request to Home Server", Field{"Contact", fmt.Sprintf("<sip:%v;transport=%s>", o.Home, o.transport())}))
		return
	}
	if o.Signing != 0 && !s.ready {
		var done bool
		if s, done = o.authenticate(c, s, m); !done {
			return
		}
	}
	user, lifetime := addressOfRecord(m.Get("To")), "600"
	o.callIDs[user], o.contacts[user] = m.CallID(), uriOf(m.Get("Contact"))
	if m.Get("Expires") == "0" {
		lifetime = "0"
		delete(o.users, user)
	} else {
		o.users[user], o.clients[user] = s, c.remote
	}
	fields := []Field{
		{"Expires", lifetime}, {"ms-keep-alive", "UAS; tcp=no; hop-hop=yes; end-end=no; timeout=300"},
		{"Allow-Events", "presence"}, {"Server", "lab-office"},
	}
	if contact := m.Get("Contact"); contact != "" {
		if o.GRUU {
			id := regexp.MustCompile(`urn:uuid:([0-9A-Fa-f-]+)`).FindStringSubmatch(contact)
			contact += fmt.Sprintf(";expires=600;gruu=\"sip:%s;opaque=user:epid:%s;gruu\"", user, append(id, "", "")[1])
		}
		fields = append(fields, Field{"Contact", contact})
	}
	o.send(s, m.answer("200 OK", fields...))
}

// respond passes a response on to whoever the request came from.
func (o *Office) respond(m *Message) {
	via := m.All("Via")
	if len(via) < 2 {
		return
	}
	to := o.branches[param(via[0], "branch")]
	m.removeTop("Via")
	m.without("Authorization", "Proxy-Authorization")
	if to != nil {
		o.send(to, m)
	}
}

// forward passes a request on to the client that it is for.
func (o *Office) forward(s *session, m *Message) {
	user := addressOfRecord(m.URI())
	to := o.users[user]
	switch {
	case to == nil: // the Request-URI is a client's Contact already
		to = o.users[addressOfRecord(m.Get("To"))]
	case m.Tag("To") == "" || strings.Contains(m.URI(), ";gruu"):
		m.Start = m.Method() + " " + o.contacts[user] + " SIP/2.0"
	}
	if m.Method() == "ACK" && o.invites[param(m.Get("Via"), "branch")] {
		return // of the refusal that was passed on, and goes no further
	}
	if to == nil {
		if m.Method() != "ACK" {
			o.send(s, m.answer("480 Temporarily Unavailable"))
		}
		return
	}
	if branch := param(m.Get("Via"), "branch"); m.Method() == "INVITE" && branch != "" {
		o.invites[branch] = true
	}
	m.removeTop("Route")
	m.without("Authorization", "Proxy-Authorization")
	branch := "z9hG4bKoffice" + random(6)
	o.branches[branch] = s
	m.received(s.conn.remote)
	if slices.Contains([]string{"INVITE", "SUBSCRIBE", "REFER"}, m.Method()) {
		m.prepend("Record-Route", fmt.Sprintf("<sip:%v;transport=%s;lr;ms-route-sig=aa>", o.Addr, o.transport()))
	}
	m.prepend("Via", fmt.Sprintf("SIP/2.0/%s %v;branch=%s", strings.ToUpper(o.transport()), o.Addr, branch))
	o.send(to, m)
}

// received notes in the top Via where a request came from, as Microsoft's servers do it.
func (m *Message) received(from netip.AddrPort) {
	at := slices.IndexFunc(m.Fields, func(f Field) bool { return canonical(f.Name) == "Via" })
	if at < 0 {
		return
	}
	top, rest, more := strings.Cut(m.Fields[at].Value, ",")
	m.Fields[at].Value = fmt.Sprintf("%s;received=%v;ms-received-port=%d;ms-received-cid=100", top, from.Addr(), from.Port())
	if more {
		m.Fields[at].Value += "," + rest
	}
}

// Registered tells from where a user is signed on.
func (o *Office) Registered(user string) (from netip.AddrPort, on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, on = o.users[user]
	return o.clients[user], on
}

// callID returns the Call-ID that a user has signed on with.
func (o *Office) callID(user string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.callIDs[user+"@example.org"]
}

// Verified returns how many messages bore a good signature.
func (o *Office) Verified() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.verified
}

// takeBad returns the bad signatures so far, which then do not count against the test.
func (o *Office) takeBad() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	bad := o.bad
	o.bad = nil
	return bad
}
