package sipmsg

import "bytes"

// Kind is what a [Framer] found at the start of a stream.
type Kind uint8

const (
	// KindIncomplete: more bytes are needed.
	KindIncomplete Kind = iota
	// KindMessage: a whole message.
	KindMessage
	// KindPing: the second of two CRLFs, a keepalive to be answered with one CRLF
	// (RFC 5626 §3.5.1); n is 4, or 2 when the first was reported before.
	KindPing
	// KindCRLF: one CRLF between messages: a pong, or a stray line end.
	KindCRLF
)

const defaultMax = 65535

// Framer cuts a byte stream into messages by Content-Length (RFC 3261 §18.3). It
// remembers how far it has looked, so a stream that comes byte by byte costs no
// more than one that comes at once.
//
//	buf = append(buf, what was read...)
//	for n, kind, err := f.Next(buf); ...; buf = buf[n:]
type Framer struct {
	// Max is the largest message in bytes; 0 means 65,535.
	Max int

	// seen is how far buf was searched for the end of the header fields.
	seen int
	// need is the size of the message once known, 0 before.
	need int
	// crlf tells that the last thing reported was one CRLF.
	crlf bool
	err  *Error
}

// Next looks at buf, which starts behind what earlier calls reported and has
// otherwise only grown. It returns the number of bytes that belong to what it found,
// 0 with KindIncomplete. The error is an [*Error]; the stream cannot be
// continued after it, and the same error is returned from then on.
func (f *Framer) Next(buf []byte) (n int, kind Kind, err error) {
	if f.err != nil {
		return 0, KindIncomplete, f.err
	}
	if n, kind, ok := f.crlfs(buf); ok {
		return n, kind, nil
	}
	if f.need == 0 {
		f.findEnd(buf)
		if f.err != nil {
			return 0, KindIncomplete, f.err
		}
	}
	if f.need == 0 || len(buf) < f.need {
		return 0, KindIncomplete, nil
	}
	n = f.need
	f.seen, f.need, f.crlf = 0, 0, false
	return n, KindMessage, nil
}

// crlfs reports CRLFs at the start. A lone CRLF is reported at once, since a peer
// that waits for its pong sends nothing more.
func (f *Framer) crlfs(buf []byte) (n int, kind Kind, ok bool) {
	if f.seen > 0 || f.need > 0 {
		return 0, KindIncomplete, false
	}
	if len(buf) == 0 || len(buf) == 1 && buf[0] == '\r' {
		return 0, KindIncomplete, true
	}
	if buf[0] != '\r' || buf[1] != '\n' {
		return 0, KindIncomplete, false
	}
	if f.crlf {
		f.crlf = false
		return 2, KindPing, true
	}
	if len(buf) >= 4 && buf[2] == '\r' && buf[3] == '\n' {
		return 4, KindPing, true
	}
	f.crlf = true
	return 2, KindCRLF, true
}

func (f *Framer) fail(status int, reason, text string) {
	f.err = &Error{Status: status, Reason: reason, Text: text}
}

// findEnd searches for the empty line from where it stopped last time.
func (f *Framer) findEnd(buf []byte) {
	if f.seen == 0 && !isToken(buf[0]) {
		f.fail(0, "garbage", "Not SIP")
		return
	}
	limit := f.Max
	if limit <= 0 {
		limit = defaultMax
	}
	from := max(f.seen-3, 0)
	f.seen = len(buf)
	i := bytes.Index(buf[from:min(len(buf), limit)], []byte("\r\n\r\n"))
	if i < 0 {
		if len(buf) >= limit {
			f.fail(513, "too_large", "Message Too Large")
		}
		return
	}
	end := from + i + 4
	n := f.contentLength(buf[:end])
	if f.err != nil {
		return
	}
	if n > limit-end {
		f.fail(513, "too_large", "Message Too Large")
		return
	}
	f.need = end + n
}

// contentLength reads the Content-Length from whole header fields; on a stream it
// must be there (RFC 3261 §20.14).
func (f *Framer) contentLength(b []byte) int {
	length := -1
	_, i, _ := cutLine(b, 0)
	for i < len(b) {
		line := i
		_, i, _ = cutLine(b, i)
		for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
			_, i, _ = cutLine(b, i)
		}
		e := line + skipToken(b[line:i], 0)
		if classify(b[line:e]) != ContentLength {
			continue
		}
		v := skipLWS(b[:i], e)
		if v == i || b[v] != ':' {
			continue
		}
		n, over, ok := number(trim(b[v+1 : i]))
		if !ok || over || n > 1<<31-1 {
			f.fail(400, "bad_content_length", "Bad Content-Length")
			return 0
		}
		if length >= 0 && int(n) != length {
			f.fail(400, "content_length_differs", "Several Content-Length")
			return 0
		}
		length = int(n)
	}
	if length < 0 {
		f.fail(400, "missing_content_length", "Missing Content-Length")
	}
	return max(length, 0)
}
