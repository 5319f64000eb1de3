package sdp

import (
	"bytes"
	"net/netip"
	"strconv"
)

// Placement is where the edge receives what one m-line asks for.
type Placement struct {
	// Addr replaces the m-line's address and port. The zero value, or port 0, leaves the port alone:
	// the m-line is rejected, or its port is not media.
	Addr netip.AddrPort
	// RTCP is the edge's RTCP address. The zero value means Addr's port + 1 or, if the m-line has
	// a=rtcp-mux, Addr.
	RTCP netip.AddrPort
	// Reject writes port 0 (RFC 3264 §6): there is no way for this media. Addr is not looked at.
	Reject bool
	// Security, if not nil, says how the media are protected for the receiver, in the place of what the sender says.
	Security *Security
}

// ICE says what becomes of the ICE attributes, of both dialects (RFC 8839, and the drafts that
// Microsoft's clients speak).
type ICE uint8

const (
	// Strip removes them: the peers use the c= and m= lines.
	Strip ICE = iota
	// Relay replaces the candidates by the edge's own, as host candidates; user fragments and
	// passwords stay, so that connectivity checks pass through the relay from end to end.
	Relay
	// Pass leaves them as they are.
	Pass
)

// Rewrite says what to change.
type Rewrite struct {
	// Media holds a placement for each m-line, by index; missing ones are zero. The m-lines of a
	// BUNDLE group may share one.
	Media []Placement
	// ICE is Strip by default.
	ICE ICE
	// Origin asks for the address in o= to be rewritten too (never the other fields of it).
	Origin bool
	// Session are attributes to be put at the session level, without "a=".
	Session []string
	// Addr is the edge's address on the receiver's network. It replaces a host's address where there
	// is no placement to take one from: o=, and c= of m-lines that have none. If it is not valid, the
	// first placement's address does.
	Addr netip.Addr
}

// AppendRewritten appends the parsed description to dst, changed as r says, and returns the result.
//
// Where the address to be written is the one already there, the line keeps its bytes. 0.0.0.0 and ::
// stay (hold), unless ICE wrote them for want of a candidate; groups stay, with their TTL and
// everything of their m-line. A rejected m-line (port 0) keeps its bytes but for the addresses of
// hosts. A port count is dropped: one placement is one port, or one pair.
func (s *Session) AppendRewritten(dst []byte, r Rewrite) []byte {
	w := writer{s: s, r: r, dst: dst}
	w.plan()
	for i := range s.marks {
		w.edit(&s.marks[i])
	}
	return append(w.dst, s.raw[w.pos:]...)
}

// writer copies a session's bytes up to pos, edit by edit.
type writer struct {
	s   *Session
	r   Rewrite
	dst []byte
	pos int

	session  netip.Addr // what the session level's c= will say; not valid if there is none, or it stays a name
	fallback netip.Addr // for addresses of hosts where no placement applies
	origin   netip.Addr
	ice      iceState
}

// iceState is what was written for the current m-line.
type iceState struct {
	written bool
	user    []byte // the candidate kept, old dialect
	seen    [3]bool
}

// placed returns m-line i's placement, if it is to be rewritten.
func (w *writer) placed(i int) (*Placement, bool) {
	if i < 0 || i >= len(w.r.Media) || i >= len(w.s.media) {
		return nil, false
	}
	p, m := &w.r.Media[i], &w.s.media[i]
	return p, !p.Reject && p.Addr.IsValid() && p.Addr.Port() != 0 && m.Port != 0 && !m.Multicast
}

// want returns the address that m-line i is to show.
func (w *writer) want(i int) netip.Addr {
	a := w.r.Media[i].Addr.Addr().Unmap()
	if w.held(i) {
		return unspecified(a)
	}
	return a
}

// held tells whether the address of m-line i itself says hold. Where ICE ends here it only says that there is no candidate to name.
func (w *writer) held(i int) bool { return w.s.media[i].heldByAddress() && !w.ends(i) }

