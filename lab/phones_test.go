//go:build lab

package lab

import (
	"fmt"
	"net/netip"
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
	TLS        bool // between alice and the edge, and between the edge and the registrar
}

// newTrio starts registrar, edge and both phones.
func newTrio(t *testing.T, r *Rig, c cast) *trio {
	t.Helper()
	w := &trio{rig: r, registrar: r.Outside("registrar")}
	in, out := r.Inside("in1"), r.Outside("out1")
	rc, ec, proto := RegistrarConfig{Password: c.Password}, EdgeConfig{}, "udp"
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

// talk lets from call to, lets them talk for d, and wants both to hear each other's tone.
func talk(t *testing.T, from, to *Phone, d time.Duration) {
	t.Helper()
	establish(t, from, to)
	pass(d)
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

// wantMore waits until the phone has heard d more of hz than before.
func wantMore(t *testing.T, p *Phone, hz int, before, d time.Duration) {
	t.Helper()
	if !until(d+8*time.Second, func() bool { return p.Heard(t).Part(hz) >= before+d }) {
		t.Errorf("%s@%s heard %v, want %v more of %d Hz than %v", p.User, p.Host.Name, p.Heard(t), d, hz, before)
	}
}

// holdAndResume lets who hold and resume the call, and wants the echo to hear the other again after it.
func holdAndResume(t *testing.T, who, echo, speaker *Phone) {
	t.Helper()
	who.Command(t, "hold", "")
	heard := time.Duration(-1)
	eventually(t, 8*time.Second, echo.User+" hears nothing on hold", func() bool {
		before := heard
		pass(300 * time.Millisecond)
		heard = echo.Heard(t).Part(speaker.Hz)
		return heard == before
	})
	who.Command(t, "resume", "")
	wantMore(t, echo, speaker.Hz, heard, time.Second)
}

// holdCases are run with the echo on either side, and both phones hold in turn.
func holdCases(t *testing.T, mediaEnc string) {
	for _, inside := range []bool{true, false} {
		t.Run(map[bool]string{true: "heard-inside", false: "heard-outside"}[inside], func(t *testing.T) {
			w := newTrio(t, lab(t), cast{Alice: PhoneConfig{MediaEnc: mediaEnc, Echo: inside}, Bob: PhoneConfig{MediaEnc: mediaEnc, Echo: !inside}})
			echo, speaker := w.alice, w.bob
			if !inside {
				echo, speaker = w.bob, w.alice
			}
			establish(t, w.alice, w.bob)
			wantMore(t, echo, speaker.Hz, 0, time.Second)
			holdAndResume(t, speaker, echo, speaker)
			holdAndResume(t, echo, echo, speaker)
			s := echo.Heard(t)
			t.Logf("%s heard %v, over two holds", echo.User, s)
			if s.Other > s.Voiced/5 {
				t.Errorf("%s heard %v", echo.User, s)
			}
			w.alice.Hangup(t)
			w.bob.Expect(t, 10*time.Second, "CALL_CLOSED")
			w.edge.Clean(t)
		})
	}
}

// TestPhonesHold: hold and resume from either side; the audio is back in either direction.
func TestPhonesHold(t *testing.T) { holdCases(t, "") }

// TestFM12_SRTPAfterHold: SDES-SRTP passes untouched, and is no noise after hold and resume.
func TestFM12_SRTPAfterHold(t *testing.T) { holdCases(t, "srtp-mand") }

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
	wantMore(t, w.bob, w.alice.Hz, 0, time.Second)
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

// TestPhonesICE: phones that gather ICE candidates; they are stripped, and the call has its audio.
func TestPhonesICE(t *testing.T) {
	r := lab(t)
	lan, wan := r.Capture("lan"), r.Capture("wan")
	w := newTrio(t, r, cast{Alice: PhoneConfig{ICE: true}, Bob: PhoneConfig{ICE: true}})
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
