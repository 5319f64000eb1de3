//go:build lab

package lab

import (
	"strings"
	"testing"
	"time"
)

const profiles = "media_profile: {inside: rtp, outside: srtp}"

// unreadable checks that RTP is no sound to who has no keys.
func unreadable(t *testing.T, where string, rtp []Packet) {
	t.Helper()
	s := heardOnWire(rtp)
	t.Logf("%s: %d packets, which sound like %v", where, len(rtp), s)
	if len(rtp) < 25 || s.Voiced > s.Other/2 {
		t.Errorf("%s: %d packets, which sound like %v", where, len(rtp), s)
	}
}

// TestSRTPToPlain: alice inside speaks plain RTP, bob outside insists on SRTP; they call each other, each side of the
// gateway carries what its phone speaks, and hold and resume leave keys that fit.
func TestSRTPToPlain(t *testing.T) {
	onlyEdged(t, "it is not configured to change the protection of media")
	w := newTrio(t, lab(t), cast{SIP: profiles, Bob: PhoneConfig{MediaEnc: "srtp-mand"}})
	talk(t, w.alice, w.bob, 2*time.Second)
	talk(t, w.bob, w.alice, 2*time.Second)
	for _, from := range []*Phone{w.alice, w.bob} {
		to := w.bob
		if from == w.bob {
			to = w.alice
		}
		establish(t, from, to)
		pass(500 * time.Millisecond)
		toAlice, toBob := w.onWire(t, time.Second)
		if s := heardOnWire(toAlice); !s.near(w.bob.Hz) {
			t.Errorf("alice gets %v", s)
		}
		unreadable(t, "to bob", toBob)
		for _, who := range []*Phone{w.alice, w.bob} {
			toAlice, toBob = w.holdAndResume(t, who)
			if s := heardOnWire(toAlice); !s.near(w.bob.Hz) || s.Voiced < time.Second/2 {
				t.Errorf("after %s resumed alice gets %v", who.User, s)
			}
			unreadable(t, "to bob after "+who.User+" resumed", toBob)
		}
		from.Hangup(t)
		to.Expect(t, 10*time.Second, "CALL_CLOSED")
	}
	if log := tail(w.bob.proc.Log, 1<<20); strings.Contains(log, "failed to decrypt RTP packet") {
		t.Errorf("bob got packets that his keys do not fit: %s", log)
	}
	// baresip begins with an RTCP packet in the clear, for its NAT, and may end with a BYE that bears no valid tag.
	if n := w.edge.Metric("edged_media_dropped_total", `reason="bad_srtp"`); n > 8 {
		t.Errorf("%v packets were not authentic, of 4 calls", n)
	}
	w.edge.Clean(t)
}

// TestDTLSToPlain: as TestSRTPToPlain, with a bob who insists on DTLS-SRTP. He takes either role in the handshakes.
func TestDTLSToPlain(t *testing.T) {
	onlyEdged(t, "it is not configured to change the protection of media")
	w := newTrio(t, lab(t), cast{SIP: "media_profile: {inside: rtp, outside: dtls-srtp}", Bob: PhoneConfig{MediaEnc: "dtls_srtp"}})
	talk(t, w.alice, w.bob, 3*time.Second)
	talk(t, w.bob, w.alice, 3*time.Second)
	establish(t, w.alice, w.bob)
	pass(time.Second)
	toAlice, toBob := w.onWire(t, time.Second)
	if s := heardOnWire(toAlice); !s.near(w.bob.Hz) {
		t.Errorf("alice gets %v", s)
	}
	unreadable(t, "to bob", toBob)
	for _, who := range []*Phone{w.alice, w.bob} {
		toAlice, toBob = w.holdAndResume(t, who)
		if s := heardOnWire(toAlice); !s.near(w.bob.Hz) || s.Voiced < time.Second/2 {
			t.Errorf("after %s resumed alice gets %v", who.User, s)
		}
		unreadable(t, "to bob after "+who.User+" resumed", toBob)
	}
	w.alice.Hangup(t)
	w.bob.Expect(t, 10*time.Second, "CALL_CLOSED")
	w.edge.Clean(t)
}

// TestSRTPControl: the same phones without media_profile: bob refuses the plain call, and alice bob's.
func TestSRTPControl(t *testing.T) {
	onlyEdged(t, "it is not configured to change the protection of media")
	w := newTrio(t, lab(t), cast{Bob: PhoneConfig{MediaEnc: "srtp-mand"}})
	w.alice.Dial(t, w.bob.AOR())
	w.alice.Expect(t, 10*time.Second, "CALL_CLOSED")
	if w.alice.Saw("CALL_ESTABLISHED") || w.bob.Saw("CALL_ESTABLISHED") {
		t.Error("a plain call was taken: the control is broken")
	}
	w.edge.Clean(t)
}

// TestSRTPRefused: a phone that does not speak what its network's profile says gets no call.
func TestSRTPRefused(t *testing.T) {
	onlyEdged(t, "it is not configured to change the protection of media")
	w := newTrio(t, lab(t), cast{SIP: "media_profile: {inside: srtp, outside: rtp}"})
	w.alice.Dial(t, w.bob.AOR())
	if e := w.alice.Expect(t, 10*time.Second, "CALL_CLOSED"); !strings.Contains(e.Param, "488") {
		t.Errorf("the call ended with %q, not 488", e.Param)
	}
	w.edge.Clean(t)
}
