package sipmsg

import (
	"bytes"
	"fmt"
)

const (
	// inlineFields is how many header fields a Message indexes without allocating;
	// the longest INVITE of the corpora has 41.
	inlineFields = 48
	// maxFields bounds the index; a message with more is rejected.
	maxFields = 256
)

// Error says why a message is not passed on.
type Error struct {
	// Status is what to answer, if the message is [Message.Answerable]: 400, 505,
	// 513; 0 means drop without a word: responses, ACK, BENOTIFY, no Via, garbage.
	Status int
	// Reason is a stable token in snake_case, for a counter's label.
	Reason string
	// Text may be used as the reason phrase of the answer.
	Text string
}

func (e *Error) Error() string {
	return fmt.Sprintf("sip: %s (%s)", e.Reason, e.Text)
}

// field is one header field. Offsets are into raw: the line starts with the name
// and ends behind its last CRLF; the value is trimmed and may hold folds.
type field struct {
	start, nameEnd, valStart, valEnd, end uint32
	id                                    HeaderID
}

// Header is a view of one header field.
type Header struct {
	ID HeaderID
	// Name as on the wire.
	Name []byte
	// Value is trimmed and may hold folds.
	Value []byte
	// Line is the whole field with its CRLF.
	Line []byte
}

// Message is the index of one SIP message. The zero value is ready; Parse may be
// called again and again.
type Message struct {
	raw    []byte
	inline [inlineFields]field
	spill  []field
	n      int
	// first and last hold, by id, 1 + the index of the first and the last such field.
	first, last [numHeaders]uint16
	// Views that routing asks for again and again, parsed once.
	via      Via
	from, to NameAddr
	contact  NameAddr // the first one
	target   URI      // of the Request-URI
	viewed   uint8
	// contactAt is where contact stands, 0 when it is not there or bad.
	contactAt int

	request   bool
	methodID  methodID
	method    []byte
	uri       []byte
	status    int
	reason    []byte
	hdrStart  int
	hdrEnd    int // offset of the empty line
	bodyStart int

	answerable bool
	err        *Error
}

// Parse indexes one datagram or one framed message. m refers to raw afterwards and
// never writes to it. CRLFs in front are skipped (RFC 3261 §7.5); bytes beyond
// Content-Length are cut off (§18.3); without Content-Length the rest is the body.
//
// The error is an [*Error]. Even then m holds what could be indexed.
func (m *Message) Parse(raw []byte) error {
	for len(raw) >= 2 && raw[0] == '\r' && raw[1] == '\n' {
		raw = raw[2:]
	}
	m.reset(raw)
	m.parse()
	if m.err != nil {
		m.settle()
		return m.err
	}
	return nil
}

// reset forgets the last message; the inline index is overwritten as needed.
func (m *Message) reset(raw []byte) {
	m.raw, m.spill, m.n = raw, m.spill[:0], 0
	m.first, m.last, m.viewed = [numHeaders]uint16{}, [numHeaders]uint16{}, 0
	m.contactAt = 0
	m.request, m.answerable, m.err = false, false, nil
	m.methodID, m.method, m.uri = methodOther, nil, nil
	m.status, m.reason = 0, nil
	m.hdrStart, m.hdrEnd, m.bodyStart = 0, len(raw), len(raw)
}

// fail keeps the first fault.
func (m *Message) fail(status int, reason, text string) {
	if m.err == nil {
		m.err = &Error{Status: status, Reason: reason, Text: text}
	}
}

func (m *Message) parse() {
	end, next, ok := cutLine(m.raw, 0)
	if !ok {
		m.fail(0, "garbage", "No Start Line")
		return
	}
	m.hdrStart, m.hdrEnd, m.bodyStart = next, next, next
	if !m.startLine(m.raw[:end]) {
		return
	}
	m.index(next, next-end-1)
	m.check()
}

// settle decides what may be answered after a fault.
func (m *Message) settle() {
	m.answerable = m.request && m.methodID != methodACK && m.methodID != methodBENOTIFY &&
		m.has(HeaderVia) && m.has(From) && m.has(To) && m.has(CallID) && m.has(CSeq) &&
		m.err.Reason != "bare_line_end" && m.err.Reason != "bad_via"
	if !m.request || m.methodID == methodACK || m.methodID == methodBENOTIFY || !m.has(HeaderVia) {
		m.err.Status = 0
	}
}

func (m *Message) has(id HeaderID) bool { return m.first[id] != 0 }

