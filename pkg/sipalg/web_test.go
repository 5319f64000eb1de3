package sipalg

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// chromium is what Chromium 156 offers, with some codecs less: its address is hidden behind a name of mDNS.
func chromium(ufrag string, more ...string) string {
	const pwd = "jkGuWudNQHw/I8uLCRtQPC40"
	lines := []string{
		"v=0", "o=- 6829572720048583585 2 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE 0", "a=extmap-allow-mixed",
		"a=msid-semantic: WMS adf97e77-ca58-4b33-a0a7-2e947c6c88ea", "m=audio 60935 UDP/TLS/RTP/SAVPF 111 0 126", "c=IN IP4 0.0.0.0",
		"a=rtcp:9 IN IP4 0.0.0.0", "a=candidate:65346844 1 udp 2122194687 0b2d1d3e-2f4c-4a44-8c1b-b1bb2e0a9d0c.local 60935 typ host generation 0 network-id 1",
		"a=candidate:2099969924 1 tcp 1518214911 192.0.2.7 9 typ host tcptype active generation 0 network-id 1",
		"a=ice-ufrag:" + ufrag, "a=ice-pwd:" + pwd, "a=ice-options:trickle", fingerprint, "a=setup:actpass", "a=mid:0",
		"a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level", "a=sendrecv", "a=msid:adf97e77 6514cef2", "a=rtcp-mux", "a=rtcp-rsize",
		"a=rtpmap:111 opus/48000/2", "a=rtcp-fb:111 transport-cc", "a=rtpmap:0 PCMU/8000", "a=rtpmap:126 telephone-event/8000", "a=ssrc:695371609 cname:hYRFigCm59Mk6z/n",
	}
	return strings.Join(append(lines, more...), "\r\n") + "\r\n"
}

// browserAnswer is what Chromium answers.
func browserAnswer(ufrag, setup string) string {
	return strings.NewReplacer("a=setup:actpass", "a=setup:"+setup, "SAVPF 111 0 126", "SAVPF 0").Replace(chromium(ufrag))
}

// section returns the lines of m-line i, or of the session level (-1), without their ends.
func section(body string, i int) []string {
	parts := strings.Split(body, "\r\nm=")
	if i+1 >= len(parts) {
		return nil
	}
	return strings.Split(strings.TrimSuffix(parts[i+1], "\r\n"), "\r\n")
}

// lineOf returns the value of the line that begins with a prefix, empty if there is none.
func lineOf(lines []string, prefix string) string {
	for _, l := range lines {
		if v, ok := strings.CutPrefix(l, prefix); ok {
			return v
		}
	}
	return ""
}

// wantWeb checks what a browser is told in a section of the edge's address and port, and returns the edge's user fragment.
func wantWeb(t *testing.T, body string, i int, edge, setup, mid string) string {
	t.Helper()
	s := section(body, i)
	ufrag, pwd := lineOf(s, "a=ice-ufrag:"), lineOf(s, "a=ice-pwd:")
	if len(ufrag) < 4 || len(pwd) < 22 || lineOf(s, "a=fingerprint:") != edgePrint || lineOf(s, "a=setup:") != setup || lineOf(s, "a=mid:") != mid {
		t.Errorf("what the browser is told:\n%s", body)
	}
	for _, l := range []string{"a=rtcp-mux", "a=end-of-candidates", "a=candidate:1 1 udp 2130706431 " + edge + " typ host"} {
		if !slices.Contains(s, l) {
			t.Errorf("the browser is not told %q:\n%s", l, body)
		}
	}
	_, port, _ := strings.Cut(edge, " ")
	if !strings.HasPrefix(s[0], "audio "+port+" UDP/TLS/RTP/SAVPF ") || !slices.Contains(section(body, -1), "a=ice-lite") {
		t.Errorf("what the browser is told:\n%s", body)
	}
	return ufrag
}

