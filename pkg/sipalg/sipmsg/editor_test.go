package sipmsg

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// edited applies f to the message made of lines and returns the result.
func edited(t testing.TB, raw []byte, f func(m *Message, e *Editor)) string {
	t.Helper()
	before := bytes.Clone(raw)
	m := parse(t, raw)
	var e Editor
	e.Reset(m)
	f(m, &e)
	out := e.AppendTo(nil)
	if e.Conflicts() != 0 {
		t.Errorf("%d conflicts", e.Conflicts())
	}
	if !bytes.Equal(before, raw) {
		t.Error("the input was written to")
	}
	return string(out)
}

// expect asserts the result of replacing old by new in base's text.
func expect(t testing.TB, raw []byte, got string, pairs ...string) {
	t.Helper()
	want := string(raw)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(want, pairs[i]) {
			t.Fatalf("%q is not in the message", pairs[i])
		}
		want = strings.Replace(want, pairs[i], pairs[i+1], 1)
	}
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func nth(t testing.TB, m *Message, id HeaderID, n int) Element {
	t.Helper()
	for el := range m.Elements(id) {
		if n == 0 {
			return el
		}
		n--
	}
	t.Fatalf("no such element of %v", id)
	return Element{}
}

func TestEdits(t *testing.T) {
	raw := base("Contact: \"A\" <sip:a@192.0.2.1;lr>;q=1", "Max-Forwards: 70", "Record-Route: <sip:r1;lr>, <sip:r2;lr>")
	const via, last = "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n", "<sip:r1;lr>, <sip:r2;lr>\r\n"
	for name, c := range map[string]struct {
		edit  func(m *Message, e *Editor)
		pairs []string
	}{
		"nothing": {func(*Message, *Editor) {}, nil},
		"uri":     {func(_ *Message, e *Editor) { e.ReplaceRequestURI([]byte("tel:1")) }, []string{"sip:bob@example.org", "tel:1"}},
		"value":   {func(_ *Message, e *Editor) { e.ReplaceValue(6, []byte("69")) }, []string{"70", "69"}},
		"span in contact": {func(m *Message, e *Editor) {
			n, _ := ParseNameAddr(nth(t, m, Contact, 0).Value)
			u, _ := ParseURI(n.URI)
			e.ReplaceSpan(u.HostPort, []byte("[2001:db8::1]:5061"))
			e.InsertAfter(u.Params, []byte(";transport=tls"))
			e.InsertAfter(n.Params, []byte(";x"))
		}, []string{"192.0.2.1;lr>;q=1", "[2001:db8::1]:5061;lr;transport=tls>;q=1;x"}},
		"replace element": {func(m *Message, e *Editor) { e.ReplaceElement(nth(t, m, RecordRoute, 1), []byte("<sip:n>")) },
			[]string{"<sip:r2;lr>", "<sip:n>"}},
		"delete first element": {func(m *Message, e *Editor) { e.DeleteElement(nth(t, m, RecordRoute, 0)) },
			[]string{"<sip:r1;lr>, ", ""}},
		"delete last element": {func(m *Message, e *Editor) { e.DeleteElement(nth(t, m, RecordRoute, 1)) },
			[]string{", <sip:r2;lr>", ""}},
		"delete both elements": {func(m *Message, e *Editor) {
			e.DeleteElement(nth(t, m, RecordRoute, 1))
			e.DeleteElement(nth(t, m, RecordRoute, 0))
		}, []string{"Record-Route: " + last, ""}},
		"delete only element": {func(m *Message, e *Editor) { e.DeleteElement(nth(t, m, HeaderVia, 0)) }, []string{via, ""}},
		"delete header":       {func(_ *Message, e *Editor) { e.DeleteHeader(0) }, []string{via, ""}},
		"swap via": {func(m *Message, e *Editor) {
			e.DeleteElement(nth(t, m, HeaderVia, 0))
			e.PrependBefore(HeaderVia, []byte("Via: new"))
		}, []string{via, "Via: new\r\n"}},
		"lines": {func(_ *Message, e *Editor) {
			e.Append([]byte("Z: 1"))
			e.Prepend([]byte("A: 1"))
			e.Prepend([]byte("A: 2"))
			e.PrependBefore(RecordRoute, []byte("Record-Route: <sip:me>"))
			e.PrependBefore(Path, []byte("Path: <sip:me>"))
			e.Append([]byte("Z: 2"))
		}, []string{"Via:", "A: 1\r\nA: 2\r\nPath: <sip:me>\r\nVia:", "Record-Route", "Record-Route: <sip:me>\r\nRecord-Route",
			last, last + "Z: 1\r\nZ: 2\r\n"}},
		"body":   {func(_ *Message, e *Editor) { e.ReplaceBody([]byte("hello")) }, []string{last, last + "Content-Length: 5\r\n"}},
		"length": {func(_ *Message, e *Editor) { e.EnsureContentLength() }, []string{last, last + "Content-Length: 0\r\n"}},
		"insert before replaced": {func(m *Message, e *Editor) {
			v, _ := m.Find(MaxForwards)
			e.ReplaceSpan(v, []byte("c"))
			e.InsertBefore(v, []byte("a"))
			e.InsertBefore(v, []byte("b"))
			e.InsertAfter(v, []byte("d"))
		}, []string{"70", "abcd"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := edited(t, raw, c.edit)
			if name == "body" {
				if got = strings.TrimSuffix(got, "hello"); len(got) == 0 {
					t.Error("no body")
				}
			}
			expect(t, raw, got, c.pairs...)
		})
	}
}

