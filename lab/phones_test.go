//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// trio is the usual cast: alice inside, bob outside, both at the registrar of example.org outside.
type trio struct {
	rig        *Rig
	edge       *Edge
	alice, bob *Phone
	registrar  *Host
}

// cast says what is special about a trio's phones and registrar.
type cast struct {
	Alice, Bob PhoneConfig
	Password   string
	SIP        string // more lines of edged's section sip
	TLS        bool   // between alice and the edge, and between the edge and the registrar
}

// newTrio starts registrar, edge and both phones.
func newTrio(t *testing.T, r *Rig, c cast) *trio {
	t.Helper()
	w := &trio{rig: r, registrar: r.Outside("registrar")}
	in, out := r.Inside("in1"), r.Outside("out1")
	rc, ec, proto := RegistrarConfig{Password: c.Password}, EdgeConfig{SIP: c.SIP}, "udp"
	if c.TLS {
		a := newAuthority(t, r.Dir)
		rc.TLS = a.issue(t, "registrar", []string{"example.org"}, w.registrar.IP)
		ec.TLS = a.issue(t, "edge", []string{"edge.example.org"}, r.GW.IPOn(inside, 4), r.GW.IPOn(outside, 4))
		c.Alice.CAFile, c.Alice.Transport, proto = rc.TLS.CA, "tls", "tls"
	}
	w.registrar.Registrar(t, rc)
	ec.Domains = fmt.Sprintf("example.org: {network: outside, server: \"%s:%v:%d\"}", proto, w.registrar.IP, sipPort(proto))
	w.edge = r.Edge(t, ec)
	w.alice = w.phone(t, in, "alice", 440, c.Password, c.Alice)
	w.bob = w.phone(t, out, "bob", 1000, c.Password, c.Bob)
	return w
}

// phone starts a phone that registers: through the edge if it is inside, directly otherwise.
func (w *trio) phone(t *testing.T, h *Host, user string, hz int, password string, c PhoneConfig) *Phone {
	t.Helper()
	c.User, c.Hz, c.Register, c.Password = user, hz, true, password
	via := w.registrar.IP
	if h.Side == inside {
		via = w.rig.GW.IPOn(inside, 4)
		if c.V6 {
			via = w.rig.GW.IPOn(inside, 6)
		}
	}
	c.Proxy = netip.AddrPortFrom(via, sipPort(or(c.Transport, "udp"))).String()
	return h.Phone(t, c)
}

// talk lets from call to and wants both to hear each other's tone for at least half of d.
func talk(t *testing.T, from, to *Phone, d time.Duration) {
	t.Helper()
	establish(t, from, to)
	pass(d / 2)
	until(d+8*time.Second, func() bool {
		pass(d / 10)
		return from.Heard(t).Part(to.Hz) >= d/2 && to.Heard(t).Part(from.Hz) >= d/2
	})
	from.Hangup(t)
	to.Expect(t, 10*time.Second, "CALL_CLOSED")
	wantSound(t, from, to.Hz, d)
	wantSound(t, to, from.Hz, d)
}

// establish makes a call.
func establish(t *testing.T, from, to *Phone) {
	t.Helper()
	from.Forget()
	to.Forget()
	from.Dial(t, to.AOR())
	from.Expect(t, 10*time.Second, "CALL_ESTABLISHED")
	to.Expect(t, 10*time.Second, "CALL_ESTABLISHED")
}

// wantSound checks that the phone heard hz for at least half of d and next to nothing else.
func wantSound(t *testing.T, p *Phone, hz int, d time.Duration) {
	t.Helper()
	s := p.Heard(t)
	t.Logf("%s@%s heard %v", p.User, p.Host.Name, s)
	if !s.near(hz) || s.Voiced < d/2 || s.Other > s.Voiced/5 {
		t.Errorf("%s@%s heard %v, want at least %v of %d Hz", p.User, p.Host.Name, s, d/2, hz)
	}
}

// onWire captures both interfaces for d and returns the RTP that arrives at each phone.
func (w *trio) onWire(t *testing.T, d time.Duration) (toAlice, toBob []Packet) {
	t.Helper()
	lan, wan := w.rig.Capture("lan", "udp"), w.rig.Capture("wan", "udp")
	pass(d)
	return rtpTo(lan.Stop(t), w.rig.GW, w.alice.ip()), rtpTo(wan.Stop(t), w.rig.GW, w.bob.ip())
}