// wantPlain checks that a plain phone sees nothing of a browser's transport.
func wantPlain(t *testing.T, body string) {
	t.Helper()
	foreign := regexp.MustCompile(`(?m)^a=(ice-|candidate|end-of|fingerprint|setup|mid|group|extmap|msid|rtcp-mux|rtcp-rsize|rtcp-fb|ssrc|bundle-only)[^\r]*`)
	if l := foreign.FindString(body); l != "" || !strings.Contains(body, " RTP/AVP ") {
		t.Errorf("the phone sees %q:\n%s", l, body)
	}
}

// wantICE checks how the relay knows the browser.
func wantICE(t *testing.T, r pinhole.Remote, own, peer string) {
	t.Helper()
	if r.ICE == nil || r.ICE.Ufrag != own || r.ICE.Peer != peer || r.DTLS == nil || r.RTCP != r.Addr || r.Addr.Addr() != r.Source {
		t.Errorf("the browser is %+v with %+v, want %s:%s", r, r.ICE, own, peer)
	}
}

// TestWebFromBrowser: a browser calls a plain phone; hold keeps the edge's credentials, an ICE restart changes them, and an offer
// that is refused brings the old ones back.
func TestWebFromBrowser(t *testing.T) {
	w := newWorld(t, profiles(WebRTC, PlainRTP))
	w.core.fingerprint = edgePrint
	alice, bob := w.alice(), w.bob()
	const edge = "10.0.0.1 50000"
	a, b, _, got := ring(alice, bob, chromium("q1e2"))
	wantPlain(t, got.body)
	if !strings.Contains(got.body, "m=audio 50000 RTP/AVP 111 0 126\r\nc=IN IP4 198.51.100.1\r\na=rtcp:50001 IN IP4 198.51.100.1\r\n") {
		t.Errorf("offer as the phone sees it:\n%s", got.body)
	}
	bob.reply(got, b, 200, bob.sdp(6000))
	ok := alice.expect("200")
	own := wantWeb(t, ok.body, 0, edge, "passive", "0")
	if !slices.Contains(section(ok.body, -1), "a=group:BUNDLE 0") {
		t.Errorf("answer without BUNDLE:\n%s", ok.body)
	}
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	wantICE(t, w.openLease().Remote(pinhole.Near), own, "q1e2")
	if r := w.openLease().Remote(pinhole.Far); r.ICE != nil || r.DTLS != nil || r.Addr != ap("198.51.100.20:6000") {
		t.Errorf("the phone is %+v", r)
	}
	again := func(offer string) string {
		a.send("INVITE", offer)
		bob.reply(bob.expect("INVITE"), b, 200, bob.sdp(6000))
		ok := alice.expect("200")
		a.send("ACK", "")
		bob.expect("ACK")
		return wantWeb(t, ok.body, 0, edge, "passive", "0")
	}
	if again(strings.Replace(chromium("q1e2"), "a=sendrecv", "a=sendonly", 1)) != own {
		t.Error("hold has changed the edge's credentials")
	}
	next := again(chromium("z9y8"))
	if next == own {
		t.Error("an ICE restart has not changed the edge's credentials")
	}
	wantICE(t, w.openLease().Remote(pinhole.Near), next, "z9y8")
	a.send("INVITE", chromium("aaaa"))
	bob.reply(bob.expect("INVITE"), b, 488, "")
	alice.expect("488")
	bob.expect("ACK")
	wantICE(t, w.openLease().Remote(pinhole.Near), next, "z9y8")
	// The phone asks: the browser is offered what it knows.
	b.send("INVITE", bob.sdp(6000))
	req := alice.expect("INVITE")
	if wantWeb(t, req.body, 0, edge, "actpass", "0") != next {
		t.Error("the edge restarts ICE")
	}
	alice.reply(req, a, 200, browserAnswer("z9y8", "active"))
	wantPlain(t, bob.expect("200").body)
	b.send("ACK", "")
	alice.expect("ACK")
	wantICE(t, w.openLease().Remote(pinhole.Near), next, "z9y8")
	a.bye(b)
	w.clean()
}

