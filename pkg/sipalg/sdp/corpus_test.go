package sdp

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// corpora returns the directory of captures, or skips.
func corpora(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		root, err := os.Getwd()
		for err == nil {
			if _, e := os.Stat(filepath.Join(root, "go.mod")); e == nil || root == "/" {
				break
			}
			root = filepath.Dir(root)
		}
		dir = filepath.Join(root, "../shared/corpora")
	}
	dir = filepath.Join(dir, name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no corpus %s (set EDGED_CORPORA): %v", name, err)
	}
	return dir
}

// captures returns the unique descriptions of the corpora by name, with LF or CRLF as they are.
func captures(t testing.TB) (list [][]byte) {
	t.Helper()
	seen := map[string]bool{}
	add := func(b []byte) {
		// The placeholders of expected answers stand for ports and attribute text.
		b = regexp.MustCompile(`\bPORT\b`).ReplaceAll(b, []byte("30000"))
		if len(bytes.TrimSpace(b)) > 0 && !seen[string(b)] {
			seen[string(b)] = true
			list = append(list, b)
		}
	}
	for _, pattern := range []string{"sdp/*.sdp", "sdp/*.txt", "ms-sip/*.sdp"} {
		files, _ := filepath.Glob(filepath.Join(corpora(t, ""), pattern))
		if len(files) == 0 {
			t.Skipf("no %s in the corpora", pattern)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(f, ".sdp") {
				add(b)
				continue
			}
			for _, block := range regexp.MustCompile(`(?m)^###.*\n`).Split(string(b), -1) {
				add([]byte(strings.TrimSuffix(block, "\n\n") /* a blank line between cases */))
			}
		}
	}
	return list
}

var (
	anyIP = regexp.MustCompile(`(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*`)
	// byRule are the lines that a rewrite may change, drop or add.
	byRule = regexp.MustCompile(`^(c=|m=|o=|a=(rtcp:|candidate:|remote-candidates?:|x-candidate|ice-|end-of-candidates|altc?:|alt:|path:))`)
)

// hostAddrs returns the addresses of hosts named in a line.
func hostAddrs(line string) (list []netip.Addr) {
	for _, s := range anyIP.FindAllString(line, -1) {
		if a, err := netip.ParseAddr(s); err == nil && leaks(a.Unmap()) {
			list = append(list, a.Unmap())
		}
	}
	return list
}

