package sipalg

import (
	"bytes"
	"hash/maphash"
	"slices"
	"time"
	"unsafe"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// A session is one INVITE's passage through the edge with the dialogs that it makes. A call that
// passes twice (a spiral through an outside proxy) is two sessions. Near is the caller's side.
type session struct {
	id       uint64
	callID   string
	fromTag  string
	from     string // From and To as written
	to       string
	chain    *session // next with the same hash of the Call-ID
	networks [2]string
	flows    [2]flow.Flow // by which each side was heard last
	contacts [2]*alias
	routes   [2][]string // Route values that lead from the edge to each side
	cseq     [2]uint32   // last CSeq number sent by each side
	serial   uint32      // of its last stream
	ending   bool

	streams []stream // of the offer in the INVITE, until a first dialog takes them
	one     [1]stream
	dialogs []*dialog

	started, answered time.Time
	status            int    // final status
	reason            string // why it ended
	expires           timer  // session timer (RFC 4028), or the longest life of a call without media
}

// A dialog is one answer to the INVITE.
type dialog struct {
	tag       string // the callee's
	streams   []stream
	confirmed bool
	offered   int8 // 1 + the side whose offer waits for its answer; 0 = none
}

// maxLife ends a call that shows no sign of life: no media to watch, no session timer.
const maxLife = 12 * time.Hour

// shareMax is the largest request whose memory a session may keep as long as the call lasts.
const shareMax = 4 << 10

// maxSameCallID bounds the sessions with one Call-ID: they are looked for one by one.
const maxSameCallID = 16

// sameCallID counts the sessions in the chain that s begins.
func (s *session) sameCallID() (n int) {
	for ; s != nil; s = s.chain {
		n++
	}
	return n
}

// newSession begins a session with the INVITE at hand, that leaves for network; nil if there are too many
// with its Call-ID.
func (c *Core) newSession(t *tx, network string) *session {
	h := maphash.Bytes(c.seed, c.m.CallID())
	chain := c.calls[h]
	if chain.sameCallID() >= maxSameCallID {
		return nil
	}
	m := &c.m
	from, _ := m.Find(sipmsg.From)
	to, _ := m.Find(sipmsg.To)
	tag := m.From().Tag()
	// One allocation for all texts of the session and for the request as it is sent on.
	n1 := len(m.CallID())
	n2 := n1 + len(tag)
	n3 := n2 + len(from)
	n4 := n3 + len(to)
	room := n4
	if len(m.Raw()) <= shareMax {
		room += len(m.Raw()) + growth
	}
	block := make([]byte, 0, room)
	block = append(append(append(append(block, m.CallID()...), tag...), from...), to...)
	t.buf = block[n4:]
	all := unsafe.String(&block[0], n4) // a Call-ID is never empty
	s := t.room
	if s == nil {
		s = new(session)
	}
	s.id, s.networks, s.started = c.newID(), [2]string{t.up.Network, network}, c.now
	s.callID, s.fromTag, s.from, s.to = all[:n1], all[n1:n2], all[n2:n3], all[n3:]
	s.streams = s.one[:0]
	s.flows[pinhole.Near] = t.up
	s.expires.call = s
	s.chain, c.calls[h], c.sessions[s.id] = chain, s, s
	c.count.calls++
	s.note(m, pinhole.Near, t.up)
	for el := range m.Elements(sipmsg.RecordRoute) {
		s.routes[pinhole.Near] = append(s.routes[pinhole.Near], string(el.Value))
	}
	return s
}

// note remembers what a request tells of its sender.
func (s *session) note(m *sipmsg.Message, side pinhole.Side, f flow.Flow) {
	s.flows[side] = f
	if n, _ := m.CSeq(); m.Method() != "ACK" {
		s.cseq[side] = max(s.cseq[side], n)
	}
}

// sessionOf finds the session of an in-dialog request by Call-ID and tags, for peers that lose our
// Record-Route.
func (c *Core) sessionOf(m *sipmsg.Message, f flow.Flow) *session {
	for s := c.calls[maphash.Bytes(c.seed, m.CallID())]; s != nil; s = s.chain {
		if s.callID != string(m.CallID()) {
			continue
		}
		side := s.sideOf(m)
		if s.networks[side] == f.Network && s.dialogOf(m) != nil {
			return s
		}
	}
	return nil
}

// sideOf tells which side sent a request: the caller's tag is in From, or it is not.
func (s *session) sideOf(m *sipmsg.Message) pinhole.Side {
	if string(m.From().Tag()) == s.fromTag {
		return pinhole.Near
	}
	return pinhole.Far
}

// dialogOf returns the dialog that a request belongs to, nil if none.
func (s *session) dialogOf(m *sipmsg.Message) *dialog {
	near, far := m.From().Tag(), m.To().Tag()
	if string(near) != s.fromTag {
		near, far = far, near
	}
	if string(near) != s.fromTag {
		return nil
	}
	return s.dialogBy(far)
}

func (s *session) dialogBy(tag []byte) *dialog {
	for _, d := range s.dialogs {
		if d.tag == string(tag) {
			return d
		}
	}
	return nil
}

// dialogFor returns the dialog of a response to the INVITE, made if it is a new one. The first one
// takes the pinholes of the offer; the others share their outer end (a forked INVITE, §16.7).
func (c *Core) dialogFor(s *session, tag []byte) (*dialog, error) {
	if d := s.dialogBy(tag); d != nil {
		return d, nil
	}
	const maxForks = 16
	if len(s.dialogs) >= maxForks {
		return nil, pinhole.ErrLimit
	}
	d := &dialog{tag: string(tag)}
	if len(s.dialogs) == 0 {
		d.streams, s.streams = s.streams, nil
	} else if err := d.fork(s.dialogs[0]); err != nil {
		d.close()
		return nil, err
	}
	s.dialogs = append(s.dialogs, d)
	return d, nil
}

// observe draws the consequences of a response that was forwarded.
func (c *Core) observe(t *tx, f flow.Flow, status int) {
	s := t.session
	if s == nil {
		return
	}
	far := pinhole.Side(t.fromSide).Other()
	s.flows[far] = f
	switch {
	case t.invite && t.dialog == nil:
		c.observeInvite(t, s, status)
	case t.method == "BYE" && status >= 200 && status != 401 && status != 407:
		// Whatever the answer, its sender takes the dialog for ended (RFC 3261 §15.1.1).
		c.endDialog(s, t.dialog)
	case status >= 300 && t.offered && t.dialog != nil:
		c.rollback(t.dialog, pinhole.Side(t.fromSide))
	case status/100 == 2:
		if t.invite || t.method == "UPDATE" {
			c.watch(s)
		}
	}
}

func (c *Core) observeInvite(t *tx, s *session, status int) {
	if status >= 300 {
		if s.answered.IsZero() {
			c.endSession(s, "failed", status)
		}
		return
	}
	if len(c.m.To().Tag()) == 0 {
		return
	}
	s.routes[pinhole.Far] = c.routesToCallee(t)
	if status < 200 {
		return
	}
	d, err := c.dialogFor(s, c.m.To().Tag())
	if err != nil {
		return
	}
	if s.answered.IsZero() {
		s.answered, s.status = c.now, status
		c.count.answered++
		to, _ := c.m.Find(sipmsg.To)
		s.to = string(to)
	}
	c.confirm(s, d)
	c.watch(s)
}

// routesToCallee returns the route set from the edge to who sent the response at hand: what is recorded
// above the edge's own value, reversed (§12.1.2).
func (c *Core) routesToCallee(t *tx) (routes []string) {
	for el := range c.m.Elements(sipmsg.RecordRoute) {
		if c.isRecord(el.Value, t) {
			break
		}
		routes = append(routes, string(el.Value))
	}
	slices.Reverse(routes)
	return routes
}

// watch arms the session timer (RFC 4028 §8: the proxy drops its state when nobody refreshes).
func (c *Core) watch(s *session) {
	life := maxLife
	if v, ok := c.m.Find(sipmsg.SessionExpires); ok {
		v, _, _ = bytes.Cut(v, []byte{';'})
		if n, ok := parseUint(bytes.TrimSpace(v)); ok && n > 0 {
			life = min(life, time.Duration(n)*time.Second+32*time.Second)
		}
	}
	c.start(&s.expires, life)
}

func parseUint(b []byte) (n uint64, ok bool) {
	for _, d := range b {
		if d < '0' || d > '9' || n > 1<<32 {
			return 0, false
		}
		n = n*10 + uint64(d-'0')
	}
	return n, len(b) > 0
}

// txFailed draws the consequences of a request that failed at the edge.
func (c *Core) txFailed(t *tx, status int) {
	s := t.session
	switch {
	case s == nil:
	case t.invite && t.dialog == nil:
		if s.answered.IsZero() {
			c.endSession(s, "failed", status)
		}
	case t.method == "BYE":
		c.endDialog(s, t.dialog)
	case t.offered && t.dialog != nil:
		c.rollback(t.dialog, pinhole.Side(t.fromSide))
	}
}

// txEnded takes note that a transaction of the session is over.
func (c *Core) txEnded(t *tx) {
	s := t.session
	if t.invite && t.dialog == nil && s.answered.IsZero() {
		c.endSession(s, "failed", t.status)
	}
}

// forgetEnded takes t out of a session or dialog that has ended while t was under way: its answer must
// not open pinholes that nobody closes.
func (c *Core) forgetEnded(t *tx) {
	s, d := t.session, t.dialog
	if s != nil && (c.sessions[s.id] != s || d != nil && !slices.Contains(s.dialogs, d)) {
		t.session, t.dialog = nil, nil
	}
}

// endDialog ends one dialog of a session, and the session with its last one. Where two branches have
// answered, the caller ends one of them and talks on with the other.
func (c *Core) endDialog(s *session, d *dialog) {
	switch i := slices.Index(s.dialogs, d); {
	case i >= 0 && len(s.dialogs) > 1:
		d.close()
		s.dialogs = slices.Delete(s.dialogs, i, i+1)
	case i >= 0 || len(s.dialogs) == 0:
		c.endSession(s, "normal", 200)
	}
}

// endSession closes the pinholes, forgets the session and writes its record. It may be called twice.
func (c *Core) endSession(s *session, reason string, status int) {
	if c.sessions[s.id] != s {
		return
	}
	delete(c.sessions, s.id)
	c.stop(&s.expires)
	h := maphash.String(c.seed, s.callID)
	if p := c.calls[h]; p == s {
		if s.chain == nil {
			delete(c.calls, h)
		} else {
			c.calls[h] = s.chain
		}
	} else {
		for ; p != nil; p = p.chain {
			if p.chain == s {
				p.chain = s.chain
			}
		}
	}
	if s.reason == "" {
		s.reason = reason
	}
	if s.answered.IsZero() {
		s.status = status
	}
	r := c.record(s)
	closeStreams(s.streams, r)
	for _, d := range s.dialogs {
		closeStreams(d.streams, r)
		d.streams = nil
	}
	s.streams = nil
	c.releaseAlias(s.contacts[0])
	c.releaseAlias(s.contacts[1])
	c.out.items = append(c.out.items, item{record: r})
	if c.contents != nil && !c.sameCall(h, s.callID) {
		c.contents.Ended(s.callID)
	}
}

// sameCall tells whether a session with the Call-ID, whose hash is h, lives.
func (c *Core) sameCall(h uint64, callID string) bool {
	for s := c.calls[h]; s != nil; s = s.chain {
		if s.callID == callID {
			return true
		}
	}
	return false
}
