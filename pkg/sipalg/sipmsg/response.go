package sipmsg

import "strconv"

// AppendResponse appends a response to req as RFC 3261 §8.2.6 makes it: all Vias,
// From, To, Call-ID and CSeq as they stand in the request, Timestamp for 100, and
// no body. toTag is added to To unless that has a tag or status is 100. Each of
// extra is a header field "Name: value" without CRLF. It is meant for requests
// that are [Message.Answerable].
func AppendResponse(dst []byte, req *Message, status int, reason string, toTag []byte, extra ...string) []byte {
	dst = append(dst, "SIP/2.0 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	dst = append(dst, "\r\n"...)
	var seen [numHeaders]bool
	for i := range req.n {
		f := req.at(i)
		switch f.id {
		case HeaderVia:
		case From, To, CallID, CSeq:
			if seen[f.id] {
				continue
			}
		case Timestamp:
			if status != 100 {
				continue
			}
		default:
			continue
		}
		seen[f.id] = true
		dst = append(dst, req.raw[f.start:f.valEnd]...)
		if f.id == To && status != 100 && len(toTag) > 0 && !hasTag(req.value(f)) {
			dst = append(dst, ";tag="...)
			dst = append(dst, toTag...)
		}
		dst = append(dst, "\r\n"...)
	}
	for _, line := range extra {
		dst = append(dst, line...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "Content-Length: 0\r\n\r\n"...)
}

func hasTag(to []byte) bool {
	n, err := ParseNameAddr(to)
	if err != nil {
		return false
	}
	_, ok := n.Param("tag")
	return ok
}
