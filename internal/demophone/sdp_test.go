package demophone

import (
	"errors"
	"net/netip"
	"testing"
)

func TestDescribeIsRead(t *testing.T) {
	for _, a := range []string{"192.0.2.7:30000", "[2001:db8::7]:30002"} {
		want := netip.MustParseAddrPort(a)
		if got, err := mediaAddr(describe("alice", want)); err != nil || got != want {
			t.Errorf("%v: read %v, %v", want, got, err)
		}
	}
}

func TestMediaAddr(t *testing.T) {
	for _, c := range []struct{ name, sdp, want string }{
		{"media level wins", "c=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\nc=IN IP4 192.0.2.2\r\n", "192.0.2.2:4000"},
		{"second media is not looked at", "c=IN IP4 192.0.2.1\nm=audio 4000 RTP/AVP 0\nm=video x\nc=bad\n", "192.0.2.1:4000"},
		{"rejected", "c=IN IP4 192.0.2.1\r\nm=audio 0 RTP/AVP 0\r\n", ""},
		{"no address", "m=audio 4000 RTP/AVP 0\r\n", ""},
		{"video", "c=IN IP4 192.0.2.1\r\nm=video 4000 RTP/AVP 0\r\n", ""},
		{"port too large", "c=IN IP4 192.0.2.1\r\nm=audio 70000 RTP/AVP 0\r\n", ""},
		{"name for address", "c=IN IP4 edge.example.org\r\nm=audio 4000 RTP/AVP 0\r\n", ""},
		{"empty", "", ""},
	} {
		got, err := mediaAddr([]byte(c.sdp))
		if c.want == "" {
			if !errors.Is(err, errSDP) {
				t.Errorf("%s: got %v, %v, want errSDP", c.name, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%s: got %v, %v, want %s", c.name, got, err, c.want)
		}
	}
}

func FuzzMediaAddr(f *testing.F) {
	f.Add(describe("alice", netip.MustParseAddrPort("192.0.2.7:30000")))
	f.Add([]byte("c=IN IP4 192.0.2.1\r\nm=audio 4000 RTP/AVP 0\r\nc=IN IP6 2001:db8::1\r\n"))
	f.Add([]byte("m=audio 1 2 3\nc=IN IP4 1.2.3.4"))
	f.Fuzz(func(t *testing.T, sdp []byte) {
		a, err := mediaAddr(sdp)
		if (err == nil) != (a.IsValid() && a.Port() != 0) {
			t.Fatalf("address %v with error %v", a, err)
		}
	})
}
