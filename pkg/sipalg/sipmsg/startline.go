package sipmsg

import "bytes"

// startLine reads the first line and returns false when nothing can be made of
// the message (RFC 3261 §7.1, §7.2):
//
//	Method SP Request-URI SP SIP/2.0
//	SIP/2.0 SP Status-Code SP Reason-Phrase
func (m *Message) startLine(b []byte) bool {
	if len(b) >= 4 && equalFold(b[:4], "SIP/") {
		return m.statusLine(b)
	}
	return m.requestLine(b)
}

func (m *Message) statusLine(b []byte) bool {
	if len(b) < 11 || !equalFold(b[:8], "SIP/2.0 ") || len(b) > 11 && b[11] != ' ' {
		m.fail(0, "bad_status_line", "Bad Status Line")
		return true
	}
	n, _, ok := number(b[8:11])
	if !ok || n < 100 || n > 699 {
		m.fail(0, "bad_status_line", "Bad Status Code")
		return true
	}
	m.status = int(n)
	m.reason = b[min(12, len(b)):]
	return true
}

// requestLine takes the word in front of the first blank as the method, and what
// is between that and the last blank as the URI, so that a faulty line can still
// be answered.
func (m *Message) requestLine(b []byte) bool {
	end := skipToken(b, 0)
	if end == 0 || end == len(b) || b[end] != ' ' {
		m.fail(0, "garbage", "Not SIP")
		return false
	}
	line := bytes.TrimRight(b, " \t")
	last := bytes.LastIndexByte(line, ' ')
	if last < 0 || !isVersion(line[last+1:]) {
		m.fail(0, "garbage", "Not SIP")
		return false
	}
	m.request = true
	m.method = b[:end]
	m.methodID = methodByName(m.method)
	m.uri = b[end+1 : max(last, end+1)]
	switch {
	case !equalFold(line[last+1:], "SIP/2.0"):
		m.fail(505, "version", "Version Not Supported")
	case len(line) != len(b) || last <= end:
		m.fail(400, "bad_request_line", "Bad Request Line")
	default:
		if m.target.parse(m.uri) != nil {
			m.fail(400, "bad_request_uri", "Bad Request-URI")
		}
	}
	return true
}

// isVersion tells whether b is "SIP/" digit "." digit, or more digits.
func isVersion(b []byte) bool {
	if len(b) < 7 || !equalFold(b[:4], "SIP/") {
		return false
	}
	for _, c := range b[4:] {
		if !isDigit(c) && c != '.' {
			return false
		}
	}
	return true
}
