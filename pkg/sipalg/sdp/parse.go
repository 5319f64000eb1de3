package sdp

import (
	"bytes"
	"net/netip"
)

// Session is an index over one description. The zero value is ready; Parse may be called again
// and again, and then allocates nothing. It refers to the parsed bytes, which must not change meanwhile.
// It is not safe for concurrent use.
type Session struct {
	raw      []byte
	media    []Media
	marks    []mark
	groups   [][]byte // the mids of each BUNDLE group
	defaults Media    // what the session level says of every m-line
	conn     conn     // the session level's c=

	crs, typed, tail   int
	wantConn, wantAttr bool
}

type conn struct {
	addr          netip.Addr
	isName, given bool
}

// markKind names a place in the description where something may be edited.
type markKind uint8

const (
	markOrigin markKind = iota
	markConn
	markMedia
	markRTCP
	markPath
	markCandidate  // dropped or replaced
	markRemote     // a=remote-candidate of the old dialect: no address in it
	markICE        // a=ice-* and a=end-of-candidates
	markICEOptions // a=ice-options
	markKeying     // a=crypto, a=fingerprint and others of SRTP's keys
	markTransport  // what two browsers' transports have to know: see Security.Ends
	markFeedback   // a=rtcp-fb
	markSendRecv   // a=sendrecv
	markPutConn    // empty: where a c= line would stand
	markPutAttr    // empty: where another a= line may stand
)

// mark is one line, or an empty place, of interest. The offsets count from the start of raw.
type mark struct {
	kind  markKind
	named bool  // the address is a name, or cannot be read (markConn); the long form (markRTCP)
	media int16 // index of the m-line, -1 at the session level
	port  uint16
	// start to next is the line with its end, from to to the value that is replaced.
	start, from, to, next int
	addr                  netip.Addr
}

// NumMedia returns the number of m-lines.
func (s *Session) NumMedia() int { return len(s.media) }

// Media returns m-line i, 0 ≤ i < NumMedia.
func (s *Session) Media(i int) *Media { return &s.media[i] }

// Raw returns the parsed bytes.
func (s *Session) Raw() []byte { return s.raw }

// Parse indexes raw. Line ends may be CRLF or LF, the last one may be missing, lines may stand in any
// order within their level, unknown ones are passed over. It returns an *Error if raw exceeds a bound,
// has an m-line that cannot be read, or a CR that ends no line (other readers would take it for a
// line end, and find an address behind it).
func (s *Session) Parse(raw []byte) error {
	s.reset(raw)
	if len(raw) > MaxBytes {
		return &Error{"too_large", MaxBytes}
	}
	for pos := 0; pos < len(raw); {
		end, next := len(raw), len(raw)
		if n := bytes.IndexByte(raw[pos:], '\n'); n >= 0 {
			end, next = pos+n, pos+n+1
		}
		if end > pos && raw[end-1] == '\r' {
			end--
			s.crs++
		}
		if end-pos >= 2 && raw[pos+1] == '=' {
			if err := s.line(pos, end, next); err != nil {
				return err
			}
		}
		pos = next
	}
	switch {
	case bytes.Count(raw, []byte{'\r'}) != s.crs:
		return &Error{"bare_cr", bytes.IndexByte(raw, '\r')}
	case s.typed == 0:
		return &Error{"not_sdp", 0}
	}
	s.putHere(s.tail)
	s.finish()
	return nil
}

func (s *Session) reset(raw []byte) {
	*s = Session{raw: raw, media: s.media[:0], marks: s.marks[:0], groups: s.groups[:0]}
}

