//go:build lab

package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestLateOffer: an INVITE without a description, the offer in the 200, the answer in the ACK, both
// ways round; audio passes.
func TestLateOffer(t *testing.T) {
	onlyEdged(t, "its script takes every 200 for an answer")
	s := newScene(t, plan{})
	check := s.capture()
	for _, c := range []struct {
		from, to *Agent
		vf, vt   *Voice
		uri      string
	}{
		{s.alice, s.bob, s.va, s.vb, "sip:bob@example.org"},
		{s.bob, s.alice, s.vb, s.va, "sip:alice@inside.example.org"},
	} {
		d := c.from.Invite(s.gate(c.from), c.uri, "")
		req := c.to.Expect("INVITE", 8*time.Second, func(m *Message) bool { return m.CallID() == d.ID })
		c.to.Reply(req, 200, "OK", Offer{Addr: c.vt.Addr}.String())
		s.aim(c.vf, d.Await("INVITE", 200, 200).Body)
		d.Send("ACK", Offer{Addr: c.vf.Addr}.String())
		ack := c.to.Expect("ACK", 8*time.Second, func(m *Message) bool { return m.Method() == "ACK" && m.CallID() == d.ID })
		s.aim(c.vt, ack.Body)
		s.hearEachOther(300 * time.Millisecond)
		d.Bye(c.to)
	}
	s.edge.Clean(t)
	check()
}

// TestMethods: MESSAGE, OPTIONS, SUBSCRIBE with its NOTIFY back, PUBLISH and a method that nobody knows
// outside of calls; PRACK, UPDATE, INFO and REFER with its NOTIFY inside.
func TestMethods(t *testing.T) {
	s := newScene(t, plan{})
	exchange := func(d *Dialog, method string, peer *Agent, extra ...string) *Message {
		t.Helper()
		seq := d.Send(method, "", extra...)
		req := peer.Expect(method, 8*time.Second, func(m *Message) bool {
			return m.Status() == 0 && m.Method() == method && m.CallID() == d.ID && strings.HasPrefix(m.Get("CSeq"), fmt.Sprint(seq)+" ")
		})
		peer.Reply(req, 200, "OK", "")
		d.Await(method, 200, 200)
		return req
	}
	for _, m := range []string{"MESSAGE", "OPTIONS", "PUBLISH", "FROBNICATE"} {
		exchange(s.alice.NewDialog(s.inGate, "sip:bob@example.org"), m, s.bob, "Event: presence")
		exchange(s.bob.NewDialog(s.outGate, "sip:alice@inside.example.org"), m, s.alice, "Event: presence")
	}
	sub := s.alice.NewDialog(s.inGate, "sip:bob@example.org")
	sub.Send("SUBSCRIBE", "", "Event: dialog", "Expires: 600")
	notifier := s.bob.Reply(s.bob.ExpectRequest("SUBSCRIBE"), 200, "OK", "", "Expires: 600")
	sub.Await("SUBSCRIBE", 200, 200)
	exchange(notifier, "NOTIFY", s.alice, "Event: dialog", "Subscription-State: active")
	s.early(exchange)
	a, b := s.call()
	exchange(a, "UPDATE", s.bob)
	exchange(b, "INFO", s.alice)
	exchange(a, "REFER", s.bob, "Refer-To: <sip:carol@example.org?Replaces=x%40y%3Bto-tag%3D1%3Bfrom-tag%3D2>")
	exchange(b, "NOTIFY", s.alice, "Event: refer", "Subscription-State: terminated")
	a.Bye(s.bob)
	s.edge.Clean(t)
}

// early makes a call with a reliable provisional answer, its PRACK, and an UPDATE before the 200.
func (s *scene) early(exchange func(*Dialog, string, *Agent, ...string) *Message) {
	s.Helper()
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	answer := Offer{Addr: s.vb.Addr}.String()
	s.bob.ReplyTag(req, 183, "Session Progress", "early", answer, "Require: 100rel", "RSeq: 1")
	s.aim(s.va, d.Await("INVITE", 183, 183).Body)
	s.aim(s.vb, req.Body)
	exchange(d, "PRACK", s.bob, "RAck: 1 1 INVITE")
	exchange(d, "UPDATE", s.bob)
	s.hearEachOther(300 * time.Millisecond)
	s.bob.ReplyTag(req, 200, "OK", "early", "")
	d.Await("INVITE", 200, 200)
	d.Send("ACK", "")
	s.bob.ExpectRequest("ACK")
	s.hearEachOther(300 * time.Millisecond)
	d.Bye(s.bob)
}

