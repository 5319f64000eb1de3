//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Dialog is an agent's view of a dialog, or of one about to be: it knows what RFC 3261 §12 says
// that a user agent remembers, and nothing of edged.
type Dialog struct {
	Agent         *Agent
	ID            string
	Local, Remote string // From and To values, with tags
	Target        string // the peer's Contact
	Routes        []string
	Next          netip.AddrPort // where requests go
	Seq           int
	invite        string // the branch of the last INVITE, for CANCEL
	inviteURI     string
	inviteSeq     int
	last          string // the last request sent
}

// Invite sends an INVITE for uri to the next hop, with a body unless it is empty.
func (a *Agent) Invite(next netip.AddrPort, uri, body string, extra ...string) *Dialog {
	a.t.Helper()
	d := a.NewDialog(next, uri)
	d.Send("INVITE", body, extra...)
	return d
}

// NewDialog prepares requests outside of a dialog to uri.
func (a *Agent) NewDialog(next netip.AddrPort, uri string) *Dialog {
	return &Dialog{
		Agent: a, ID: token(), Local: fmt.Sprintf("<sip:%s@example.org>;tag=f%s", a.Name, token()),
		Remote: "<" + uri + ">", Target: uri, Next: next,
	}
}

// Send sends a request of the dialog and returns its CSeq number.
func (d *Dialog) Send(method, body string, extra ...string) int {
	d.Agent.t.Helper()
	var seq int
	via := d.Agent.via()
	switch method {
	case "ACK":
		seq = d.inviteSeq
	case "CANCEL":
		seq, via = d.inviteSeq, d.invite
	default:
		d.Seq++
		seq = d.Seq
	}
	uri := d.Target
	if method == "CANCEL" {
		uri = d.inviteURI
	}
	if method == "INVITE" {
		d.invite, d.inviteURI, d.inviteSeq = via, uri, seq
	}
	d.last = d.text(method, uri, via, seq, body, extra)
	if err := d.Agent.Send(d.last, d.Next); err != nil {
		d.Agent.t.Fatalf("%s: %s: %v", d.Agent.Name, method, err)
	}
	return seq
}

// Repeat sends the last request again, byte for byte, as a retransmission does.
func (d *Dialog) Repeat() {
	d.Agent.t.Helper()
	if err := d.Agent.Send(d.last, d.Next); err != nil {
		d.Agent.t.Fatalf("%s: repeat: %v", d.Agent.Name, err)
	}
}

func (d *Dialog) text(method, uri, via string, seq int, body string, extra []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s SIP/2.0\r\nVia: %s\r\nMax-Forwards: 70\r\n", method, uri, via)
	for _, r := range d.Routes {
		fmt.Fprintf(&b, "Route: %s\r\n", r)
	}
	remote := d.Remote
	if method == "CANCEL" {
		remote, _, _ = strings.Cut(remote, ";tag=")
	}
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\nCall-ID: %s\r\nCSeq: %d %s\r\n", d.Local, remote, d.ID, seq, method)
	if !slices.ContainsFunc(extra, func(x string) bool { return strings.HasPrefix(x, "Contact") }) {
		fmt.Fprintf(&b, "Contact: <%s>\r\n", d.Agent.Contact())
	}
	finish(&b, body, extra)
	return b.String()
}

// Await waits for a response to the dialog's request whose code is from low to high.
func (d *Dialog) Await(method string, low, high int) *Message {
	d.Agent.t.Helper()
	m := d.Agent.Expect(fmt.Sprintf("%d-%d for %s", low, high, method), 8*time.Second, func(m *Message) bool {
		return m.CallID() == d.ID && m.Method() == method && m.Status() >= low && m.Status() <= high
	})
	if method == "INVITE" && m.Tag("To") != "" && m.Status() < 300 {
		d.learn(m)
	}
	return m
}

// learn takes the target from a response, and from a dialog's first one (a new tag) the remote tag
// and the route set, which a re-INVITE does not change (RFC 3261 §12.2).
func (d *Dialog) learn(m *Message) {
	if c := m.Get("Contact"); c != "" {
		d.Target = uriOf(c)
	}
	if tag := m.Tag("To"); tag != d.remoteTag() {
		d.Remote = m.Get("To")
		d.Routes = m.All("Record-Route")
		slices.Reverse(d.Routes)
	}
	d.hop()
}

// remoteTag returns the tag of the peer; a callee's dialog has both from the start.
func (d *Dialog) remoteTag() string { return param(d.Remote, "tag") }

// hop sets Next to the first route, or the target; a name that is not an address keeps Next, and so does
// a WebSocket client, which has one connection.
func (d *Dialog) hop() {
	if d.Agent.Proto == "ws" {
		for to := range d.Agent.conns {
			d.Next = to
		}
		return
	}
	uri := d.Target
	if len(d.Routes) > 0 {
		uri = uriOf(d.Routes[0])
	}
	if ap, err := hostPort(uri); err == nil {
		d.Next = ap
	}
}

// dialogOf returns the callee's view of the dialog that its answer to req makes.
func dialogOf(a *Agent, req *Message, to string) *Dialog {
	d := &Dialog{
		Agent: a, ID: req.CallID(), Local: to, Remote: req.Get("From"), Target: uriOf(req.Get("Contact")),
		Routes: req.All("Record-Route"), Next: req.Remote,
	}
	d.hop()
	if req.conn != nil { // RFC 5923: the connection that is there
		d.Next = req.Remote
	}
	return d
}

// Bye ends the dialog from this side; the other answers 200.
func (d *Dialog) Bye(peer *Agent) {
	d.Agent.t.Helper()
	d.Send("BYE", "")
	req := peer.Expect("BYE of "+d.ID, 8*time.Second, func(m *Message) bool {
		return m.Status() == 0 && m.Method() == "BYE" && m.CallID() == d.ID
	})
	peer.Reply(req, 200, "OK", "")
	d.Await("BYE", 200, 299)
}

// Register sends a REGISTER through next; registrar (the outside agent) grants it. It returns the
// Contact that the registrar was shown and that inbound calls go to.
func (a *Agent) Register(next netip.AddrPort, registrar *Agent, domain string) (contact string) {
	a.t.Helper()
	d := a.NewDialog(next, "sip:"+domain)
	d.Local = fmt.Sprintf("<sip:%s@%s>;tag=r%s", a.Name, domain, token())
	d.Remote = fmt.Sprintf("<sip:%s@%s>", a.Name, domain)
	d.Send("REGISTER", "", "Expires: 3600")
	req := registrar.ExpectRequest("REGISTER")
	contact = uriOf(req.Get("Contact"))
	registrar.grant(req)
	d.Await("REGISTER", 200, 200)
	return contact
}

// grant answers a REGISTER with the binding that it asked for.
func (a *Agent) grant(req *Message) {
	a.t.Helper()
	var b strings.Builder
	b.WriteString("SIP/2.0 200 OK\r\n")
	for _, f := range req.Fields {
		switch canonical(f.Name) {
		case "Via", "From", "Call-Id", "Cseq":
			fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
		case "Contact":
			fmt.Fprintf(&b, "Contact: %s;expires=3600\r\n", f.Value)
		}
	}
	fmt.Fprintf(&b, "To: %s;tag=g%s\r\nContent-Length: 0\r\n\r\n", req.Get("To"), token())
	if err := a.sendBack(req, b.String()); err != nil {
		a.t.Errorf("%s: grant: %v", a.Name, err)
	}
}
