package sipalg

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/pkg/sipalg/flow"
)

// corpus returns the folder name of the corpora, or skips the test.
func corpus(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("EDGED_CORPORA")
	if dir == "" {
		dir = filepath.Join(repository(t), "..", "shared", "corpora")
	}
	dir = filepath.Join(dir, name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("SKIP: no corpus %s (set EDGED_CORPORA): %v", name, err)
	}
	return dir
}

// repository walks up to the folder of go.mod.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the package")
		}
		dir = up
	}
}

// verdict is what became of a message: "forward", "answer STATUS" or "drop REASON".
type verdict struct{ name, want string }

// rfc4475 has the 49 messages of RFC 4475. What only an endpoint may refuse is forwarded: unknown
// schemes in To, Require, content types, escapes. escruri may be tolerated (§3.1.2.11). badinv01
// cannot be answered: it has no usable Via.
var rfc4475 = []verdict{
	// §3.1.1: valid
	{"wsinv", "forward"}, {"intmeth", "forward"}, {"esc01", "forward"}, {"escnull", "forward"}, {"esc02", "forward"},
	{"lwsdisp", "forward"}, {"longreq", "forward"}, {"dblreq", "forward"}, {"semiuri", "forward"}, {"transports", "forward"},
	{"mpart01", "forward"}, {"unreason", "drop response_not_ours"}, {"noreason", "drop response_not_ours"},
	// §3.1.2: invalid
	{"badinv01", "drop malformed_bad_via"}, {"clerr", "answer 400"}, {"ncl", "answer 400"}, {"scalar02", "answer 400"},
	{"scalarlg", "drop malformed_bad_cseq"}, {"quotbal", "answer 400"}, {"ltgtruri", "answer 400"}, {"lwsruri", "answer 400"},
	{"lwsstart", "answer 400"}, {"trws", "answer 400"}, {"escruri", "forward"}, {"baddate", "answer 400"},
	{"regbadct", "answer 400"}, {"badaspec", "answer 400"}, {"baddn", "answer 400"}, {"badvers", "answer 505"},
	{"mismatch01", "answer 400"}, {"mismatch02", "answer 400"}, {"bigcode", "drop malformed_bad_status_line"},
	// §3.2 transactions, §3.3 applications, §3.4 older clients
	{"badbranch", "forward"}, {"insuf", "answer 400"}, {"unkscm", "answer 416"}, {"novelsc", "answer 416"},
	{"unksm2", "forward"}, {"bext01", "answer 420"}, {"invut", "forward"}, {"regaut01", "forward"}, {"multi01", "answer 400"},
	{"mcl01", "answer 400"}, {"bcast", "drop response_not_ours"}, {"zeromf", "answer 483"}, {"cparam01", "forward"},
	{"cparam02", "forward"}, {"regescrt", "forward"}, {"sdp01", "forward"}, {"inv2543", "forward"},
}

var rfc5118 = []verdict{
	{"4.1-ipv6-good", "forward"}, {"4.2-ipv6-bad", "answer 400"}, {"4.3-port-ambiguous", "forward"}, {"4.4-port-unambiguous", "forward"},
	{"4.5-via-received-no-delim", "forward"}, {"4.5-via-received-with-delim", "forward"},
	{"4.6-ipv6-in-sdp", "forward"}, {"4.6-ipv6-in-sdp.rfc-length", "answer 400"}, {"4.7-mult-ip-in-header", "forward"},
	{"4.8-mult-ip-in-sdp", "forward"}, {"4.8-mult-ip-in-sdp.rfc-length", "forward"}, {"4.9-ipv4-mapped-ipv6", "forward"},
	{"4.9-ipv4-mapped-ipv6.rfc-length", "forward"}, {"4.10-ipv6-bug-abnf-3-colons", "forward"},
}

func TestRFC4475(t *testing.T) {
	if len(rfc4475) != 49 {
		t.Fatalf("%d messages in the table, not 49", len(rfc4475))
	}
	torture(t, "rfc4475-", rfc4475)
}

func TestRFC5118(t *testing.T) { torture(t, "rfc5118-", rfc5118) }

