//go:build lab

package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// exotic are header lines that an edge has no business in (RFC 4475 and real phones).
var exotic = []string{
	`User-Agent:   Phone/1.0   (quoted "comment" \\ here)`,
	`Subject: =?utf-8?Q?caf=C3=A9?= , with, commas ; and=semicolons`,
	`P-Asserted-Identity: "J \"Rosenberg\"" <sip:%61lice@example.org;user=phone>`,
	`X-Unknown-Header: [v6-like] <sip:x@y>;tag=1;;`,
	`Allow: INVITE,ACK , BYE,  CANCEL`,
	`k: timer, 100rel`,
	`Session-Expires: 1800;refresher=uac`,
	`Identity: eyJhbGciOiJFUzI1NiJ9..sig;info=<https://cert.example.org/a.pem>;alg=ES256`,
	`NewFangledHeader:   newfangled value`,
}

// TestFM01_NothingElseChanges: odd but legal header lines and body lines arrive byte for byte.
func TestFM01_NothingElseChanges(t *testing.T) {
	s := newScene(t, plan{})
	body := Offer{Addr: s.va.Addr, Lines: []string{"a=x-odd:  spaces  kept ", "a=fmtp:0 vad=no;x=\"q\"", "y=unknown line type"}}
	d := s.alice.NewDialog(s.inGate, "sip:bob@example.org")
	d.Local = `"A. G. \"Bell\"" <sip:agb@example.org> ;x=y;tag = a48s`
	d.Send("INVITE", body.String(), exotic...)
	req := s.bob.ExpectRequest("INVITE")
	var lines []string
	for _, f := range req.Fields {
		lines = append(lines, f.Name+": "+f.Value)
	}
	for _, want := range append(slices.Clone(exotic), "From: "+d.Local, "To: "+d.Remote, "Call-ID: "+d.ID) {
		name, value, _ := strings.Cut(want, ":")
		if !slices.Contains(lines, name+": "+strings.TrimSpace(value)) {
			t.Errorf("changed on the way: %q", want)
		}
	}
	for _, l := range body.Lines {
		if !strings.Contains(req.Body, l+"\r\n") {
			t.Errorf("body line changed: %q in %q", l, req.Body)
		}
	}
	s.bob.Reply(req, 486, "Busy Here", "")
	d.Await("INVITE", 486, 486)
	d.Send("ACK", "")
}

// TestFM04_InDialogRouting: ACK, re-INVITE, INFO and BYE arrive at the peer of the dialog, in both
// directions and with every pair of transports, and down the caller's own connection.
func TestFM04_InDialogRouting(t *testing.T) {
	for _, p := range [][2]string{{"udp", "udp"}, {"tcp", "udp"}, {"udp", "tcp"}, {"tls", "udp"}, {"tls", "tls"}} {
		t.Run(p[0]+"-"+p[1], func(t *testing.T) {
			if p[0] == "tls" || p[1] != "udp" {
				onlyEdged(t, "its configuration here has neither TLS nor TCP towards the outside")
			}
			s := newScene(t, plan{InProto: p[0], OutProto: p[1]})
			a, b := s.call()
			for _, x := range []struct {
				d    *Dialog
				peer *Agent
			}{{a, s.bob}, {b, s.alice}} {
				x.d.Send("INFO", "")
				req := x.peer.ExpectRequest("INFO")
				x.peer.Reply(req, 200, "OK", "")
				x.d.Await("INFO", 200, 200)
				x.d.Send("INVITE", Offer{Addr: s.voiceOf(x.d.Agent).Addr, Ver: 1}.String())
				req = x.peer.ExpectRequest("INVITE")
				x.peer.Reply(req, 200, "OK", Offer{Addr: s.voiceOf(x.peer).Addr, Ver: 1}.String())
				x.d.Await("INVITE", 200, 200)
				x.d.Send("ACK", "")
				x.peer.ExpectRequest("ACK")
			}
			s.hearEachOther(300 * time.Millisecond)
			b.Bye(s.alice)
			s.edge.Clean(t)
		})
	}
}

func (s *scene) voiceOf(a *Agent) *Voice {
	if a == s.alice {
		return s.va
	}
	return s.vb
}

// TestFM05_RegistrationOverTCP: a client that registered over TCP and listens nowhere gets its calls
// down that connection, and a call after it reconnected and registered again.
func TestFM05_RegistrationOverTCP(t *testing.T) {
	onlyEdged(t, "its registrar's path is proven with baresip")
	s := newScene(t, plan{})
	phone := s.inHost.Agent(t, "phone", "tcp", s.inHost.Addr(4, 5090), nil)
	for round := range 2 {
		contact := phone.Register(s.gate(phone), s.bob, "example.org")
		d := s.bob.Invite(s.outGate, contact, Offer{Addr: s.vb.Addr}.String())
		req := phone.ExpectRequest("INVITE")
		if req.conn == nil || req.Remote != s.gate(phone) {
			t.Errorf("round %d: the INVITE came from %v, not down the client's connection to %v", round, req.Remote, s.gate(phone))
		}
		s.answer(d, phone, req, s.vb, s.va)
		s.hearEachOther(300 * time.Millisecond)
		d.Bye(phone)
		phone.CloseConns()
	}
	s.edge.Clean(t)
}

