package sdp

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// desk is the description of a desk phone's INVITE.
const desk = "v=0\r\no=- 1732187 1732187 IN IP4 192.0.2.45\r\ns=Polycom IP Phone\r\nc=IN IP4 192.0.2.45\r\nt=0 0\r\n" +
	"a=sendrecv\r\nm=audio 2240 RTP/AVP 9 102 0 8 18 127\r\na=rtcp:2241\r\na=rtpmap:9 G722/8000\r\na=rtpmap:102 G7221/16000\r\n" +
	"a=fmtp:102 bitrate=32000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:18 G729/8000\r\na=fmtp:18 annexb=no\r\n" +
	"a=rtpmap:127 telephone-event/8000\r\n"

func TestRewriteDesk(t *testing.T) {
	const want = "v=0\r\no=- 1732187 1732187 IN IP4 203.0.113.5\r\ns=Polycom IP Phone\r\nc=IN IP4 203.0.113.5\r\nt=0 0\r\n" +
		"a=sendrecv\r\nm=audio 50000 RTP/AVP 9 102 0 8 18 127\r\na=rtcp:50001\r\na=rtpmap:9 G722/8000\r\na=rtpmap:102 G7221/16000\r\n" +
		"a=fmtp:102 bitrate=32000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:18 G729/8000\r\na=fmtp:18 annexb=no\r\n" +
		"a=rtpmap:127 telephone-event/8000\r\n"
	var s Session
	if err := s.Parse([]byte(desk)); err != nil {
		t.Fatal(err)
	}
	m := s.Media(0)
	if m.Kind != RTP || m.AddrPort() != netip.MustParseAddrPort("192.0.2.45:2240") || m.RTCP(false).Port() != 2241 || m.Hold {
		t.Fatalf("media = %+v", m)
	}
	r := Rewrite{Media: []Placement{{Addr: netip.MustParseAddrPort("203.0.113.5:50000")}}, Origin: true}
	if got := string(s.AppendRewritten(nil, r)); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := string(s.AppendRewritten(nil, Rewrite{ICE: Pass})); got != desk {
		t.Fatalf("identity: got\n%s", got)
	}
}

func BenchmarkRewriteDesk(b *testing.B) { benchmarkRewrite(b, []byte(desk), Strip) }

func benchmarkRewrite(b *testing.B, raw []byte, ice ICE) {
	var s Session
	place := netip.MustParseAddrPort("203.0.113.5:50000")
	r := Rewrite{Media: []Placement{{Addr: place}, {Addr: place}, {Addr: place}}, Origin: true, ICE: ice}
	dst := make([]byte, 0, 8192)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Parse(raw); err != nil {
			b.Fatal(err)
		}
		dst = s.AppendRewritten(dst[:0], r)
	}
}

// web is the description of a browser, shortened.
const web = "v=0\r\no=- 4611731400430051336 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=extmap-allow-mixed\r\n" +
	"a=msid-semantic: WMS stream\r\nm=audio 61000 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126\r\nc=IN IP4 192.0.2.45\r\n" +
	"a=rtcp:9 IN IP4 0.0.0.0\r\na=candidate:1 1 udp 2122260223 192.0.2.45 61000 typ host generation 0 network-id 1\r\n" +
	"a=candidate:2 1 udp 2122260222 2001:db8::45 61002 typ host generation 0 network-id 2\r\n" +
	"a=candidate:3 1 tcp 1518280447 192.0.2.45 9 typ host tcptype active generation 0 network-id 1\r\n" +
	"a=ice-ufrag:ETEn\r\na=ice-pwd:OtSK0WpNtpUjkY4+86js7ZQl\r\na=ice-options:trickle\r\n" +
	"a=fingerprint:sha-256 19:E2:1C:3B:4B:9F:81:E6:B8:5C:F4:A5:A8:D8:73:04:BB:05:2F:70:9F:04:A9:0E:05:E9:26:33:E8:70:88:A2\r\n" +
	"a=setup:actpass\r\na=mid:0\r\na=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level\r\na=sendrecv\r\na=rtcp-mux\r\n" +
	"a=rtpmap:111 opus/48000/2\r\na=rtcp-fb:111 transport-cc\r\na=fmtp:111 minptime=10;useinbandfec=1\r\na=rtpmap:63 red/48000/2\r\n" +
	"a=rtpmap:9 G722/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:13 CN/8000\r\na=rtpmap:110 telephone-event/48000\r\n" +
	"a=ssrc:3570614608 cname:4TOk42mSjXCkVIa6\r\na=ssrc:3570614608 msid:stream audio\r\n" +
	"m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=ice-ufrag:ETEn\r\n" +
	"a=ice-pwd:OtSK0WpNtpUjkY4+86js7ZQl\r\na=mid:1\r\na=bundle-only\r\na=rtcp-mux\r\na=rtcp-rsize\r\na=rtpmap:96 VP8/90000\r\n" +
	"a=rtcp-fb:96 goog-remb\r\na=rtcp-fb:96 nack pli\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n"

