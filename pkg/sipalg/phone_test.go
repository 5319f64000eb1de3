package sipalg

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"edged.dev/edged/pkg/sipalg/flow"
)

// phone is a user agent that follows RFC 3261 §12: route set from Record-Route, target from Contact.
type phone struct {
	w     *world
	name  string
	addr  netip.AddrPort
	proto flow.Proto
	first netip.AddrPort // where requests outside of dialogs go: the edge, or a proxy
	inbox []*msg
	extra []string // header lines of every request and response
	old   bool     // writes no branch, as Microsoft's clients do within a dialog
	signs string   // the header field with which it signs each message, "" for none
	n     int
}

// phone adds a user agent at addr that sends to first by proto.
func (w *world) phone(name string, proto flow.Proto, addr, first string) *phone {
	p := &phone{w: w, name: name, proto: proto, addr: ap(addr), first: ap(first)}
	w.nodes[p.addr] = p
	return p
}

// Usual people.
func (w *world) alice() *phone { return w.phone("alice", flow.UDP, "10.0.0.5:5062", "10.0.0.1:5060") }
func (w *world) bob() *phone {
	return w.phone("bob", flow.UDP, "198.51.100.20:5060", "198.51.100.1:5060")
}

func (p *phone) label() string { return p.name }

func (p *phone) receive(raw string) { p.inbox = append(p.inbox, parseMsg(raw)) }

func (p *phone) contact() string {
	c := "<sip:" + p.name + "@" + p.addr.String()
	if p.proto != flow.UDP {
		c += ";transport=" + p.proto.String()
	}
	return c + ">"
}

// sdp is the phone's session description at a port.
func (p *phone) sdp(port int) string { return sdpOf(p.addr.Addr().String(), port) }

// expect takes the next message with this method or status from the inbox; 100 is passed over.
func (p *phone) expect(what string) *msg {
	p.w.t.Helper()
	p.inbox = slices.DeleteFunc(p.inbox, func(m *msg) bool { return m.status == 100 && what != "100" })
	if len(p.inbox) == 0 {
		p.w.t.Fatalf("%s got nothing, not %s", p.name, what)
	}
	m := p.inbox[0]
	p.inbox = p.inbox[1:]
	if m.method != what && strconv.Itoa(m.status) != what {
		p.w.t.Fatalf("%s got not %s but:\n%s", p.name, what, m.raw)
	}
	return m
}

// nothing checks that nothing is left in the inbox.
func (p *phone) nothing() {
	p.w.t.Helper()
	for _, m := range p.inbox {
		if m.status != 100 {
			p.w.t.Errorf("%s got unexpectedly:\n%s", p.name, m.raw)
		}
	}
	p.inbox = nil
}

func (p *phone) via() string {
	p.n++
	if p.old {
		return fmt.Sprintf("Via: SIP/2.0/%s %s", p.proto.Via(), p.addr)
	}
	return fmt.Sprintf("Via: SIP/2.0/%s %s;branch=z9hG4bK-%s-%d;rport", p.proto.Via(), p.addr, p.name, p.n)
}

// dialog is one side of a dialog.
type peer struct {
	p             *phone
	callID        string
	local, remote string // From and To of our requests, with tags
	cseq          int
	routes        []string
	target        string
	to            netip.AddrPort // where the first request goes
}

// dial begins a dialog with a URI.
func (p *phone) dial(uri string) *peer {
	p.n++
	return &peer{
		p: p, callID: fmt.Sprintf("%s-%d@example.org", p.name, p.n), target: uri, to: p.first,
		local: fmt.Sprintf("%q <sip:%s@example.com>;tag=%s-%d", p.name, p.name, p.name, p.n), remote: "<" + uri + ">",
	}
}

