package sipalg

import (
	"slices"
	"testing"
	"time"
)

func TestFM10CancelCrosses200(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	req := a.send("INVITE", alice.sdp(4000))
	got := bob.expect("INVITE")
	b := bob.answered(got)
	bob.reply(got, b, 180, "")
	alice.expect("180")
	a.cancel(req)
	alice.expect("200")
	cancel := bob.expect("CANCEL")
	bob.reply(got, b, 200, bob.sdp(6000)) // it has been answered already
	bob.reply(cancel, nil, 200, "")
	resp := alice.expect("200")
	if resp.cseq() != "1 INVITE" {
		t.Fatalf("alice got\n%s", resp.raw)
	}
	a.learn(resp)
	a.send("ACK", "")
	bob.expect("ACK")
	a.bye(b)
	w.golden("fm10-cancel-crosses-200")
	w.clean()
}

func TestFM10Cancel(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	req := a.send("INVITE", alice.sdp(4000))
	got := bob.expect("INVITE")
	a.cancel(req) // before any response: it must wait (RFC 3261 §9.1)
	alice.expect("200")
	bob.nothing()
	bob.reply(got, nil, 100, "")
	cancel := bob.expect("CANCEL")
	if cancel.all("Via")[0] != got.all("Via")[0] || cancel.ruri() != got.ruri() || cancel.cseq() != "1 CANCEL" {
		t.Errorf("CANCEL does not match its INVITE:\n%s", cancel.raw)
	}
	bob.reply(cancel, nil, 200, "")
	bob.reply(got, nil, 487, "")
	bob.expect("ACK")
	resp := alice.expect("487")
	w.after(600 * time.Millisecond)
	if again := alice.expect("487"); again.raw != resp.raw {
		t.Errorf("487 is repeated as\n%s", again.raw)
	}
	a.ackFail(req, resp)
	w.after(10 * time.Second)
	alice.nothing()
	bob.nothing()
	w.golden("fm10-cancel")
	w.clean()
}

// TestFM10Retransmissions: a lost ACK brings the 2xx again, and each copy and each ACK passes.
func TestFM10Retransmissions(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	raw := a.text("INVITE", alice.sdp(4000))
	a.raw(raw)
	got := bob.expect("INVITE")
	alice.expect("100")
	a.raw(raw) // the 100 was lost
	alice.expect("100")
	bob.nothing()
	b := bob.answered(got)
	bob.reply(got, b, 180, "")
	ringing := alice.expect("180")
	a.raw(raw)
	if again := alice.expect("180"); again.raw != ringing.raw {
		t.Errorf("180 is repeated as\n%s", again.raw)
	}
	var ok *msg
	for range 3 {
		bob.reply(got, b, 200, bob.sdp(6000))
		resp := alice.expect("200")
		if ok != nil && resp.raw != ok.raw {
			t.Errorf("200 is repeated as\n%s", resp.raw)
		}
		ok = resp
		w.after(time.Second)
	}
	a.learn(ok)
	for range 3 {
		a.send("ACK", "")
		bob.expect("ACK")
	}
	a.raw(raw) // late
	bob.nothing()
	if n := len(w.opener.Leases()); n != 1 {
		t.Errorf("%d pinholes were opened", n)
	}
	w.after(40 * time.Second)
	a.bye(b)
	w.clean()
}

// TestFM10InviteRepeats: towards a silent next hop the INVITE is repeated by Timer A and given up by B.
func TestFM10InviteRepeats(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", alice.sdp(4000))
	w.after(31 * time.Second)
	var at []time.Duration
	for _, e := range w.log {
		if e.toWho && e.who == "bob" {
			at = append(at, e.at)
		}
	}
	want := []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond, 3500 * time.Millisecond, 7500 * time.Millisecond, 15500 * time.Millisecond}
	if !slices.Equal(at, append(want, 31500*time.Millisecond)[:len(at)]) || len(at) < 6 {
		t.Errorf("INVITE was sent at %v", at)
	}
	w.after(2 * time.Second)
	alice.expect("408")
	_ = bob
	w.clean()
}
