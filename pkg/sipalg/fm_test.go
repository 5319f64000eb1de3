package sipalg

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
	"edged.dev/edged/pkg/sipalg/flow"
)

// The failure modes that an edge must not have, by their numbers in the public record; those of the
// media (3 in the relay), of framing (8) and of the codec have their tests there.

// TestFM01UntouchedBytes: odd spelling, signed fields and foreign bodies pass byte for byte, both ways.
func TestFM01UntouchedBytes(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	d := alice.dial("sip:bob@example.com")
	odd := []string{
		"Identity: eyJhbGciOiJFUzI1NiJ9.eyJvcmlnIjp7fX0.c2ln;info=<https://cert.example.org/a.pem>;alg=ES256;ppt=shaken",
		"X-Odd  :   two   blanks,  \t tab ", "sUbJeCt: \"q,uo\\\"ted\", é", "k: replaces , 100rel",
		"Warning: 399 example.org \"a,b\"", "P-Asserted-Identity: \"Ünder\" <sip:+49301@example.com;user=phone>, tel:+49301",
		"Folded: first\n  second\n\tthird", "Empty:", "Authorization: Digest username=\"a\", realm=\"r\", nonce=\"n\", uri=\"sip:x\", response=\"0\"",
	}
	d.send("INVITE", "", append(odd, "Content-Type: application/pidf+xml", "Expires: 120")...)
	got := bob.expect("INVITE")
	for _, l := range odd {
		if want := crlf(strings.TrimRight(l, "")); !slices.Contains(got.lines, want) {
			t.Errorf("%q is not in\n%s", want, got.raw)
		}
	}
	b := bob.answered(got)
	bob.reply(got, b, 200, "", odd...)
	if resp := alice.expect("200"); !slices.Contains(resp.lines, odd[0]) {
		t.Errorf("Identity is changed:\n%s", resp.raw)
	}
	m := alice.dial("sip:bob@example.com")
	raw := m.text("MESSAGE", "")
	body := "\x00\x01binary\r\n\r\nm=audio 1 RTP/AVP 0\r\nc=IN IP4 10.0.0.5\n"
	raw = strings.Replace(raw, "Content-Length: 0\r\n\r\n", "Content-Type: message/cpim\r\nl: "+fmt.Sprint(len(body))+"\r\n\r\n"+body, 1)
	w.showsIn = true // the body is alice's own affair
	m.raw(raw)
	if got := bob.expect("MESSAGE"); got.body != body {
		t.Errorf("body %q", got.body)
	}
}

const iceOffer = "v=0\r\no=alice 1 1 IN IP4 10.0.0.5\r\ns=-\r\nc=IN IP4 10.0.0.5\r\nt=0 0\r\n" +
	"m=audio 4000 RTP/AVP 0\r\na=rtcp:4007 IN IP4 10.0.0.5\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n" +
	"a=candidate:1 1 UDP 2130706431 10.0.0.5 4000 typ host\r\na=candidate:2 1 UDP 1694498815 192.0.2.9 4000 typ srflx raddr 10.0.0.5 rport 4000\r\n" +
	"a=candidate:3 1 UDP 2130706430 fd00::5 4000 typ host\r\na=rtpmap:0 PCMU/8000\r\n"

// TestFM02NoPrivateAddress: neither c=, o=, a=rtcp nor candidates tell of the inside; checkOutput looks
// at every message.
func TestFM02NoPrivateAddress(t *testing.T) {
	for _, ice := range []ICEMode{"strip", "relay"} {
		t.Run(string(ice), func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.ICE = ice })
			alice, bob := w.alice(), w.bob()
			a, b := alice.call("sip:bob@example.com", bob, iceOffer, bob.sdp(6000))
			l := w.opener.Leases()[0]
			if got := l.Remote(pinhole.Near); got.RTCP != ap("10.0.0.5:4007") {
				t.Errorf("a=rtcp was read as %v", got.RTCP)
			}
			b.bye(a)
			w.golden("fm02-" + string(ice))
			w.clean()
		})
	}
}

func TestFM02Multipart(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	d := alice.dial("sip:bob@example.com")
	body := "--b1\r\nContent-Type: application/sdp\r\n\r\n" + alice.sdp(4000) + "\r\n--b1\r\nContent-Type: application/resource-lists+xml\r\n\r\n<x/>\r\n--b1--\r\n"
	head, _, _ := strings.Cut(d.text("INVITE", ""), "Content-Length")
	d.raw(withType(head, "multipart/mixed;boundary=b1", body))
	got := bob.expect("INVITE")
	if !strings.Contains(got.body, "c=IN IP4 198.51.100.1") || !strings.Contains(got.body, "<x/>") {
		t.Errorf("%s", got.raw)
	}
	bob.reply(got, nil, 486, "")
	alice.expect("486")
	w.clean()
}