func BenchmarkRewriteWeb(b *testing.B) { benchmarkRewrite(b, []byte(web), Relay) }

// TestNoAllocs: a session that has grown to its work allocates no more.
func TestNoAllocs(t *testing.T) {
	place := Placement{Addr: netip.MustParseAddrPort("203.0.113.5:50000")}
	six := Placement{Addr: netip.MustParseAddrPort("[2001:db8::5]:50000")}
	dst := make([]byte, 0, 8192)
	for _, raw := range [][]byte{[]byte(desk), []byte(web)} {
		for _, ice := range []ICE{Strip, Relay, Pass} {
			var s Session
			media := []Placement{place, six}
			got := testing.AllocsPerRun(20, func() {
				if s.Parse(raw) != nil {
					t.Fatal("parse")
				}
				dst = s.AppendRewritten(dst[:0], Rewrite{Media: media, ICE: ice, Origin: true})
			})
			if got != 0 {
				t.Errorf("ice %d: %v allocations", ice, got)
			}
		}
	}
}

func TestMedia(t *testing.T) {
	for _, c := range []struct {
		name, lines string
		check       func(m *Media) bool
	}{
		{"session c=", "c=IN IP4 192.0.2.1\nm=audio 4000/2 RTP/AVP 0\n", func(m *Media) bool {
			return m.AddrPort() == netip.MustParseAddrPort("192.0.2.1:4000") && m.PortCount == 2 && m.Kind == RTP && !m.Stream
		}},
		{"rtcp", "m=audio 4000 rtp/savp 0\na=rtcp:5000 IN IP6 2001:db8::1\nc=IN IP4 192.0.2.1\n", func(m *Media) bool {
			return m.RTCP(false) == netip.MustParseAddrPort("[2001:db8::1]:5000") && m.RTCP(true) == m.AddrPort()
		}},
		{"name", "c=IN IP4 pc.example.org\nm=video 4000 UDP/TLS/RTP/SAVPF 0\n", func(m *Media) bool {
			return m.AddrIsName && !m.AddrPort().IsValid() && !m.RTCP(false).IsValid() && m.Kind == RTP
		}},
		{"hold", "c=IN IP6 ::\nm=audio 4000 RTP/AVP 0\n", func(m *Media) bool { return m.Hold && !m.Unset }},
		{"inactive session", "a=inactive\nm=audio 4000 RTP/AVP 0\n", func(m *Media) bool { return m.Hold && m.Direction == Inactive }},
		{"direction", "a=inactive\nm=audio 4000 RTP/AVP 0\na=sendonly\n", func(m *Media) bool { return !m.Hold && m.Direction == SendOnly }},
		{"trickle", "a=ice-ufrag:x\nm=audio 9 RTP/SAVPF 0\nc=IN IP4 0.0.0.0\n", func(m *Media) bool { return !m.Hold && m.Unset && m.ICE }},
		{"multicast", "c=IN IP4 224.2.1.1/127/3\nm=audio 4000 RTP/AVP 0\n", func(m *Media) bool { return m.Multicast }},
		{"fax", "m=image 4000 udptl t38\n", func(m *Media) bool { return m.Kind == UDPTL }},
		{"msdata", "m=application 1503 tcp msdata\n", func(m *Media) bool { return m.Kind == T120 && m.Stream }},
		{"tcp rtp", "m=audio 9 TCP/RTP/AVP 0\n", func(m *Media) bool { return m.Kind == TCPOther && m.Stream }},
		{"sctp", "m=application 4000 UDP/DTLS/SCTP webrtc-datachannel\n", func(m *Media) bool { return m.Kind == UDPOther }},
		{"bfcp", "m=application 4000 TCP/TLS/BFCP *\na=setup:actpass\n", func(m *Media) bool { return m.Kind == BFCP && m.Stream && string(m.Setup) == "actpass" }},
		{"bfcp udp", "m=application 4000 UDP/BFCP *\n", func(m *Media) bool { return m.Kind == BFCP && !m.Stream }},
		{"im", "m=message 5060 sip sip:bob@example.org\n", func(m *Media) bool { return m.Kind == NotMedia }},
		{"strange", "m=foo 4000 X/Y 1\n", func(m *Media) bool { return m.Kind == Unknown }},
		{"msrp", "m=message 2855 TCP/MSRP *\na=path:msrp://[2001:db8::1]/x;tcp\n", func(m *Media) bool {
			return m.Kind == MSRP && string(m.Path.Host) == "2001:db8::1" && m.Path.Port == 2855 && m.Path.Addr.Is6()
		}},
		{"bundle", "a=group:BUNDLE x a\na=group:LS b\nm=audio 0 RTP/AVP 0\na=mid:a\na=Bundle-Only\na=RTCP-mux\n", func(m *Media) bool {
			return m.InBundle && m.Bundle == 1 && m.BundleOnly && m.MuxRTCP
		}},
	} {
		var s Session
		if err := s.Parse([]byte(c.lines)); err != nil || s.NumMedia() != 1 || !c.check(s.Media(0)) {
			t.Errorf("%s: %v %+v", c.name, err, s.media)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ name, raw, reason string }{
		{"empty", "", "not_sdp"},
		{"text", "hello\r\nworld\r\n", "not_sdp"},
		{"port", "m=audio 65536 RTP/AVP 0\r\n", "bad_media"},
		{"wildcard", "m=audio $ RTP/AVP 0\r\n", "bad_media"},
		{"count", "m=audio 4000/0 RTP/AVP 0\r\n", "bad_media"},
		{"short", "m=audio 4000\r\n", "bad_media"},
		{"hidden c=", "v=0\r\na=x\rc=IN IP4 10.0.0.7\r\n", "bare_cr"},
		{"m-lines", strings.Repeat("m=audio 0 RTP/AVP 0\n", MaxMedia+1), "too_many_media"},
		{"marks", strings.Repeat("c=IN IP4 0\n", maxMarks+1), "too_many_lines"},
		{"size", "v=0\n" + strings.Repeat("a=x\n", MaxBytes/4), "too_large"},
	} {
		var s Session
		var e *Error
		if err := s.Parse([]byte(c.raw)); !errors.As(err, &e) || e.Reason != c.reason {
			t.Errorf("%s: %v, want %s", c.name, err, c.reason)
		}
	}
}

// TestParseAddr compares with netip, which is stricter about leading zeros only.
func TestParseAddr(t *testing.T) {
	for _, s := range []string{"192.0.2.1", "0.0.0.0", "255.255.255.255", "256.1.1.1", "1.2.3", "1.2.3.4.5", "1..2.3", "::", "::1", "1::", "1::2:3",
		"2001:db8::45", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::2::3", ":1", "1:", ":", ":::", "12345::",
		"::ffff:192.0.2.1", "64:ff9b::192.0.2.33", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3", "fe80::1%eth0", "::%", "x", "", "1:2:3:4:5:6:7:8::"} {
		want, err := netip.ParseAddr(s)
		want = want.Unmap().WithZone("")
		if s == "::%" { // netip wants a zone after the sign
			want, err = netip.IPv6Unspecified(), nil
		}
		if got := parseAddr([]byte(s)); got != want || got.IsValid() != (err == nil) {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
	if got := parseAddr([]byte("[2001:db8::1]")); got != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("brackets: %v", got)
	}
	if got := parseAddr([]byte("010.000.0.007")); got != netip.MustParseAddr("10.0.0.7") {
		t.Errorf("leading zeros: %v", got)
	}
}
