package sipmsg

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
)

// outcome of a message: accepted, or the status of the answer, where 0 is silence.
const accept = -1

// rfc4475 lists the messages of RFC 4475 with what becomes of them. The codec
// passes what only an endpoint or a policy may refuse (§3.3: unknown schemes,
// Require, content types), and tolerates escruri, which §3.1.2.11 allows.
var rfc4475 = []struct {
	name   string
	want   int
	reason string
}{
	// §3.1.1 valid
	{"wsinv", accept, ""}, {"intmeth", accept, ""}, {"esc01", accept, ""}, {"escnull", accept, ""},
	{"esc02", accept, ""}, {"lwsdisp", accept, ""}, {"longreq", accept, ""}, {"dblreq", accept, ""},
	{"semiuri", accept, ""}, {"transports", accept, ""}, {"mpart01", accept, ""}, {"unreason", accept, ""},
	{"noreason", accept, ""},
	// §3.1.2 invalid
	{"badinv01", 400, "bad_via"}, {"clerr", 400, "short_body"}, {"ncl", 400, "bad_content_length"},
	{"scalar02", 400, "bad_cseq"}, {"scalarlg", 0, "bad_cseq"}, {"quotbal", 400, "bad_to"},
	{"ltgtruri", 400, "bad_request_uri"}, {"lwsruri", 400, "bad_request_uri"},
	{"lwsstart", 400, "bad_request_uri"}, {"trws", 400, "bad_request_line"}, {"escruri", accept, ""},
	{"baddate", 400, "bad_date"}, {"regbadct", 400, "bad_contact"}, {"badaspec", 400, "bad_to"},
	// The archive's baddn lacks the empty line as well.
	{"baddn", 400, "no_end_of_headers"}, {"badvers", 505, "version"}, {"mismatch01", 400, "cseq_method"},
	{"mismatch02", 400, "cseq_method"}, {"bigcode", 0, "bad_status_line"},
	// §3.2, §3.3, §3.4 others
	{"badbranch", accept, ""}, {"insuf", 400, "missing_from"}, {"unkscm", accept, ""}, {"novelsc", accept, ""},
	{"unksm2", accept, ""}, {"bext01", accept, ""}, {"invut", accept, ""}, {"regaut01", accept, ""},
	{"multi01", 400, "duplicate_header"}, {"mcl01", 400, "content_length_differs"}, {"bcast", accept, ""},
	{"zeromf", accept, ""}, {"cparam01", accept, ""}, {"cparam02", accept, ""}, {"regescrt", accept, ""},
	{"sdp01", accept, ""}, {"inv2543", accept, ""},
}

func TestRFC4475(t *testing.T) {
	dir := corpus(t, "sip-torture")
	if len(rfc4475) != 49 {
		t.Fatalf("%d messages in the table, not 49", len(rfc4475))
	}
	for _, c := range rfc4475 {
		raw := readFile(t, filepath.Join(dir, "rfc4475-"+c.name+".dat"))
		checkOutcome(t, c.name, raw, c.want, c.reason)
	}
}

// TestBadDisplayName is RFC 4475 baddn with the empty line that its file lacks.
func TestBadDisplayName(t *testing.T) {
	raw := readFile(t, filepath.Join(corpus(t, "sip-torture"), "rfc4475-baddn.dat"))
	checkOutcome(t, "baddn", append(raw, "\r\n"...), 400, "bad_from")
}

func TestRFC5118(t *testing.T) {
	dir := corpus(t, "sip-torture")
	for _, c := range []struct {
		name   string
		want   int
		reason string
	}{
		{"4.1-ipv6-good", accept, ""},
		{"4.2-ipv6-bad", 400, "bad_request_uri"},
		{"4.3-port-ambiguous", accept, ""},
		{"4.4-port-unambiguous", accept, ""},
		{"4.5-via-received-no-delim", accept, ""},
		{"4.5-via-received-with-delim", accept, ""},
		{"4.6-ipv6-in-sdp", accept, ""},
		{"4.6-ipv6-in-sdp.rfc-length", 400, "short_body"},
		{"4.7-mult-ip-in-header", accept, ""},
		{"4.8-mult-ip-in-sdp", accept, ""},
		{"4.8-mult-ip-in-sdp.rfc-length", accept, ""},
		{"4.9-ipv4-mapped-ipv6", accept, ""},
		{"4.9-ipv4-mapped-ipv6.rfc-length", accept, ""},
		{"4.10-ipv6-bug-abnf-3-colons", accept, ""},
	} {
		raw := readFile(t, filepath.Join(dir, "rfc5118-"+c.name+".dat"))
		checkOutcome(t, c.name, raw, c.want, c.reason)
	}
}

// checkOutcome parses raw, compares, and asserts that nothing is changed.
func checkOutcome(t *testing.T, name string, raw []byte, want int, reason string) {
	t.Helper()
	var m Message
	before := bytes.Clone(raw)
	got, gotReason := accept, ""
	if err := m.Parse(raw); err != nil {
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: error is a %T", name, err)
		}
		got, gotReason = e.Status, e.Reason
	}
	t.Logf("%-32s expected %s got %s", name, outcome(want, reason), outcome(got, gotReason))
	if got != want || gotReason != reason {
		t.Errorf("%s: got %s, want %s", name, outcome(got, gotReason), outcome(want, reason))
	}
	identity(t, name, &m, before)
}

func outcome(status int, reason string) string {
	switch status {
	case accept:
		return "accept"
	case 0:
		return "drop " + reason
	}
	return string(rune('0'+status/100)) + string(rune('0'+status/10%10)) + string(rune('0'+status%10)) + " " + reason
}

// identity asserts that a message without edits is written as it came, except for
// what lies in front and behind.
func identity(t testing.TB, name string, m *Message, raw []byte) {
	t.Helper()
	var e Editor
	e.Reset(m)
	out := e.AppendTo(nil)
	in := raw
	for bytes.HasPrefix(in, []byte("\r\n")) {
		in = in[2:]
	}
	if !bytes.HasPrefix(in, out) || !bytes.Equal(out, m.Raw()) {
		t.Errorf("%s: output differs from input", name)
	}
}
