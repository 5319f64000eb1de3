package sipalg

import (
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

func TestFM06NothingLeaks(t *testing.T) {
	type two struct{ alice, bob *phone }
	invite := func(p two) (a *peer, req, got *msg) {
		a = p.alice.dial("sip:bob@example.com")
		req = a.send("INVITE", p.alice.sdp(4000))
		return a, req, p.bob.expect("INVITE")
	}
	call := func(p two) (a, b *peer) {
		return p.alice.call("sip:bob@example.com", p.bob, p.alice.sdp(4000), p.bob.sdp(6000))
	}
	cases := map[string]func(w *world, p two){
		"486": func(w *world, p two) {
			a, req, got := invite(p)
			p.bob.reply(got, nil, 486, "")
			a.ackFail(req, p.alice.expect("486"))
			p.bob.expect("ACK")
		},
		"486 without ACK": func(w *world, p two) {
			_, _, got := invite(p)
			p.bob.reply(got, nil, 486, "")
			p.alice.expect("486")
		},
		"401, then answered": func(w *world, p two) {
			a, req, got := invite(p)
			p.bob.reply(got, nil, 401, "")
			a.ackFail(req, p.alice.expect("401"))
			p.bob.expect("ACK")
			a.send("INVITE", p.alice.sdp(4000))
			got = p.bob.expect("INVITE")
			b := p.bob.answered(got)
			p.bob.reply(got, b, 200, p.bob.sdp(6000))
			a.learn(p.alice.expect("200"))
			a.send("ACK", "")
			p.bob.expect("ACK")
			a.bye(b)
		},
		"no answer at all": func(w *world, p two) { invite(p); w.after(40 * time.Second); p.alice.expect("408") },
		"rings for ever": func(w *world, p two) {
			_, _, got := invite(p)
			p.bob.reply(got, p.bob.answered(got), 180, "")
			p.alice.expect("180")
		},
		"cancelled": func(w *world, p two) {
			a, req, got := invite(p)
			p.bob.reply(got, p.bob.answered(got), 180, "")
			p.alice.expect("180")
			a.cancel(req)
			p.alice.expect("200")
			p.bob.reply(p.bob.expect("CANCEL"), nil, 200, "")
			p.bob.reply(got, nil, 487, "")
			a.ackFail(req, p.alice.expect("487"))
			p.bob.expect("ACK")
		},
		"cancelled, never answered": func(w *world, p two) {
			a, req, got := invite(p)
			p.bob.reply(got, p.bob.answered(got), 180, "")
			p.alice.expect("180")
			a.cancel(req)
			p.alice.expect("200")
			w.after(40 * time.Second)
			p.alice.expect("487")
		},
		"cancelled before any response": func(w *world, p two) {
			a, req, _ := invite(p)
			a.cancel(req)
			p.alice.expect("200")
			w.after(40 * time.Second)
			p.alice.expect("487")
		},
		"BYE": func(w *world, p two) { a, b := call(p); a.bye(b) },
		"BYE without answer": func(w *world, p two) {
			a, _ := call(p)
			a.send("BYE", "")
			w.dead[p.bob.addr] = true
			w.after(40 * time.Second)
			if len(w.core.sessions) != 0 {
				w.t.Error("the call is still there")
			}
		},
		"BYE answered with 481": func(w *world, p two) {
			a, _ := call(p)
			a.send("BYE", "")
			p.bob.reply(p.bob.expect("BYE"), nil, 481, "")
			p.alice.expect("481")
		},
		"BYE answered with 500": func(w *world, p two) {
			a, _ := call(p)
			a.send("BYE", "")
			p.bob.reply(p.bob.expect("BYE"), nil, 500, "")
			p.alice.expect("500")
			w.after(40 * time.Second)
			if len(w.core.sessions) != 0 {
				w.t.Error("the call is still there")
			}
		},
		"both BYE at once": func(w *world, p two) {
			a, b := call(p)
			a.send("BYE", "")
			b.send("BYE", "")
			p.bob.reply(p.bob.expect("BYE"), nil, 200, "")
			p.alice.reply(p.alice.expect("BYE"), nil, 200, "")
		},
		"BYE before the ACK": func(w *world, p two) {
			a, _, got := invite(p)
			b := p.bob.answered(got)
			p.bob.reply(got, b, 200, p.bob.sdp(6000))
			a.learn(p.alice.expect("200"))
			a.bye(b)
			p.bob.reply(got, b, 200, p.bob.sdp(6000)) // it crosses the BYE
		},
		"never acknowledged, never ended": func(w *world, p two) {
			_, _, got := invite(p)
			p.bob.reply(got, p.bob.answered(got), 200, p.bob.sdp(6000))
			p.alice.expect("200")
			w.opener.Leases()[0].Idle()
		},
		"re-INVITE refused": func(w *world, p two) {
			a, b := call(p)
			req := a.send("INVITE", p.alice.sdp(4002)+"m=video 4020 RTP/AVP 31\r\n")
			p.bob.reply(p.bob.expect("INVITE"), b, 488, "")
			a.ackFail(req, p.alice.expect("488"))
			p.bob.expect("ACK")
			a.bye(b)
		},
		"re-INVITE without answer": func(w *world, p two) {
			a, b := call(p)
			req := a.send("INVITE", p.alice.sdp(4002)+"m=video 4020 RTP/AVP 31\r\n")
			p.bob.expect("INVITE")
			w.after(32 * time.Second)
			a.ackFail(req, p.alice.expect("408"))
			if w.opener.Count() != 1 {
				w.t.Errorf("%d pinholes after the timeout", w.opener.Count())
			}
			p.bob.inbox = nil
			a.bye(b)
		},
		"media removed": func(w *world, p two) {
			a, b := call(p)
			reinvite(a, b, p.alice.sdp(4000)+"m=video 4020 RTP/AVP 31\r\n", p.bob.sdp(6000)+"m=video 6020 RTP/AVP 31\r\n")
			if w.opener.Count() != 2 {
				w.t.Errorf("%d pinholes with video", w.opener.Count())
			}
			reinvite(a, b, p.alice.sdp(4000)+"m=video 0 RTP/AVP 31\r\n", p.bob.sdp(6000)+"m=video 0 RTP/AVP 31\r\n")
			if w.opener.Count() != 1 {
				w.t.Errorf("%d pinholes without video", w.opener.Count())
			}
			b.bye(a)
		},
		"media refused": func(w *world, p two) {
			a, _, got := invite(p)
			b := p.bob.answered(got)
			p.bob.reply(got, b, 200, strings.Replace(p.bob.sdp(6000), "m=audio 6000", "m=audio 0", 1))
			a.learn(p.alice.expect("200"))
			a.send("ACK", "")
			p.bob.expect("ACK")
			if w.opener.Count() != 0 {
				w.t.Errorf("%d pinholes for refused media", w.opener.Count())
			}
			a.bye(b)
		},
		"connection refused": func(w *world, p two) {
			w.refused[flow.Target{Network: "outside", Proto: flow.TCP, Addr: ap("198.51.100.30:5060")}] = true
			a := p.alice.dial("sip:x@198.51.100.30;transport=tcp")
			a.send("INVITE", p.alice.sdp(4000))
			p.alice.expect("503")
		},
		"name without address": func(w *world, p two) {
			a := p.alice.dial("sip:x@nowhere.example.org")
			a.send("INVITE", p.alice.sdp(4000))
			w.answer()
			p.alice.expect("503")
		},
		"name never resolved": func(w *world, p two) {
			a := p.alice.dial("sip:x@nowhere.example.org")
			a.send("INVITE", p.alice.sdp(4000))
			w.after(40 * time.Second)
			p.alice.expect("408")
		},
		"early media, then failure": func(w *world, p two) {
			_, _, got := invite(p)
			p.bob.reply(got, p.bob.answered(got), 183, p.bob.sdp(6000))
			p.alice.expect("183")
			p.bob.reply(got, p.bob.answered(got), 183, p.bob.sdp(6002))
			p.alice.expect("183")
			if w.opener.Count() != 2 {
				w.t.Errorf("%d pinholes for two early dialogs", w.opener.Count())
			}
			p.bob.reply(got, nil, 500, "")
			p.alice.expect("500")
		},
		"nothing but OPTIONS and REGISTER": func(w *world, p two) {
			p.alice.register(p.bob)
			d := p.alice.dial("sip:example.com")
			d.send("REGISTER", "", "Contact: *", "Expires: 0")
			p.bob.reply(p.bob.expect("REGISTER"), nil, 200, "")
			p.alice.expect("200")
		},
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			f(w, two{w.alice(), w.bob()})
			w.clean()
		})
	}
}

// TestFM06TransportFailure: a call whose inside connection breaks while it rings ends by its own rules.
func TestFM06TransportFailure(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains["example.com"] = Domain{Network: "outside", Server: "tcp:198.51.100.20:5060"}
	})
	alice := w.alice()
	bob := w.phone("bob", flow.TCP, "198.51.100.20:5060", "198.51.100.1:5060")
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", alice.sdp(4000))
	got := bob.expect("INVITE")
	bob.reply(got, bob.answered(got), 180, "")
	alice.expect("180")
	w.hangUp(bob.addr)
	alice.expect("503")
	if w.opener.Count() != 0 {
		t.Errorf("%d pinholes", w.opener.Count())
	}
	w.clean()
}