// torture sends each message from the inside and compares what becomes of it. What is forwarded has
// only the edge's own edits.
func torture(t *testing.T, prefix string, table []verdict) {
	dir := corpus(t, "sip-torture")
	for _, v := range table {
		raw, err := os.ReadFile(filepath.Join(dir, prefix+v.name+".dat"))
		if err != nil {
			t.Fatal(err)
		}
		// mpart01 has a Route to 127.0.0.1, where the edge lets nobody lead it.
		raw = bytes.ReplaceAll(raw, []byte("<sip:127.0.0.1:5080>"), []byte("<sip:192.0.2.2:5080>"))
		got, out := tortured(t, raw)
		t.Logf("%-34s %-32s %s", v.name, got, map[bool]string{true: "as expected", false: "EXPECTED " + v.want}[got == v.want])
		if got != v.want {
			t.Errorf("%s: %s, want %s", v.name, got, v.want)
		}
		if got == "forward" {
			if diff := onlyOwnEdits(strings.TrimLeft(string(raw), "\r\n"), out); diff != "" {
				t.Errorf("%s: %s\n%s", v.name, diff, out)
			}
		}
	}
}

func tortured(t *testing.T, raw []byte) (what, out string) {
	w := newWorld(t, func(c *Config) {
		c.Domains = map[string]Domain{"*": {Network: "outside", Server: "udp:198.51.100.20:5060"}}
	})
	w.showsIn = true
	// The messages name media hosts all over the world.
	w.opener.Allow("inside", netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0"))
	alice := w.alice()
	w.bob()
	w.put(flow.UDP, alice.addr, alice.first, string(raw))
	for len(w.queries) > 0 {
		w.answer(flow.Target{Network: "outside", Proto: flow.UDP, Addr: ap("198.51.100.20:5060")})
	}
	for _, e := range w.log {
		m := parseMsg(e.raw)
		switch {
		case !e.toWho || m.status == 100:
		case m.method != "":
			return "forward", e.raw
		default:
			return fmt.Sprintf("answer %d", m.status), e.raw
		}
	}
	for reason := range w.core.drops {
		return "drop " + reason, ""
	}
	return "drop without a reason", ""
}

// onlyOwnEdits compares a message as received and as sent on: all but the edge's own header fields are
// the same bytes in the same order, and the edge's own are what they should be.
func onlyOwnEdits(in, out string) string {
	a, b := parseMsg(in), parseMsg(out)
	if a.start != b.start {
		return fmt.Sprintf("start line %q became %q", a.start, b.start)
	}
	if x, y := a.untouchable(), b.untouchable(); !slices.Equal(x, y) {
		return fmt.Sprintf("header fields %q became %q", x, y)
	}
	if x, y := len(a.all("Contact")), len(b.all("Contact")); x != y {
		return fmt.Sprintf("%d Contacts became %d", x, y)
	}
	if !strings.Contains(strings.ToLower(a.get("Content-Type")), "sdp") && !strings.HasPrefix(a.body, b.body) {
		return "the body is changed"
	}
	return ""
}

// TestForwardCorpus sends every single message of the corpora through the core: the edge neither panics nor
// changes what is not its own.
func TestForwardCorpus(t *testing.T) {
	count := map[string]int{}
	for _, dir := range []string{"sip-torture", "ms-sip"} {
		root := corpus(t, dir)
		err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			raw, err := os.ReadFile(path)
			if ext := filepath.Ext(path); err != nil || ext != ".sip" && ext != ".dat" {
				return err
			}
			got, out := tortured(t, raw)
			count[dir+" "+got]++
			if got == "forward" {
				if diff := onlyOwnEdits(strings.TrimLeft(string(raw), "\r\n"), out); diff != "" {
					t.Errorf("%s: %s", path, diff)
				}
			}
			if got == "drop without a reason" && !bytes.HasPrefix(raw, []byte("ACK ")) {
				t.Errorf("%s: dropped without a reason", path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v", count)
	if n := count["sip-torture forward"] + count["ms-sip forward"]; n < 50 {
		t.Errorf("only %d messages were forwarded", n)
	}
}