// text makes a request; extra are header lines. An ACK has the INVITE's number.
func (d *peer) text(method string, body string, extra ...string) string {
	if method != "ACK" && method != "CANCEL" {
		d.cseq++
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s SIP/2.0\n%s\n", method, d.target, d.p.via())
	for _, r := range d.routes {
		fmt.Fprintf(&b, "Route: %s\n", r)
	}
	fmt.Fprintf(&b, "From: %s\nTo: %s\nCall-ID: %s\nCSeq: %d %s\nMax-Forwards: 70\n", d.local, d.remote, d.callID, d.cseq, method)
	hasContact := false
	for _, e := range slices.Concat(extra, d.p.extra) {
		hasContact = hasContact || name(e) == "contact"
		fmt.Fprintf(&b, "%s\n", e)
	}
	b.WriteString(d.p.signature())
	switch method {
	case "INVITE", "SUBSCRIBE", "REFER", "NOTIFY", "UPDATE":
		if !hasContact {
			fmt.Fprintf(&b, "Contact: %s\n", d.p.contact())
		}
	}
	return withBody(b.String(), body)
}

// hop is where the next request goes.
func (d *peer) hop() (netip.AddrPort, flow.Proto) {
	switch {
	case len(d.routes) > 0:
		return hostOf(d.p.w.t, uriOf(d.routes[0]))
	case tagOf(d.remote) != "":
		return hostOf(d.p.w.t, d.target)
	}
	return d.to, d.p.proto
}

// send makes and sends a request, and returns it.
func (d *peer) send(method, body string, extra ...string) *msg {
	d.p.w.t.Helper()
	raw := d.text(method, body, extra...)
	d.raw(raw)
	return parseMsg(raw)
}

func (d *peer) raw(raw string) {
	d.p.w.t.Helper()
	to, proto := d.hop()
	d.p.w.put(proto, d.p.addr, to, raw)
}

// cancel cancels a request that was sent.
func (d *peer) cancel(req *msg) {
	d.p.w.t.Helper()
	num, _, _ := strings.Cut(req.cseq(), " ")
	var b strings.Builder
	fmt.Fprintf(&b, "CANCEL %s SIP/2.0\nVia: %s\n", req.ruri(), req.all("Via")[0])
	for _, r := range req.all("Route") {
		fmt.Fprintf(&b, "Route: %s\n", r)
	}
	fmt.Fprintf(&b, "From: %s\nTo: %s\nCall-ID: %s\nCSeq: %s CANCEL\nMax-Forwards: 70\n", req.get("From"), req.get("To"), req.get("Call-ID"), num)
	d.raw(withBody(b.String(), ""))
}

// ackFail acknowledges a final response other than 2xx to req.
func (d *peer) ackFail(req, resp *msg) {
	d.p.w.t.Helper()
	num, _, _ := strings.Cut(req.cseq(), " ")
	text := fmt.Sprintf("ACK %s SIP/2.0\nVia: %s\nFrom: %s\nTo: %s\nCall-ID: %s\nCSeq: %s ACK\nMax-Forwards: 70\n",
		req.ruri(), req.all("Via")[0], req.get("From"), resp.get("To"), req.get("Call-ID"), num)
	d.raw(withBody(text, ""))
}

// learn takes the dialog from a response that makes one, as a client.
func (d *peer) learn(resp *msg) {
	d.remote = resp.get("To")
	d.routes = resp.all("Record-Route")
	slices.Reverse(d.routes)
	d.retarget(resp)
}

func (d *peer) retarget(m *msg) {
	if c := m.get("Contact"); c != "" {
		d.target = uriOf(c)
	}
}

// answered makes the dialog of a request that was received, as a server.
func (p *phone) answered(req *msg) *peer {
	p.n++
	d := &peer{
		p: p, callID: req.get("Call-ID"), remote: req.get("From"), local: fmt.Sprintf("%s;tag=%s-%d", req.get("To"), p.name, p.n),
		routes: req.all("Record-Route"),
	}
	d.retarget(req)
	return d
}

// reply answers a request; a dialog's tag and Contact are added where d is not nil.
func (p *phone) reply(req *msg, d *peer, status int, body string, extra ...string) {
	p.w.t.Helper()
	p.w.replyBy(p.proto, p.addr, p.response(req, d, status, body, extra...))
}

func (p *phone) response(req *msg, d *peer, status int, body string, extra ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "SIP/2.0 %d %s\n", status, map[int]string{100: "Trying", 180: "Ringing", 183: "Session Progress", 200: "OK"}[status])
	for _, h := range []string{"Via", "Record-Route"} {
		for _, v := range req.all(h) {
			fmt.Fprintf(&b, "%s: %s\n", h, v)
		}
	}
	to := req.get("To")
	if tagOf(to) == "" && status > 100 {
		to += ";tag=none-" + p.name
		if d != nil {
			to = d.local
		}
	}
	fmt.Fprintf(&b, "From: %s\nTo: %s\nCall-ID: %s\nCSeq: %s\n", req.get("From"), to, req.get("Call-ID"), req.get("CSeq"))
	hasContact := false
	for _, e := range slices.Concat(extra, p.extra) {
		hasContact = hasContact || name(e) == "contact"
		fmt.Fprintf(&b, "%s\n", e)
	}
	b.WriteString(p.signature())
	if d != nil && !hasContact && status < 300 {
		fmt.Fprintf(&b, "Contact: %s\n", p.contact())
	}
	return withBody(b.String(), body)
}

