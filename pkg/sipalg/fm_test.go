package sipalg

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
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