// TestFM05_RegistrationBehindNAT: a worker at home, behind a NAT, registers with the PBX inside
// through the edge; keep-alives flow, and a call from the PBX reaches him with audio both ways.
func TestFM05_RegistrationBehindNAT(t *testing.T) {
	onlyEdged(t, "its configuration here sends no keep-alives")
	s := newScene(t, plan{Edge: EdgeConfig{SIP: "keepalive: 1s"}})
	home, router := s.rig.BehindNAT("home")
	worker := home.Agent(t, "worker", "udp", home.Addr(4, 5060), nil)
	voice := home.Voice(t, home.Addr(4, 30000), 1240)
	contact := worker.Register(s.outGate, s.alice, "inside.example.org")
	if ping := worker.ExpectRequest("OPTIONS"); ping != nil {
		worker.Reply(ping, 200, "OK", "")
	}
	d := s.alice.Invite(s.inGate, contact, Offer{Addr: s.va.Addr}.String())
	req := worker.ExpectRequest("INVITE")
	s.answer(d, worker, req, s.va, voice)
	wantVoice(t, "alice", s.va, voice.Hz, time.Second)
	wantVoice(t, "the worker behind "+router.IP.String(), voice, s.va.Hz, time.Second)
	d.Bye(worker)
	s.edge.Clean(t)
}

// TestFM05_SameUserTwice: two inside phones with the same user part each get their own calls.
func TestFM05_SameUserTwice(t *testing.T) {
	onlyEdged(t, "it does not rewrite the Contact")
	s := newScene(t, plan{})
	host := s.rig.Inside("in2")
	one := s.inHost.Agent(t, "desk", "udp", s.inHost.Addr(4, 5070), nil)
	two := host.Agent(t, "desk", "udp", host.Addr(4, 5070), nil)
	c1 := one.Register(s.inGate, s.bob, "example.org")
	c2 := two.Register(s.inGate, s.bob, "example.org")
	if c1 == c2 {
		t.Fatalf("both phones are %q to the registrar", c1)
	}
	for contact, phone := range map[string]*Agent{c1: one, c2: two} {
		d := s.bob.Invite(s.outGate, contact, Offer{Addr: s.vb.Addr}.String())
		req := phone.ExpectRequest("INVITE")
		if req.CallID() != d.ID {
			t.Errorf("%v got the call of the other", phone.Addr)
		}
		phone.Reply(req, 486, "Busy Here", "")
		d.Await("INVITE", 486, 486)
		d.Send("ACK", "")
	}
	s.edge.Clean(t)
}

// TestFM06_NothingLeaks: 200 calls answered, cancelled, refused, without an answer in the 200 and
// without BYE of the callee's; afterwards there is neither a call nor a pinhole.
func TestFM06_NothingLeaks(t *testing.T) {
	s := newScene(t, plan{})
	for i := range 200 {
		switch i % 4 {
		case 0:
			a, _ := s.call()
			a.Bye(s.bob)
		case 1:
			_, b := s.call()
			b.Bye(s.alice)
		case 2:
			s.cancelled()
		case 3:
			d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
			s.bob.Reply(req, 183, "Session Progress", Offer{Addr: s.vb.Addr}.String())
			s.bob.Reply(req, 486, "Busy Here", "")
			d.Await("INVITE", 486, 486)
			d.Send("ACK", "")
		}
	}
	s.edge.Clean(t)
}

// cancelled makes a call that is cancelled while it rings.
func (s *scene) cancelled() {
	s.Helper()
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	s.bob.Reply(req, 180, "Ringing", "")
	d.Await("INVITE", 180, 180)
	d.Send("CANCEL", "")
	c := s.bob.Expect("CANCEL of "+d.ID, 8*time.Second, func(m *Message) bool {
		return m.Method() == "CANCEL" && m.CallID() == d.ID && m.Status() == 0
	})
	s.bob.Reply(c, 200, "OK", "")
	s.bob.Reply(req, 487, "Request Terminated", "")
	d.Await("CANCEL", 200, 200)
	d.Await("INVITE", 487, 487)
	d.Send("ACK", "")
}