// plan chooses the session level's address: that of the first rewritten m-line that goes by it.
func (w *writer) plan() {
	first := -1
	var any netip.Addr
	for i := range w.s.media {
		p, ok := w.placed(i)
		if !ok {
			continue
		}
		if !any.IsValid() {
			any = p.Addr.Addr().Unmap()
		}
		if first < 0 && !w.s.media[i].ownConn {
			first = i
		}
	}
	w.fallback, w.origin = any, w.r.Addr.Unmap()
	if !any.IsValid() {
		w.fallback = w.origin
	}
	if !w.origin.IsValid() {
		w.origin = any
	}
	c := w.s.conn
	switch {
	case !c.given || c.addr.IsMulticast():
		w.session = c.addr
	case first >= 0:
		w.session = w.want(first)
	case leaks(c.addr) && w.fallback.IsValid():
		w.session = w.fallback
	case !c.addr.IsValid() && any.IsValid():
		w.session = any
	default:
		w.session = c.addr
	}
}

// upTo copies everything before offset i that has not been copied.
func (w *writer) upTo(i int) {
	w.dst = append(w.dst, w.s.raw[w.pos:i]...)
	w.pos = i
}

// drop leaves out the line of k.
func (w *writer) drop(k *mark) {
	w.upTo(k.start)
	w.pos = k.next
}

func (w *writer) edit(k *mark) {
	switch k.kind {
	case markOrigin:
		if w.r.Origin && leaks(k.addr) && w.origin.IsValid() && k.addr != w.origin {
			w.conn(k, w.origin)
		}
	case markConn:
		w.editConn(k)
	case markMedia:
		w.editMedia(k)
	case markRTCP:
		w.editRTCP(k)
	case markPath:
		w.editPath(k)
	case markKeying:
		w.editKeying(k)
	case markTransport, markFeedback, markSendRecv:
		w.editTransport(k)
	case markPutConn:
		w.putConn(k)
	case markPutAttr:
		w.putAttr(k)
	default:
		w.editICE(k)
	}
}

// conn replaces the value of k by "IN IP4 address".
func (w *writer) conn(k *mark, a netip.Addr) {
	w.upTo(k.from)
	w.dst = appendConn(w.dst, a)
	w.pos = k.to
}

func (w *writer) editConn(k *mark) {
	var to netip.Addr
	switch i := int(k.media); {
	case i < 0 && w.fallback.IsValid():
		to = w.session
	case i >= 0:
		if _, ok := w.placed(i); ok {
			to = w.want(i)
		} else if leaks(k.addr) {
			to = w.fallback
		}
	}
	if to.IsValid() && to != k.addr && !k.addr.IsMulticast() {
		w.conn(k, to)
	}
}

func (w *writer) editMedia(k *mark) {
	w.ice = iceState{}
	if k.media == 0 {
		w.newLines(k.start, w.r.Session)
	}
	w.editPort(k)
	w.editProfile(k)
}

// newLines writes attributes at offset i, a line's start.
func (w *writer) newLines(i int, attributes []string) {
	for _, line := range attributes {
		w.newLine(i)
		w.dst = append(append(w.dst, "a="...), line...)
		w.endLine()
	}
}

func (w *writer) editPort(k *mark) {
	port := uint16(0)
	switch p, ok := w.placed(int(k.media)); {
	case ok:
		port = p.Addr.Port()
	case p == nil || !p.Reject || k.port == 0:
		return
	}
	if port == k.port && w.s.media[k.media].PortCount == 1 {
		return
	}
	w.upTo(k.from)
	w.dst = strconv.AppendUint(w.dst, uint64(port), 10)
	w.pos = k.to
}

// putConn gives an m-line that goes by the session level a c= of its own, if it needs another address.
func (w *writer) putConn(k *mark) {
	i := int(k.media)
	if _, ok := w.placed(i); !ok || w.s.media[i].ownConn || w.want(i) == w.session {
		return
	}
	w.newLine(k.start)
	w.dst = appendConn(append(w.dst, "c="...), w.want(i))
	w.endLine()
}

// newLine copies up to offset i, a line's start, and ends the line before if nothing does.
func (w *writer) newLine(i int) {
	w.upTo(i)
	switch n := len(w.dst); {
	case n == 0 || w.dst[n-1] == '\n':
	case w.dst[n-1] == '\r': // a line end cut in two by the end of the description
		w.dst = append(w.dst, '\n')
	default:
		w.endLine()
	}
}