// TestFM03MediaMoves: a re-INVITE with another port is declared to the relay, and the edge's own ports
// stay the same.
func TestFM03MediaMoves(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	l := w.opener.Leases()[0]
	reinvite(a, b, alice.sdp(4010), bob.sdp(6000))
	if got := l.Remote(pinhole.Near).Addr; got != ap("10.0.0.5:4010") {
		t.Errorf("caller's media at %v", got)
	}
	reinvite(b, a, sdpOf("198.51.100.99", 6010), alice.sdp(4010))
	if got := l.Remote(pinhole.Far).Addr; got != ap("198.51.100.99:6010") {
		t.Errorf("callee's media at %v", got)
	}
	if n := len(w.opener.Leases()); n != 1 {
		t.Errorf("%d pinholes were opened, not 1", n)
	}
	a.bye(b)
	w.clean()
}

// TestFM03AddressWhileAnswerPends: until it is answered, an offer moves only its sender's end.
func TestFM03RefusedMove(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	l := w.opener.Leases()[0]
	req := a.send("INVITE", alice.sdp(4010)+"m=video 4020 RTP/AVP 31\r\n")
	if w.opener.Count() != 2 {
		t.Errorf("%d pinholes while audio and video are offered", w.opener.Count())
	}
	got := bob.expect("INVITE")
	bob.reply(got, b, 488, "")
	a.ackFail(req, alice.expect("488"))
	bob.expect("ACK")
	if got := l.Remote(pinhole.Near).Addr; got != ap("10.0.0.5:4000") {
		t.Errorf("after the refusal the caller's media is at %v", got)
	}
	if w.opener.Count() != 1 {
		t.Errorf("%d pinholes after the refusal", w.opener.Count())
	}
	b.bye(a)
	w.clean()
}

// TestFM04SameConnection: ACK, re-INVITE and BYE of a TLS call use the connection that the call came
// by, though the phone's Contact says another port.
func TestFM04SameConnection(t *testing.T) {
	for _, proto := range []flow.Proto{flow.TCP, flow.TLS, flow.WS} {
		w := newWorld(t, nil)
		edge := map[flow.Proto]string{flow.TCP: "10.0.0.1:5060", flow.TLS: "10.0.0.1:5061", flow.WS: "10.0.0.1:8080"}[proto]
		alice := w.phone("alice", proto, "10.0.0.5:45062", edge)
		alice.extra = []string{"Contact: <sip:alice@10.0.0.5:5060;transport=" + proto.String() + ";ob>;reg-id=1"}
		bob := w.bob()
		a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
		if to, p := hostOf(t, a.target); p != proto || to.Addr() != ap(edge).Addr() {
			t.Errorf("alice would leave her connection for %v %v", p, to)
		}
		reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
		b.bye(a)
		w.clean()
	}
}

// TestFM04ConnectionLost: when the phone comes back with a new connection the call goes on over it.
func TestFM04ConnectionLost(t *testing.T) {
	w := newWorld(t, nil)
	alice := w.phone("alice", flow.TCP, "10.0.0.5:45062", "10.0.0.1:5060")
	bob := w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	w.hangUp(alice.addr)
	reinvite(a, b, alice.sdp(4002), bob.sdp(6000))
	b.bye(a)
	w.clean()
}

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

// bigLine makes a request larger than a datagram may be.
var bigLine = "X-Big: " + strings.Repeat("0123456789", 140)

func TestFM07LargeRequest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refuses bool
		want    string
	}{{"tcp", false, "TCP"}, {"falls back", true, "UDP"}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Domains["example.com"] = Domain{Network: "outside", Server: "198.51.100.20:5060"} })
			w.refused[flow.Target{Network: "outside", Proto: flow.TCP, Addr: ap("198.51.100.20:5060")}] = tt.refuses
			alice, bob := w.alice(), w.bob()
			a := alice.dial("sip:bob@example.com")
			a.send("INVITE", alice.sdp(4000), bigLine)
			got := bob.expect("INVITE")
			if via := got.all("Via")[0]; !strings.HasPrefix(via, "SIP/2.0/"+tt.want+" 198.51.100.1:5060;") {
				t.Errorf("went with Via %s", via)
			}
			if c := got.get("Contact"); strings.Contains(c, "transport=") {
				t.Errorf("Contact %s holds the dialog to a transport that was chosen for one request", c)
			}
			b := bob.answered(got)
			bob.reply(got, b, 200, bob.sdp(6000))
			a.learn(alice.expect("200"))
			a.send("ACK", "")
			bob.expect("ACK")
			bob.nothing()
			b.bye(a)
			w.clean()
		})
	}
}

