package sdp

import (
	"bytes"
)

// attribute takes the line a=NAME or a=NAME:VALUE. Names are compared in any case: who reads the
// result may be more tolerant than RFC 8866 §9 is.
func (s *Session) attribute(start, end, next int) {
	text := bytes.TrimLeft(s.raw[start+2:end], " \t")
	if !interesting(text) {
		return
	}
	colon := end
	if i := bytes.IndexByte(s.raw[start:end], ':'); i >= 0 {
		colon = start + i
	}
	value, name := min(colon+1, end), bytes.TrimRight(text[:colon-(end-len(text))], " \t")
	for _, c := range name {
		if c >= 'A' && c <= 'Z' {
			name = bytes.ToLower(name)
			break
		}
	}
	s.named(name, start, value, end, next)
}

// interesting tells by three letters whether an attribute may be one of those below: most lines of a
// description are rtpmap, fmtp, rtcp-fb and the like.
func interesting(name []byte) bool {
	if len(name) < 3 {
		return false
	}
	switch uint32(name[0]|0x20)<<16 | uint32(name[1]|0x20)<<8 | uint32(name[2]|0x20) {
	case 's'<<16 | 'e'<<8 | 'n', 's'<<16 | 'e'<<8 | 't', 'r'<<16 | 'e'<<8 | 'c', 'r'<<16 | 'e'<<8 | 'm',
		'r'<<16 | 't'<<8 | 'c', 'i'<<16 | 'n'<<8 | 'a', 'i'<<16 | 'c'<<8 | 'e', 'b'<<16 | 'u'<<8 | 'n',
		'm'<<16 | 'i'<<8 | 'd', 'g'<<16 | 'r'<<8 | 'o', 'p'<<16 | 'a'<<8 | 't', 'c'<<16 | 'a'<<8 | 'n',
		'a'<<16 | 'l'<<8 | 't', 'e'<<16 | 'n'<<8 | 'd', 'x'<<16 | '-'<<8 | 'c',
		'c'<<16 | 'r'<<8 | 'y', 'f'<<16 | 'i'<<8 | 'n', 'k'<<16 | 'e'<<8 | 'y', 'z'<<16 | 'r'<<8 | 't',
		't'<<16 | 'l'<<8 | 's', 'e'<<16 | 'n'<<8 | 'c',
		'e'<<16 | 'x'<<8 | 't', 'm'<<16 | 's'<<8 | 'i', 's'<<16 | 's'<<8 | 'r', 'r'<<16 | 'i'<<8 | 'd', 's'<<16 | 'i'<<8 | 'm':
		return true
	}
	return false
}

// named acts on an attribute by its name, in lower case.
func (s *Session) named(name []byte, start, value, end, next int) {
	m, v := s.level(), s.raw[value:end]
	switch string(name) {
	case "sendrecv":
		m.Direction = SendRecv
		s.mark(markSendRecv, start, value, end, next)
	case "sendonly":
		m.Direction = SendOnly
	case "recvonly":
		m.Direction = RecvOnly
	case "inactive":
		m.Direction = Inactive
	case "rtcp-mux", "rtcp-mux-only":
		m.MuxRTCP = true
		s.mark(markTransport, start, value, end, next)
	case "bundle-only":
		m.BundleOnly = true
		s.mark(markTransport, start, value, end, next)
	case "rtcp-rsize", "extmap", "extmap-allow-mixed", "msid", "msid-semantic", "ssrc", "ssrc-group", "rid", "simulcast":
		s.mark(markTransport, start, value, end, next)
	case "rtcp-fb":
		s.mark(markFeedback, start, value, end, next)
	case "setup":
		m.Setup = bytes.Trim(v, " \t")
		s.mark(markKeying, start, value, end, next)
	case "mid":
		m.MID = bytes.Trim(v, " \t")
		s.mark(markTransport, start, value, end, next)
	case "group":
		s.mark(markTransport, start, value, end, next)
		if prefixFold(v, "bundle ") && len(s.groups) < maxGroups {
			s.groups = append(s.groups, v[len("bundle "):])
		}
	case "crypto":
		m.Cryptos++
		s.mark(markKeying, start, value, end, next)
	case "fingerprint":
		m.Fingerprint = true
		s.mark(markKeying, start, value, end, next)
	case "key-mgmt", "zrtp-hash", "tls-id", "encryption":
		s.mark(markKeying, start, value, end, next)
	default:
		s.addressed(name, start, value, end, next)
	}
}

