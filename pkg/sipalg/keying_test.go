package sipalg

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// inline returns a=crypto's value with a key of equal octets.
func inline(tag int, suite string, seed byte) string {
	s, _ := pinhole.SuiteOf(suite)
	return fmt.Sprintf("a=crypto:%d %s inline:%s", tag, suite, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{seed}, s.KeyLen+s.SaltLen)))
}

const (
	aes80 = "AES_CM_128_HMAC_SHA1_80"
	aes32 = "AES_CM_128_HMAC_SHA1_32"
	gcm   = "AEAD_AES_256_GCM"
)

// cryptos returns the a=crypto lines of a body.
func cryptos(body string) (lines []string) {
	for l := range strings.SplitSeq(body, "\r\n") {
		if strings.HasPrefix(l, "a=crypto:") {
			lines = append(lines, l)
		}
	}
	return lines
}

// keyOf returns the key of an a=crypto line.
func keyOf(t *testing.T, line string) []byte {
	t.Helper()
	_, key, ok := strings.Cut(line, " inline:")
	b, err := base64.StdEncoding.DecodeString(key)
	if !ok || err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return b
}

// wantKeys checks what the relay was told of a side: the peer's key of equal octets (0: it has none), and the edge's.
func wantKeys(t *testing.T, w *world, side pinhole.Side, suite string, in byte, out []byte) {
	t.Helper()
	k := w.openLease().Remote(side).SRTP
	switch {
	case in == 0 && k != nil:
		t.Errorf("side %d has keys of %v", side, k)
	case in == 0:
	case k == nil || k.Suite != suite || k.In[0] != in || !bytes.Equal(k.Out, out):
		t.Errorf("side %d: %v, want the peer's key %d with %s", side, k, in, suite)
	}
}

func profiles(inside, outside MediaProfile) func(*Config) {
	return func(c *Config) { c.MediaProfile = map[string]MediaProfile{"inside": inside, "outside": outside} }
}

// TestKeyingFromSecure: a caller with SDES reaches a plain phone; hold, new keys, other tags and a refused offer
// leave both with keys that fit.
func TestKeyingFromSecure(t *testing.T) {
	w := newWorld(t, profiles(SDES, PlainRTP))
	alice, bob := w.alice(), w.bob()
	secure := func(port int, lines ...string) string {
		return alice.media(append([]string{fmt.Sprintf("m=audio %d RTP/SAVP 0", port)}, lines...)...)
	}
	plain := bob.media("m=audio 6000 RTP/AVP 0")
	a, b, _, got := ring(alice, bob, secure(4000, "a=crypto:1 F8_128_HMAC_SHA1_80 inline:AAAA", inline(3, aes32, 5), inline(4, aes80, 6)))
	if !strings.Contains(got.body, "m=audio 50000 RTP/AVP 0\r\n") || len(cryptos(got.body)) != 0 {
		t.Errorf("offer as the plain phone sees it:\n%s", got.body)
	}
	var own []byte
	for range 2 { // the 200 is repeated until the ACK comes
		bob.reply(got, b, 200, plain)
		ok := alice.expect("200")
		lines := cryptos(ok.body)
		if !strings.Contains(ok.body, " RTP/SAVP 0\r\n") || len(lines) != 1 || !strings.HasPrefix(lines[0], "a=crypto:3 "+aes32+" inline:") {
			t.Fatalf("answer as the secure phone sees it:\n%s", ok.body)
		}
		if own != nil && !bytes.Equal(own, keyOf(t, lines[0])) {
			t.Error("the repeated answer has another key")
		}
		own = keyOf(t, lines[0])
		a.learn(ok)
	}
	a.send("ACK", "")
	bob.expect("ACK")
	wantKeys(t, w, pinhole.Near, aes32, 5, own)
	wantKeys(t, w, pinhole.Far, "", 0, nil)

	// Hold under another tag: the key of the edge stays.
	a.send("INVITE", secure(4000, "a=sendonly", inline(1, aes32, 5)))
	req := bob.expect("INVITE")
	bob.reply(req, b, 200, plain)
	ok := alice.expect("200")
	a.send("ACK", "")
	bob.expect("ACK")
	if lines := cryptos(ok.body); len(lines) != 1 || !strings.HasPrefix(lines[0], "a=crypto:1 ") || !bytes.Equal(keyOf(t, lines[0]), own) {
		t.Errorf("answer to hold:\n%s", ok.body)
	}
	// A new key that is refused: the old one stays.
	a.send("INVITE", secure(4000, inline(1, aes32, 9)))
	req = bob.expect("INVITE")
	bob.reply(req, b, 488, "")
	alice.expect("488")
	bob.expect("ACK")
	wantKeys(t, w, pinhole.Near, aes32, 5, own)
	// The plain phone asks: the edge offers the key in use.
	b.send("INVITE", plain)
	req = alice.expect("INVITE")
	if lines := cryptos(req.body); len(lines) != 1 || !strings.HasPrefix(lines[0], "a=crypto:1 "+aes32) || !bytes.Equal(keyOf(t, lines[0]), own) {
		t.Errorf("offer of the plain phone:\n%s", req.body)
	}
	alice.reply(req, a, 200, secure(4000, inline(1, aes32, 7)))
	ok = bob.expect("200")
	if !strings.Contains(ok.body, " RTP/AVP 0\r\n") || len(cryptos(ok.body)) != 0 {
		t.Errorf("answer as the plain phone sees it:\n%s", ok.body)
	}
	b.send("ACK", "")
	alice.expect("ACK")
	wantKeys(t, w, pinhole.Near, aes32, 7, own)
	a.bye(b)
	w.clean()
}

