//go:build lab

package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"
)

// TestCrashKeepsRegistrations: kill -9 and a start; a call to a phone that registered before arrives.
func TestCrashKeepsRegistrations(t *testing.T) {
	onlyEdged(t, "it keeps no registrations")
	s := newScene(t, plan{})
	phone := s.inHost.Agent(t, "phone", "udp", s.inHost.Addr(4, 5070), nil)
	contact := phone.Register(s.inGate, s.bob, "example.org")
	s.edge.Kill()
	d := s.bob.Invite(s.outGate, contact, Offer{Addr: s.vb.Addr}.String())
	phone.Never("a call through a dead edge", 300*time.Millisecond, func(m *Message) bool { return m.CallID() == d.ID })
	s.edge.Start(t)
	if n := s.edge.Count("registrations"); n != 1 {
		t.Errorf("%d registrations after the crash, want 1", n)
	}
	d = s.bob.Invite(s.outGate, contact, Offer{Addr: s.vb.Addr}.String())
	req := phone.Expect("the call after the crash", 8*time.Second, func(m *Message) bool { return m.CallID() == d.ID })
	s.answer(d, phone, req, s.vb, s.va)
	s.hearEachOther(300 * time.Millisecond)
	d.Bye(phone)
	s.edge.Clean(t)
}

// TestReloadDuringCall: a reload that adds a domain takes effect, and a live call does not notice; a
// file that is wrong is refused, and the configuration before it stays.
func TestReloadDuringCall(t *testing.T) {
	onlyEdged(t, "it has no such reload")
	s := newScene(t, plan{})
	a, _ := s.call()
	c := s.edge.config
	c.Domains += fmt.Sprintf("new.example.org: {network: outside, server: \"udp:%v\"}\n", s.bob.Addr)
	s.edge.Reload(t, c)
	reaches := func() bool {
		d := s.alice.NewDialog(s.inGate, "sip:bob@new.example.org")
		d.Send("MESSAGE", "")
		m := s.bob.within(500*time.Millisecond, func(m *Message) bool { return m.CallID() == d.ID })
		if m != nil {
			s.bob.Reply(m, 200, "OK", "")
		}
		return m != nil
	}
	eventually(t, 8*time.Second, "the new domain is routed", reaches)
	s.hearEachOther(300 * time.Millisecond)
	broken := c
	broken.SIP = "no_such_key: 1"
	s.edge.Reload(t, broken)
	eventually(t, 8*time.Second, "the refusal is counted", func() bool { return s.edge.Metric("edged_config_last_reload_successful") == 0 })
	if !reaches() {
		t.Error("the configuration before the broken one is gone")
	}
	a.Bye(s.bob)
	s.edge.Clean(t)
}

// within returns the first message that match accepts, nil if none comes within d.
func (a *Agent) within(d time.Duration, match func(*Message) bool) (m *Message) {
	until(d, func() bool { m = a.take(match); return m != nil })
	return m
}

// TestDrain: after SIGTERM the live calls go on, can be put on hold and ended, a new one is refused with the time after
// which to try again, the status says how many are left, and the daemon ends with status 0 with the last one.
func TestDrain(t *testing.T) {
	onlyEdged(t, "it does not drain")
	s := newScene(t, plan{Edge: EdgeConfig{Drain: "60s"}})
	other, _ := s.call()
	a, _ := s.call()
	s.edge.proc.Signal(syscall.SIGTERM)
	eventually(t, 8*time.Second, "/readyz says no", func() bool { code, _ := s.edge.get("/readyz"); return code == 503 })
	refused := s.alice.Invite(s.inGate, "sip:bob@example.org", Offer{Addr: s.va.Addr}.String()).Await("INVITE", 503, 503)
	if refused.Get("Retry-After") == "" {
		t.Error("refused without Retry-After")
	}
	s.alice.NewDialog(s.inGate, "sip:"+s.inGate.String()).Send("OPTIONS", "")
	s.alice.Expect("a 503 to a ping of the edge", 8*time.Second, func(m *Message) bool { return m.Method() == "OPTIONS" && m.Status() == 503 })
	s.hearEachOther(300 * time.Millisecond)
	s.reinvite(a, "inactive", 1)
	s.reinvite(a, "sendrecv", 2)
	s.hearEachOther(300 * time.Millisecond)
	left := func(n int) {
		t.Helper()
		eventually(t, 8*time.Second, fmt.Sprintf("the status says that %d calls are left", n), func() bool {
			_, b := s.edge.get("/api/v1/status")
			var doc struct{ Draining struct{ Calls int } }
			return json.Unmarshal(b, &doc) == nil && doc.Draining.Calls == n
		})
	}
	left(2)
	other.Bye(s.bob)
	left(1)
	a.Bye(s.bob)
	if err := s.edge.proc.Wait(15 * time.Second); err != nil {
		t.Errorf("after the last call: %v", err)
	}
}

// TestDeadCallEnds: when both phones have vanished without a BYE, the edge ends the call after the idle
// time and tells both sides.
func TestDeadCallEnds(t *testing.T) {
	onlyEdged(t, "its configuration here waits for an hour")
	s := newScene(t, plan{Edge: EdgeConfig{Pinholes: "{udp: 50000-51999, idle: 2s}"}})
	s.call()
	s.hearEachOther(300 * time.Millisecond)
	s.va.Close()
	s.vb.Close()
	for _, a := range []*Agent{s.alice, s.bob} {
		a.Reply(a.ExpectRequest("BYE"), 200, "OK", "")
	}
	s.edge.Clean(t)
}

// TestHoldIsNotDead: a call on hold, without a packet for longer than the idle time, stays and can be resumed.
func TestHoldIsNotDead(t *testing.T) {
	onlyEdged(t, "its configuration here waits for an hour")
	s := newScene(t, plan{Edge: EdgeConfig{Pinholes: "{udp: 50000-51999, idle: 1s}"}})
	a, _ := s.call()
	s.hearEachOther(300 * time.Millisecond)
	toA, toB := s.va.target(), s.vb.target()
	s.va.Talk(netip.AddrPort{})
	s.vb.Talk(netip.AddrPort{})
	s.reinvite(a, "inactive", 1)
	s.bob.Never("a BYE of a call on hold", 3*time.Second, func(m *Message) bool { return m.Method() == "BYE" })
	s.reinvite(a, "sendrecv", 2)
	s.va.Talk(toA)
	s.vb.Talk(toB)
	s.hearEachOther(300 * time.Millisecond)
	a.Bye(s.bob)
	s.edge.Clean(t)
}

// reinvite changes the direction of alice's call to bob.
func (s *scene) reinvite(a *Dialog, dir string, ver int) {
	s.Helper()
	a.Send("INVITE", Offer{Addr: s.va.Addr, Dir: dir, Ver: ver}.String())
	req := s.bob.ExpectRequest("INVITE")
	s.bob.Reply(req, 200, "OK", Offer{Addr: s.vb.Addr, Dir: dir, Ver: ver}.String())
	a.Await("INVITE", 200, 200)
	a.Send("ACK", "")
	s.bob.Expect("ACK", 8*time.Second, func(m *Message) bool { return m.Method() == "ACK" })
}