// endLine ends a line as the description's first line ends.
func (w *writer) endLine() {
	if i := bytes.IndexByte(w.s.raw, '\n'); i == 0 || i > 0 && w.s.raw[i-1] != '\r' {
		w.dst = append(w.dst, '\n')
		return
	}
	w.dst = append(w.dst, '\r', '\n')
}

// rtcpOf returns the RTCP address of placement p for m-line m.
func rtcpOf(p *Placement, m *Media) netip.AddrPort {
	port := p.Addr.Port() + 1
	if p.RTCP.IsValid() && p.RTCP.Port() != 0 {
		return netip.AddrPortFrom(p.RTCP.Addr().Unmap(), p.RTCP.Port())
	}
	if m.MuxRTCP || port == 0 {
		port--
	}
	return netip.AddrPortFrom(p.Addr.Addr().Unmap(), port)
}

func (w *writer) editRTCP(k *mark) {
	p, ok := w.placed(int(k.media))
	if !ok {
		if leaks(k.addr) && w.fallback.IsValid() && k.addr != w.fallback {
			w.rtcpValue(k, k.port, w.fallback)
		}
		return
	}
	m := &w.s.media[k.media]
	rtcp := rtcpOf(p, m)
	addr, own := rtcp.Addr(), rtcp.Addr() != p.Addr.Addr().Unmap()
	if w.held(int(k.media)) {
		addr, own = unspecified(addr), false
	}
	if !k.named && !own {
		addr = netip.Addr{}
	}
	if rtcp.Port() != k.port || addr != k.addr {
		w.rtcpValue(k, rtcp.Port(), addr)
	}
}

func (w *writer) rtcpValue(k *mark, port uint16, addr netip.Addr) {
	w.upTo(k.from)
	w.dst = strconv.AppendUint(w.dst, uint64(port), 10)
	if addr.IsValid() {
		w.dst = appendConn(append(w.dst, ' '), addr)
	}
	w.pos = k.to
}

// putAttr adds a=rtcp where the next odd port is not the one (RFC 3605), the relay's candidates
// where the sender's will come later (RFC 8838), and how the media are protected.
func (w *writer) putAttr(k *mark) {
	p, ok := w.placed(int(k.media))
	if sec := w.security(int(k.media)); sec != nil && sec.MID != "" {
		w.newLine(k.start)
		w.dst = append(append(w.dst, "a=mid:"...), sec.MID...)
		w.endLine()
	}
	if !ok {
		return
	}
	m := &w.s.media[k.media]
	if rtcp := rtcpOf(p, m); m.Kind == RTP && !m.MuxRTCP && !m.ownRTCP &&
		rtcp != netip.AddrPortFrom(p.Addr.Addr().Unmap(), p.Addr.Port()+1) {
		w.newLine(k.start)
		w.dst = strconv.AppendUint(append(w.dst, "a=rtcp:"...), uint64(rtcp.Port()), 10)
		if rtcp.Addr() != p.Addr.Addr().Unmap() && !w.held(int(k.media)) {
			w.dst = appendConn(append(w.dst, ' '), rtcp.Addr())
		}
		w.endLine()
	}
	if w.r.ICE == Relay && m.ICE && m.Candidates == 0 && !m.Stream && !w.ends(int(k.media)) {
		w.newLine(k.start)
		w.ownCandidates(p, m, false)
	}
	if p.Security != nil {
		w.newLines(k.start, p.Security.Attributes)
	}
}

func (w *writer) editPath(k *mark) {
	addr, port := k.addr, k.port
	if p, ok := w.placed(int(k.media)); ok {
		addr, port = p.Addr.Addr().Unmap(), p.Addr.Port()
	} else if leaks(k.addr) && w.fallback.IsValid() {
		addr = w.fallback
	}
	if addr == k.addr && port == k.port {
		return
	}
	w.upTo(k.from)
	w.dst = appendHostPort(w.dst, addr, port)
	w.pos = k.to
}