func TestFM07ConfiguredTransportStays(t *testing.T) {
	w := newWorld(t, nil) // udp:...
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", alice.sdp(4000), bigLine)
	if via := bob.expect("INVITE").all("Via")[0]; !strings.HasPrefix(via, "SIP/2.0/UDP") {
		t.Errorf("went with Via %s", via)
	}
}

// TestFM09Forked: every branch of a forked call has media of its own; the one that answers keeps it.
func TestFM09Forked(t *testing.T) {
	for _, winner := range []int{0, 1} {
		t.Run(fmt.Sprint(winner), func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a := alice.dial("sip:bob@example.com")
			a.send("INVITE", alice.sdp(4000))
			got := bob.expect("INVITE")
			branch := []*peer{bob.answered(got), bob.answered(got)}
			media := []string{sdpOf("198.51.100.71", 7100), sdpOf("198.51.100.72", 7200)}
			ports := map[string]bool{}
			for i, b := range branch {
				bob.reply(got, b, 183, media[i])
				ports[mediaPort(alice.expect("183"))] = true
			}
			if len(ports) != 2 {
				t.Errorf("two early dialogs have the ports %v at the caller", ports)
			}
			for i, l := range w.opener.Leases() {
				want := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("198.51.100.7%d", i+1)), uint16(7100+100*i))
				if got := l.Remote(pinhole.Far).Addr; got != want {
					t.Errorf("branch %d has its media at %v, not %v", i, got, want)
				}
			}
			bob.reply(got, branch[winner], 200, media[winner])
			a.learn(alice.expect("200"))
			a.send("ACK", "")
			bob.expect("ACK")
			if w.opener.Count() != 1 || w.opener.Leases()[winner].Closed() {
				t.Errorf("%d pinholes are left; the winner's is closed: %v", w.opener.Count(), w.opener.Leases()[winner].Closed())
			}
			reinvite(branch[winner], a, media[winner], alice.sdp(4000))
			branch[winner].bye(a)
			w.clean()
		})
	}
}

func mediaPort(m *msg) string {
	_, rest, _ := strings.Cut(m.body, "m=audio ")
	port, _, _ := strings.Cut(rest, " ")
	return port
}

// TestFM09TwoAnswers: when two branches answer, the caller ends one of them, and the other lives on.
func TestFM09TwoAnswers(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a := alice.dial("sip:bob@example.com")
	a.send("INVITE", alice.sdp(4000))
	got := bob.expect("INVITE")
	b1, b2 := bob.answered(got), bob.answered(got)
	bob.reply(got, b1, 200, sdpOf("198.51.100.71", 7100))
	a.learn(alice.expect("200"))
	a.send("ACK", "")
	bob.expect("ACK")
	bob.reply(got, b2, 200, sdpOf("198.51.100.72", 7200))
	a2 := *a
	a2.learn(alice.expect("200"))
	a2.send("ACK", "")
	if ack := bob.expect("ACK"); tagOf(ack.get("To")) != tagOf(b2.local) {
		t.Errorf("ACK to the wrong branch:\n%s", ack.raw)
	}
	a2.bye(b2)
	if w.opener.Count() != 1 {
		t.Fatalf("%d pinholes after one of two dialogs has ended", w.opener.Count())
	}
	if got := w.openLease().Remote(pinhole.Far).Addr; got != ap("198.51.100.71:7100") {
		t.Errorf("the media that is left is %v", got)
	}
	reinvite(b1, a, sdpOf("198.51.100.71", 7102), alice.sdp(4000))
	a.bye(b1)
	w.clean()
}

func (w *world) openLease() *pinholetest.Lease {
	for _, l := range w.opener.Leases() {
		if !l.Closed() {
			return l
		}
	}
	w.t.Fatal("no pinhole is open")
	return nil
}

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

const t38 = "m=audio 0 RTP/AVP 0\r\nm=image %d udptl t38\r\na=T38FaxVersion:0\r\na=T38FaxUdpEC:t38UDPRedundancy\r\n"

func faxSDP(addr string, port int) string {
	head, _, _ := strings.Cut(sdpOf(addr, 1), "m=audio")
	return head + fmt.Sprintf(t38, port)
}

