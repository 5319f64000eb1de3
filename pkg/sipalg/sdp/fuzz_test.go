package sdp

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

// FuzzSDP checks that the index is harmless, that a rewrite of nothing changes nothing, and that what was
// placed is read back.
func FuzzSDP(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		_, b, _ = bytes.Cut(b, []byte("-- in --\n"))
		b, _, _ = bytes.Cut(b, []byte("-- out --\n"))
		f.Add(b)
	}
	f.Add([]byte(desk))
	f.Add([]byte(web))
	f.Add([]byte("m=audio 9 RTP/AVP 0\na=rtcp:\na=path:://\na=candidate:\nc=\no=\na=group:BUNDLE "))
	var s, again Session
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s.Parse(raw) != nil {
			return
		}
		if out := s.AppendRewritten(nil, Rewrite{ICE: Pass}); !bytes.Equal(out, raw) {
			t.Fatalf("%q became %q", raw, out)
		}
		if s.NumMedia() == 0 {
			return
		}
		for _, ice := range []ICE{Strip, Relay, Pass} {
			r := Rewrite{ICE: ice, Origin: true, Addr: netip.MustParseAddr("203.0.113.250")}
			r.Media = placements(&s, r.Addr, netip.MustParseAddr("2001:db8::5"))
			out := s.AppendRewritten(nil, r)
			// Adding lines to an m-line may step over a bound.
			if len(out) > MaxBytes || len(s.marks) > maxMarks/2 {
				continue
			}
			if err := again.Parse(out); err != nil {
				t.Fatalf("%v: reparse of %q from %q", err, out, raw)
			}
			checkPlacements(t, &s, &again, r)
		}
		checkEnds(t, &s)
	})
}

// checkEnds rewrites a description whose transports end at the edge: nothing of them is left, and what is put is read.
func checkEnds(t *testing.T, s *Session) {
	t.Helper()
	r := Rewrite{ICE: Pass, Addr: netip.MustParseAddr("203.0.113.250"), Session: []string{"ice-lite"}}
	r.Media = placements(s, r.Addr, r.Addr)
	for i := range r.Media {
		r.Media[i].Security = &Security{Profile: "RTP/AVP", Ends: true, MID: "m"}
	}
	out := s.AppendRewritten(nil, r)
	var again Session
	if len(out) > MaxBytes || len(s.marks) > maxMarks/2 {
		return
	}
	if err := again.Parse(out); err != nil {
		t.Fatalf("%v: reparse of %q from %q", err, out, s.Raw())
	}
	for i := range again.NumMedia() {
		if m := again.Media(i); m.ICE || m.MuxRTCP || m.BundleOnly || m.InBundle || m.Cryptos > 0 || m.Fingerprint || string(m.MID) != "m" || !m.Lite {
			t.Fatalf("m-line %d is %+v: %q from %q", i, m, out, s.Raw())
		}
	}
}

// FuzzMultipart checks that taking apart and putting together changes nothing, and that RewriteBody and
// EachPart see the same descriptions.
func FuzzMultipart(f *testing.F) {
	f.Add([]byte(ocsType), []byte(ocs))
	f.Add([]byte("multipart/mixed;boundary=b"), []byte("--b\nContent-Type: multipart/related;boundary=c\n\n--c\nc: application/sdp\n\nv=0\n--c--\n--b\n\nx\n--b--"))
	f.Add([]byte("application/sdp"), []byte(desk))
	f.Add([]byte("multipart/mixed;boundary=\"b"), []byte("--b\r\nContent-Length: \r\n"))
	f.Fuzz(func(t *testing.T, contentType, body []byte) {
		var want, got [][]byte
		errEach := EachPart(contentType, body, func(p Part) bool {
			if IsSDP(p.ContentType) {
				want = append(want, p.Body)
			}
			return true
		})
		out, changed, err := RewriteBody(nil, contentType, body, func(p, dst []byte) ([]byte, error) {
			got = append(got, p)
			return append(dst, p...), nil
		})
		if err != nil {
			return
		}
		if errEach != nil || changed || !bytes.Equal(out, body) || len(got) != len(want) {
			t.Fatalf("%v %v %q became %q, %d parts of %d", errEach, changed, body, out, len(got), len(want))
		}
		switch part, number, err := Preferred(contentType, body); {
		case err != nil || (number < 0) != (len(want) == 0) || number >= len(want):
			t.Fatalf("%d of %d counts: %v", number, len(want), err)
		case number >= 0 && !bytes.Equal(part, want[number]):
			t.Fatalf("%q counts, not %q", part, want[number])
		}
		long, _, err := RewriteBody(nil, contentType, body, func(p, dst []byte) ([]byte, error) {
			return append(append(dst, p...), "a=x:0123456789"...), nil
		})
		if err != nil || len(long) < len(body)+14*len(want) {
			t.Fatalf("%v: %q became %q", err, body, long)
		}
	})
}