// TestKeyingToSecure: a plain caller reaches a phone with SDES, which takes one of the keys that the edge offers.
func TestKeyingToSecure(t *testing.T) {
	for _, early := range []bool{false, true} {
		w := newWorld(t, profiles(AsOffered, SDES))
		alice, bob := w.alice(), w.bob()
		a, b, _, got := ring(alice, bob, alice.media("m=audio 4000 RTP/AVP 0", "a=ptime:20"))
		lines := cryptos(got.body)
		if !strings.Contains(got.body, "m=audio 50000 RTP/SAVP 0\r\n") || len(lines) != 2 || bytes.Equal(keyOf(t, lines[0]), keyOf(t, lines[1])[:0]) {
			t.Fatalf("offer as the secure phone sees it:\n%s", got.body)
		}
		answer := bob.media("m=audio 6000 RTP/SAVP 0", inline(2, aes80, 8))
		if early {
			bob.reply(got, b, 183, answer)
			if r := alice.expect("183"); len(cryptos(r.body)) != 0 || !strings.Contains(r.body, " RTP/AVP 0\r\n") {
				t.Errorf("early answer:\n%s", r.body)
			}
			wantKeys(t, w, pinhole.Far, aes80, 8, keyOf(t, lines[1]))
		}
		bob.reply(got, b, 200, answer)
		ok := alice.expect("200")
		if len(cryptos(ok.body)) != 0 || !strings.Contains(ok.body, " RTP/AVP 0\r\n") {
			t.Errorf("answer as the plain phone sees it:\n%s", ok.body)
		}
		a.learn(ok)
		a.send("ACK", "")
		bob.expect("ACK")
		wantKeys(t, w, pinhole.Near, "", 0, nil)
		wantKeys(t, w, pinhole.Far, aes80, 8, keyOf(t, lines[1]))
		a.bye(b)
		w.clean()
	}
}

// TestKeyingLateOffer: the secure phone's offer is in its 200, the plain one's answer in the ACK.
func TestKeyingLateOffer(t *testing.T) {
	w := newWorld(t, profiles(PlainRTP, SDES))
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, "")
	bob.reply(got, b, 200, bob.media("m=audio 6000 RTP/SAVPF 0", inline(1, gcm, 4)))
	ok := alice.expect("200")
	if len(cryptos(ok.body)) != 0 || !strings.Contains(ok.body, " RTP/AVP 0\r\n") {
		t.Errorf("offer as the plain phone sees it:\n%s", ok.body)
	}
	a.learn(ok)
	a.send("ACK", alice.sdp(4000))
	ack := bob.expect("ACK")
	lines := cryptos(ack.body)
	if len(lines) != 1 || !strings.Contains(ack.body, " RTP/SAVPF 0\r\n") {
		t.Fatalf("answer as the secure phone sees it:\n%s", ack.body)
	}
	wantKeys(t, w, pinhole.Far, gcm, 4, keyOf(t, lines[0]))
	a.bye(b)
	w.clean()
}