// mark marks an attribute.
func (s *Session) mark(k markKind, start, value, end, next int) {
	s.marks = append(s.marks, mark{kind: k, media: s.current(), start: start, from: value, to: end, next: next})
}

// addressed marks the attributes that name addresses, and those of ICE.
func (s *Session) addressed(name []byte, start, value, end, next int) {
	m, k := s.level(), markICE
	switch {
	case string(name) == "rtcp":
		s.rtcp(start, value, end, next)
		return
	case string(name) == "path":
		s.path(start, value, end, next)
		return
	case string(name) == "candidate":
		m.ICE = true
		m.Candidates++
		k = markCandidate
	case string(name) == "remote-candidate":
		k = markRemote
	case string(name) == "remote-candidates" || string(name) == "altc" || string(name) == "alt" || prefixFold(name, "x-candidate"):
		k = markCandidate
	case string(name) == "ice-options":
		k = markICEOptions
	case string(name) == "ice-ufrag":
		m.ICE = true
	case string(name) == "ice-lite":
		m.Lite = true
	case string(name) == "end-of-candidates" || prefixFold(name, "ice-"):
	default:
		return
	}
	s.mark(k, start, value, end, next)
}

// rtcp reads "a=rtcp:53020" or "a=rtcp:53020 IN IP6 2001:db8::1" (RFC 3605 §2.1).
func (s *Session) rtcp(start, value, end, next int) {
	var t [4][2]int
	n := s.tokens(value, end, t[:])
	if n == 0 {
		return
	}
	k := mark{kind: markRTCP, media: s.current(), start: start, from: t[0][0], to: t[n-1][1], next: next, named: n > 1}
	k.port, _ = parsePort(s.raw[t[0][0]:t[0][1]])
	if n == 4 {
		k.addr = parseAddr(s.raw[t[3][0]:t[3][1]])
	}
	s.marks = append(s.marks, k)
	if m := s.level(); m != &s.defaults && !m.ownRTCP {
		m.RTCPPort, m.RTCPAddr, m.ownRTCP = k.port, k.addr, true
	}
}

// path reads the first URI of "a=path:msrp://[user@]host[:port]/session;tcp" (RFC 4975 §6).
// Further URIs are those of relays' clients, which must come back to them as they are.
func (s *Session) path(start, value, end, next int) {
	i := bytes.Index(s.raw[value:end], []byte("://"))
	if i < 0 {
		return
	}
	from := value + i + 3
	to := from
	for to < end && !bytes.ContainsRune([]byte("/; \t"), rune(s.raw[to])) {
		to++
	}
	if at := bytes.LastIndexByte(s.raw[from:to], '@'); at >= 0 {
		from += at + 1
	}
	host, port := s.raw[from:to], uint16(2855)
	colon := bytes.LastIndexByte(host, ':')
	if colon > bytes.LastIndexByte(host, ']') && (host[0] == '[' || bytes.Count(host, []byte{':'}) == 1) {
		p, ok := parsePort(host[colon+1:])
		if !ok {
			return
		}
		host, port = host[:colon], p
	}
	if len(host) == 0 {
		return
	}
	k := mark{kind: markPath, media: s.current(), port: port, start: start, from: from, to: to, next: next, addr: parseAddr(host)}
	s.marks = append(s.marks, k)
	if m := s.level(); len(m.Path.Host) == 0 {
		m.Path = MSRPPath{Host: bytes.Trim(host, "[]"), Addr: k.addr, Port: port}
	}
}