// TestFM07_BigMessages: an INVITE larger than any MTU arrives whole in both directions and has its
// audio, though the caller speaks UDP only.
func TestFM07_BigMessages(t *testing.T) {
	s := newScene(t, plan{})
	big := "X-Big: " + strings.Repeat("0123456789", 320)
	for _, c := range []struct {
		from, to *Agent
		vf, vt   *Voice
		uri      string
	}{
		{s.alice, s.bob, s.va, s.vb, "sip:bob@example.org"},
		{s.bob, s.alice, s.vb, s.va, "sip:alice@inside.example.org"},
	} {
		tcp := c.to.Host.Agent(t, c.to.Name, "tcp", c.to.Addr, nil)
		d := c.from.Invite(s.gate(c.from), c.uri, Offer{Addr: c.vf.Addr}.String(), big)
		var req *Message
		by := c.to
		eventually(t, 8*time.Second, "the big INVITE arrives over UDP or TCP", func() bool {
			match := func(m *Message) bool { return m.CallID() == d.ID && m.Method() == "INVITE" }
			if req = c.to.take(match); req == nil {
				req, by = tcp.take(match), tcp
			}
			return req != nil
		})
		if got := req.Get("X-Big"); "X-Big: "+got != big {
			t.Errorf("%d bytes of the header arrived, want %d", len(got), len(big)-7)
		}
		t.Logf("the INVITE of %d bytes arrived over %s", len(big)+len(req.Body), by.Proto)
		b := s.answer(d, by, req, c.vf, c.vt)
		s.hearEachOther(300 * time.Millisecond)
		b.Bye(c.from)
	}
	s.edge.Clean(t)
}

// TestFM08_StreamFraming: messages cut into single bytes, several in one segment, keep-alives before,
// between and after them: every one arrives once and whole.
func TestFM08_StreamFraming(t *testing.T) {
	s := newScene(t, plan{InProto: "tcp"})
	conn, err := s.alice.Conn(s.inGate)
	must(t, "connect", err)
	text := func(n int) (string, *Dialog) {
		d := s.alice.NewDialog(s.inGate, "sip:bob@example.org")
		body := fmt.Sprintf("message %d\r\n\r\nwith an empty line", n)
		return d.text("MESSAGE", d.Target, s.alice.via(), 1, body, []string{"Content-Type: text/plain"}), d
	}
	var dialogs []*Dialog
	write := func(pieces ...string) {
		for _, p := range pieces {
			_, err := conn.Write([]byte(p))
			must(t, "write", err)
		}
	}
	add := func(n int) string {
		raw, d := text(n)
		dialogs = append(dialogs, d)
		return raw
	}
	write(strings.Split(add(0), "")...)                       // byte by byte
	write(add(1) + add(2) + add(3))                           // three in one segment
	write("\r\n\r\n" + add(4) + "\r\n\r\n" + add(5) + "\r\n") // keep-alives around
	six := add(6)
	write("\r\n"+six[:len(six)-25], six[len(six)-25:]+"\r\n\r\n", add(7)) // cut inside the body
	for i, d := range dialogs {
		req := s.bob.Expect(fmt.Sprintf("message %d", i), 8*time.Second, func(m *Message) bool { return m.CallID() == d.ID })
		if want := fmt.Sprintf("message %d\r\n\r\nwith an empty line", i); req.Body != want {
			t.Errorf("message %d: body %q", i, req.Body)
		}
		s.bob.Reply(req, 200, "OK", "")
		d.Await("MESSAGE", 200, 200)
	}
}

// TestFM10_CancelRaces: CANCEL before the answer gets 487; CANCEL that crosses the 200 leaves an
// answered call that can be acknowledged and ended; a repeated 200 passes and its ACK too.
func TestFM10_CancelRaces(t *testing.T) {
	s := newScene(t, plan{})
	s.cancelled()
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	s.bob.Reply(req, 180, "Ringing", "")
	d.Await("INVITE", 180, 180)
	answer := Offer{Addr: s.vb.Addr}.String()
	s.bob.ReplyTag(req, 200, "OK", "race", answer)
	d.Send("CANCEL", "")
	d.Await("CANCEL", 200, 499)
	s.aim(s.vb, req.Body)
	ok := d.Await("INVITE", 200, 200)
	s.aim(s.va, ok.Body)
	s.bob.ReplyTag(req, 200, "OK", "race", answer) // no ACK yet: the callee repeats it
	d.Await("INVITE", 200, 200)
	d.Send("ACK", "")
	ack := func(m *Message) bool { return m.Method() == "ACK" && m.CallID() == d.ID }
	s.bob.Expect("ACK", 8*time.Second, ack)
	d.Repeat() // for the repeated 200; the agent drops what has the same branch
	s.bob.Never("an ACK that is not a repetition of the first", 300*time.Millisecond, ack)
	s.hearEachOther(300 * time.Millisecond)
	d.Bye(s.bob)
	s.edge.Clean(t)
}
