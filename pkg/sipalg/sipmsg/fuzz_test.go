package sipmsg

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
)

// seeds adds the messages in testdata and, where there are corpora, theirs.
func seeds(f *testing.F) {
	dir := corpora(f)
	for _, pattern := range []string{
		"testdata/*.sip", filepath.Join(dir, "sip-torture", "rfc*.dat"), filepath.Join(dir, "ms-sip", "*.sip"),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, n := range names {
			f.Add(readFile(f, n))
		}
	}
	f.Add(base("Contact: *", "v: SIP/2.0/TCP a , SIP/2.0/UDP b", "Route: <sip:a>,<sip:b>", "l: 2"))
	f.Add([]byte("\r\n\r\nSIP/2.0 100 \r\nv:SIP/2.0/UDP h;rport=1\r\nt:a:b\r\nf:a:b;tag=1\r\ni:1\r\nCSeq:1 INVITE\r\n\r\n"))
	f.Add([]byte("X: \"\\\x00\\"))
}

// FuzzParse: nothing panics, an unedited message is the input, and an edited one
// is read back with exactly the edits in it.
func FuzzParse(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m Message
		before := bytes.Clone(raw)
		err := m.Parse(raw)
		identity(t, "input", &m, before)
		views(t, &m)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Reason == "" {
				t.Fatalf("error %v", err)
			}
			if m.Answerable() {
				answer(t, &m)
			}
			return
		}
		answerable(t, &m)
		fuzzEdit(t, &m)
		if !bytes.Equal(raw, before) {
			t.Error("the input was written to")
		}
	})
}

// views calls everything that reads.
func views(t *testing.T, m *Message) {
	for i := range m.Len() {
		h := m.Header(i)
		if len(h.Line) < len(h.Name)+len(h.Value) || i > 0 && len(h.Line) == 0 {
			t.Errorf("field %d: %q %q %q", i, h.Name, h.Value, h.Line)
		}
		if n, err := ParseNameAddr(h.Value); err == nil {
			_, _ = ParseURI(n.URI)
			_, _ = n.Param("tag")
		}
		_, _ = ParseVia(h.Value)
		for el := range m.Elements(h.ID) {
			if len(el.Value) == 0 || el.Field() < 0 || el.Field() >= m.Len() {
				t.Errorf("element %+v", el)
			}
		}
	}
	m.CSeq()
	m.MaxForwards()
	m.Expires()
	m.To().Tag()
	_, _ = m.FindName("x")
}

// answerable: every accepted request can be answered, except those that must not be.
func answerable(t *testing.T, m *Message) {
	if want := m.IsRequest() && m.Method() != "ACK" && m.Method() != "BENOTIFY"; m.Answerable() != want {
		t.Errorf("answerable %v for %q", m.Answerable(), m.Method())
	}
	if m.Answerable() {
		answer(t, m)
		var resp Message
		if err := resp.Parse(AppendResponse(nil, m, 500, "No", []byte("t"))); err != nil {
			t.Errorf("the answer: %v", err)
		}
	}
}

func answer(t *testing.T, m *Message) {
	var resp Message
	out := AppendResponse(nil, m, 400, "Bad", []byte("t"))
	_ = resp.Parse(out)
	if resp.Status() != 400 || !bytes.Equal(resp.CallID(), m.CallID()) || !bytes.HasSuffix(out, []byte("\r\n\r\n")) {
		t.Errorf("answer %q", out)
	}
}

// fuzzEdit edits an accepted message and reads the result.
func fuzzEdit(t *testing.T, m *Message) {
	var e Editor
	e.Reset(m)
	e.Prepend([]byte("X-First: 1"))
	e.PrependBefore(HeaderVia, []byte("Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKx"))
	e.Append([]byte("X-Last: 1"))
	e.ReplaceBody([]byte("body"))
	routes := 0
	for el := range m.Elements(Route) {
		e.DeleteElement(el)
		routes++
	}
	for el := range m.Elements(Contact) {
		e.ReplaceElement(el, []byte("<sip:c@192.0.2.9>"))
	}
	if e.Conflicts() != 0 {
		t.Fatalf("%d conflicts", e.Conflicts())
	}
	var got Message
	out := e.AppendTo(nil)
	if err := got.Parse(out); err != nil {
		t.Fatalf("edited: %v in %q", err, out)
	}
	if string(got.Body()) != "body" || !bytes.Equal(got.CallID(), m.CallID()) || got.Method() != m.Method() ||
		!bytes.Equal(got.From().Value, m.From().Value) || !bytes.Equal(got.RequestURI(), m.RequestURI()) {
		t.Errorf("edited: %q", out)
	}
	if v, ok := got.TopVia(); !ok || string(v.Branch) != "z9hG4bKx" {
		t.Errorf("top Via %q", v.Value)
	}
	for range got.Elements(Route) {
		t.Fatalf("a Route of %d is left in %q", routes, out)
	}
	for el := range got.Elements(Contact) {
		same(t, "contact", el.Value, "<sip:c@192.0.2.9>")
	}
}

// FuzzFramer: cut anywhere, a stream gives the same messages, and an accepted
// message is exactly what was framed.
func FuzzFramer(f *testing.F) {
	add := func(b []byte) { f.Add(b, uint16(len(b)/2)) }
	add(append(base("l: 0"), base("Content-Length: 4")...))
	add([]byte("\r\n\r\n\r\n"))
	add(append(base("l:\r\n 3"), "abc\r\n"...))
	f.Fuzz(func(t *testing.T, raw []byte, cut uint16) {
		at := int(cut) % (len(raw) + 1)
		whole, err := frames(t, &Framer{}, raw)
		parts, partErr := frames(t, &Framer{}, raw[:at], raw[at:])
		if (err == nil) != (partErr == nil) {
			t.Fatalf("errors %v and %v", err, partErr)
		}
		if a, b := messages(whole), messages(parts); !bytes.Equal(bytes.Join(a, []byte("|")), bytes.Join(b, []byte("|"))) {
			t.Errorf("whole %q, in parts %q", a, b)
		}
		for _, b := range messages(whole) {
			var m Message
			if m.Parse(b) == nil && len(m.Raw()) != len(b) {
				t.Errorf("framed %d bytes, parsed %d: %q", len(b), len(m.Raw()), b)
			}
		}
	})
}

// messages leaves out keepalives and rests, which a cut may show in another way.
func messages(found []string) (out [][]byte) {
	for _, s := range found {
		if bytes.Contains([]byte(s), []byte("\r\n\r\n")) {
			out = append(out, []byte(s))
		}
	}
	return out
}

// FuzzParams: a list that checks out is read the same way by Param.
func FuzzParams(f *testing.F) {
	f.Add([]byte(`;a=1; b = "x;y" ;c;tag=t`))
	f.Add([]byte(";;=;\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkParams(b, false) != nil {
			return
		}
		for i := 0; i >= 0 && i < len(b); {
			p, next, _ := nextParam(b, i)
			if p.name == nil {
				break
			}
			if _, ok := Param(b, string(p.name)); !ok {
				t.Errorf("%q is not found in %q", p.name, b)
			}
			i = next
		}
	})
}