// TestKeyingForked: two phones ring and both answer: each has a key of its own with the caller's.
func TestKeyingForked(t *testing.T) {
	w := newWorld(t, profiles(SDES, PlainRTP))
	alice, bob := w.alice(), w.bob()
	_, b, _, got := ring(alice, bob, alice.media("m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5)))
	other := bob.answered(got)
	var keys [2][]byte
	for i, d := range []*peer{b, other} {
		bob.reply(got, d, 183, bob.media("m=audio 6000 RTP/AVP 0"))
		lines := cryptos(alice.expect("183").body)
		if len(lines) != 1 {
			t.Fatalf("answer %d has %d keys", i, len(lines))
		}
		keys[i] = keyOf(t, lines[0])
	}
	if bytes.Equal(keys[0], keys[1]) {
		t.Error("two ports have one key")
	}
	for i, l := range w.opener.Leases() {
		if k := l.Remote(pinhole.Near).SRTP; k == nil || !bytes.Equal(k.Out, keys[i]) || k.In[0] != 5 {
			t.Errorf("pinhole %d: %v", i, k)
		}
	}
	bob.reply(got, b, 486, "")
	w.clean()
}

// TestKeyingEndToEnd: where both networks want the same, keys are the peers' own business.
func TestKeyingEndToEnd(t *testing.T) {
	for _, p := range [][2]MediaProfile{{SDES, SDES}, {SDES, AsOffered}, {AsOffered, SDES}, {AsOffered, AsOffered}} {
		w := newWorld(t, profiles(p[0], p[1]))
		alice, bob := w.alice(), w.bob()
		offer, answer := inline(1, aes80, 5), inline(1, aes80, 6)
		a, b, _, got := ring(alice, bob, alice.media("m=audio 4000 RTP/SAVP 0", offer))
		bob.reply(got, b, 200, bob.media("m=audio 6000 RTP/SAVP 0", answer))
		ok := alice.expect("200")
		a.learn(ok)
		a.send("ACK", "")
		bob.expect("ACK")
		if !strings.Contains(got.body, offer+"\r\n") || !strings.Contains(ok.body, answer+"\r\n") {
			t.Errorf("%v: offer\n%s\nanswer\n%s", p, got.body, ok.body)
		}
		wantKeys(t, w, pinhole.Near, "", 0, nil)
		wantKeys(t, w, pinhole.Far, "", 0, nil)
		a.bye(b)
		w.clean()
	}
}

// TestKeyingOptional: keys beside RTP/AVP are taken where they can be, and are no fault where not.
func TestKeyingOptional(t *testing.T) {
	for _, c := range []struct {
		inside MediaProfile
		line   string
		in     byte
	}{{SDES, inline(1, aes80, 5), 5}, {AsOffered, inline(1, aes80, 5), 5}, {AsOffered, "a=crypto:1 F8_128_HMAC_SHA1_80 inline:AAAA", 0}, {PlainRTP, inline(1, aes80, 5), 0}} {
		w := newWorld(t, profiles(c.inside, PlainRTP))
		alice, bob := w.alice(), w.bob()
		a, b, _, got := ring(alice, bob, alice.media("m=audio 4000 RTP/AVP 0", c.line))
		bob.reply(got, b, 200, bob.sdp(6000))
		ok := alice.expect("200")
		lines := cryptos(ok.body)
		if !strings.Contains(ok.body, " RTP/AVP 0\r\n") || len(lines) != min(int(c.in), 1) {
			t.Errorf("%v: answer\n%s", c, ok.body)
		}
		// Where both networks are plain nothing is changed, which is the peers' own business.
		if c.inside != PlainRTP && len(cryptos(got.body)) != 0 {
			t.Errorf("%v: offer\n%s", c, got.body)
		}
		var own []byte
		if c.in > 0 {
			own = keyOf(t, lines[0])
		}
		wantKeys(t, w, pinhole.Near, aes80, c.in, own)
		a.learn(ok)
		a.send("ACK", "")
		bob.expect("ACK")
		a.bye(b)
		w.clean()
	}
}

// TestKeyingRefused: offers that a network's profile does not allow, or whose keys cannot be read, get 488, and
// so does an answer without the protection that was asked for: it is ended on both sides.
func TestKeyingRefused(t *testing.T) {
	for _, c := range []struct {
		inside, outside MediaProfile
		lines           []string
	}{
		{SDES, PlainRTP, []string{"m=audio 4000 RTP/AVP 0"}},
		{SDES, SDES, []string{"m=audio 4000 RTP/AVP 0"}},
		{PlainRTP, PlainRTP, []string{"m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5)}},
		{PlainRTP, SDES, []string{"m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5)}},
		{SDES, PlainRTP, []string{"m=audio 4000 RTP/SAVP 0"}},
		{SDES, PlainRTP, []string{"m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5) + " KDR=1"}},
		{SDES, PlainRTP, []string{"m=audio 4000 RTP/SAVP 0", "a=crypto:1 " + aes80 + " inline:c2hvcnQ="}},
		{AsOffered, PlainRTP, []string{"m=audio 4000 UDP/TLS/RTP/SAVPF 0", "a=fingerprint:sha-256 00"}},
		{AsOffered, SDES, []string{"m=audio 4000 RTP/SAVPF 0", "a=fingerprint:sha-256 00"}},
	} {
		w := newWorld(t, profiles(c.inside, c.outside))
		alice, bob := w.alice(), w.bob()
		alice.dial("sip:bob@example.com").send("INVITE", alice.media(c.lines...))
		alice.expect("488")
		bob.nothing()
		w.clean()
	}
	for _, lines := range [][]string{
		{"m=audio 6000 RTP/AVP 0"},
		{"m=audio 6000 RTP/SAVP 0", inline(7, aes80, 5)},
		{"m=audio 6000 RTP/SAVP 0", inline(1, aes80, 5)},
		{"m=audio 6000 RTP/SAVP 0", inline(1, gcm, 5), inline(2, aes80, 5)},
	} {
		w := newWorld(t, profiles(PlainRTP, SDES))
		alice, bob := w.alice(), w.bob()
		_, b, _, got := ring(alice, bob, alice.sdp(4000))
		bob.reply(got, b, 200, bob.media(lines...))
		alice.expect("488")
		bob.expect("ACK")
		bob.reply(bob.expect("BYE"), nil, 200, "")
		w.clean()
	}
}

// TestKeyingRejectedStream: the answer's rejected line has the profile of the offer, and no key.
func TestKeyingRejectedStream(t *testing.T) {
	w := newWorld(t, profiles(SDES, PlainRTP))
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, alice.media("m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5), "m=video 4002 RTP/SAVP 31", inline(1, aes80, 6)))
	bob.reply(got, b, 200, bob.media("m=audio 6000 RTP/AVP 0", "m=video 0 RTP/AVP 31"))
	ok := alice.expect("200")
	if !strings.Contains(ok.body, "m=video 0 RTP/SAVP 31\r\n") || len(cryptos(ok.body)) != 1 {
		t.Errorf("answer:\n%s", ok.body)
	}
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	a.bye(b)
	w.clean()
}

const (
	fingerprint = "a=fingerprint:sha-256 00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:14:15:16:17:18:19:1A:1B:1C:1D:1E:1F"
	edgePrint   = "sha-256 AA:BB"
)

// wantDTLS checks whom the relay shakes hands with at a side, and who begins.
func wantDTLS(t *testing.T, w *world, side pinhole.Side, client bool) {
	t.Helper()
	r := w.openLease().Remote(side)
	if d := r.DTLS; d == nil || r.SRTP != nil || d.Client != client || d.Hash != "sha-256" || len(d.Fingerprint) != 32 || d.Fingerprint[31] != 0x1f {
		t.Errorf("side %d: %+v", side, d)
	}
}

// TestKeyingFromDTLS: a caller with DTLS-SRTP reaches a plain phone, in each role; hold keeps the role.
func TestKeyingFromDTLS(t *testing.T) {
	for setup, role := range map[string]string{"actpass": "passive", "active": "passive", "passive": "active"} {
		w := newWorld(t, profiles(DTLS, PlainRTP))
		w.core.fingerprint = edgePrint
		alice, bob := w.alice(), w.bob()
		offer := func(setup, more string) string {
			return strings.Replace(alice.media("m=audio 4000 UDP/TLS/RTP/SAVPF 0", "a=setup:"+setup, more), "m=audio", fingerprint+"\r\nm=audio", 1)
		}
		a, b, _, got := ring(alice, bob, offer(setup, "a=sendrecv"))
		if !strings.Contains(got.body, "m=audio 50000 RTP/AVP 0\r\na=sendrecv") || strings.Contains(got.body, "fingerprint") {
			t.Errorf("offer as the plain phone sees it:\n%s", got.body)
		}
		bob.reply(got, b, 200, bob.sdp(6000))
		ok := alice.expect("200")
		if !strings.Contains(ok.body, " UDP/TLS/RTP/SAVPF 0\r\na=fingerprint:"+edgePrint+"\r\na=setup:"+role+"\r\n") {
			t.Errorf("%s: answer as the secure phone sees it:\n%s", setup, ok.body)
		}
		a.learn(ok)
		a.send("ACK", "")
		bob.expect("ACK")
		wantDTLS(t, w, pinhole.Near, role == "active")
		wantKeys(t, w, pinhole.Far, "", 0, nil)
		a.send("INVITE", offer("actpass", "a=sendonly"))
		bob.reply(bob.expect("INVITE"), b, 200, bob.sdp(6000))
		if ok = alice.expect("200"); !strings.Contains(ok.body, "a=setup:"+role+"\r\n") {
			t.Errorf("%s: answer to hold:\n%s", setup, ok.body)
		}
		a.send("ACK", "")
		bob.expect("ACK")
		wantDTLS(t, w, pinhole.Near, role == "active")
		a.bye(b)
		w.clean()
	}
}

// TestKeyingToDTLS: a plain caller, and one with SDES, reach a phone with DTLS-SRTP, which takes a role.
func TestKeyingToDTLS(t *testing.T) {
	for _, inside := range []MediaProfile{PlainRTP, SDES} {
		for _, setup := range []string{"active", "passive"} {
			w := newWorld(t, profiles(inside, DTLS))
			w.core.fingerprint = edgePrint
			alice, bob := w.alice(), w.bob()
			lines := []string{"m=audio 4000 RTP/AVP 0"}
			if inside == SDES {
				lines = []string{"m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5)}
			}
			a, b, _, got := ring(alice, bob, alice.media(lines...))
			if !strings.Contains(got.body, "m=audio 50000 UDP/TLS/RTP/SAVP 0\r\na=fingerprint:"+edgePrint+"\r\na=setup:actpass\r\n") || len(cryptos(got.body)) != 0 {
				t.Errorf("offer as the secure phone sees it:\n%s", got.body)
			}
			bob.reply(got, b, 200, bob.media("m=audio 6000 UDP/TLS/RTP/SAVP 0", fingerprint, "a=setup:"+setup))
			ok := alice.expect("200")
			if !strings.Contains(ok.body, strings.TrimPrefix(lines[0], "m=audio 4000")+"\r\n") || len(cryptos(ok.body)) != len(lines)-1 || strings.Contains(ok.body, "fingerprint") {
				t.Errorf("answer as the caller sees it:\n%s", ok.body)
			}
			a.learn(ok)
			a.send("ACK", "")
			bob.expect("ACK")
			wantDTLS(t, w, pinhole.Far, setup == "passive")
			a.bye(b)
			w.clean()
		}
	}
}

// TestKeyingDTLSRefused: peers whose certificate cannot be told, who want ICE, or who take no role.
func TestKeyingDTLSRefused(t *testing.T) {
	const proto = "m=audio 4000 UDP/TLS/RTP/SAVPF 0"
	for _, lines := range [][]string{
		{"m=audio 4000 RTP/AVP 0"},
		{"m=audio 4000 RTP/SAVP 0", inline(1, aes80, 5)},
		{proto, "a=setup:actpass"},
		{proto, fingerprint},
		{proto, fingerprint, "a=setup:holdconn"},
		{proto, strings.TrimSuffix(fingerprint, ":1F"), "a=setup:actpass"},
		{proto, strings.Replace(fingerprint, "sha-256", "sha-1", 1), "a=setup:actpass"},
		{proto, fingerprint, "a=setup:actpass", "a=ice-ufrag:abcd", "a=ice-pwd:abcdefghijklmnopqrstuv"},
	} {
		w := newWorld(t, profiles(DTLS, PlainRTP))
		alice, bob := w.alice(), w.bob()
		alice.dial("sip:bob@example.com").send("INVITE", alice.media(lines...))
		alice.expect("488")
		bob.nothing()
		w.clean()
	}
}
