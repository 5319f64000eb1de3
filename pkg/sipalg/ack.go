package sipalg

import (
	"hash/maphash"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// ack forwards the ACK to a 2xx: it belongs to no transaction and is never answered (RFC 3261 §16.11,
// §13.2.2.4). Its next hop is the session's, never what a stranger writes into it.
func (c *Core) ack(f flow.Flow, via *sipmsg.Via) {
	if len(c.m.To().Tag()) == 0 {
		c.drop("ack_unmatched")
		return
	}
	if n, ok := c.m.MaxForwards(); ok && n == 0 {
		c.drop("ack_max_forwards") // nothing else ends a loop of ACKs
		return
	}
	h, s, side := c.routeInDialog(f)
	if s == nil || h.status != 0 {
		c.drop("ack_unmatched")
		return
	}
	t := &tx{method: "ACK", up: f, back: backFlow(f, via), session: s, fromSide: byte(side), dialog: s.dialogOf(&c.m), hop: h}
	s.note(&c.m, side, f)
	t.id = c.repeatableID(via, f)
	c.addTx(t)
	c.launch(t)
	c.crossed(s)
}

// repeatableID is the same for each repetition of a request: an ACK that is sent again must be the same
// ACK to the next hop too (RFC 3261 §16.11).
func (c *Core) repeatableID(via *sipmsg.Via, f flow.Flow) uint64 {
	b := appendHex(c.keyBuf[:0], c.serverKey(&c.m, via, f))
	b = append(append(b, "ACK"...), c.m.To().Tag()...)
	return maphash.Bytes(c.seed, b) | 1
}

// silent tells whether a request gets no response at all: ACK, and Microsoft's BENOTIFY.
func (t *tx) silent() bool { return t.method == "ACK" || t.method == "BENOTIFY" }
