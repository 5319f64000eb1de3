package sdp

import (
	"bytes"
	"net/netip"
	"strconv"
)

// hostPriority is RFC 8445 §5.1.2.1 for the only host candidate: 2^24·126 + 2^8·65535 + 256 - component.
const hostPriority = 126<<24 + 65535<<8 + 256

func (w *writer) editICE(k *mark) {
	switch {
	case w.ends(int(k.media)):
		w.drop(k)
	case w.r.ICE == Pass:
	case w.r.ICE == Strip:
		w.drop(k)
	case k.kind == markCandidate:
		w.editCandidate(k)
	case k.kind == markICEOptions:
		w.dropTrickle(k)
	}
}

// editCandidate replaces a candidate by the relay's. The two dialects:
//
//	a=candidate:FOUNDATION COMPONENT TRANSPORT PRIORITY ADDRESS PORT typ host ...    RFC 8839 §5.1, draft 19
//	a=candidate:USER COMPONENT PASSWORD TRANSPORT 0.QVALUE ADDRESS PORT              draft 6
//
// In the second the candidate's own user name and password authenticate the checks, so one candidate
// is kept, with another address; in the first the relay's take the place of the first one.
func (w *writer) editCandidate(k *mark) {
	p, ok := w.placed(int(k.media))
	name := bytes.TrimLeft(w.s.raw[k.start+2:k.from], " \t")
	if !ok || !prefixFold(name, "candidate:") || w.s.media[k.media].Stream {
		w.drop(k)
		return
	}
	var t [8][2]int
	n := w.s.tokens(k.from, k.to, t[:])
	field := func(i int) []byte { return w.s.raw[t[i][0]:t[i][1]] }
	m := &w.s.media[k.media]
	switch {
	case n == 7 && fold(field(3), "udp"):
		w.editOldCandidate(k, p, m, &t)
	case n == 8 && fold(field(6), "typ") && !w.ice.written:
		w.upTo(k.start)
		w.ownCandidates(p, m, isBlank(w.s.raw[k.to-1]))
		w.pos = k.next
	default:
		w.drop(k)
	}
}

// ownCandidates writes the relay's candidates as lines. Microsoft's clients end theirs with a blank.
func (w *writer) ownCandidates(p *Placement, m *Media, blank bool) {
	w.ownCandidate(1, p.Addr, blank)
	if m.Kind == RTP && !m.MuxRTCP {
		w.ownCandidate(2, rtcpOf(p, m), blank)
	}
	w.ice.written = true
}

func (w *writer) ownCandidate(component uint64, a netip.AddrPort, blank bool) {
	w.dst = strconv.AppendUint(append(w.dst, "a=candidate:1 "...), component, 10)
	w.dst = strconv.AppendUint(append(w.dst, " UDP "...), hostPriority-component, 10)
	w.dst = a.Addr().Unmap().AppendTo(append(w.dst, ' '))
	w.dst = strconv.AppendUint(append(w.dst, ' '), uint64(a.Port()), 10)
	w.dst = append(w.dst, " typ host"...)
	if blank {
		w.dst = append(w.dst, ' ')
	}
	w.endLine()
}

// editOldCandidate keeps the first UDP candidate, and what else has its user name.
func (w *writer) editOldCandidate(k *mark, p *Placement, m *Media, t *[8][2]int) {
	user, component := w.s.raw[t[0][0]:t[0][1]], w.s.raw[t[1][0]:t[1][1]]
	to, c := p.Addr, 1
	if fold(component, "2") {
		to, c = rtcpOf(p, m), 2
	}
	switch {
	case c == 1 && !fold(component, "1"),
		c == 2 && (m.Kind != RTP || m.MuxRTCP),
		w.ice.user != nil && !bytes.Equal(w.ice.user, user),
		w.ice.seen[c]:
		w.drop(k)
		return
	}
	w.ice.user, w.ice.seen[c] = user, true
	w.upTo(t[5][0])
	w.dst = to.Addr().Unmap().AppendTo(w.dst)
	w.upTo2(t[5][1], t[6][0])
	w.dst = strconv.AppendUint(w.dst, uint64(to.Port()), 10)
	w.pos = t[6][1]
}

// upTo2 goes on copying at from, up to to.
func (w *writer) upTo2(from, to int) {
	w.pos = from
	w.upTo(to)
}

// dropTrickle removes "trickle" (RFC 8838): candidates that came later, in INFO, would name hosts.
func (w *writer) dropTrickle(k *mark) {
	var t [16][2]int
	n := w.s.tokens(k.from, k.to, t[:])
	for i := range n {
		if !fold(w.s.raw[t[i][0]:t[i][1]], "trickle") {
			continue
		}
		if n == 1 {
			w.drop(k)
			return
		}
		if i == 0 {
			w.upTo(t[0][0])
			w.pos = t[1][0]
		} else {
			w.upTo(t[i-1][1]) //nolint:gosec // i > 0 here
			w.pos = t[i][1]
		}
		return
	}
}
