package sipmsg

import "testing"

// Figures of the prototype on the same kind of message: 592 ns and 0 allocations
// to parse, 1,078 ns and 1 allocation for an edit with SDP.

func BenchmarkParseDesk(b *testing.B) {
	raw := readFile(b, "testdata/desk.sip")
	var m Message
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEditDesk(b *testing.B) {
	raw := readFile(b, "testdata/desk.sip")
	var m Message
	var e Editor
	var out []byte
	body := append([]byte(nil), "v=0\r\no=- 1 1 IN IP4 198.51.100.1\r\ns=-\r\nc=IN IP4 198.51.100.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n"...)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Parse(raw); err != nil {
			b.Fatal(err)
		}
		out = deskEdit(&m, &e, body, out[:0])
	}
	if len(out) == 0 {
		b.Fatal("no output")
	}
}

// deskEdit does what an edge does to an INVITE that it forwards.
func deskEdit(m *Message, e *Editor, body, out []byte) []byte {
	e.Reset(m)
	via, _ := m.TopVia()
	e.ReplaceSpan(via.RPortParam, []byte("rport=5060;received=192.0.2.23"))
	e.PrependBefore(HeaderVia, []byte("Via: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKedge0001"))
	e.PrependBefore(RecordRoute, []byte("Record-Route: <sip:198.51.100.1:5060;lr>"))
	for el := range m.Elements(Contact) {
		n, err := ParseNameAddr(el.Value)
		if err != nil {
			continue
		}
		if u, err := ParseURI(n.URI); err == nil {
			e.ReplaceSpan(u.HostPort, []byte("198.51.100.1:5060"))
		}
	}
	if _, ok := m.MaxForwards(); ok {
		v, _ := m.Find(MaxForwards)
		e.ReplaceSpan(v, []byte("69"))
	}
	e.ReplaceBody(body)
	return e.AppendTo(out)
}

func BenchmarkResponseDesk(b *testing.B) {
	raw := readFile(b, "testdata/desk.sip")
	var m Message
	if err := m.Parse(raw); err != nil {
		b.Fatal(err)
	}
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = AppendResponse(out[:0], &m, 404, "Not Found", []byte("t1"))
	}
}
