package sipalg

import (
	"fmt"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

func withBackup(c *Config) {
	c.Domains["example.com"] = Domain{Network: "outside", Server: "udp:198.51.100.20:5060", Backups: []string{"udp:198.51.100.21:5060"}}
}

func TestFailover(t *testing.T) {
	for _, how := range []string{"timeout", "503"} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, withBackup)
			alice, first := w.alice(), w.bob()
			second := w.phone("bob", flow.UDP, "198.51.100.21:5060", "198.51.100.1:5060")
			a := alice.dial("sip:bob@example.com")
			a.send("INVITE", alice.sdp(4000))
			got := first.expect("INVITE")
			if how == "503" {
				first.reply(got, nil, 503, "")
				first.expect("ACK")
			} else {
				w.after(32*time.Second + 100*time.Millisecond)
			}
			got = second.expect("INVITE")
			b := second.answered(got)
			second.reply(got, b, 200, second.sdp(6000))
			a.learn(alice.expect("200"))
			a.send("ACK", "")
			second.expect("ACK")
			a.bye(b)
			// The first one is left alone for a while.
			d := alice.dial("sip:bob@example.com")
			d.send("MESSAGE", "")
			second.reply(second.expect("MESSAGE"), nil, 200, "")
			alice.expect("200")
			w.after(time.Minute)
			first.inbox = nil
			alice.dial("sip:bob@example.com").send("MESSAGE", "")
			first.expect("MESSAGE")
			w.clean()
		})
	}
}

// TestAllFail: when no server answers, the last one's answer is the caller's.
func TestAllFail(t *testing.T) {
	w := newWorld(t, withBackup)
	alice, first := w.alice(), w.bob()
	second := w.phone("bob", flow.UDP, "198.51.100.21:5060", "198.51.100.1:5060")
	alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000))
	first.reply(first.expect("INVITE"), nil, 503, "")
	second.reply(second.expect("INVITE"), nil, 503, "", "Retry-After: 7")
	if got := alice.expect("503"); got.get("Retry-After") != "7" {
		t.Errorf("%s", got.raw)
	}
	w.clean()
}

// TestProbe: OPTIONS find out that a server is down, and that it is back.
func TestProbe(t *testing.T) {
	w := newWorld(t, func(c *Config) { withBackup(c); c.Probe = 10 * time.Second })
	alice, first := w.alice(), w.bob()
	second := w.phone("bob", flow.UDP, "198.51.100.21:5060", "198.51.100.1:5060")
	w.after(10 * time.Second)
	second.reply(second.expect("OPTIONS"), nil, 200, "")
	first.expect("OPTIONS")
	w.dead[first.addr] = true
	w.after(33 * time.Second)
	second.inbox = nil
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	second.expect("MESSAGE")
	w.dead[first.addr] = false
	w.after(10 * time.Second)
	for _, m := range first.inbox {
		first.reply(m, nil, 200, "")
	}
	first.inbox = nil
	alice.dial("sip:bob@example.com").send("MESSAGE", "")
	first.expect("MESSAGE")
}

// TestDNS: a name is resolved on the side; the request waits, is tried at each address, and can be
// cancelled meanwhile.
func TestDNS(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.alice()
	bob := w.phone("bob", flow.UDP, "198.51.100.78:5060", "198.51.100.1:5060")
	a := alice.dial("sip:bob@sip.example.org")
	req := a.send("INVITE", alice.sdp(4000))
	a.cancel(req)
	if got := alice.expect("200"); got.cseq() != "1 CANCEL" {
		t.Errorf("%s", got.raw)
	}
	a.ackFail(req, alice.expect("487"))
	to := func(s string) flow.Target { return flow.Target{Network: "outside", Proto: flow.UDP, Addr: ap(s)} }
	w.answer(to("198.51.100.78:5060"))
	bob.nothing()

	a = alice.dial("sip:bob@sip.example.org")
	a.send("INVITE", alice.sdp(4000))
	w.answer(to("198.51.100.79:5060"), to("198.51.100.78:5060"))
	w.after(32*time.Second + 100*time.Millisecond)
	got := bob.expect("INVITE")
	b := bob.answered(got)
	bob.reply(got, b, 200, bob.sdp(6000))
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	b.bye(a)
	w.clean()
}

