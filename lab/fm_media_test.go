//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestFM02_OneWayAudio: SDP with a private address in every place that it may stand; both hear each
// other, and none of it leaves. Without the ALG (a plain NAT) the caller hears nothing.
func TestFM02_OneWayAudio(t *testing.T) {
	s := newScene(t, plan{})
	check := s.capture()
	ip := s.va.Addr.Addr()
	offer := Offer{Addr: s.va.Addr, Lines: []string{
		fmt.Sprintf("a=rtcp:30001 IN IP4 %v", ip),
		fmt.Sprintf("a=candidate:1 1 UDP 2130706431 %v 30000 typ host", ip),
		fmt.Sprintf("a=candidate:2 2 UDP 2130706430 %v 30001 typ host", ip),
	}}
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", offer)
	b := s.answer(d, s.bob, req, s.va, s.vb)
	s.hearEachOther(time.Second)
	b.Bye(s.alice)
	s.edge.Clean(t)
	check()
}

// TestFM02_Control: the same call through a NAT router without an ALG has one-way audio, and the
// checker of the captures sees the private addresses leave.
func TestFM02_Control(t *testing.T) {
	s := newScene(t, plan{PlainNAT: true})
	wan := s.rig.Capture("wan")
	d := s.alice.Invite(s.bob.Addr, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String())
	req := s.bob.ExpectRequest("INVITE")
	s.aim(s.vb, req.Body) // 10.77.1.x: no way there
	s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr}.String())
	s.aim(s.va, d.Await("INVITE", 200, 200).Body)
	wantVoice(t, "bob", s.vb, s.va.Hz, time.Second)
	if n := s.va.Packets(); n != 0 {
		t.Errorf("alice got %d packets through a NAT without an ALG: the control is broken", n)
	}
	if leaks := privateLeaves(s.rig, wan.Stop(t)); len(leaks) == 0 {
		t.Error("the checker of captures sees no leak where there is one")
	}
}

// TestFM02_ControlClosed: with nothing running on the gateway no message gets across at all.
func TestFM02_ControlClosed(t *testing.T) {
	s := newScene(t, plan{NoEdge: true})
	s.alice.Invite(s.bob.Addr, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String())
	s.alice.Invite(s.inGate, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String())
	s.bob.Never("a message through a closed gateway", 1500*time.Millisecond, func(*Message) bool { return true })
}

// TestFM03_OldPortAfterReinvite: the callee moves its media to another port by re-INVITE while late
// packets from the old one go on; the audio follows, and the old port hears nothing more.
func TestFM03_OldPortAfterReinvite(t *testing.T) {
	onlyEdged(t, "rtpengine follows the late packets (1 s of the old tone heard, 32 packets to the old port)")
	s := newScene(t, plan{})
	a, b := s.call()
	s.hearEachOther(500 * time.Millisecond)
	moved := s.outHost.Voice(t, s.outHost.Addr(4, 30010), 1240)
	b.Send("INVITE", Offer{Addr: moved.Addr, Ver: 1}.String())
	req := s.alice.ExpectRequest("INVITE")
	s.aim(s.va, req.Body)
	s.alice.Reply(req, 200, "OK", Offer{Addr: s.va.Addr}.String())
	ok := b.Await("INVITE", 200, 200)
	s.aim(moved, ok.Body) // the old voice goes on talking too: late packets
	b.Send("ACK", "")
	s.alice.ExpectRequest("ACK")
	wantVoice(t, "bob's new port", moved, s.va.Hz, time.Second)
	s.va.Forget()
	s.vb.Forget()
	wantVoice(t, "alice", s.va, moved.Hz, time.Second)
	if n := s.vb.Packets(); n > 0 {
		t.Errorf("the old port still got %d packets", n)
	}
	a.Bye(s.bob)
}

// TestFM09_ForkedEarlyMedia: one INVITE, two early dialogs with media of their own; the second
// answers, and only its audio remains.
func TestFM09_ForkedEarlyMedia(t *testing.T) {
	s := newScene(t, plan{})
	other := s.outHost.Voice(t, s.outHost.Addr(4, 30020), 700)
	d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	s.bob.ReplyTag(req, 183, "Session Progress", "branch-one", Offer{Addr: s.vb.Addr}.String())
	first := d.Await("INVITE", 183, 183)
	s.aim(s.va, first.Body)
	s.aim(s.vb, req.Body)
	wantVoice(t, "alice, early", s.va, s.vb.Hz, 500*time.Millisecond)
	s.bob.ReplyTag(req, 183, "Session Progress", "branch-two", Offer{Addr: other.Addr}.String())
	d.Await("INVITE", 183, 183)
	s.bob.ReplyTag(req, 200, "OK", "branch-two", Offer{Addr: other.Addr}.String())
	s.vb.Talk(netip.AddrPort{})
	s.aim(other, req.Body)
	s.confirm(d, s.bob, s.va)
	s.va.Forget()
	wantVoice(t, "alice", s.va, other.Hz, time.Second)
	wantVoice(t, "the second branch", other, s.va.Hz, time.Second)
	d.Bye(s.bob)
	s.edge.Clean(t)
}