// TestWebToBrowser: a plain phone calls a browser, which takes either role in the handshake.
func TestWebToBrowser(t *testing.T) {
	for _, setup := range []string{"active", "passive"} {
		w := newWorld(t, profiles(PlainRTP, WebRTC))
		w.core.fingerprint = edgePrint
		alice, bob := w.alice(), w.bob()
		a, b, _, got := ring(alice, bob, alice.sdp(4000))
		own := wantWeb(t, got.body, 0, "198.51.100.1 50000", "actpass", "0")
		if !slices.Contains(section(got.body, 0), "a=candidate:1 2 udp 2130706430 198.51.100.1 50001 typ host") || !slices.Contains(section(got.body, -1), "a=group:BUNDLE 0") {
			t.Errorf("offer as the browser sees it:\n%s", got.body)
		}
		if r := w.openLease().Remote(pinhole.Far); r.ICE != nil {
			t.Errorf("the browser is known before it has spoken: %+v", r)
		}
		bob.reply(got, b, 200, browserAnswer("q1e2", setup))
		ok := alice.expect("200")
		wantPlain(t, ok.body)
		a.learn(ok)
		a.send("ACK", "")
		bob.expect("ACK")
		wantICE(t, w.openLease().Remote(pinhole.Far), own, "q1e2")
		wantDTLS(t, w, pinhole.Far, setup == "passive")
		// An old phone's hold.
		a.send("INVITE", strings.Replace(alice.media("m=audio 4000 RTP/AVP 0", "a=sendrecv"), "c=IN IP4 10.0.0.5", "c=IN IP4 0.0.0.0", 1))
		req := bob.expect("INVITE")
		wantWeb(t, req.body, 0, "198.51.100.1 50000", "actpass", "0")
		if s := section(req.body, 0); !slices.Contains(s, "a=sendonly") || slices.Contains(s, "a=sendrecv") || strings.Contains(req.body, "0.0.0.0") {
			t.Errorf("hold as the browser sees it:\n%s", req.body)
		}
		bob.reply(req, b, 200, strings.Replace(browserAnswer("q1e2", setup), "sendrecv", "recvonly", 1))
		alice.expect("200")
		a.send("ACK", "")
		bob.expect("ACK")
		a.bye(b)
		w.clean()
	}
}

// TestWebNoMux: a browser that does not multiplex is told where RTCP goes.
func TestWebNoMux(t *testing.T) {
	w := newWorld(t, profiles(WebRTC, PlainRTP))
	w.core.fingerprint = edgePrint
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, strings.Replace(chromium("q1e2"), "a=rtcp-mux\r\n", "", 1))
	bob.reply(got, b, 200, bob.sdp(6000))
	ok := alice.expect("200")
	s := section(ok.body, 0)
	if slices.Contains(s, "a=rtcp-mux") || !slices.Contains(s, "a=candidate:1 2 udp 2130706430 10.0.0.1 50001 typ host") {
		t.Errorf("answer:\n%s", ok.body)
	}
	if r := w.openLease().Remote(pinhole.Near); r.RTCP == r.Addr || r.ICE == nil {
		t.Errorf("the browser is %+v", r)
	}
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	a.bye(b)
	w.clean()
}

