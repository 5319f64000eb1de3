package sipalg

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
)

// TestSlipstreaming: a description that names another host opens nothing, and is counted.
func TestSlipstreaming(t *testing.T) {
	for _, body := range []string{sdpOf("10.0.0.9", 445), sdpOf("127.0.0.1", 80), sdpOf("198.51.100.1", 5060), sdpOf("224.0.0.1", 4000),
		strings.Replace(sdpOf("10.0.0.5", 4000), "m=audio 4000 RTP/AVP 0\r\n", "m=audio 4000 RTP/AVP 0\r\na=rtcp:22 IN IP4 10.0.0.9\r\n", 1)} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		alice.dial("sip:bob@example.com").send("INVITE", body)
		alice.expect("488")
		bob.nothing()
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes for\n%s", w.opener.Count(), body)
		}
		w.drops("target_refused", 1)
		// In the answer: the callee is told that the call is over, and the caller gets no one-way audio.
		alice.register(bob)
		d := bob.dial(registeredAs(w))
		d.send("INVITE", bob.sdp(6000))
		got := alice.expect("INVITE")
		alice.reply(got, alice.answered(got), 200, body)
		bob.expect("488")
		alice.expect("ACK")
		alice.reply(alice.expect("BYE"), nil, 200, "")
		w.drops("target_refused", 2)
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes after the answer", w.opener.Count())
		}
		w.clean()
	}
}

// TestContactOfAnotherHost: a Contact that names another inside host leads back to its sender, and is counted.
func TestContactOfAnotherHost(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	victim := w.phone("victim", flow.UDP, "10.0.0.9:5060", "10.0.0.1:5060")
	alice.extra = []string{"Contact: <sip:x@10.0.0.9:5060>"}
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	reinvite(b, a, bob.sdp(6002), alice.sdp(4000))
	victim.nothing()
	if w.core.drops["contact_of_another_host"] == 0 {
		t.Errorf("not counted: %v", w.core.drops)
	}
	a.bye(b)
	w.clean()
}

// TestFM14: scanners are banned, honest users are not.
func TestFM14Scanner(t *testing.T) {
	w := newWorld(t, nil)
	evil := w.phone("evil", flow.UDP, "203.0.113.66:5060", "198.51.100.1:5060")
	evil.dial("sip:100@198.51.100.1").send("OPTIONS", "", "User-Agent: friendly-scanner 1.0")
	evil.nothing()
	evil.dial("sip:198.51.100.1").send("OPTIONS", "", "User-Agent: honest")
	evil.nothing()
	w.drops("scanner", 1)
	w.drops("banned", 1)
	w.after(11 * time.Minute)
	evil.dial("sip:198.51.100.1").send("OPTIONS", "", "User-Agent: honest")
	evil.expect("200")
	// The same words from the inside, or from the configured server, ban nobody.
	alice, bob := w.alice(), w.bob()
	for _, p := range []*phone{alice, bob} {
		p.dial("sip:"+p.first.String()).send("OPTIONS", "", "User-Agent: sipsak 0.9")
		p.expect("200")
	}
	w.clean()
}

func TestFM14Sweep(t *testing.T) {
	w := newWorld(t, nil)
	evil := w.phone("evil", flow.UDP, "203.0.113.66:5060", "198.51.100.1:5060")
	answered := 0
	for i := range 40 {
		evil.dial(fmt.Sprintf("sip:%d@198.51.100.1", 100+i)).send("INVITE", "")
		for _, m := range evil.inbox {
			if m.status == 404 {
				answered++
			}
		}
		evil.inbox = nil
		w.after(time.Second)
	}
	if answered != sweepMisses {
		t.Errorf("%d of 40 were answered", answered)
	}
	if w.core.drops["banned"] != uint64(40-sweepMisses) {
		t.Errorf("%v", w.core.drops)
	}
}

// TestFM14ChallengeNeverBans: 401 to every registration is the normal case.
func TestFM14ChallengeNeverBans(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Domains = map[string]Domain{"example.com": {Network: "inside", Server: "udp:10.0.0.20:5060"}}
	})
	r := w.phone("registrar", flow.UDP, "10.0.0.20:5060", "10.0.0.1:5060")
	home := w.phone("home", flow.UDP, "203.0.113.7:5060", "198.51.100.1:5060")
	for range 60 {
		home.signUp().send("REGISTER", "", "Contact: "+home.contact())
		r.reply(r.expect("REGISTER"), nil, 401, "")
		home.expect("401")
		w.after(500 * time.Millisecond)
	}
	home.signUp().send("REGISTER", "", "Contact: "+home.contact())
	r.expect("REGISTER")
}

func TestFM14RateLimit(t *testing.T) {
	w := newWorld(t, nil)
	w.core.limits.MessagesPerSecond = 10
	home := w.phone("home", flow.UDP, "203.0.113.7:5060", "198.51.100.1:5060")
	for range 50 {
		home.dial("sip:198.51.100.1").send("OPTIONS", "")
	}
	n := len(home.inbox)
	if n < 9 || n > 10 {
		t.Errorf("%d of 50 were answered", n)
	}
	w.drops("rate_limited", uint64(50-n))
	w.after(time.Second)
	home.inbox = nil
	home.dial("sip:198.51.100.1").send("OPTIONS", "")
	home.expect("200")
	// The configured server is exempt.
	bob := w.bob()
	for range 50 {
		bob.dial("sip:198.51.100.1").send("OPTIONS", "")
		bob.expect("200")
	}
	w.clean()
}

func TestFM14Relaying(t *testing.T) {
	w := newWorld(t, nil)
	evil := w.phone("evil", flow.UDP, "203.0.113.66:5060", "198.51.100.1:5060")
	for _, uri := range []string{"sip:x@203.0.113.99", "sip:x@10.0.0.9", "sip:x@elsewhere.example.org"} {
		w.showsIn = true
		evil.dial(uri).send("INVITE", evil.sdp(6000))
		evil.expect("403")
	}
	if len(w.opener.Leases()) != 0 || len(w.queries) != 0 {
		t.Error("strangers are relayed")
	}
}
