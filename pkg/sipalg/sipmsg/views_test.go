package sipmsg

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// request builds a message from lines; CRLFs are added.
func request(lines ...string) []byte {
	return []byte(strings.Join(lines, "\r\n") + "\r\n\r\n")
}

// base is a request to vary.
func base(more ...string) []byte {
	return request(append([]string{
		"OPTIONS sip:bob@example.org SIP/2.0",
		"Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
		"From: <sip:alice@example.org>;tag=a1",
		"To: <sip:bob@example.org>",
		"Call-ID: c1@192.0.2.1",
		"CSeq: 7 OPTIONS",
	}, more...)...)
}

func parse(t testing.TB, raw []byte) *Message {
	t.Helper()
	m := new(Message)
	if err := m.Parse(raw); err != nil {
		t.Fatalf("%v in %q", err, raw)
	}
	return m
}

func same(t testing.TB, what string, got []byte, want string) {
	t.Helper()
	if string(got) != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestViewsDesk(t *testing.T) {
	m := parse(t, readFile(t, "testdata/desk.sip"))
	if !m.IsRequest() || m.Method() != "INVITE" || m.Status() != 0 || m.Len() != 18 {
		t.Errorf("request %v method %q status %d len %d", m.IsRequest(), m.Method(), m.Status(), m.Len())
	}
	same(t, "uri", m.RequestURI(), "sip:2002@pbx.example.org;user=phone")
	same(t, "display", m.From().Display, `"Alice Example, Desk 12"`)
	same(t, "from", m.From().URI, "sip:2001@pbx.example.org")
	same(t, "tag", m.From().Tag(), "C3B1A6E2-4F80B9D7")
	same(t, "to tag", m.To().Tag(), "")
	same(t, "call-id", m.CallID(), "8d1f7c0e5b2a4936-7701@192.0.2.23")
	same(t, "type", m.ContentType(), "application/sdp")
	if n, method := m.CSeq(); n != 1 || method != "INVITE" {
		t.Errorf("CSeq %d %q", n, method)
	}
	if n, ok := m.MaxForwards(); n != 70 || !ok {
		t.Errorf("Max-Forwards %d %v", n, ok)
	}
	if _, ok := m.Expires(); ok {
		t.Error("there is no Expires")
	}
	if !strings.HasPrefix(string(m.Body()), "v=0\r\n") || len(m.Body()) != 303 {
		t.Errorf("body of %d bytes", len(m.Body()))
	}
	if v, ok := m.FindName("x-SITE"); !ok || !strings.HasPrefix(string(v), "building-7") {
		t.Errorf("X-Site %q %v", v, ok)
	}
	v, ok := m.TopVia()
	if !ok || !v.HasRPort || v.RPort != 0 || v.Port != 5060 {
		t.Errorf("Via %+v %v", v, ok)
	}
	same(t, "branch", v.Branch, "z9hG4bK5a3f0c8b7E1D2C4A")
	same(t, "rport", v.RPortParam, "rport")
	if !m.Answerable() {
		t.Error("not answerable")
	}
}

func TestParseVia(t *testing.T) {
	for _, c := range []struct {
		in, proto, host string
		port            uint16
		branch, recv    string
		rport           int // -1 absent
	}{
		{"SIP/2.0/UDP 192.0.2.1", "UDP", "192.0.2.1", 0, "", "", -1},
		{"SIP/2.0/TCP h.example.org:5070;branch=z9hG4bK1", "TCP", "h.example.org", 5070, "z9hG4bK1", "", -1},
		{"SIP/2.0/TLS [2001:db8::1]:5061;branch=x; rport", "TLS", "2001:db8::1", 5061, "x", "", 0},
		{"SIP/2.0/UDP 192.0.2.1;rport=1024;received=198.51.100.1", "UDP", "192.0.2.1", 0, "", "198.51.100.1", 1024},
		{"SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=b", "UDP", "2001:db8::9:1", 0, "b", "2001:db8::9:255", -1},
		{"SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=b", "UDP", "2001:db8::9:1", 0, "b", "2001:db8::9:255", -1},
		{"SIP  / 2.0\r\n /UDP\r\n    192.0.2.2 : 5062 ;branch = b ; rport = 9", "UDP", "192.0.2.2", 5062, "b", "", 9},
		{"SIP/2.0/UDP h.example.org;rport=", "UDP", "h.example.org", 0, "", "", 0},
		{"SIP/2.0/UDP h.example.org (old comment)", "UDP", "h.example.org", 0, "", "", -1},
		{"sip/2.0/ws df7jal23ls0d.invalid;branch=z9", "ws", "df7jal23ls0d.invalid", 0, "z9", "", -1},
	} {
		v, err := ParseVia([]byte(c.in))
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		rport := -1
		if v.HasRPort {
			rport = int(v.RPort)
		}
		got := []any{string(v.Proto), string(v.Host), v.Port, string(v.Branch), string(v.Received), rport}
		if want := []any{c.proto, c.host, c.port, c.branch, c.recv, c.rport}; !slices.Equal(got, want) {
			t.Errorf("%q:\n got %v\nwant %v", c.in, got, want)
		}
	}
	for _, in := range []string{
		"", "SIP/2.0/UDP", "SIP/2.0 192.0.2.1", "HTTP/1.1/TCP a", "SIP/2.0/UDP 192.0.2.1;;x", "SIP/2.0/UDP h:0",
		"SIP/2.0/UDP h:65536", "SIP/2.0/UDP h;rport=x", "SIP/2.0/UDP 2001:db8::1", "SIP/2.0/UDP [::1", "SIP/2.0/UDP h;a=\"b",
	} {
		if _, err := ParseVia([]byte(in)); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestParseNameAddr(t *testing.T) {
	for _, c := range []struct{ in, display, uri, tag string }{
		{`<sip:a@example.org>;tag=1`, "", "sip:a@example.org", "1"},
		{`"A, \"B\" <c>" <sip:a@example.org;tag=no>;x;tag = 2`, `"A, \"B\" <c>"`, "sip:a@example.org;tag=no", "2"},
		{`sip:a@example.org;tag=3`, "", "sip:a@example.org", "3"},
		{`Alice Example <tel:+15550100>;TAG=4`, "Alice Example", "tel:+15550100", "4"},
		{`caller<sip:a@example.org>`, "caller", "sip:a@example.org", ""},
		{`<sip:192.0.2.1:1024;transport=tcp;ms-opaque=ab>;methods="INVITE, ACK";proxy=replace;tag=5`, "", "sip:192.0.2.1:1024;transport=tcp;ms-opaque=ab", "5"},
		{`*`, "", "*", ""},
		{`"Alice" sip:a@example.org;tag=6`, `"Alice"`, "sip:a@example.org", "6"},
	} {
		n, err := ParseNameAddr([]byte(c.in))
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		same(t, c.in, n.Display, c.display)
		same(t, c.in, n.URI, c.uri)
		same(t, c.in, n.Tag(), c.tag)
	}
	for _, in := range []string{
		"", `"open <sip:a@b>`, `A, B <sip:a@b>`, `< sip:a@b >`, `sip:a@b?x=y`, `<sip:a@b`, `<sip:a@b> x`, `alice`, `<>`, `<sip:a@b>;"x"`,
	} {
		if _, err := ParseNameAddr([]byte(in)); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestParseURI(t *testing.T) {
	for _, c := range []struct {
		in, user, password, host string
		port                     uint16
		params, headers          string
	}{
		{"sip:a@example.org", "a", "", "example.org", 0, "", ""},
		{"SIPS:a:secret@example.org:5061;lr?Subject=x", "a", "secret", "example.org", 5061, ";lr", "?Subject=x"},
		{"sip:192.0.2.1:1024;transport=tcp", "", "", "192.0.2.1", 1024, ";transport=tcp", ""},
		{"sip:[2001:db8::1]:5060;x", "", "", "2001:db8::1", 5060, ";x", ""},
		{"sip:user;par=u%40example.net@example.com", "user;par=u%40example.net", "", "example.com", 0, "", ""},
		{"sip:a@example.org;maddr=192.0.2.9;transport=tcp?a=b?c", "a", "", "example.org", 0, ";maddr=192.0.2.9;transport=tcp", "?a=b?c"},
	} {
		u, err := ParseURI([]byte(c.in))
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		got := []any{string(u.User), string(u.Password), string(u.Host), u.Port, string(u.Params), string(u.Headers)}
		if want := []any{c.user, c.password, c.host, c.port, c.params, c.headers}; !slices.Equal(got, want) {
			t.Errorf("%q:\n got %v\nwant %v", c.in, got, want)
		}
	}
	tel, err := ParseURI([]byte("tel:+1-555-0100;phone-context=example.org"))
	if err != nil || tel.IsSIP() || string(tel.Opaque) != "+1-555-0100;phone-context=example.org" {
		t.Errorf("tel: %+v %v", tel, err)
	}
	u, _ := ParseURI([]byte("sip:a@b;MADDR=192.0.2.9;lr"))
	if v, ok := u.Param("maddr"); !ok || string(v) != "192.0.2.9" {
		t.Errorf("maddr %q %v", v, ok)
	}
	if v, ok := u.Param("lr"); !ok || len(v) != 0 {
		t.Errorf("lr %q %v", v, ok)
	}
	for _, in := range []string{
		"", "sip:", "sip:@example.org", "sip:2001:db8::10", "sip:a@b:99999", "sip:a@b:", "sip:a@b c", "<sip:a@b>", "1x:y", "sip:[::1", "sip:a@[]", "tel:",
	} {
		if _, err := ParseURI([]byte(in)); err == nil {
			t.Errorf("%q was accepted", in)
		}
	}
}

func TestElements(t *testing.T) {
	m := parse(t, base(
		`Contact: "A, B" <sip:a@192.0.2.1;x=1,2>;methods="INVITE, ACK" , sip:b@192.0.2.2`,
		`v: SIP/2.0/TCP 192.0.2.3 (a, comment) ,SIP/2.0/UDP 192.0.2.4`+"\r\n ,\r\n SIP/2.0/UDP 192.0.2.5,",
		`m: <sip:c@192.0.2.3>`,
		"Route: ,",
	))
	want := map[HeaderID][]string{
		Contact: {`"A, B" <sip:a@192.0.2.1;x=1,2>;methods="INVITE, ACK"`, "sip:b@192.0.2.2", "<sip:c@192.0.2.3>"},
		HeaderVia: {"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1", "SIP/2.0/TCP 192.0.2.3 (a, comment)",
			"SIP/2.0/UDP 192.0.2.4", "SIP/2.0/UDP 192.0.2.5"},
		Route: nil,
	}
	for id, w := range want {
		var got []string
		for el := range m.Elements(id) {
			got = append(got, string(el.Value))
		}
		if !slices.Equal(got, w) {
			t.Errorf("%v: got %q, want %q", id, got, w)
		}
	}
	allocs := testing.AllocsPerRun(100, func() {
		for el := range m.Elements(Contact) {
			if len(el.Value) == 0 {
				t.Fatal("empty element")
			}
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

func TestHeaderNames(t *testing.T) {
	for id := HeaderOther + 1; id < numHeaders; id++ {
		if got := classify([]byte(strings.ToUpper(id.String()))); got != id {
			t.Errorf("%s is %d, not %d", id, got, id)
		}
	}
	for c, id := range map[string]HeaderID{"v": HeaderVia, "F": From, "t": To, "i": CallID, "m": Contact, "l": ContentLength,
		"c": ContentType, "e": ContentEncoding, "k": Supported, "o": Event, "u": AllowEvents, "r": ReferTo, "b": ReferredBy,
		"x": SessionExpires, "s": Subject, "y": Identity, "q": HeaderOther} {
		if got := classify([]byte(c)); got != id {
			t.Errorf("%s is %v, not %v", c, got, id)
		}
	}
}

// TestRejects has one fault per message; the reasons are labels of a metric.
func TestRejects(t *testing.T) {
	for _, c := range []struct {
		raw        []byte
		status     int
		reason     string
		answerable bool
	}{
		{nil, 0, "garbage", false},
		{[]byte("\x00\x01\x02\r\n\r\n"), 0, "garbage", false},
		{[]byte("GET / HTTP/1.1\r\n\r\n"), 0, "garbage", false},
		{request("OPTIONS sip:a@b SIP/2.0", "Max-Forwards: 1"), 0, "missing_via", false},
		{request("SIP/2.0 200 OK", "Via: SIP/2.0/UDP h"), 0, "missing_from", false},
		{base("Content-Length: 5"), 400, "short_body", true},
		{base("Content-Length: -1"), 400, "bad_content_length", true},
		{base("Content-Length: 99999999999999999999"), 400, "bad_content_length", true},
		{base("Content-Length: 4294967296"), 400, "bad_content_length", true},
		{base("Content-Length: 0", "l: 1"), 400, "content_length_differs", true},
		{base("Content-Length: 0x0"), 400, "bad_content_length", true},
		{base("Content-Length:"), 400, "bad_content_length", true},
		{base("Max-Forwards: x"), 400, "bad_max_forwards", true},
		{base("Call-ID: again"), 400, "duplicate_header", true},
		{base("X: a\nY: b"), 400, "bare_line_end", false},
		{base("X: a\rY: b"), 400, "bare_line_end", false},
		{base("X: a\x00b"), 400, "nul", true},
		{base("no colon"), 400, "bad_header", true},
		{base(": no name"), 400, "bad_header", true},
		{base("Route: sip:a b"), 400, "bad_route", true},
		{base("Contact: <sip:a@b"), 400, "bad_contact", true},
		{base("Record-Route: *"), 400, "bad_record_route", true},
		{base(slices.Repeat([]string{"X: y"}, maxFields)...), 400, "too_many_headers", true},
		{[]byte(strings.Replace(string(base()), "OPTIONS", "ACK", 2)[:40]), 0, "no_end_of_headers", false},
		{[]byte(strings.ReplaceAll(string(base("Max-Forwards: x")), "OPTIONS", "ACK")), 0, "bad_max_forwards", false},
		{[]byte(strings.ReplaceAll(string(base("Max-Forwards: x")), "OPTIONS", "BENOTIFY")), 0, "bad_max_forwards", false},
	} {
		var m Message
		var e *Error
		if !errors.As(m.Parse(c.raw), &e) {
			t.Errorf("%s: accepted %.80q", c.reason, c.raw)
			continue
		}
		if e.Status != c.status || e.Reason != c.reason || m.Answerable() != c.answerable {
			t.Errorf("%.80q: got %d %s answerable=%v, want %d %s %v", c.raw, e.Status, e.Reason, m.Answerable(), c.status, c.reason, c.answerable)
		}
		identity(t, c.reason, &m, c.raw)
	}
}

func TestAccepts(t *testing.T) {
	for _, more := range []string{
		"Contact: *", "Contact: <sip:192.0.2.1:1024>;methods=\"A, B\";proxy=replace", "Contact: <sip:a@b>;",
		"Content-Length: 0\r\nl: 0", "Content-Length :\r\n 0", "X: \"a\\\x00\"", "Max-Forwards: 0070", "Expires: never",
		"Subject:", "Route: <sip:a;lr> , <sip:b;lr>",
	} {
		parse(t, base(more))
	}
	m := parse(t, append([]byte("\r\n\r\n"), append(base("Content-Length: 3"), "abcdef"...)...))
	same(t, "body", m.Body(), "abc")
	same(t, "raw", m.Raw(), string(base("Content-Length: 3"))+"abc")
	same(t, "rest as body", parse(t, append(base(), "abc"...)).Body(), "abc")
}

// TestReuse parses a short message after a long one.
func TestReuse(t *testing.T) {
	var m Message
	if err := m.Parse(base(slices.Repeat([]string{"X: y"}, 100)...)); err != nil || m.Len() != 105 {
		t.Fatalf("%v, %d fields", err, m.Len())
	}
	if h := m.Header(104); string(h.Name) != "X" || string(h.Value) != "y" || string(h.Line) != "X: y\r\n" {
		t.Errorf("last field %q %q", h.Name, h.Value)
	}
	resp := request("SIP/2.0 180 Ringing", "v: SIP/2.0/UDP h", "f: <sip:a@b>;tag=1", "t: <sip:a@b>", "i: c", "CSeq: 1 INVITE")
	if err := m.Parse(resp); err != nil || m.Len() != 5 || m.IsRequest() || m.Method() != "" || m.Status() != 180 {
		t.Errorf("%v, %d fields, status %d", err, m.Len(), m.Status())
	}
	same(t, "reason", m.ReasonPhrase(), "Ringing")
	if _, ok := m.FindName("X"); ok || m.RequestURI() != nil || m.Answerable() {
		t.Error("something is left of the last message")
	}
	if n := testing.AllocsPerRun(100, func() { _ = m.Parse(resp) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