// cutLine finds the end of the line that starts at i: end is before its line end,
// next behind it.
func cutLine(b []byte, i int) (end, next int, ok bool) {
	lf := bytes.IndexByte(b[i:], '\n')
	if lf < 0 {
		return len(b), len(b), false
	}
	end, next = i+lf, i+lf+1
	if end > i && b[end-1] == '\r' {
		end--
	}
	return end, next, true
}

// index finds the header fields from offset i on, up to the empty line. crs is the
// number of CRs at line ends so far, 1 or 0.
func (m *Message) index(i, crs int) {
	for lines := 1; ; {
		end, next, ok := cutLine(m.raw, i)
		if !ok {
			m.fail(400, "no_end_of_headers", "Header Fields Not Ended")
			m.hdrEnd, m.bodyStart = i, len(m.raw)
			return
		}
		lines++
		crs += next - end - 1
		if end == i {
			m.hdrEnd, m.bodyStart = i, next
			m.checkBytes(m.raw[:next], lines, crs)
			return
		}
		for next < len(m.raw) && (m.raw[next] == ' ' || m.raw[next] == '\t') {
			if end, next, ok = cutLine(m.raw, next); !ok {
				break
			}
			lines++
			crs += next - end - 1
		}
		if !m.addField(i, end, next) {
			m.hdrEnd, m.bodyStart = i, len(m.raw)
			return
		}
		i = next
	}
}

// checkBytes rejects a CR or LF alone and NUL: other software may take them for a
// line end, and would then see other header fields than we do. A NUL that is
// escaped in a quoted-string is legal (RFC 4475 §3.1.1.2, intmeth).
func (m *Message) checkBytes(b []byte, lines, crs int) {
	if crs != lines || bytes.Count(b, []byte{'\r'}) != lines {
		m.err = nil
		m.fail(400, "bare_line_end", "Bare CR Or LF")
	}
	for i := bytes.IndexByte(b, 0); i >= 0; {
		if b[i-1] != '\\' {
			m.fail(400, "nul", "NUL In Header Field")
			return
		}
		n := bytes.IndexByte(b[i+1:], 0)
		if n < 0 {
			return
		}
		i += 1 + n
	}
}

// addField indexes the header field from start to next, whose value ends at or before end. It returns
// false when there are too many.
func (m *Message) addField(start, end, next int) bool {
	f := m.room()
	if f == nil {
		m.fail(400, "too_many_headers", "Too Many Header Fields")
		return false
	}
	f.start, f.end, f.id = uint32(start), uint32(next), HeaderOther
	b := m.raw[start:end]
	e := skipToken(b, 0)
	v := e
	for v < len(b) && (b[v] == ' ' || b[v] == '\t') {
		v++
	}
	if e == 0 || v == len(b) || b[v] != ':' {
		m.fail(400, "bad_header", "Bad Header Field")
		// Keep the line with an empty name: it is copied but never found.
		f.nameEnd, f.valStart, f.valEnd = f.start, f.start, uint32(end)
	} else {
		v = skipLWS(b, v+1)
		ve := len(b)
		for ve > v && isLWS(b[ve-1]) {
			ve--
		}
		f.nameEnd, f.valStart, f.valEnd = uint32(start+e), uint32(start+v), uint32(start+ve)
		f.id = classify(b[:e])
	}
	m.n++
	m.last[f.id] = uint16(m.n)
	if m.first[f.id] == 0 {
		m.first[f.id] = uint16(m.n)
	}
	return true
}

// room returns the place of the next header field, nil when there are too many.
func (m *Message) room() *field {
	switch {
	case m.n < inlineFields:
		return &m.inline[m.n]
	case m.n < maxFields:
		m.spill = append(m.spill, field{})
		return &m.spill[len(m.spill)-1]
	}
	return nil
}

func (m *Message) at(i int) *field {
	if i < inlineFields {
		return &m.inline[i]
	}
	return &m.spill[i-inlineFields]
}

func (m *Message) value(f *field) []byte { return m.raw[f.valStart:f.valEnd] }

// Raw returns the message: what was given to Parse without CRLFs in front and
// without bytes behind Content-Length.
func (m *Message) Raw() []byte { return m.raw }

// IsRequest tells requests from responses.
func (m *Message) IsRequest() bool { return m.request }

// Answerable tells whether [AppendResponse] can make an answer that finds its way
// back: it is a request other than ACK and BENOTIFY, with a usable top Via, From,
// To, Call-ID and CSeq.
func (m *Message) Answerable() bool { return m.answerable }

// Method returns the method of a request as on the wire, "" for a response. It
// allocates only for methods that the package does not know.
func (m *Message) Method() string {
	if m.methodID != methodOther {
		return m.methodID.name()
	}
	return string(m.method)
}

