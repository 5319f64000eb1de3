package sipalg

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

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