// holdAndResume lets a phone hold the call, sees it fall silent for the other, resumes it, and returns
// what arrives at each phone during the second that follows.
func (w *trio) holdAndResume(t *testing.T, who *Phone) (toAlice, toBob []Packet) {
	t.Helper()
	who.Command(t, "hold", "")
	other := w.bob
	if who == w.bob {
		other = w.alice
	}
	other.Expect(t, 8*time.Second, "CALL_REMOTE_SDP")
	eventually(t, 8*time.Second, "silence on hold", func() bool {
		toAlice, toBob = w.onWire(t, 200*time.Millisecond)
		return who == w.alice && len(toBob) == 0 || who == w.bob && len(toAlice) == 0 || len(toAlice)+len(toBob) == 0
	})
	who.Command(t, "resume", "")
	other.Expect(t, 8*time.Second, "CALL_REMOTE_SDP")
	return w.onWire(t, time.Second)
}

// TestPhonesHold: hold and resume from either side; the tone of each arrives at the other again.
func TestPhonesHold(t *testing.T) {
	w := newTrio(t, lab(t), cast{})
	establish(t, w.alice, w.bob)
	pass(500 * time.Millisecond)
	for _, who := range []*Phone{w.alice, w.bob} {
		toAlice, toBob := w.holdAndResume(t, who)
		a, b := heardOnWire(toAlice), heardOnWire(toBob)
		t.Logf("after %s resumed: alice gets %v, bob gets %v", who.User, a, b)
		if !a.near(w.bob.Hz) || !b.near(w.alice.Hz) || a.Voiced < time.Second/2 || b.Voiced < time.Second/2 {
			t.Errorf("after %s resumed: alice gets %v, bob gets %v", who.User, a, b)
		}
	}
	w.alice.Hangup(t)
	w.bob.Expect(t, 10*time.Second, "CALL_CLOSED")
	w.edge.Clean(t)
}

// TestFM12_SRTPAfterHold: SDES-SRTP passes untouched: after hold and resume from either side packets
// arrive at both phones, and neither of them fails to authenticate one.
func TestFM12_SRTPAfterHold(t *testing.T) {
	srtp := PhoneConfig{MediaEnc: "srtp-mand"}
	w := newTrio(t, lab(t), cast{Alice: srtp, Bob: srtp})
	establish(t, w.alice, w.bob)
	until(8*time.Second, func() bool {
		pass(200 * time.Millisecond)
		return w.alice.Heard(t).Part(w.bob.Hz) >= time.Second && w.bob.Heard(t).Part(w.alice.Hz) >= time.Second
	})
	wantSound(t, w.alice, w.bob.Hz, time.Second)
	wantSound(t, w.bob, w.alice.Hz, time.Second)
	for _, who := range []*Phone{w.alice, w.bob} {
		toAlice, toBob := w.holdAndResume(t, who)
		if len(toAlice) < 25 || len(toBob) < 25 {
			t.Errorf("after %s resumed: %d packets for alice, %d for bob in a second", who.User, len(toAlice), len(toBob))
		}
	}
	for _, p := range []*Phone{w.alice, w.bob} {
		if log := tail(p.proc.Log, 1<<20); strings.Contains(log, "failed to decrypt RTP packet") {
			t.Errorf("%s got packets that its keys do not fit: %s", p.User, log)
		}
	}
	w.alice.Hangup(t)
	w.bob.Expect(t, 10*time.Second, "CALL_CLOSED")
	w.edge.Clean(t)
}

// TestPhonesUDP: both register with the outside registrar and call each other; no private address leaves.
func TestPhonesUDP(t *testing.T) {
	r := lab(t)
	lan, wan := r.Capture("lan"), r.Capture("wan")
	w := newTrio(t, r, cast{})
	talk(t, w.alice, w.bob, 2*time.Second)
	talk(t, w.bob, w.alice, 2*time.Second)
	w.edge.Clean(t)
	if !w.edge.isRef {
		wantNoLeaks(t, r, lan.Stop(t), wan.Stop(t))
	}
}

