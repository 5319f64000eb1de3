//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// officeType is the media type of an offer of OCS 2007 R2.
const officeType = `Content-Type: multipart/mixed; boundary="outer"`

// officeOffer is such an offer, both dialects of ICE in it, of a host whose newer audio port is that of its voice.
func (s *scene) officeOffer() string {
	s.Helper()
	b, err := os.ReadFile("../pkg/sipalg/testdata/ocs-offer.txt")
	must(s.T, "offer", err)
	text := strings.NewReplacer("10.0.0.5", s.inHost.IP.String(), "31010", fmt.Sprint(s.va.Addr.Port()), "\n", "\r\n").Replace(string(b))
	return text
}

// insideOnly matches what must not be seen outside: addresses of hosts in the offer.
func (s *scene) insideOnly() *regexp.Regexp {
	return regexp.MustCompile(regexp.QuoteMeta(s.inHost.IP.String()) + `|192\.168\.|fd00:|10\.0\.0\.`)
}

// TestOfficeOffer: an offer with two dialects of ICE, replayed through edged: no inside address in any part, and the voices
// hear each other by the newer part's port.
func TestOfficeOffer(t *testing.T) {
	for _, ice := range []string{"strip", "relay"} {
		t.Run(ice, func(t *testing.T) {
			onlyEdged(t, "it leaves candidates")
			s := newScene(t, plan{InProto: "tcp", Edge: EdgeConfig{SIP: "ice: " + ice}})
			lan, wan := s.rig.Capture("lan"), s.rig.Capture("wan")
			d := s.alice.Invite(s.inGate, "sip:bob@example.org", s.officeOffer(), officeType)
			req := s.bob.ExpectRequest("INVITE")
			if found := s.insideOnly().FindString(req.Body); found != "" {
				t.Errorf("%s in\n%s", found, req.Body)
			}
			if n, want := strings.Count(req.Body, "a=candidate:"), map[string]int{"strip": 0, "relay": 8}[ice]; n != want {
				t.Errorf("%d candidates, want %d", n, want)
			}
			s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr, Lines: []string{"m=video 0 RTP/AVP 121"}}.String())
			ok := d.Await("INVITE", 200, 200)
			d.Send("ACK", "")
			s.bob.ExpectRequest("ACK")
			out, err := mediaAddr(req.Body, 0)
			must(t, "offer", err)
			in, err := mediaAddr(ok.Body, 0)
			must(t, "answer", err)
			s.vb.Talk(out)
			wantVoice(t, "alice, before she speaks", s.va, s.vb.Hz, time.Second)
			s.va.Talk(in)
			wantVoice(t, "bob", s.vb, s.va.Hz, time.Second)
			d.Bye(s.bob)
			wantNoLeaks(t, s.rig, lan.Stop(t), wan.Stop(t))
		})
	}
}

// TestOfficeOfferPass: with "ice: pass" the offer and its answer arrive as they were sent.
func TestOfficeOfferPass(t *testing.T) {
	onlyEdged(t, "it has no such mode")
	s := newScene(t, plan{InProto: "tcp", Edge: EdgeConfig{SIP: "ice: pass"}})
	offer, answer := s.officeOffer(), Offer{Addr: s.vb.Addr, Lines: []string{"m=video 0 RTP/AVP 121"}}.String()
	d := s.alice.Invite(s.inGate, "sip:bob@example.org", offer, officeType)
	req := s.bob.ExpectRequest("INVITE")
	if req.Body != offer {
		t.Errorf("the offer became\n%s", req.Body)
	}
	s.bob.Reply(req, 200, "OK", answer)
	if ok := d.Await("INVITE", 200, 200); ok.Body != answer {
		t.Errorf("the answer became\n%s", ok.Body)
	}
	d.Send("ACK", "")
	s.bob.ExpectRequest("ACK")
	d.Bye(s.bob)
}

