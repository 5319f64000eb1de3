package sipmsg

import "bytes"

// check looks at what routing needs, and at what would let two elements read one
// message in two ways: the fields that may be there only once, CSeq against the
// method, Content-Length against the body.
func (m *Message) check() {
	m.checkMandatory()
	m.checkVia()
	m.checkOnce()
	m.checkCSeq()
	m.checkLength()
	m.checkNumbers()
	m.checkDate()
	m.checkAddresses()
	if m.err == nil {
		m.answerable = m.request && m.methodID != methodACK && m.methodID != methodBENOTIFY
	}
}

func (m *Message) checkMandatory() {
	switch {
	case !m.has(HeaderVia):
		m.fail(0, "missing_via", "Missing Via")
	case !m.has(From):
		m.fail(400, "missing_from", "Missing From")
	case !m.has(To):
		m.fail(400, "missing_to", "Missing To")
	case len(m.CallID()) == 0:
		m.fail(400, "missing_call_id", "Missing Call-ID")
	case !m.has(CSeq):
		m.fail(400, "missing_cseq", "Missing CSeq")
	}
}

// checkVia rejects a bad top Via first of all, because no answer can be routed by it.
func (m *Message) checkVia() {
	if !m.has(HeaderVia) {
		return
	}
	if _, ok := m.TopVia(); !ok {
		m.err = nil
		m.fail(400, "bad_via", "Bad Via")
	}
}

// checkOnce rejects duplicates (RFC 4475 §3.3.8, multi01). Content-Length is
// checked with its value.
func (m *Message) checkOnce() {
	for i := range m.n {
		switch id := m.at(i).id; id {
		case From, To, CallID, CSeq, MaxForwards, ContentType:
			if int(m.first[id]) != i+1 {
				m.fail(400, "duplicate_header", "Duplicate Header Field")
			}
		}
	}
}

func (m *Message) checkCSeq() {
	v, ok := m.Find(CSeq)
	if !ok {
		return
	}
	_, method, ok := splitCSeq(v)
	if !ok {
		m.fail(400, "bad_cseq", "Bad CSeq")
		return
	}
	if m.request && !bytes.Equal(method, m.method) {
		m.fail(400, "cseq_method", "CSeq Method Mismatch")
	}
}

// splitCSeq reads "number LWS method" (RFC 3261 §20.16); the number must fit 32 bits.
func splitCSeq(v []byte) (n uint32, method []byte, ok bool) {
	e := 0
	for e < len(v) && isDigit(v[e]) {
		e++
	}
	n, over, ok := number(v[:e])
	s := skipLWS(v, e)
	method = v[s:]
	if !ok || over || s == e || len(method) == 0 || skipToken(method, 0) != len(method) {
		return 0, nil, false
	}
	return n, method, true
}

// checkLength cuts the message at Content-Length (RFC 3261 §18.3). Several fields
// must agree, otherwise two elements may see different messages.
func (m *Message) checkLength() {
	if !m.has(ContentLength) || m.err != nil && m.err.Reason == "no_end_of_headers" {
		return
	}
	length := -1
	for i := int(m.first[ContentLength]) - 1; i < m.n; i++ {
		f := m.at(i)
		if f.id != ContentLength {
			continue
		}
		n, over, ok := number(m.value(f))
		if !ok || over || n > 1<<31-1 {
			m.fail(400, "bad_content_length", "Bad Content-Length")
			return
		}
		if length >= 0 && int(n) != length {
			m.fail(400, "content_length_differs", "Several Content-Length")
			return
		}
		length = int(n)
	}
	if length > len(m.raw)-m.bodyStart {
		m.fail(400, "short_body", "Body Shorter Than Content-Length")
		return
	}
	m.raw = m.raw[:m.bodyStart+length]
}

func (m *Message) checkNumbers() {
	v, ok := m.Find(MaxForwards)
	if !ok {
		return
	}
	if _, over, ok := number(v); !ok || over {
		m.fail(400, "bad_max_forwards", "Bad Max-Forwards")
	}
}

// checkDate: SIP dates are in GMT (RFC 3261 §20.17, RFC 4475 baddate).
func (m *Message) checkDate() {
	v, ok := m.Find(Date)
	if ok && (len(v) < 4 || !equalFold(v[len(v)-3:], "GMT")) {
		m.fail(400, "bad_date", "Bad Date")
	}
}

// checkAddresses checks the syntax of the addresses that a proxy acts on.
func (m *Message) checkAddresses() {
	if m.has(From) && (len(m.From().URI) == 0 || m.from.IsStar()) {
		m.failAddress(From)
	}
	if m.has(To) && (len(m.To().URI) == 0 || m.to.IsStar()) {
		m.failAddress(To)
	}
	var other NameAddr
	for _, id := range [...]HeaderID{Contact, Route, RecordRoute} {
		for el := range m.Elements(id) {
			n := &other
			if id == Contact && m.contactAt == 0 {
				n = &m.contact
			}
			if n.parse(el.Value) != nil || n.IsStar() && id != Contact {
				m.failAddress(id)
				break
			}
			if n == &m.contact {
				m.contactAt = el.start
			}
		}
	}
}

func (m *Message) failAddress(id HeaderID) {
	switch id {
	case From:
		m.fail(400, "bad_from", "Bad From")
	case To:
		m.fail(400, "bad_to", "Bad To")
	case Contact:
		m.fail(400, "bad_contact", "Bad Contact")
	case Route:
		m.fail(400, "bad_route", "Bad Route")
	default:
		m.fail(400, "bad_record_route", "Bad Record-Route")
	}
}