// RequestURI returns the Request-URI as on the wire.
func (m *Message) RequestURI() []byte { return m.uri }

// Target returns the parts of the Request-URI. It is good after Parse has found no fault in a request. It is
// m's own, as [Message.TopVia] is.
func (m *Message) Target() *URI { return &m.target }

// Status returns the status code of a response, 100-699, 0 for a request.
func (m *Message) Status() int { return m.status }

// ReasonPhrase returns the reason phrase of a response, which may be empty.
func (m *Message) ReasonPhrase() []byte { return m.reason }

// Len returns the number of header fields.
func (m *Message) Len() int { return m.n }

// Header returns the i-th header field, 0 ≤ i < Len.
func (m *Message) Header(i int) Header {
	f := m.at(i)
	return Header{ID: f.id, Name: m.raw[f.start:f.nameEnd], Value: m.value(f), Line: m.raw[f.start:f.end]}
}

// Find returns the value of the first field with this id.
func (m *Message) Find(id HeaderID) (value []byte, ok bool) {
	if id >= numHeaders || m.first[id] == 0 {
		return nil, false
	}
	return m.value(m.at(int(m.first[id]) - 1)), true
}

// FindName returns the value of the first field with this name in any case. For
// names that have a HeaderID, Find also sees the compact form.
func (m *Message) FindName(name string) (value []byte, ok bool) {
	for i := range m.n {
		if f := m.at(i); equalFold(m.raw[f.start:f.nameEnd], name) {
			return m.value(f), true
		}
	}
	return nil, false
}

// What viewed says of the views.
const (
	viewedVia = 1 << iota
	goodVia
	viewedFrom
	viewedTo
)

// TopVia returns the first Via element. It is m's own: valid until the next Parse, not to be changed.
func (m *Message) TopVia() (*Via, bool) {
	if m.viewed&viewedVia == 0 {
		m.viewed |= viewedVia
		if el, ok := m.firstElement(HeaderVia); ok {
			err := m.via.parse(el.Value)
			m.via.Element = el
			if err == nil {
				m.viewed |= goodVia
			}
		} else {
			m.via = Via{}
		}
	}
	return &m.via, m.viewed&goodVia != 0
}

// From returns the From header field; it is empty when that is missing or bad. It is m's own, as [Message.TopVia] is.
func (m *Message) From() *NameAddr {
	if m.viewed&viewedFrom == 0 {
		m.nameAddr(&m.from, From)
		m.viewed |= viewedFrom
	}
	return &m.from
}

// To returns the To header field; it is empty when that is missing or bad. It is m's own, as [Message.TopVia] is.
func (m *Message) To() *NameAddr {
	if m.viewed&viewedTo == 0 {
		m.nameAddr(&m.to, To)
		m.viewed |= viewedTo
	}
	return &m.to
}

// Address reads an element of m, as [ParseNameAddr] does.
func (m *Message) Address(el Element) (NameAddr, error) {
	if el.start == m.contactAt && el.start > 0 {
		return m.contact, nil
	}
	return ParseNameAddr(el.Value)
}

func (m *Message) nameAddr(n *NameAddr, id HeaderID) {
	if v, ok := m.Find(id); !ok || n.parse(v) != nil {
		*n = NameAddr{}
	}
}

// CallID returns the Call-ID.
func (m *Message) CallID() []byte {
	v, _ := m.Find(CallID)
	return v
}

// CSeq returns sequence number and method, 0 and "" when missing or bad.
func (m *Message) CSeq() (n uint32, method string) {
	v, _ := m.Find(CSeq)
	n, name, ok := splitCSeq(v)
	if !ok {
		return 0, ""
	}
	if id := methodByName(name); id != methodOther {
		return n, id.name()
	}
	return n, string(name)
}

// MaxForwards returns the hop count, ok false when it is absent.
func (m *Message) MaxForwards() (n int, ok bool) {
	v, _ := m.Find(MaxForwards)
	u, over, ok := number(v)
	return int(min(u, 1<<31-1)), ok && !over
}

// Expires returns the Expires header field in seconds; a number too large for 32
// bits becomes 2^32-1.
func (m *Message) Expires() (sec uint32, ok bool) {
	v, _ := m.Find(Expires)
	sec, _, ok = number(v)
	return sec, ok
}

// ContentType returns the Content-Type, nil when absent.
func (m *Message) ContentType() []byte {
	v, _ := m.Find(ContentType)
	return v
}

// Body returns the body, limited by Content-Length.
func (m *Message) Body() []byte { return m.raw[m.bodyStart:] }
