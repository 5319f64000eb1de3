package sdp

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestGolden runs testdata/*.txtar: a comment with flags, then what goes in and what must come out.
//
//	media ADDRESS [RTCP]   the next m-line's placement; "-" for none, "reject" for port 0
//	secure PROFILE [ATTRIBUTE|ATTRIBUTE]   of the last one
//	ice strip|relay|pass   origin   addr ADDRESS
//
// Each runs with LF and with CRLF, with the last line end and without.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden cases", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			comment, rest, ok := bytes.Cut(text, []byte("-- in --\n"))
			in, out, ok2 := bytes.Cut(rest, []byte("-- out --\n"))
			if !ok || !ok2 {
				t.Fatal("want the sections in and out")
			}
			r := flags(t, string(comment))
			crlf := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) }
			check(t, "LF", in, out, r)
			check(t, "CRLF", crlf(in), crlf(out), r)
			check(t, "no last line end", bytes.TrimSuffix(in, []byte("\n")), bytes.TrimSuffix(out, []byte("\n")), r)
		})
	}
}

func check(t *testing.T, name string, in, want []byte, r Rewrite) {
	t.Helper()
	var s Session
	if err := s.Parse(in); err != nil {
		t.Fatal(name, err)
	}
	if got := s.AppendRewritten(nil, Rewrite{ICE: Pass}); !bytes.Equal(got, in) {
		t.Errorf("%s: identity: got:\n%s", name, got)
	}
	got := s.AppendRewritten([]byte("prefix"), r)[len("prefix"):]
	if name == "no last line end" {
		got = bytes.TrimSuffix(got, []byte("\n"))
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got:\n%s\nwant:\n%s", name, got, want)
	}
	again := got
	if err := s.Parse(again); err != nil {
		t.Fatal(name, "reparse", err)
	}
	if got := s.AppendRewritten(nil, r); !bytes.Equal(got, again) && name != "no last line end" {
		t.Errorf("%s: a second rewrite changed:\n%s", name, got)
	}
}

// flags reads the comment of a case.
func flags(t *testing.T, comment string) (r Rewrite) {
	t.Helper()
	for _, line := range strings.Split(comment, "\n")[1:] {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		switch f[0] {
		case "origin":
			r.Origin = true
		case "ice":
			r.ICE = map[string]ICE{"strip": Strip, "relay": Relay, "pass": Pass}[f[1]]
		case "addr":
			r.Addr = netip.MustParseAddr(f[1])
		case "media":
			var p Placement
			if p.Reject = f[1] == "reject"; f[1] != "-" && !p.Reject {
				p.Addr = netip.MustParseAddrPort(f[1])
			}
			if len(f) > 2 {
				p.RTCP = netip.MustParseAddrPort(f[2])
			}
			r.Media = append(r.Media, p)
		case "secure":
			sec := &Security{Profile: f[1]}
			if len(f) > 2 {
				sec.Attributes = strings.Split(strings.Join(f[2:], " "), "|")
			}
			r.Media[len(r.Media)-1].Security = sec
		default:
			t.Fatalf("unknown flag %q", f[0])
		}
	}
	return r
}