// replyBy sends a response where its top Via says (RFC 3261 §18.2.2).
func (w *world) replyBy(proto flow.Proto, from netip.AddrPort, raw string) {
	w.t.Helper()
	via := parseMsg(raw).all("Via")[0]
	p, rest, _ := strings.Cut(strings.TrimPrefix(via, "SIP/2.0/"), " ")
	sentBy, params, _ := strings.Cut(rest, ";")
	to := ap(sentBy)
	for v := range strings.SplitSeq(params, ";") {
		if a, ok := strings.CutPrefix(v, "received="); ok {
			to = netip.AddrPortFrom(netip.MustParseAddr(strings.Trim(a, "[]")), to.Port())
		}
		if n, ok := strings.CutPrefix(v, "rport="); ok {
			port, _ := strconv.Atoi(n)
			to = netip.AddrPortFrom(to.Addr(), uint16(port))
		}
	}
	if got := flow.ParseProto(p); got != 0 {
		proto = got
	}
	w.put(proto, from, to, raw)
}

// call makes a call between two phones up to the ACK, and returns both sides.
func (p *phone) call(uri string, to *phone, offer, answer string) (a, b *peer) {
	p.w.t.Helper()
	a = p.dial(uri)
	inv := a.send("INVITE", offer)
	got := to.expect("INVITE")
	b = to.answered(got)
	to.reply(got, b, 180, "")
	p.expect("180")
	to.reply(got, b, 200, answer)
	a.learn(p.expect("200"))
	_ = inv
	a.send("ACK", "")
	to.expect("ACK")
	return a, b
}

// bye ends a call from d's side.
func (d *peer) bye(other *peer) {
	d.p.w.t.Helper()
	d.send("BYE", "")
	req := other.p.expect("BYE")
	other.p.reply(req, nil, 200, "")
	d.p.expect("200")
}

// proxy is an outside or inside proxy that forwards all it gets, and records itself if it is told to.
type proxy struct {
	w      *world
	name   string
	addr   netip.AddrPort
	record bool
	to     map[string]netip.AddrPort // by user of the Request-URI, for those that are registered here
	next   netip.AddrPort            // else: where requests go, if neither Route nor Request-URI is numeric
	n      int
}

func (w *world) proxy(name, addr string, record bool) *proxy {
	p := &proxy{w: w, name: name, addr: ap(addr), record: record, to: map[string]netip.AddrPort{}}
	w.nodes[p.addr] = p
	return p
}

func (p *proxy) label() string { return p.name }

func (p *proxy) receive(raw string) {
	m := parseMsg(raw)
	if m.status != 0 {
		before, rest, _ := strings.Cut(raw, "\r\nVia: ")
		_, rest, _ = strings.Cut(rest, "\r\n")
		p.w.replyBy(flow.UDP, p.addr, before+"\r\n"+rest)
		return
	}
	p.n++
	own := fmt.Sprintf("<sip:%s;lr>", p.addr)
	lines := []string{m.start, fmt.Sprintf("Via: SIP/2.0/UDP %s;branch=z9hG4bK-%s-%d", p.addr, p.name, p.n)}
	if p.record && m.method == "INVITE" || m.method == "SUBSCRIBE" && p.record {
		lines = append(lines, "Record-Route: "+own)
	}
	routes := m.all("Route")
	if len(routes) > 0 && routes[0] == own {
		routes = routes[1:]
	}
	for _, r := range routes {
		lines = append(lines, "Route: "+r)
	}
	for _, l := range m.lines {
		if name(l) != "route" {
			lines = append(lines, l)
		}
	}
	to := p.next
	switch {
	case len(routes) > 0:
		to, _ = hostOf(p.w.t, uriOf(routes[0]))
	case p.to[userOf(m.ruri())].IsValid():
		to = p.to[userOf(m.ruri())]
	case m.ruri() != "" && strings.ContainsAny(m.ruri()[len(m.ruri())-1:], "0123456789"):
		to, _ = hostOf(p.w.t, m.ruri())
	}
	p.w.queue = append(p.w.queue, packet{proto: flow.UDP, from: p.addr, to: to, raw: strings.Join(lines, "\r\n") + "\r\n\r\n" + m.body})
}

func userOf(uri string) string {
	_, rest, _ := strings.Cut(uri, ":")
	user, _, ok := strings.Cut(rest, "@")
	if !ok {
		return ""
	}
	return user
}
