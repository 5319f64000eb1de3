package sdp

import (
	"net/netip"
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