// TestPhonesControl: the same cast with a NAT router without an ALG: alice registers, and hears
// nothing of the call she makes, which is the reason for edged.
func TestPhonesControl(t *testing.T) {
	r := lab(t)
	r.PlainNAT()
	w := &trio{rig: r, registrar: r.Outside("registrar")}
	in, out := r.Inside("in1"), r.Outside("out1")
	w.registrar.Registrar(t, RegistrarConfig{})
	w.bob = w.phone(t, out, "bob", 1000, "", PhoneConfig{})
	w.alice = in.Phone(t, PhoneConfig{User: "alice", Hz: 440, Register: true, Proxy: w.registrar.IP.String() + ":5060"})
	establish(t, w.alice, w.bob)
	eventually(t, 8*time.Second, "bob hears alice", func() bool { pass(200 * time.Millisecond); return w.bob.Heard(t).Part(w.alice.Hz) > time.Second })
	if s := w.alice.Heard(t); s.Voiced > 0 {
		t.Errorf("alice heard %v through a NAT without an ALG: the control is broken", s)
	}
}

// TestPhonesDigest: the registrar challenges REGISTER and INVITE; the digest passes untouched.
func TestPhonesDigest(t *testing.T) {
	w := newTrio(t, lab(t), cast{Password: "s3cret"})
	talk(t, w.alice, w.bob, 2*time.Second)
	talk(t, w.bob, w.alice, 2*time.Second)
	w.edge.Clean(t)
}

// TestPhonesTCP: alice registers over TCP and is called down that connection.
func TestPhonesTCP(t *testing.T) {
	w := newTrio(t, lab(t), cast{Alice: PhoneConfig{Transport: "tcp"}})
	talk(t, w.alice, w.bob, 2*time.Second)
	talk(t, w.bob, w.alice, 2*time.Second)
	w.edge.Clean(t)
}

// TestPhonesTLS: TLS from alice to the edge and from the edge to the registrar, SDES-SRTP end to end.
func TestPhonesTLS(t *testing.T) {
	onlyEdged(t, "its configuration here has no TLS")
	srtp := PhoneConfig{MediaEnc: "srtp-mand"}
	w := newTrio(t, lab(t), cast{TLS: true, Alice: srtp, Bob: srtp})
	talk(t, w.alice, w.bob, 2*time.Second)
	talk(t, w.bob, w.alice, 2*time.Second)
	w.edge.Clean(t)
}

// TestPhonesDTLS: DTLS-SRTP is negotiated through the relay between the phones themselves.
func TestPhonesDTLS(t *testing.T) {
	dtls := PhoneConfig{MediaEnc: "dtls_srtp"}
	w := newTrio(t, lab(t), cast{Alice: dtls, Bob: dtls})
	talk(t, w.alice, w.bob, 3*time.Second)
	w.edge.Clean(t)
}

// TestPhonesICE: phones that insist on ICE; their candidates are replaced by the relay's, the checks
// pass, and the call has its audio.
func TestPhonesICE(t *testing.T) {
	onlyEdged(t, "its configuration here strips the candidates, without which baresip's ICE gives up")
	r := lab(t)
	lan, wan := r.Capture("lan"), r.Capture("wan")
	w := newTrio(t, r, cast{SIP: "ice: relay", Alice: PhoneConfig{ICE: true}, Bob: PhoneConfig{ICE: true}})
	talk(t, w.alice, w.bob, 2*time.Second)
	w.edge.Clean(t)
	if !w.edge.isRef {
		wantNoLeaks(t, r, lan.Stop(t), wan.Stop(t))
	}
}

// TestPhonesIPv6: alice has IPv6 only, the registrar and bob IPv4.
func TestPhonesIPv6(t *testing.T) {
	onlyEdged(t, "its configuration here is IPv4 only")
	w := newTrio(t, lab(t), cast{Alice: PhoneConfig{V6: true}})
	talk(t, w.alice, w.bob, 2*time.Second)
	talk(t, w.bob, w.alice, 2*time.Second)
	w.edge.Clean(t)
}

// TestPhonesHairpin: two inside phones call each other by way of the outside registrar.
func TestPhonesHairpin(t *testing.T) {
	onlyEdged(t, "rtpengine takes the two passes of a call for one")
	w := newTrio(t, lab(t), cast{})
	carol := w.phone(t, w.rig.Inside("in2"), "carol", 700, "", PhoneConfig{})
	talk(t, w.alice, carol, 2*time.Second)
	talk(t, carol, w.bob, 2*time.Second)
	w.edge.Clean(t)
}