// TestFM11_FaxReinvite: an audio call turns into T.38; UDPTL packets pass both ways unchanged.
func TestFM11_FaxReinvite(t *testing.T) {
	s := newScene(t, plan{})
	a, b := s.call()
	s.hearEachOther(300 * time.Millisecond)
	fa := s.inHost.Fax(t, s.inHost.Addr(4, 31000))
	fb := s.outHost.Fax(t, s.outHost.Addr(4, 31000))
	t38 := func(f *Fax, port uint16) string {
		return Offer{Addr: f.Addr, Ver: 1, Media: "audio 0 RTP/AVP 0", Lines: []string{
			fmt.Sprintf("m=image %d udptl t38", port), "a=T38FaxVersion:0", "a=T38FaxUdpEC:t38UDPRedundancy",
		}}.String()
	}
	b.Send("INVITE", t38(fb, 31000))
	req := s.alice.ExpectRequest("INVITE")
	if !strings.Contains(req.Body, "m=audio 0 ") {
		t.Errorf("the rejected audio line changed: %q", req.Body)
	}
	toB, err := mediaAddr(req.Body, 1)
	must(t, "offer", err)
	s.alice.Reply(req, 200, "OK", t38(fa, 31000))
	toA, err := mediaAddr(b.Await("INVITE", 200, 200).Body, 1)
	must(t, "answer", err)
	b.Send("ACK", "")
	s.alice.ExpectRequest("ACK")
	fa.Exchange(t, fb, toB, toA)
	a.Bye(s.bob)
}

// TestFM13_MixedFamilies: IPv6 inside, IPv4 outside and the other way round; audio both ways.
func TestFM13_MixedFamilies(t *testing.T) {
	onlyEdged(t, "its configuration here is IPv4 only")
	for _, f := range [][2]int{{6, 4}, {4, 6}, {6, 6}} {
		t.Run(fmt.Sprintf("inside%d-outside%d", f[0], f[1]), func(t *testing.T) {
			s := newScene(t, plan{InFamily: f[0], OutFamily: f[1]})
			check := s.capture()
			a, _ := s.call()
			s.hearEachOther(500 * time.Millisecond)
			a.Bye(s.bob)
			b, _ := s.callIn()
			s.hearEachOther(500 * time.Millisecond)
			b.Bye(s.alice)
			s.edge.Clean(t)
			check()
		})
	}
}

// TestFM15_PortsExhausted: when no media port is left a call is refused with 503, not let through
// silent; those before it go on, and when one of them ends another can be made.
func TestFM15_PortsExhausted(t *testing.T) {
	onlyEdged(t, "it lets the call through one-way")
	s := newScene(t, plan{Edge: EdgeConfig{Pinholes: "{udp: 50000-50007, quarantine: 1s}"}})
	last, _ := s.call()
	refused := false
	for range 4 {
		d := s.alice.Invite(s.inGate, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String())
		m := s.alice.Expect("an answer or its absence", 8*time.Second, func(m *Message) bool { return m.CallID() == d.ID && m.Status() > 100 || s.bob.has(d.ID) })
		if refused = m.Status() == 503; refused {
			break
		}
		req := s.bob.ExpectRequest("INVITE")
		s.answer(d, s.bob, req, s.va, s.vb)
		last = d
	}
	if !refused {
		t.Fatal("8 ports were enough for 5 calls")
	}
	s.bob.Never("an INVITE without media", 500*time.Millisecond, func(m *Message) bool { return m.Method() == "INVITE" && m.Status() == 0 })
	s.hearEachOther(300 * time.Millisecond)
	last.Bye(s.bob)
	eventually(t, 10*time.Second, "a call after ports came back", func() bool {
		d := s.alice.Invite(s.inGate, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String())
		m := s.alice.Expect("an answer or its absence", 8*time.Second, func(m *Message) bool { return m.CallID() == d.ID && m.Status() > 100 || s.bob.has(d.ID) })
		return m.Status() != 503
	})
}

// has tells whether a request of the call is in the inbox.
func (a *Agent) has(callID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.inbox, func(m *Message) bool { return m.CallID() == callID && m.Status() == 0 })
}