// line takes the line raw[start:end], whose type letter and "=" have been seen.
func (s *Session) line(start, end, next int) error {
	t := s.raw[start]
	if s.wantConn && t != 'i' {
		s.wantConn = false
		s.put(markPutConn, start)
	}
	s.typed++
	switch t {
	case 'a':
		if s.wantAttr {
			s.wantAttr = false
			s.put(markPutAttr, start)
		}
		s.attribute(start, end, next)
	case 'c':
		s.connection(start, end, next)
	case 'o':
		s.origin(start, end, next)
	case 'm':
		s.putHere(start)
		if err := s.mediaLine(start, end, next); err != nil {
			return err
		}
	}
	s.tail = next
	if len(s.marks) > maxMarks {
		return &Error{"too_many_lines", start}
	}
	return nil
}

func (s *Session) current() int16 { return int16(len(s.media) - 1) }

// level returns where an attribute belongs: the m-line, or the session's defaults.
func (s *Session) level() *Media {
	if n := len(s.media); n > 0 {
		return &s.media[n-1]
	}
	return &s.defaults
}

// put marks an empty place.
func (s *Session) put(k markKind, at int) {
	s.marks = append(s.marks, mark{kind: k, media: s.current(), start: at, from: at, to: at, next: at})
}

// putHere marks, at the end of a media section, the places that no line of it has shown.
func (s *Session) putHere(at int) {
	if s.wantConn {
		s.put(markPutConn, at)
	}
	if s.wantAttr {
		s.put(markPutAttr, at)
	}
	s.wantConn, s.wantAttr = false, false
}

