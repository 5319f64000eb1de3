package x224

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/internal/tpkt/tpkttest"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParse(t *testing.T) {
	cookie := "436f6f6b69653a206d737473686173683d610d0a"
	for _, tc := range []struct {
		name, in string
		want     TPDU
		err      error
	}{
		{"CR", "06 e0 0000 0001 00", TPDU{Kind: ConnectionRequest, Src: 1}, nil},
		{"CR of h323plus", "06 e0 007b 0200 00", TPDU{Kind: ConnectionRequest, Dst: 0x7b, Src: 0x200}, nil},
		{"CR with a size and selectors", "10 e0 0000 0001 00 c0010a c1 02 6161 c2 01 62", TPDU{Kind: ConnectionRequest, Src: 1, Size: 1024, Calling: []byte("aa"), Called: []byte("b")}, nil},
		{"CR with a cookie", "1a e0 0000 0000 00" + cookie, TPDU{Kind: ConnectionRequest, Cookie: []byte("Cookie: mstshash=a")}, nil},
		{"CR with a cookie and a negotiation", "22 e0 0000 0000 00" + cookie + "0100080003000000", TPDU{Kind: ConnectionRequest, Cookie: []byte("Cookie: mstshash=a"), Negotiation: Negotiation{Type: 1, Protocols: 3}}, nil},
		{"CC with TLS", "0e d0 0000 1234 00 021f080001000000", TPDU{Kind: ConnectionConfirm, Src: 0x1234, Negotiation: Negotiation{2, 0x1f, 1}}, nil},
		{"DR", "06 80 0001 0002 03", TPDU{Kind: DisconnectRequest, Dst: 1, Src: 2, Reason: 3}, nil},
		{"ER", "04 70 0001 02", TPDU{Kind: Error, Dst: 1, Reason: 2}, nil},
		{"DT", "02 f0 80 0102", TPDU{Kind: Data, Last: true, User: []byte{1, 2}}, nil},
		{"DT, more to come", "02 f0 00 01", TPDU{Kind: Data, User: []byte{1}}, nil},
		{"empty", "", TPDU{}, ErrLength},
		{"LI beyond the end", "07 e0 0000 0001 00", TPDU{}, ErrLength},
		{"LI 255", "ff e0" + strings.Repeat("00", 300), TPDU{}, ErrLength},
		{"LI 0", "00 e0 00", TPDU{}, ErrLength},
		{"LI 1", "01 f0 80", TPDU{}, ErrLength},
		{"CR cut", "05 e0 0000 0001", TPDU{}, ErrLength},
		{"CR with data", "06 e0 0000 0001 00 ff", TPDU{}, ErrLength},
		{"DT with a number", "02 f0 81", TPDU{}, ErrLength},
		{"DT of class 4", "04 f0 0001 80", TPDU{}, ErrLength},
		{"class 2", "06 e0 0000 0001 20", TPDU{}, ErrClass},
		{"expedited data", "02 10 80", TPDU{}, ErrKind},
		{"parameter overruns", "09 e0 0000 0001 00 c1 05 61", TPDU{}, ErrParameter},
		{"parameter cut", "07 e0 0000 0001 00 c1", TPDU{}, ErrParameter},
		{"size that is none", "09 e0 0000 0001 00 c0 01 0e", TPDU{}, ErrParameter},
		{"cookie without an end", "18 e0 0000 0001 00 436f6f6b69653a206d737473686173683d61", TPDU{}, ErrParameter},
		{"negotiation cut", "0a e0 0000 0001 00 01000800", TPDU{}, ErrParameter},
		{"negotiation of another length", "0e e0 0000 0001 00 0100090001000000", TPDU{}, ErrParameter},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Parse(unhex(t, tc.in))
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err == nil && !same(got, tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func same(a, b TPDU) bool {
	return a.Kind == b.Kind && a.Dst == b.Dst && a.Src == b.Src && a.Reason == b.Reason && a.Last == b.Last && a.Size == b.Size &&
		bytes.Equal(a.Calling, b.Calling) && bytes.Equal(a.Called, b.Called) && bytes.Equal(a.Cookie, b.Cookie) &&
		a.Negotiation == b.Negotiation && bytes.Equal(a.User, b.User)
}

func TestAnswers(t *testing.T) {
	raw := unhex(t, "09 e0 0000 0007 00 c0010a")
	cr, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	cc, err := Parse(Confirm(raw, cr))
	if err != nil || cc.Kind != ConnectionConfirm || cc.Dst != 7 || cc.Size != 1024 {
		t.Errorf("Confirm: %+v, %v", cc, err)
	}
	dr, err := Parse(Disconnect(cr, AddressUnknown))
	if err != nil || dr.Kind != DisconnectRequest || dr.Dst != 7 || dr.Reason != 3 {
		t.Errorf("Disconnect: %+v, %v", dr, err)
	}
	dt, err := Parse(AppendData(nil, []byte("x")))
	if err != nil || !dt.Last || string(dt.User) != "x" {
		t.Errorf("AppendData: %+v, %v", dt, err)
	}
}

// TestCorpora reads the CRs and CCs of real programs.
func TestCorpora(t *testing.T) {
	dir := tpkttest.Corpora(t, "../../..", "t120")
	n := 0
	files, _ := filepath.Glob(filepath.Join(dir, "redemption-x224*.bin"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var s tpkt.Splitter
		s.Push(b)
		p, ok, err := s.Next()
		if !ok || err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if cr, err := Parse(p.Payload); err != nil || cr.Kind != ConnectionRequest || !bytes.HasPrefix(cr.Cookie, []byte("Cookie: mstshash=")) {
			t.Errorf("%s: %+v, %v", file, cr, err)
		}
		n++
	}
	if n != 3 {
		t.Errorf("%d files", n)
	}
}

// FuzzX224 reads arbitrary octets: no panic, and nothing lies outside of what was read.
func FuzzX224(f *testing.F) {
	for _, s := range []string{
		"06e0007b020000", "1de00000000000436f6f6b69653a206d737473686173683d746573740d0a", "0ed000001234000200080001000000",
		"02f080", "02f00001", "0470000102", "10e000000001 00c0010ac1026161c20162",
	} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b)
		if err != nil {
			return
		}
		if len(p.Called)+len(p.Calling)+len(p.Cookie) > 255 || len(p.User) > len(b) {
			t.Fatalf("%x: %+v", b, p)
		}
		if p.Kind == ConnectionRequest {
			cc, err := Parse(Confirm(b, p))
			if err != nil || cc.Kind != ConnectionConfirm || cc.Dst != p.Src || cc.Size != p.Size {
				t.Fatalf("%x: confirmed as %+v, %v", b, cc, err)
			}
		}
	})
}