// TestSessionTimer: a call that nobody refreshes is ended on both sides (RFC 4028).
func TestSessionTimer(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.sdp(4000))
	bob.reply(got, b, 200, bob.sdp(6000), "Session-Expires: 90;refresher=uac")
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	w.after(80 * time.Second)
	a.send("UPDATE", "", "Session-Expires: 90;refresher=uac")
	bob.reply(bob.expect("UPDATE"), b, 200, "", "Session-Expires: 90;refresher=uac")
	alice.expect("200")
	w.after(100 * time.Second)
	alice.nothing()
	w.after(22*time.Second + 100*time.Millisecond)
	bothBye(t, a, b)
	w.clean()
}

// bothBye checks that both sides of a call were told that it is over, each within its own dialog.
func bothBye(t *testing.T, a, b *peer) {
	t.Helper()
	for _, x := range []*peer{a, b} {
		bye := x.p.expect("BYE")
		other := a
		if x == a {
			other = b
		}
		if bye.get("From") != x.remote || bye.get("To") != x.local || bye.get("Call-ID") != x.callID {
			t.Errorf("BYE to %s is of another dialog:\n%s", x.p.name, bye.raw)
		}
		if want := fmt.Sprintf("%d BYE", other.cseq+1); bye.cseq() != want {
			t.Errorf("BYE to %s has CSeq %s, not %s", x.p.name, bye.cseq(), want)
		}
		if addr, _ := hostOf(t, bye.ruri()); addr != x.p.addr {
			t.Errorf("BYE to %s has the Request-URI %s", x.p.name, bye.ruri())
		}
		x.p.reply(bye, nil, 200, "")
		x.p.nothing()
	}
}

func TestMediaIdle(t *testing.T) {
	for _, tt := range []string{"plain", "proxies"} {
		t.Run(tt, func(t *testing.T) {
			w, alice, bob := newWorld(t, nil), (*phone)(nil), (*phone)(nil)
			if tt == "plain" {
				alice, bob = w.alice(), w.bob()
			} else {
				w, alice, bob = insideProxy(t, true, true)
			}
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n", bob.sdp(6000)+"m=video 6020 RTP/AVP 31\r\n")
			reinvite(b, a, bob.sdp(6000)+"m=video 6020 RTP/AVP 31\r\n", alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n")
			l := w.opener.Leases()
			l[0].Idle()
			l[0].Busy()
			l[1].Idle()
			alice.nothing() // one stream is alive
			l[0].Idle()
			bothBye(t, a, b)
			if len(w.records) != 1 || w.records[0].Reason != "media timeout" {
				t.Errorf("records %+v", w.records)
			}
			w.clean()
		})
	}
}

// TestFM15Exhausted: no port left means 503, on the offer, on a late offer, never one-way audio.
func TestFM15Exhausted(t *testing.T) {
	t.Run("offer", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		w.opener.Fail(pinhole.ErrExhausted)
		alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000))
		alice.expect("503")
		bob.nothing()
		w.clean()
	})
	t.Run("second stream", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		w.opener.Limit(1)
		alice.dial("sip:bob@example.com").send("INVITE", alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n")
		alice.expect("503")
		bob.nothing()
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes", w.opener.Count())
		}
		w.clean()
	})
	t.Run("late offer", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		_, b, _, got := ring(alice, bob, "")
		w.opener.Fail(pinhole.ErrExhausted)
		bob.reply(got, b, 200, bob.sdp(6000))
		alice.expect("503")
		if ack := bob.expect("ACK"); ack.ruri() != "sip:bob@198.51.100.20:5060" || ack.cseq() != "1 ACK" || ack.get("To") != b.local {
			t.Errorf("%s", ack.raw)
		}
		bye := bob.expect("BYE")
		if bye.cseq() != "2 BYE" || bye.get("To") != b.local || bye.get("From") != b.remote {
			t.Errorf("%s", bye.raw)
		}
		bob.reply(bye, nil, 200, "")
		w.clean()
	})
	t.Run("re-INVITE", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
		w.opener.Fail(pinhole.ErrExhausted)
		req := a.send("INVITE", alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n")
		a.ackFail(req, alice.expect("503"))
		bob.nothing()
		ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
		reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
		a.bye(b)
		w.clean()
	})
	t.Run("fork", func(t *testing.T) {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		a, b, _, got := ring(alice, bob, alice.sdp(4000))
		bob.reply(got, b, 183, bob.sdp(6000))
		alice.expect("183")
		w.opener.Fail(pinhole.ErrExhausted)
		b2 := bob.answered(got)
		bob.reply(got, b2, 183, bob.sdp(6002)) // its early media cannot be relayed
		alice.nothing()
		bob.reply(got, b, 200, bob.sdp(6000)) // but the first branch can
		a.learn(alice.expect("200"))
		a.send("ACK", "")
		bob.expect("ACK")
		a.bye(b)
		w.clean()
	})
}