// TestDeleteElements deletes every subset of four elements in every order of two
// and compares with the elements that are left.
func TestDeleteElements(t *testing.T) {
	raw := base("Route: <sip:a>,\r\n <sip:b> , , <sip:c>,<sip:d>")
	for set := range 1 << 4 {
		for _, backward := range []bool{false, true} {
			out := edited(t, raw, func(m *Message, e *Editor) {
				for i := range 4 {
					if backward {
						i = 3 - i
					}
					if set>>i&1 != 0 {
						e.DeleteElement(nth(t, m, Route, i))
					}
				}
			})
			var want, got []string
			for i := range 4 {
				if set>>i&1 == 0 {
					want = append(want, fmt.Sprintf("<sip:%c>", 'a'+i))
				}
			}
			m := parse(t, []byte(out))
			for el := range m.Elements(Route) {
				got = append(got, string(el.Value))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("set %04b: left %v, want %v in %q", set, got, want, out)
			}
			if _, ok := m.Find(Route); ok != (len(want) > 0) {
				t.Errorf("set %04b: Route there: %v", set, ok)
			}
		}
	}
}

// TestPopVia is what every forwarded response needs.
func TestPopVia(t *testing.T) {
	m := parse(t, base("v: SIP/2.0/UDP b, SIP/2.0/UDP c"))
	var e Editor
	var out []byte
	allocs := testing.AllocsPerRun(100, func() {
		e.Reset(m)
		v, _ := m.TopVia()
		e.DeleteElement(v.Element)
		out = e.AppendTo(out[:0])
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	next := parse(t, out)
	for _, host := range []string{"b", "c"} {
		v, ok := next.TopVia()
		if !ok || string(v.Host) != host {
			t.Fatalf("top Via %q, want host %s", v.Value, host)
		}
		if host == "b" {
			out := edited(t, next.Raw(), func(m *Message, e *Editor) { v, _ := m.TopVia(); e.DeleteElement(v.Element) })
			next = parse(t, []byte(out))
		}
	}
}

func TestReplaceBody(t *testing.T) {
	for _, c := range []struct{ in, body, out string }{
		{"Content-Length: 3\r\n\r\nabc", "abcdefghijkl", "Content-Length: 12\r\n\r\nabcdefghijkl"},
		{"l:3\r\nL : 003\r\n\r\nabc", "", "l:0\r\nL : 0\r\n\r\n"},
		{"Content-Length: 003\r\n\r\nabc", "xyz", "Content-Length: 003\r\n\r\nxyz"},
		{"Subject: s\r\n\r\nabc", "xyz!", "Subject: s\r\nContent-Length: 4\r\n\r\nxyz!"},
	} {
		head := string(bytes.TrimSuffix(base(), []byte("\r\n")))
		got := edited(t, []byte(head+c.in), func(_ *Message, e *Editor) { e.ReplaceBody([]byte(c.body)) })
		if got != head+c.out {
			t.Errorf("got %q, want %q", got, head+c.out)
		}
	}
}

// TestConflicts: of edits that overlap the first stays.
func TestConflicts(t *testing.T) {
	raw := base("Contact: <sip:a@192.0.2.1>, <sip:b@192.0.2.1>", "Subject: hello")
	m := parse(t, raw)
	subject, _ := m.Find(Subject)
	for name, c := range map[string]struct {
		edit func(e *Editor)
		want []string
	}{
		"twice":        {func(e *Editor) { e.ReplaceSpan(subject, []byte("1")); e.ReplaceSpan(subject, []byte("2")) }, []string{"hello", "1"}},
		"part of":      {func(e *Editor) { e.ReplaceSpan(subject, []byte("1")); e.ReplaceSpan(subject[1:2], []byte("2")) }, []string{"hello", "1"}},
		"around":       {func(e *Editor) { e.ReplaceSpan(subject[1:2], []byte("2")); e.ReplaceSpan(subject, nil) }, []string{"hello", "h2llo"}},
		"insert into":  {func(e *Editor) { e.ReplaceSpan(subject, []byte("1")); e.InsertBefore(subject[2:], []byte("2")) }, []string{"hello", "1"}},
		"delete line":  {func(e *Editor) { e.ReplaceSpan(subject, []byte("1")); e.DeleteHeader(6) }, []string{"hello", "1"}},
		"foreign":      {func(e *Editor) { e.ReplaceSpan([]byte("hello"), []byte("1")) }, nil},
		"nil":          {func(e *Editor) { e.ReplaceSpan(nil, []byte("1")) }, nil},
		"no element":   {func(e *Editor) { e.DeleteElement(Element{}) }, nil},
		"no element 2": {func(e *Editor) { e.ReplaceElement(Element{Value: subject}, []byte("1")) }, nil},
		"body twice":   {func(e *Editor) { e.ReplaceBody(nil); e.ReplaceBody([]byte("x")) }, []string{"hello\r\n", "hello\r\nContent-Length: 0\r\n"}},
		"element": {func(e *Editor) {
			e.ReplaceElement(nth(t, m, Contact, 1), []byte("1"))
			e.DeleteElement(nth(t, m, Contact, 1))
		}, []string{"<sip:b@192.0.2.1>", "1"}},
	} {
		var e Editor
		e.Reset(m)
		c.edit(&e)
		if e.Conflicts() != 1 {
			t.Errorf("%s: %d conflicts", name, e.Conflicts())
		}
		expect(t, raw, string(e.AppendTo(nil)), c.want...)
	}
}

// TestEditDesk is the whole work of an edge on an INVITE.
func TestEditDesk(t *testing.T) {
	raw := readFile(t, "testdata/desk.sip")
	head, _, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	out := edited(t, raw, func(m *Message, e *Editor) { deskEdit(m, e, []byte("v=0\r\n"), nil) })
	expect(t, append(head, "\r\n\r\nv=0\r\n"...), out,
		"Via: ", "Via: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKedge0001\r\nRecord-Route: <sip:198.51.100.1:5060;lr>\r\nVia: ",
		";rport", ";rport=5060;received=192.0.2.23",
		"sip:2001@192.0.2.23:5060", "sip:2001@198.51.100.1:5060",
		"Max-Forwards: 70", "Max-Forwards: 69", "Content-Length: 303", "Content-Length: 5")
	m := parse(t, []byte(out))
	same(t, "body", m.Body(), "v=0\r\n")
	v, _ := m.TopVia()
	same(t, "branch", v.Branch, "z9hG4bKedge0001")
	var e Editor
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = deskEdit(m, &e, []byte("x"), buf[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAppendResponse(t *testing.T) {
	raw := request("INVITE sip:b@example.org SIP/2.0",
		"v: SIP/2.0/UDP 198.51.100.1;branch=2 , SIP/2.0/UDP 192.0.2.1\r\n ;branch=1",
		"Subject: s", "Via: SIP/2.0/TCP h", "Timestamp: 54", "t: <sip:b@example.org> ", "f: <sip:a@example.org>;tag=1",
		"Call-ID: c", "CSeq: 1  INVITE", "Record-Route: <sip:x;lr>")
	const vias = "v: SIP/2.0/UDP 198.51.100.1;branch=2 , SIP/2.0/UDP 192.0.2.1\r\n ;branch=1\r\nVia: SIP/2.0/TCP h\r\n"
	const rest = "f: <sip:a@example.org>;tag=1\r\nCall-ID: c\r\nCSeq: 1  INVITE\r\n"
	m := parse(t, raw)
	same(t, "404", AppendResponse(nil, m, 404, "Not Found", []byte("t9"), "Server: edged"),
		"SIP/2.0 404 Not Found\r\n"+vias+"t: <sip:b@example.org>;tag=t9\r\n"+rest+"Server: edged\r\nContent-Length: 0\r\n\r\n")
	same(t, "100", AppendResponse([]byte("x"), m, 100, "Trying", []byte("t9")),
		"xSIP/2.0 100 Trying\r\n"+vias+"Timestamp: 54\r\nt: <sip:b@example.org>\r\n"+rest+"Content-Length: 0\r\n\r\n")
	tagged := parse(t, bytes.Replace(raw, []byte("t: <sip:b@example.org>"), []byte("t: <sip:b@example.org>;Tag=x"), 1))
	if out := AppendResponse(nil, tagged, 481, "No", []byte("t9")); bytes.Contains(out, []byte("t9")) {
		t.Errorf("a second tag in %q", out)
	}
	parse(t, AppendResponse(nil, m, 200, "OK", []byte("t9")))
}

// TestAnswerFaulty: what is answerable after a fault gives a response that the
// sender can read.
func TestAnswerFaulty(t *testing.T) {
	var m Message
	err := m.Parse(base("Content-Length: -1", "To: again"))
	if err == nil || !m.Answerable() {
		t.Fatalf("%v, answerable %v", err, m.Answerable())
	}
	resp := parse(t, AppendResponse(nil, &m, 400, "Bad Request", []byte("t")))
	if n, method := resp.CSeq(); n != 7 || method != "OPTIONS" || string(resp.To().Tag()) != "t" {
		t.Errorf("CSeq %d %s, To tag %q", n, method, resp.To().Tag())
	}
}