// TestWebBundle: what is bundled with the first m-line is rejected on both sides, with the names that the browser gave; a camera with a
// transport of its own is carried.
func TestWebBundle(t *testing.T) {
	video := func(port string) []string {
		return []string{"m=video " + port + " UDP/TLS/RTP/SAVPF 96", "c=IN IP4 0.0.0.0", "a=ice-ufrag:q1e2", "a=ice-pwd:jkGuWudNQHw/I8uLCRtQPC40", fingerprint,
			"a=setup:actpass", "a=mid:1", "a=rtcp-mux", "a=rtcp-fb:96 nack pli", "a=rtpmap:96 VP8/90000"}
	}
	data := []string{"m=application 60935 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0", "a=mid:2", "a=sctp-port:5000"}
	for _, c := range []struct {
		name          string
		offer         string
		answer        []string
		video         string
		ports, groups int
	}{
		{"bundled", chromium("q1e2", append(video("60935"), data...)...), []string{"m=video 0 RTP/AVP 96", "m=application 0 UDP/DTLS/SCTP webrtc-datachannel"}, "video 0 UDP/TLS/RTP/SAVPF 96", 1, 1},
		{"bundled, taken all the same", chromium("q1e2", append(video("60935"), data...)...), []string{"m=video 6002 RTP/AVP 96", "m=application 6004 UDP/DTLS/SCTP webrtc-datachannel"}, "video 0 UDP/TLS/RTP/SAVPF 96", 1, 1},
		{"bundle-only", chromium("q1e2", append(video("0"), data...)...), []string{"m=video 0 RTP/AVP 96", "m=application 0 UDP/DTLS/SCTP webrtc-datachannel"}, "video 0 UDP/TLS/RTP/SAVPF 96", 1, 1},
		{"its own", chromium("q1e2", append(video("52865"), data...)...), []string{"m=video 6002 RTP/AVP 96", "m=application 0 UDP/DTLS/SCTP webrtc-datachannel"}, "video 50002 UDP/TLS/RTP/SAVPF 96", 2, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, profiles(WebRTC, PlainRTP))
			w.core.fingerprint = edgePrint
			alice, bob := w.alice(), w.bob()
			a, b, _, got := ring(alice, bob, strings.Replace(c.offer, "BUNDLE 0", "BUNDLE 0 1 2", 1))
			wantPlain(t, got.body)
			if s := section(got.body, 2); s[0] != "application 0 UDP/DTLS/SCTP webrtc-datachannel" {
				t.Errorf("the phone is offered %q", s)
			}
			bob.reply(got, b, 200, bob.media(append([]string{"m=audio 6000 RTP/AVP 0"}, c.answer...)...))
			ok := alice.expect("200")
			wantWeb(t, ok.body, 0, "10.0.0.1 50000", "passive", "0")
			v, d := section(ok.body, 1), section(ok.body, 2)
			if v[0] != c.video || lineOf(v, "a=mid:") != "1" || d[0] != "application 0 UDP/DTLS/SCTP webrtc-datachannel" || lineOf(d, "a=mid:") != "2" {
				t.Errorf("answer:\n%s", ok.body)
			}
			if lineOf(section(ok.body, -1), "a=group:") != "BUNDLE 0" || strings.Count(ok.body, "a=group:") != 1 {
				t.Errorf("answer's groups:\n%s", ok.body)
			}
			if n := w.opener.Count(); n != c.ports {
				t.Errorf("%d pinholes", n)
			}
			a.learn(ok)
			a.send("ACK", "")
			bob.expect("ACK")
			a.bye(b)
			w.clean()
		})
	}
}

// TestWebForked: two browsers ring; each is known by its own user fragment, and the phone sees two answers.
func TestWebForked(t *testing.T) {
	w := newWorld(t, profiles(PlainRTP, WebRTC))
	w.core.fingerprint = edgePrint
	alice, bob := w.alice(), w.bob()
	_, b, _, got := ring(alice, bob, alice.sdp(4000))
	own := lineOf(section(got.body, 0), "a=ice-ufrag:")
	other := bob.answered(got)
	for i, d := range []*peer{b, other} {
		bob.reply(got, d, 183, browserAnswer([]string{"aaaa", "bbbb"}[i], "active"))
		wantPlain(t, alice.expect("183").body)
	}
	for i, l := range w.opener.Leases() {
		wantICE(t, l.Remote(pinhole.Far), own, []string{"aaaa", "bbbb"}[i])
	}
	bob.reply(got, b, 486, "")
	w.clean()
}