func TestFM11Fax(t *testing.T) {
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprintf("refused=%v", refused), func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
			req := b.send("INVITE", faxSDP("198.51.100.20", 6100))
			got := alice.expect("INVITE")
			if !strings.Contains(got.body, "m=audio 0 RTP/AVP 0\r\nm=image 50002 udptl t38\r\n") {
				t.Errorf("%s", got.body)
			}
			if refused {
				alice.reply(got, a, 488, "")
				b.ackFail(req, bob.expect("488"))
				alice.expect("ACK")
				if w.opener.Count() != 1 || w.opener.Leases()[0].Closed() {
					t.Errorf("%d pinholes; audio closed: %v", w.opener.Count(), w.opener.Leases()[0].Closed())
				}
				// The call goes on as it was.
				reinvite(b, a, bob.sdp(6000), alice.sdp(4000))
			} else {
				alice.reply(got, a, 200, faxSDP("10.0.0.5", 4100))
				b.retarget(bob.expect("200"))
				b.send("ACK", "")
				alice.expect("ACK")
				if w.opener.Count() != 1 || !w.opener.Leases()[0].Closed() {
					t.Errorf("%d pinholes with T.38; audio closed: %v", w.opener.Count(), w.opener.Leases()[0].Closed())
				}
				if l := w.openLease(); l.Request.Kind != pinhole.UDP || l.Remote(pinhole.Near).Addr != ap("10.0.0.5:4100") || l.Remote(pinhole.Far).Addr != ap("198.51.100.20:6100") {
					t.Errorf("fax pinhole is %v, %v to %v", l.Request.Kind, l.Remote(pinhole.Near).Addr, l.Remote(pinhole.Far).Addr)
				}
			}
			a.bye(b)
			w.clean()
		})
	}
}

// TestFM11FaxInPlace: m=audio becomes m=image in the same place.
func TestFM11FaxInPlace(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	image := func(sdp string) string {
		head, _, _ := strings.Cut(sdp, "m=audio")
		return head + "m=image 6100 udptl t38\r\n"
	}
	reinvite(b, a, image(bob.sdp(1)), image(alice.sdp(1)))
	if l := w.openLease(); l.Remote(pinhole.Near).Addr != ap("10.0.0.5:6100") {
		t.Errorf("fax at %v", l.Remote(pinhole.Near).Addr)
	}
	reinvite(a, b, alice.sdp(4000), bob.sdp(6000))
	a.bye(b)
	w.clean()
}

// TestFM12Keys: crypto lines pass untouched, also while the call is held and resumed on the same ports.
func TestFM12Keys(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	keys := "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz|2^20|1:4\r\na=crypto:7 F8_128_HMAC_SHA1_80 inline:MTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5QUJjZGVm|2^20|1:4;inline:QUJjZGVmMTIzNDU2Nzg5QUJDREUwMTIzNDU2Nzg5|2^20|2:4\r\na=fingerprint:sha-256 AA:BB\r\n"
	secure := func(p *phone, port int, more string) string {
		return strings.Replace(p.sdp(port), "RTP/AVP", "RTP/SAVP", 1) + keys + more
	}
	a, b := alice.call("sip:bob@example.com", bob, secure(alice, 4000, ""), secure(bob, 6000, ""))
	for _, dir := range []string{"a=sendonly\r\n", "a=sendrecv\r\n"} {
		reinvite(a, b, secure(alice, 4000, dir), secure(bob, 6000, ""))
	}
	n := 0
	for _, e := range w.log {
		if m := parseMsg(e.raw); e.toWho && m.body != "" {
			if n++; !strings.Contains(m.body, keys) || mediaPort(m) != "50000" {
				t.Errorf("keys or ports changed:\n%s", m.body)
			}
		}
	}
	if n != 6 {
		t.Errorf("%d descriptions", n)
	}
	a.bye(b)
	w.clean()
}

// TestFM13MixedFamily: a phone that signals over IPv4 may have its media on IPv6, and the other way round.
func TestFM13MixedFamily(t *testing.T) {
	w := newWorld(t, nil)
	w.opener.Allow("inside", netip.MustParsePrefix("fd00::5/128"))
	alice, bob := w.alice(), w.bob()
	a, b := alice.call("sip:bob@example.com", bob, sdpOf("fd00::5", 4000), bob.sdp(6000))
	l := w.openLease()
	if n, f := l.Local(pinhole.Near).Addr, l.Local(pinhole.Far).Addr; n.Addr() != netip.MustParseAddr("fd00::1") || f.Addr() != netip.MustParseAddr("198.51.100.1") {
		t.Errorf("pinhole %v - %v", n, f)
	}
	// The answer must speak the offer's family (RFC 6157 §4.1).
	found := false
	for _, e := range w.log {
		if m := parseMsg(e.raw); e.toWho && e.who == "alice" && m.body != "" {
			found = true
			if !strings.Contains(m.body, "c=IN IP6 fd00::1") {
				t.Errorf("answer:\n%s", m.body)
			}
		}
	}
	if !found {
		t.Error("no answer")
	}
	a.bye(b)
	w.clean()
}