// TestManyClients: forty inside phones register with the same outside registrar; a call to each
// Contact reaches its own phone, and none after it unregistered.
func TestManyClients(t *testing.T) {
	onlyEdged(t, "it does not rewrite the Contact")
	s := newScene(t, plan{})
	var phones []*Agent
	var contacts []string
	for i := range 40 {
		proto := [...]string{"udp", "tcp"}[i%2]
		p := s.inHost.Agent(t, fmt.Sprintf("u%d", i), proto, s.inHost.Addr(4, uint16(6000+i)), nil)
		phones, contacts = append(phones, p), append(contacts, p.Register(s.inGate, s.bob, "example.org"))
	}
	if n := s.edge.Count("registrations"); n != len(phones) {
		t.Errorf("%d registrations shown, want %d", n, len(phones))
	}
	for i, p := range phones {
		d := s.bob.NewDialog(s.outGate, contacts[i])
		d.Send("MESSAGE", "")
		req := p.Expect("its MESSAGE", 8*time.Second, func(m *Message) bool { return m.CallID() == d.ID })
		p.Reply(req, 200, "OK", "")
		d.Await("MESSAGE", 200, 200)
	}
	p := phones[0]
	d := p.NewDialog(s.inGate, "sip:example.org")
	d.Local, d.Remote = "<sip:u0@example.org>;tag=bye", "<sip:u0@example.org>"
	d.Send("REGISTER", "", fmt.Sprintf("Contact: <%s>;expires=0", p.Contact()))
	req := s.bob.ExpectRequest("REGISTER")
	if !strings.Contains(req.Get("Contact"), "expires=0") {
		t.Errorf("Contact of the unregistration: %q", req.Get("Contact"))
	}
	s.bob.Reply(req, 200, "OK", "", "X-No: Contact")
	d.Await("REGISTER", 200, 200)
	eventually(t, 5*time.Second, "one registration less", func() bool { return s.edge.Count("registrations") == len(phones)-1 })
}

// TestWebSocketClient: a client that speaks SIP over WebSocket (RFC 7118), as a browser does with a
// Contact that leads nowhere, calls a phone outside, and is called down its connection.
func TestWebSocketClient(t *testing.T) {
	onlyEdged(t, "its configuration here has no WebSocket")
	s := newScene(t, plan{Edge: EdgeConfig{Listen: []string{"ws://inside:8080"}}})
	gate := netip.AddrPortFrom(s.inGate.Addr(), 8080)
	web := s.inHost.WebAgent(t, "web", gate)
	contact := web.Register(gate, s.bob, "example.org")
	d := web.Invite(gate, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String())
	req := s.bob.ExpectRequest("INVITE")
	if strings.Contains(req.Get("Via"), "WS") || strings.Contains(req.Get("Contact"), "invalid") {
		t.Errorf("the callee is shown %q, %q", req.Get("Via"), req.Get("Contact"))
	}
	b := s.answer(d, s.bob, req, s.va, s.vb)
	s.hearEachOther(300 * time.Millisecond)
	b.Bye(web)
	d = s.bob.Invite(s.outGate, contact, Offer{Addr: s.vb.Addr}.String())
	req = web.ExpectRequest("INVITE")
	s.answer(d, web, req, s.vb, s.va)
	s.hearEachOther(300 * time.Millisecond)
	d.Bye(web)
	s.edge.Clean(t)
}

// WebAgent opens a WebSocket with the subprotocol sip from the host to the edge.
func (h *Host) WebAgent(t *testing.T, name string, to netip.AddrPort) *Agent {
	t.Helper()
	a := &Agent{
		Host: h, Proto: "ws", Addr: netip.AddrPortFrom(h.IP, 9), Name: name, t: t,
		seen: map[string]bool{}, conns: map[netip.AddrPort]net.Conn{},
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			err = h.Do(func() error {
				c, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
				return err
			})
			return c, err
		},
	}}
	ctx, cancel := context.WithCancel(context.Background())
	c, _, err := websocket.Dial(ctx, "ws://"+to.String()+"/", &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"sip"}})
	must(t, "WebSocket", err)
	conn := websocket.NetConn(ctx, c, websocket.MessageText)
	a.conns[to] = conn
	a.wg.Go(func() { a.readStream(conn) })
	t.Cleanup(func() {
		_ = c.CloseNow()
		cancel()
		a.wg.Wait()
	})
	return a
}
