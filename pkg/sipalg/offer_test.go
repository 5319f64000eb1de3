package sipalg

import (
	"fmt"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// ring begins a call and lets it ring; the answer is the test's.
func ring(alice, bob *phone, offer string, extra ...string) (a, b *peer, req, got *msg) {
	alice.w.t.Helper()
	a = alice.dial("sip:bob@example.com")
	req = a.send("INVITE", offer, extra...)
	got = bob.expect("INVITE")
	return a, bob.answered(got), req, got
}

// ends checks where a pinhole's two ends are.
func ends(t *testing.T, l pinhole.Lease, near, far string) {
	t.Helper()
	type remote interface {
		Remote(pinhole.Side) pinhole.Remote
	}
	r := l.(remote)
	if n, f := r.Remote(pinhole.Near).Addr, r.Remote(pinhole.Far).Addr; n != ap(near) || f != ap(far) {
		t.Errorf("pinhole %v - %v, want %s - %s", n, f, near, far)
	}
}

// TestLateOffer: the offer is in the 200 and the answer in the ACK.
func TestLateOffer(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, "")
	if w.opener.Count() != 0 {
		t.Errorf("%d pinholes before any offer", w.opener.Count())
	}
	for range 2 { // the 200 is repeated until the ACK comes
		bob.reply(got, b, 200, bob.sdp(6000))
		ok := alice.expect("200")
		if mediaPort(ok) != "50000" || !strings.Contains(ok.body, "c=IN IP4 10.0.0.1") {
			t.Errorf("offer as alice sees it:\n%s", ok.body)
		}
		a.learn(ok)
	}
	a.send("ACK", alice.sdp(4000))
	if ack := bob.expect("ACK"); mediaPort(ack) != "50000" || !strings.Contains(ack.body, "c=IN IP4 198.51.100.1") {
		t.Errorf("answer as bob sees it:\n%s", ack.body)
	}
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	// A re-INVITE without an offer, likewise.
	a.send("INVITE", "")
	bob.reply(bob.expect("INVITE"), b, 200, bob.sdp(6002))
	alice.expect("200")
	a.send("ACK", alice.sdp(4002))
	bob.expect("ACK")
	ends(t, w.openLease(), "10.0.0.5:4002", "198.51.100.20:6002")
	if n := len(w.opener.Leases()); n != 1 {
		t.Errorf("%d pinholes were opened", n)
	}
	b.bye(a)
	w.clean()
}

// TestPrack: the answer is in the reliable 183; PRACK and its answer change the session once more.
func TestPrack(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000), "Require: 100rel")
	bob.reply(got, b, 183, bob.sdp(6000), "RSeq: 1", "Require: 100rel")
	a.learn(alice.expect("183"))
	a.send("PRACK", alice.sdp(4010), "RAck: 1 1 INVITE")
	prack := bob.expect("PRACK")
	bob.reply(prack, nil, 200, bob.sdp(6010))
	if ok := alice.expect("200"); ok.cseq() != "2 PRACK" || mediaPort(ok) != "50000" {
		t.Errorf("%s", ok.raw)
	}
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6010")
	bob.reply(got, b, 200, "")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6010")
	a.bye(b)
	w.clean()
}

// TestPrackAnswers: the offer is in the reliable 183, the answer in the PRACK.
func TestPrackAnswers(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, "", "Require: 100rel")
	bob.reply(got, b, 183, bob.sdp(6000), "RSeq: 1", "Require: 100rel")
	a.learn(alice.expect("183"))
	a.send("PRACK", alice.sdp(4000), "RAck: 1 1 INVITE")
	prack := bob.expect("PRACK")
	bob.reply(prack, nil, 200, "")
	alice.expect("200")
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	bob.reply(got, b, 200, "")
	alice.expect("200")
	a.send("ACK", "")
	bob.expect("ACK")
	b.bye(a)
	w.clean()
}

// TestUpdate: an offer in UPDATE, before and after the answer, from both sides, and refused.
func TestUpdate(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000))
	bob.reply(got, b, 183, bob.sdp(6000), "RSeq: 1", "Require: 100rel")
	a.learn(alice.expect("183"))
	update := func(x, y *peer, offer, answer string) {
		t.Helper()
		x.send("UPDATE", offer)
		y.p.reply(y.p.expect("UPDATE"), y, 200, answer)
		if ok := x.p.expect("200"); mediaPort(ok) != "50000" {
			t.Errorf("%s", ok.raw)
		}
	}
	update(a, b, alice.sdp(4010), bob.sdp(6000))
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6000")
	update(b, a, bob.sdp(6010), alice.sdp(4010))
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6010")
	bob.reply(got, b, 200, "")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	update(b, a, bob.sdp(6020), alice.sdp(4010))
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6020")
	a.send("UPDATE", alice.sdp(4030))
	bob.reply(bob.expect("UPDATE"), nil, 504, "")
	alice.expect("504")
	ends(t, w.openLease(), "10.0.0.5:4010", "198.51.100.20:6020")
	a.bye(b)
	w.clean()
}

// TestHold: hold and resume, by direction and by 0.0.0.0, keep ports and addresses; silence of who is on
// hold is no fault.
func TestHold(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("rfc2543=%v", old), func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
			hold := alice.sdp(4000) + "a=sendonly\r\n"
			if old {
				hold = strings.Replace(alice.sdp(4000), "c=IN IP4 10.0.0.5", "c=IN IP4 0.0.0.0", 1)
			}
			reinvite(a, b, hold, bob.sdp(6000)+"a=recvonly\r\n")
			l := w.openLease()
			ends(t, l, "10.0.0.5:4000", "198.51.100.20:6000")
			if !l.Remote(pinhole.Far).Quiet {
				t.Error("silence of the one on hold is counted")
			}
			reinvite(a, b, alice.sdp(4000), bob.sdp(6000))
			ends(t, l, "10.0.0.5:4000", "198.51.100.20:6000")
			if l.Remote(pinhole.Far).Quiet || l.Remote(pinhole.Near).Quiet {
				t.Error("silence is not counted after the resumption")
			}
			var ports []string
			for _, e := range w.log {
				if m := parseMsg(e.raw); e.toWho && m.body != "" {
					ports = append(ports, mediaPort(m))
				}
			}
			if fmt.Sprint(ports) != "[50000 50000 50000 50000 50000 50000]" {
				t.Errorf("ports %v", ports)
			}
			a.bye(b)
			w.clean()
		})
	}
}

// TestGlare: both sides re-INVITE at once, both get 491, and nothing has moved.
func TestGlare(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	ra := a.send("INVITE", alice.sdp(4010))
	rb := b.send("INVITE", bob.sdp(6010))
	toBob, toAlice := bob.expect("INVITE"), alice.expect("INVITE")
	bob.reply(toBob, b, 491, "")
	bob.expect("ACK")
	a.ackFail(ra, alice.expect("491"))
	alice.reply(toAlice, a, 491, "")
	alice.expect("ACK")
	b.ackFail(rb, bob.expect("491"))
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	reinvite(b, a, bob.sdp(6010), alice.sdp(4000))
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6010")
	a.bye(b)
	w.clean()
}