// TestCorpora rewrites every description in every ICE mode and checks that nothing but the lines with
// addresses differs, that these show the edge's addresses only, and that reading the result gives the placements back.
func TestCorpora(t *testing.T) {
	edge, edge6 := netip.MustParseAddr("203.0.113.250"), netip.MustParseAddr("2001:db8:ed9e::1")
	count := map[string]int{}
	for n, raw := range captures(t) {
		var s, again Session
		if err := s.Parse(raw); err != nil {
			count["refused: "+err.Error()]++
			t.Logf("refused: %v in %q", err, raw)
			continue
		}
		count["descriptions"]++
		count["m-lines"] += s.NumMedia()
		if got := s.AppendRewritten(nil, Rewrite{ICE: Pass}); !bytes.Equal(got, raw) {
			t.Errorf("not the identity:\n%s", got)
		}
		for _, ice := range []ICE{Strip, Relay} {
			r := Rewrite{ICE: ice, Origin: true, Addr: edge}
			second := edge
			if n%3 == 2 {
				second = edge6
			}
			r.Media = placements(&s, edge, second)
			out := s.AppendRewritten(nil, r)
			if err := again.Parse(out); err != nil {
				t.Fatalf("reparse: %v\n%s", err, out)
			}
			checkLines(t, raw, out, &s, count, edge, edge6)
			checkPlacements(t, &s, &again, r)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%6d %s", count[k], k)
	}
	if count["descriptions"] < 500 {
		t.Errorf("only %d descriptions", count["descriptions"])
	}
}

// placements gives each m-line that is media a port, the second one at an address of its own.
func placements(s *Session, first, second netip.Addr) (list []Placement) {
	for i := range s.NumMedia() {
		a := first
		if i == 1 {
			a = second
		}
		var p Placement
		if s.Media(i).Kind != NotMedia {
			p.Addr = netip.AddrPortFrom(a, uint16(50000+2*i))
		}
		list = append(list, p)
	}
	return list
}

// checkLines compares line by line: what is not byRule must be the same and in order.
func checkLines(t *testing.T, raw, out []byte, s *Session, count map[string]int, own ...netip.Addr) {
	t.Helper()
	rest := func(b []byte) (keep []string) {
		for line := range strings.SplitAfterSeq(string(b), "\n") {
			if !byRule.MatchString(line) {
				keep = append(keep, strings.TrimRight(line, "\r\n"))
			}
		}
		return keep
	}
	if a, b := rest(raw), rest(out); strings.TrimRight(strings.Join(a, "\n"), "\n") != strings.TrimRight(strings.Join(b, "\n"), "\n") {
		t.Errorf("other lines changed:\n%s\nbecame\n%s", raw, out)
	}
	countLines(t, raw, out, count)
	if crs := bytes.Count(raw, []byte("\r\n")); crs == 0 && bytes.Contains(out, []byte("\r")) {
		t.Errorf("a CR came in:\n%q", out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		for _, a := range hostAddrs(line) {
			switch {
			case a == own[0] || a == own[1]:
				count["lines with the edge's address"]++
			case !byRule.MatchString(line):
				count["addresses left in untouched lines: "+strings.SplitN(line, ":", 2)[0]]++
			default:
				t.Errorf("address %v left in %q of\n%s", a, line, out)
			}
		}
	}
}

// countLines fills the table, and checks that no line is lost but by rule.
func countLines(t *testing.T, raw, out []byte, count map[string]int) {
	t.Helper()
	after := map[string]int{}
	for line := range strings.SplitSeq(string(out), "\n") {
		after[strings.TrimRight(line, "\r")]++
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		line = strings.TrimRight(line, "\r")
		switch rule := byRule.FindString(line); {
		case after[line] > 0:
			after[line]--
			count["lines kept"]++
		case rule != "":
			count["lines replaced or dropped: "+rule]++
		default:
			t.Errorf("lost %q", line)
		}
	}
}

// checkPlacements reads the result as the other side would.
func checkPlacements(t *testing.T, before, after *Session, r Rewrite) {
	t.Helper()
	if before.NumMedia() != after.NumMedia() {
		t.Fatalf("%d m-lines became %d", before.NumMedia(), after.NumMedia())
	}
	for i, p := range r.Media {
		was, is := before.Media(i), after.Media(i)
		if !bytes.Equal(was.Type, is.Type) || !bytes.Equal(was.Proto, is.Proto) || was.Hold != is.Hold {
			t.Errorf("m-line %d: %+v became %+v", i, was, is)
		}
		switch {
		case was.Port == 0 || !p.Addr.IsValid() || was.Multicast:
			if is.Port != was.Port || is.PortCount != was.PortCount {
				t.Errorf("m-line %d: port %d became %d", i, was.Port, is.Port)
			}
		case was.heldByAddress():
			if !is.heldByAddress() || is.Port != p.Addr.Port() {
				t.Errorf("m-line %d: held %v became %v", i, was.AddrPort(), is.AddrPort())
			}
		case is.AddrPort() != p.Addr:
			t.Errorf("m-line %d: %v, want %v\n%s", i, is.AddrPort(), p.Addr, after.Raw())
		case was.Kind == RTP && is.RTCP(is.MuxRTCP) != rtcpOf(&p, was):
			t.Errorf("m-line %d: RTCP %v, want %v", i, is.RTCP(is.MuxRTCP), rtcpOf(&p, was))
		}
	}
}

func TestHostAddrs(t *testing.T) {
	got := fmt.Sprint(hostAddrs("a=candidate:1 1 UDP 5 fd00::7 5000 typ srflx raddr 10.0.0.7 rport 1 0.0.0.0 ::"))
	if want := "[fd00::7 10.0.0.7]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
