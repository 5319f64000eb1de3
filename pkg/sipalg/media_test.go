package sipalg

import (
	"fmt"
	"strings"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// media is a description with the given lines from its first m= line on.
func (p *phone) media(lines ...string) string {
	head, _, _ := strings.Cut(p.sdp(1), "m=audio")
	return head + strings.Join(lines, "\r\n") + "\r\n"
}

// TestBundle: bundled media share one pinhole; a bundle-only line has none of its own.
func TestBundle(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	bundle := func(p *phone, port int) string {
		audio, video := "m=audio %[1]d UDP/TLS/RTP/SAVPF 0|a=mid:0|a=rtcp-mux", "m=video %[1]d UDP/TLS/RTP/SAVPF 96|a=mid:1|a=rtcp-mux"
		return p.media(strings.Split(fmt.Sprintf("a=group:BUNDLE 0 1|"+audio+"|"+video, port), "|")...)
	}
	first := strings.Replace(bundle(alice, 4000), "m=video 4000 UDP/TLS/RTP/SAVPF 96\r\n", "m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=bundle-only\r\n", 1)
	a, b, _, got := ring(alice, bob, first)
	if !strings.Contains(got.body, "m=audio 50000 UDP/TLS/RTP/SAVPF 0\r\n") || !strings.Contains(got.body, "m=video 0 UDP/TLS/RTP/SAVPF 96\r\na=bundle-only") {
		t.Errorf("offer:\n%s", got.body)
	}
	bob.reply(got, b, 200, bundle(bob, 6000))
	ok := alice.expect("200")
	if strings.Count(ok.body, " 50000 UDP/TLS") != 2 {
		t.Errorf("answer:\n%s", ok.body)
	}
	a.learn(ok)
	a.send("ACK", "")
	bob.expect("ACK")
	if n := w.opener.Count(); n != 1 {
		t.Errorf("%d pinholes", n)
	}
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	reinvite(a, b, bundle(alice, 4000), bundle(bob, 6000))
	ends(t, w.openLease(), "10.0.0.5:4000", "198.51.100.20:6000")
	a.bye(b)
	w.clean()
}

// TestOtherMedia: MSRP and BFCP get a TCP pinhole, T.38 and data channels a UDP one, and a line whose
// port is no media port none at all.
func TestOtherMedia(t *testing.T) {
	tests := []struct {
		name, offer, answer, want string
		kind                      pinhole.Kind
		leases                    int
	}{
		{
			name: "msrp", kind: pinhole.TCP, leases: 1,
			offer:  "m=message 2855 TCP/MSRP *|a=path:msrp://10.0.0.5:2855/jshA7weztas;tcp|a=setup:actpass",
			answer: "m=message 9 TCP/MSRP *|a=path:msrp://198.51.100.20:9/9di4eae923wzd;tcp|a=setup:active",
			want:   "a=path:msrp://198.51.100.1:50000/jshA7weztas;tcp",
		},
		{
			name: "bfcp", kind: pinhole.TCP, leases: 1,
			offer: "m=application 5070 TCP/BFCP *|a=setup:passive", answer: "m=application 9 TCP/BFCP *|a=setup:active",
			want: "m=application 50000 TCP/BFCP *",
		},
		{
			name: "sctp", kind: pinhole.UDP, leases: 1,
			offer: "m=application 4000 UDP/DTLS/SCTP webrtc-datachannel|a=sctp-port:5000", answer: "m=application 6000 UDP/DTLS/SCTP webrtc-datachannel|a=sctp-port:5000",
			want: "m=application 50000 UDP/DTLS/SCTP webrtc-datachannel",
		},
		{
			name: "im", offer: "m=x-ms-message 5060 sip null", answer: "m=x-ms-message 5060 sip null", want: "m=x-ms-message 5060 sip null",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			alice, bob := w.alice(), w.bob()
			a, b, _, got := ring(alice, bob, alice.media(strings.Split(tt.offer, "|")...))
			if !strings.Contains(got.body, tt.want+"\r\n") {
				t.Errorf("offer:\n%s", got.body)
			}
			bob.reply(got, b, 200, bob.media(strings.Split(tt.answer, "|")...))
			a.learn(alice.expect("200"))
			a.send("ACK", "")
			bob.expect("ACK")
			if n := w.opener.Count(); n != tt.leases || n > 0 && w.openLease().Request.Kind != tt.kind {
				t.Errorf("%d pinholes", n)
			}
			b.bye(a)
			w.clean()
		})
	}
}

// TestMediaComesAndGoes: streams are added, refused, disabled and enabled again; each has its own pinhole
// while it is there, and the others keep theirs.
func TestMediaComesAndGoes(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	two := func(p *phone, audio, video int) string {
		return p.media(fmt.Sprintf("m=audio %d RTP/AVP 0", audio), fmt.Sprintf("m=video %d RTP/AVP 31", video))
	}
	a, b := alice.call("sip:bob@example.com", bob, alice.sdp(4000), bob.sdp(6000))
	steps := []struct {
		offer, answer [2]int
		open          int
	}{
		{[2]int{4000, 4020}, [2]int{6000, 6020}, 2},
		{[2]int{4000, 4020}, [2]int{6000, 0}, 1},
		{[2]int{4000, 0}, [2]int{6000, 0}, 1},
		{[2]int{0, 4020}, [2]int{0, 6020}, 1},
		{[2]int{4000, 4020}, [2]int{6000, 6020}, 2},
	}
	for i, s := range steps {
		reinvite(a, b, two(alice, s.offer[0], s.offer[1]), two(bob, s.answer[0], s.answer[1]))
		if n := w.opener.Count(); n != s.open {
			t.Errorf("step %d: %d pinholes, want %d", i, n, s.open)
		}
	}
	a.bye(b)
	w.clean()
}

// TestMultipartAlternative: every description in a body is rewritten to the same pinholes; the first
// one counts.
func TestMultipartAlternative(t *testing.T) {
	w := newWorld(t, nil)
	alice, bob := w.alice(), w.bob()
	part := func(sdp string) string { return "--x\r\nContent-Type: application/sdp\r\n\r\n" + sdp + "\r\n" }
	head, _, _ := strings.Cut(alice.dial("sip:bob@example.com").text("INVITE", ""), "Content-Length")
	body := part(alice.sdp(4000)) + part(alice.sdp(4000)) + "--x--\r\n"
	w.put(alice.proto, alice.addr, alice.first, withType(head, "multipart/alternative;boundary=x", body))
	got := bob.expect("INVITE")
	if strings.Count(got.body, "m=audio 50000 RTP/AVP 0") != 2 || w.opener.Count() != 1 {
		t.Errorf("%d pinholes for\n%s", w.opener.Count(), got.body)
	}
	bob.reply(got, nil, 486, "")
	w.clean()
}

// TestBadDescription: what cannot be read is refused, not passed on.
func TestBadDescription(t *testing.T) {
	for body, want := range map[string]string{"nonsense": "400", "v=0\r\nm=audio 99999 RTP/AVP 0\r\n": "400", strings.Repeat("m=audio 4000 RTP/AVP 0\r\n", 17): "503"} {
		w := newWorld(t, nil)
		alice, bob := w.alice(), w.bob()
		if want == "503" {
			body = alice.media(strings.TrimSuffix(body, "\r\n"))
		}
		alice.dial("sip:bob@example.com").send("INVITE", body)
		alice.expect(want)
		bob.nothing()
		if w.opener.Count() != 0 {
			t.Errorf("%d pinholes", w.opener.Count())
		}
		w.clean()
	}
}