// TestWebBothBrowsers: between two of them each has a transport of its own with the edge, and feedback passes.
func TestWebBothBrowsers(t *testing.T) {
	w := newWorld(t, profiles(WebRTC, WebRTC))
	w.core.fingerprint = edgePrint
	alice, bob := w.alice(), w.bob()
	a, b, _, got := ring(alice, bob, chromium("q1e2"))
	far := wantWeb(t, got.body, 0, "198.51.100.1 50000", "actpass", "0")
	if !strings.Contains(got.body, "a=rtcp-fb:111 transport-cc") || strings.Contains(got.body, "q1e2") {
		t.Errorf("offer as the other sees it:\n%s", got.body)
	}
	bob.reply(got, b, 200, browserAnswer("r3s4", "active"))
	ok := alice.expect("200")
	near := wantWeb(t, ok.body, 0, "10.0.0.1 50000", "passive", "0")
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	wantICE(t, w.openLease().Remote(pinhole.Near), near, "q1e2")
	wantICE(t, w.openLease().Remote(pinhole.Far), far, "r3s4")
	a.bye(b)
	w.clean()
}

// TestWebRefused: offers of browsers that cannot be served get 488, and so do answers without ICE.
func TestWebRefused(t *testing.T) {
	for _, change := range [][2]string{
		{"a=ice-ufrag:q1e2\r\n", ""},
		{"a=ice-pwd:jkGuWudNQHw/I8uLCRtQPC40\r\n", ""},
		{"a=ice-ufrag:q1e2", "a=ice-ufrag:q1"},
		{"a=ice-ufrag:q1e2", "a=ice-ufrag:q1:e2"},
		{"a=ice-ufrag:q1e2", "a=ice-ufrag:" + strings.Repeat("a", 257)},
		{"t=0 0\r\n", "t=0 0\r\na=ice-lite\r\n"},
		{fingerprint + "\r\n", ""},
		{"UDP/TLS/RTP/SAVPF", "RTP/AVP"},
	} {
		w := newWorld(t, profiles(WebRTC, PlainRTP))
		alice, bob := w.alice(), w.bob()
		alice.dial("sip:bob@example.com").send("INVITE", strings.Replace(chromium("q1e2"), change[0], change[1], 1))
		alice.expect("488")
		bob.nothing()
		w.clean()
	}
	w := newWorld(t, profiles(PlainRTP, WebRTC))
	alice, bob := w.alice(), w.bob()
	_, b, _, got := ring(alice, bob, alice.sdp(4000))
	bob.reply(got, b, 200, bob.media("m=audio 6000 UDP/TLS/RTP/SAVPF 0", fingerprint, "a=setup:active"))
	alice.expect("488")
	bob.expect("ACK")
	bob.reply(bob.expect("BYE"), nil, 200, "")
	w.clean()
}

// TestProfileByTransport: a profile of a transport goes before its network's.
func TestProfileByTransport(t *testing.T) {
	c := &Core{cfg: Config{MediaProfile: map[string]MediaProfile{"outside": SDES, "wss://outside": WebRTC, "ws://inside": WebRTC}}}
	o := &offer{session: &session{networks: [2]string{"inside", "outside"}}, side: pinhole.Near}
	for _, row := range []struct {
		own, other flow.Proto
		near, far  MediaProfile
	}{
		{flow.UDP, flow.UDP, AsOffered, SDES},
		{flow.WS, flow.WSS, WebRTC, WebRTC},
		{flow.WSS, flow.WS, AsOffered, SDES},
	} {
		o.flow.Proto, o.proto = row.own, row.other
		if near, far := c.profile(o, pinhole.Near), c.profile(o, pinhole.Far); near != row.near || far != row.far {
			t.Errorf("%v and %v: %s and %s", row.own, row.other, near, far)
		}
	}
}