// tokens splits raw[from:end] at blanks and returns the bounds of the first len(out) ones.
func (s *Session) tokens(from, end int, out [][2]int) int {
	n := 0
	for i := from; n < len(out); n++ {
		for i < end && isBlank(s.raw[i]) {
			i++
		}
		if i == end {
			break
		}
		out[n][0] = i
		for i < end && !isBlank(s.raw[i]) {
			i++
		}
		out[n][1] = i
	}
	return n
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// mediaLine reads "m=audio 49170/2 RTP/AVP 0 8" (RFC 8866 §5.14).
func (s *Session) mediaLine(start, end, next int) error {
	var t [4][2]int
	fields := s.tokens(start+2, end, t[:])
	if fields < 3 {
		return &Error{"bad_media", start}
	}
	if len(s.media) == MaxMedia {
		return &Error{"too_many_media", start}
	}
	port, count := s.raw[t[1][0]:t[1][1]], []byte("1")
	if i := bytes.IndexByte(port, '/'); i >= 0 {
		port, count = port[:i], port[i+1:]
	}
	p, ok := parsePort(port)
	n, ok2 := parsePort(count)
	if !ok || !ok2 || n == 0 {
		return &Error{"bad_media", start}
	}
	s.media = append(s.media, s.defaults)
	m := &s.media[len(s.media)-1]
	m.Type, m.Proto = s.raw[t[0][0]:t[0][1]], s.raw[t[2][0]:t[2][1]]
	m.Port, m.PortCount = p, int(n)
	m.Kind, m.Stream = kindOf(m.Type, m.Proto)
	if fields == 4 && fold(m.Proto, "tcp") && fold(m.Type, "application") && fold(s.raw[t[3][0]:t[3][1]], "msdata") {
		m.Kind = T120
	}
	m.Candidates, m.Cryptos = 0, 0
	s.marks = append(s.marks, mark{kind: markMedia, media: s.current(), port: p,
		start: start, from: t[1][0], to: t[1][1], next: next})
	s.wantConn, s.wantAttr = true, true
	return nil
}

// connection reads "c=IN IP4 224.2.1.1/127/3" (RFC 8866 §5.7).
func (s *Session) connection(start, end, next int) {
	m := mark{kind: markConn, media: s.current(), start: start, from: start + 2, to: end, next: next, named: true}
	var t [3][2]int
	isName := false
	if s.tokens(start+2, end, t[:]) == 3 {
		host := s.raw[t[2][0]:t[2][1]]
		if i := bytes.IndexByte(host, '/'); i >= 0 {
			host = host[:i]
		}
		m.addr = parseAddr(host)
		m.named = !m.addr.IsValid()
		m.from, m.to = t[0][0], t[2][1]
		isName = m.named
	}
	s.marks = append(s.marks, m)
	if m.media < 0 {
		if !s.conn.given {
			s.conn = conn{m.addr, isName, true}
		}
		return
	}
	if l := s.level(); !l.ownConn {
		l.Addr, l.AddrIsName, l.ownConn = m.addr, isName, true
	}
}

// origin reads the last three fields of o= (RFC 8866 §5.2): the user name may hold blanks in the wild.
func (s *Session) origin(start, end, next int) {
	from, to := end, end
	for to > start && isBlank(s.raw[to-1]) {
		to--
	}
	var last [3][]byte
	for i, n := to, 2; n >= 0; n-- {
		for i > start+2 && isBlank(s.raw[i-1]) {
			i--
		}
		stop := i
		for i > start+2 && !isBlank(s.raw[i-1]) {
			i--
		}
		last[n], from = s.raw[i:stop], i
	}
	if addr := parseAddr(last[2]); addr.IsValid() && fold(last[0], "in") {
		s.marks = append(s.marks, mark{kind: markOrigin, media: s.current(), start: start, from: from, to: to, next: next, addr: addr})
	}
}

// finish derives what needs the whole description: the effective address, hold, bundle groups.
func (s *Session) finish() {
	for i := range s.media {
		m := &s.media[i]
		if !m.ownConn {
			m.Addr, m.AddrIsName = s.conn.addr, s.conn.isName
		}
		m.Multicast = m.Addr.IsMulticast()
		m.Unset = m.ICE && (m.Port == 9 || m.Port == 1) && m.Addr.IsUnspecified()
		m.Hold = m.Direction == Inactive || m.heldByAddress()
	}
	for g, mids := range s.groups {
		s.bundle(g+1, mids)
	}
}

func (s *Session) bundle(group int, mids []byte) {
	for n := 0; n < MaxMedia; n++ {
		mids = bytes.TrimLeft(mids, " \t")
		if len(mids) == 0 {
			return
		}
		mid := mids
		if i := bytes.IndexAny(mids, " \t"); i >= 0 {
			mid = mids[:i]
		}
		mids = mids[len(mid):]
		for i := range s.media {
			if m := &s.media[i]; !m.InBundle && bytes.Equal(m.MID, mid) {
				m.InBundle, m.Bundle = true, group
			}
		}
	}
}

// kindOf classifies an m-line by its proto field, in any case.
func kindOf(typ, proto []byte) (k MediaKind, stream bool) {
	switch {
	case fold(proto, "sip") || fold(typ, "x-ms-message"):
		return NotMedia, false
	case prefixFold(proto, "rtp/") || prefixFold(proto, "udp/tls/rtp/"):
		return RTP, false
	case fold(proto, "udptl") || fold(proto, "udp/tls/udptl"):
		return UDPTL, false
	case fold(proto, "tcp/msrp") || fold(proto, "tcp/tls/msrp"):
		return MSRP, true
	case suffixFold(proto, "/bfcp"):
		return BFCP, prefixFold(proto, "tcp/")
	case fold(proto, "udp") || prefixFold(proto, "udp/") || fold(proto, "dtls/sctp"):
		return UDPOther, false
	case fold(proto, "tcp") || prefixFold(proto, "tcp/"):
		return TCPOther, true
	}
	return Unknown, false
}

// fold compares b with lower, which is in lower case, ignoring the case of letters.
func fold(b []byte, lower string) bool { return len(b) == len(lower) && prefixFold(b, lower) }

func prefixFold(b []byte, lower string) bool {
	if len(b) < len(lower) {
		return false
	}
	for i := range len(lower) {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func suffixFold(b []byte, lower string) bool {
	return len(b) >= len(lower) && prefixFold(b[len(b)-len(lower):], lower)
}