// TestOfficeOfferControl: by a plain NAT the same offer shows the inside, and bob cannot be heard.
func TestOfficeOfferControl(t *testing.T) {
	s := newScene(t, plan{PlainNAT: true})
	s.alice.Invite(s.bob.Addr, "sip:bob@"+s.bob.Addr.Addr().String(), s.officeOffer(), officeType)
	req := s.bob.ExpectRequest("INVITE")
	if !s.insideOnly().MatchString(req.Body) {
		t.Error("no inside address is seen")
	}
	to, err := mediaAddr(req.Body, 0)
	must(t, "offer", err)
	s.vb.Talk(to)
	eventually(t, 30*time.Second, "bob has spoken", func() bool { return s.vb.Sent() >= 50 })
	if n := s.va.Packets(); n != 0 {
		t.Errorf("alice has heard %d packets", n)
	}
}

// whiteboard is a description of Messenger's that asks for T.120 alone.
func whiteboard(h *Host) string {
	return fmt.Sprintf("v=0\r\no=- 0 0 IN IP4 %[1]v\r\ns=session\r\nc=IN IP4 %[1]v\r\nt=0 0\r\nm=application 1503 tcp msdata\r\na=encryption:optional\r\n", h.IP)
}

// TestWhiteboard: two whiteboards that SIP announces go through one port, told apart by who calls, from both sides; nobody
// else comes in, a host has one at a time, and the end of the call is the end of its connections' way.
func TestWhiteboard(t *testing.T) {
	onlyEdged(t, "it knows no T.120")
	s := newScene(t, plan{Edge: EdgeConfig{More: "t120: {listen: [\"tcp://inside:1503\", \"tcp://outside:1503\"]}\n"}})
	in2, out2, stranger := s.rig.Inside("in2"), s.rig.Outside("out2"), s.rig.Outside("out3")
	carol, dave := in2.Agent(t, "carol", "udp", in2.Addr(4, 5060), nil), out2.Agent(t, "dave", "udp", out2.Addr(4, 5060), nil)
	reached := map[*Host]func() int{}
	for i, h := range []*Host{s.inHost, s.outHost, in2, out2} {
		reached[h] = h.answerer(t, 1503, byte(i+1))
	}
	gates := [2]netip.Addr{inside: s.rig.GW.IPOn(inside, 4), outside: s.rig.GW.IPOn(outside, 4)}
	call := func(from, to *Agent) *Dialog {
		t.Helper()
		d := from.Invite(netip.AddrPortFrom(gates[inside], 5060), "sip:"+to.Name+"@"+to.Addr.String(), whiteboard(from.Host))
		req := to.ExpectRequest("INVITE")
		if body := req.Body; strings.Contains(body, from.Host.IP.String()) || !strings.Contains(body, "c=IN IP4 "+gates[outside].String()) || !strings.Contains(body, "m=application 1503 tcp msdata") {
			t.Errorf("the offer became\n%s", body)
		}
		to.Reply(req, 200, "OK", whiteboard(to.Host))
		d.Await("INVITE", 200, 200)
		d.Send("ACK", "")
		to.ExpectRequest("ACK")
		return d
	}
	first, second := call(s.alice, s.bob), call(carol, dave)
	s.outHost.reaches(t, gates[outside], 1)
	out2.reaches(t, gates[outside], 3)
	s.inHost.reaches(t, gates[inside], 2)
	in2.reaches(t, gates[inside], 4)

	rdp := []byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 1, 0, 1, 0, 8, 0, 0, 0, 0, 0} // for this the edge decides at once
	refused := func(h *Host, gate netip.Addr) {
		t.Helper()
		before := s.edge.Metric("edged_t120_drops_total", "reason", "route")
		h.exchange(t, netip.AddrPortFrom(gate, 1503), rdp)
		eventually(t, 10*time.Second, h.Name+" is refused", func() bool { return s.edge.Metric("edged_t120_drops_total", "reason", "route") > before })
	}
	refused(stranger, gates[outside])
	s.alice.Invite(s.inGate, "sip:dave@"+dave.Addr.String(), whiteboard(s.inHost)).Await("INVITE", 488, 488)
	first.Bye(s.bob)
	refused(s.outHost, gates[outside])
	out2.reaches(t, gates[outside], 3)
	second.Bye(dave)
	for h, n := range map[*Host]int{s.inHost: 1, s.outHost: 1, in2: 2, out2: 1} {
		if got := reached[h](); got != n {
			t.Errorf("%s was called %d times, want %d", h.Name, got, n)
		}
	}
}
