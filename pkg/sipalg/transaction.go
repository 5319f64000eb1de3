package sipalg

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// A tx is one forwarded request with both of its transactions: the server transaction towards who
// sent it (RFC 3261 §17.2) and the client transaction towards the next hop (§17.1), with the Accepted
// state of RFC 6026. A request that the edge makes itself has no server transaction.
//
//	          1xx           2xx (INVITE)
//	trying ────► proceeding ────────────► accepted ──► gone (64*T1)
//	   │             │       final
//	   └─────────────┴──────────────────► completed ─► gone (Timers D, H, J, K)
type tx struct {
	id     uint64
	key    uint64
	chain  *tx // next with the same key
	method string

	invite                bool
	state                 txState
	sent                  bool // down is known
	fromSide              byte // pinhole.Side of the sender, in a session
	offered               bool // the request carried an offer
	carried               bool
	cancelled, cancelSent bool

	up   flow.Flow // who sent it
	back flow.Flow // where responses go (RFC 3581)
	down flow.Flow // by which it was sent on

	targets []flow.Target // not tried yet
	target  flow.Target   // being tried
	hop     hop           // while its name is resolved
	raw     []byte        // the received request, until it is sent on

	buf    []byte // the request as sent on, then the Vias that were hidden
	outLen int
	viaEnd int32  // in buf: end of our Via line
	size   int32  // of the request as received
	resp   []byte // last response sent back
	status int    // of resp

	session *session
	room    *session // for the session that an INVITE may begin: one allocation for both
	dialog  *dialog  // of a request within one
	done    func(c *Core, status int)

	serverTimer, clientTimer timer
	serverIval, clientIval   time.Duration
	clientEnd                time.Time // Timers B, F

	connPrev, connNext *tx // others that were sent on by the same connection
}

type txState uint8

const (
	txTrying txState = iota
	txProceeding
	txCompleted
	txAccepted
	txGone
)

const branchMagic = "z9hG4bKe"

// serverKey matches a request to its server transaction: RFC 3261 §17.2.3 by branch and sent-by, or
// by the RFC 2543 rule where the branch has no magic cookie. Connections keep apart what
// careless clients make equal: two clients started in one second share Call-ID, tag and branch.
func (c *Core) serverKey(m *sipmsg.Message, via *sipmsg.Via, f flow.Flow) uint64 {
	b := c.keyBuf[:0]
	if bytes.HasPrefix(via.Branch, []byte("z9hG4bK")) {
		b = append(b, via.Branch...)
	} else {
		n, _ := m.CSeq()
		b = append(b, m.CallID()...)
		b = append(b, m.From().Tag()...)
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = append(append(b, 0), via.Host...)
	b = binary.BigEndian.AppendUint16(b, via.Port)
	if f.Conn != 0 {
		b = binary.BigEndian.AppendUint64(b, f.Conn)
	} else {
		a := f.Remote.Addr().As16()
		b = append(b, a[:]...)
	}
	if method := m.Method(); method != "ACK" && method != "CANCEL" {
		b = append(b, method...)
	} else {
		b = append(b, "INVITE"...)
	}
	c.keyBuf = b
	return maphash.Bytes(c.seed, b)
}

// findServer returns the transaction with the key; CANCEL finds that of any method.
func (c *Core) findServer(key uint64) *tx {
	for t := c.server[key]; t != nil; t = t.chain {
		if t.state != txGone {
			return t
		}
	}
	return nil
}

// newTx returns a transaction, with room for a session if it is to begin one.
func newTx(begins bool) *tx {
	if !begins {
		return new(tx)
	}
	both := new(struct {
		tx      tx
		session session
	})
	both.tx.room = &both.session
	return &both.tx
}

// sentBy notes by which flow a request was sent on.
func (c *Core) sentBy(t *tx, f flow.Flow) {
	c.leaveCarrier(t)
	t.down, t.sent = f, true
	if f.Conn == 0 {
		return
	}
	if t.connNext = c.carried[f.Conn]; t.connNext != nil {
		t.connNext.connPrev = t
	}
	c.carried[f.Conn], t.carried = t, true
}

// leaveCarrier takes t off the list of its connection.
func (c *Core) leaveCarrier(t *tx) {
	if !t.carried {
		return
	}
	switch {
	case t.connPrev != nil:
		t.connPrev.connNext = t.connNext
	case t.connNext != nil:
		c.carried[t.down.Conn] = t.connNext
	default:
		delete(c.carried, t.down.Conn)
	}
	if t.connNext != nil {
		t.connNext.connPrev = t.connPrev
	}
	t.connPrev, t.connNext, t.carried = nil, nil, false
}

func (c *Core) addTx(t *tx) {
	if t.id == 0 {
		t.id = c.newID()
	}
	c.client[t.id] = t
	if t.key != 0 {
		t.chain = c.server[t.key]
		c.server[t.key] = t
	}
	t.serverTimer.tx, t.clientTimer.tx = t, t
}

// end forgets a transaction.
func (c *Core) end(t *tx) {
	if t.state == txGone {
		return
	}
	t.state = txGone
	c.held -= int(t.size)
	c.leaveCarrier(t)
	c.stop(&t.serverTimer)
	c.stop(&t.clientTimer)
	t.resp, t.raw, t.hop = nil, nil, hop{} // the session may keep t itself
	delete(c.client, t.id)
	c.held -= len(c.credits[t.id])
	delete(c.credits, t.id)
	if t.key != 0 {
		if c.server[t.key] == t {
			if t.chain == nil {
				delete(c.server, t.key)
			} else {
				c.server[t.key] = t.chain
			}
		} else {
			for p := c.server[t.key]; p != nil; p = p.chain {
				if p.chain == t {
					p.chain = t.chain
				}
			}
		}
	}
	if t.session != nil && !t.silent() {
		c.txEnded(t)
	}
}

// retransmitted answers a repeated request with the last response (RFC 3261 §17.2.1, §17.2.2).
func (c *Core) retransmitted(t *tx) {
	switch {
	case t.state == txAccepted:
	case t.back.Proto.Stream() && signed(&c.m):
		c.drop("signed_again") // its answer was sent by this connection, and would be a replay
	case t.resp != nil:
		c.out.send(t.back, t.resp, 0)
	case t.invite:
		c.trying(t)
	}
}

// sentRequest starts the client transaction's timers after the first transmission.
func (c *Core) sentRequest(t *tx, proto flow.Proto) {
	t.state = txTrying
	t.clientEnd = c.now.Add(timeout64)
	t.clientIval = timeout64
	if !proto.Stream() {
		t.clientIval = t1
	}
	c.start(&t.clientTimer, t.clientIval)
}

// clientFired is Timers A, B, C, D, E, F, K and M, whichever the state means.
func (c *Core) clientFired(t *tx) {
	switch {
	case t.state >= txCompleted:
		c.stop(&t.clientTimer)
		if t.serverTimer.index == 0 {
			c.end(t)
		}
	case t.cancelSent:
		if !c.now.Before(t.clientEnd) {
			c.finalLocal(t, 487, "Request Terminated")
			return
		}
		c.sendCancel(t)
	case t.state == txProceeding && t.invite:
		// Timer C (§16.8): give up, but let the next hop answer the CANCEL first.
		c.cancel(t)
	case !c.now.Before(t.clientEnd):
		c.markDown(t)
		c.nextTarget(t, 408)
	default:
		if t.sent {
			c.out.send(t.down, t.buf[:t.outLen], t.id)
		}
		t.clientIval *= 2
		if !t.invite && (t.clientIval > t2 || t.state == txProceeding) {
			t.clientIval = t2
		}
		c.start(&t.clientTimer, min(t.clientIval, t.clientEnd.Sub(c.now)))
	}
}

// serverFired is Timers G, H, I and J.
func (c *Core) serverFired(t *tx) {
	if t.invite && t.state == txCompleted && t.status >= 300 && c.now.Before(t.serverEnd()) && !t.back.Proto.Stream() && t.resp != nil {
		c.out.send(t.back, t.resp, 0)
		t.serverIval = min(2*t.serverIval, t2)
		c.start(&t.serverTimer, t.serverIval)
		return
	}
	if t.clientTimer.index == 0 {
		c.end(t)
	}
}

func (t *tx) serverEnd() time.Time { return t.clientEnd }

// acked takes the ACK to a final response other than 2xx.
func (c *Core) acked(t *tx) {
	t.serverIval = 0
	t.clientEnd = c.now
	c.start(&t.serverTimer, t4)
}

// provisional takes a 1xx from the next hop.
func (c *Core) provisional(t *tx) {
	if t.state == txTrying {
		t.state = txProceeding
	}
	if t.invite && !t.cancelSent {
		c.start(&t.clientTimer, timerC)
	}
	if t.cancelled && !t.cancelSent {
		c.cancel(t)
	}
}

// cancel sends a CANCEL to the next hop once it has answered at all (§9.1).
func (c *Core) cancel(t *tx) {
	t.cancelled = true
	if t.state != txProceeding || !t.sent || t.cancelSent {
		return
	}
	t.cancelSent = true
	t.clientEnd = c.now.Add(timeout64)
	t.clientIval = t1
	c.sendCancel(t)
}

func (c *Core) sendCancel(t *tx) {
	if c.m2.Parse(t.buf[:t.outLen]) != nil {
		return
	}
	to, _ := c.m2.Find(sipmsg.To)
	c.out.sendCopy(t.down, appendHopByHop(c.buf[:0], &c.m2, "CANCEL", to, c.credits[t.id]))
	if t.down.Proto.Stream() {
		c.start(&t.clientTimer, t.clientEnd.Sub(c.now))
		return
	}
	c.start(&t.clientTimer, min(t.clientIval, t.clientEnd.Sub(c.now)))
	t.clientIval = min(2*t.clientIval, t2)
}

// appendHopByHop writes the CANCEL, or the ACK to a non-2xx, of a request that was sent on (§9.1,
// §17.1.1.3). ACK takes its To from the response. Credentials are header lines, of a signed CANCEL.
func appendHopByHop(dst []byte, req *sipmsg.Message, method string, to, credentials []byte) []byte {
	dst = append(append(append(append(dst, method...), ' '), req.RequestURI()...), " SIP/2.0\r\n"...)
	add := func(name string, v []byte) {
		dst = append(append(append(append(dst, name...), ": "...), v...), "\r\n"...)
	}
	for el := range req.Elements(sipmsg.HeaderVia) {
		add("Via", el.Value)
		break
	}
	for el := range req.Elements(sipmsg.Route) {
		add("Route", el.Value)
	}
	from, _ := req.Find(sipmsg.From)
	add("From", from)
	add("To", to)
	add("Call-ID", req.CallID())
	n, _ := req.CSeq()
	dst = append(dst, "CSeq: "...)
	dst = appendUint(dst, uint64(n))
	dst = append(append(append(dst, ' '), method...), "\r\n"...)
	dst = append(dst, credentials...)
	return append(dst, "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n"...)
}

// sendAck acknowledges a non-2xx final response hop by hop.
func (c *Core) sendAck(t *tx, resp *sipmsg.Message) {
	if !t.sent || c.m2.Parse(t.buf[:t.outLen]) != nil {
		return
	}
	to, _ := resp.Find(sipmsg.To)
	c.out.sendCopy(t.down, appendHopByHop(c.buf[:0], &c.m2, "ACK", to, nil))
}

// finished moves t to the state after its final response and starts the timers that absorb
// retransmissions.
func (c *Core) finished(t *tx, status int) {
	t.status = status
	c.stop(&t.clientTimer)
	switch {
	case t.invite && status < 300:
		t.state = txAccepted
		c.start(&t.clientTimer, timeout64)
	case t.invite:
		t.state = txCompleted
		t.clientEnd = c.now.Add(ackWait)
		t.serverIval = t1
		c.start(&t.clientTimer, timeout64) // Timer D
		if t.key != 0 {
			d := ackWait
			if !t.back.Proto.Stream() {
				d = t1
			}
			c.start(&t.serverTimer, d)
		}
	default:
		t.state = txCompleted
		d := t4
		if t.key != 0 && !t.back.Proto.Stream() {
			d = timeout64 // Timer J
		}
		c.start(&t.clientTimer, d)
	}
}

// nextTarget tries the next hop's next address (RFC 3263 §4.3), or fails with status.
func (c *Core) nextTarget(t *tx, status int) {
	if t.cancelled {
		c.finalLocal(t, 487, "Request Terminated")
		return
	}
	if t.state == txTrying && len(t.targets) > 0 {
		c.log.Debug("trying the next address", zap.Stringer("failed", t.target.Addr), zap.Stringer("next", t.targets[0].Addr))
		t.target, t.targets = t.targets[0], t.targets[1:]
		if c.retarget(t) {
			return
		}
	}
	if t.state >= txCompleted {
		return
	}
	c.homeFailed(t)
	if !t.invite && status == 408 && t.key != 0 {
		// RFC 4320 §4.2: a late 408 to a non-INVITE helps nobody.
		c.count.failed["timeout"]++
		c.txFailed(t, status)
		c.end(t)
		return
	}
	reason := map[int]string{408: "Request Timeout", 503: "Service Unavailable"}[status]
	c.finalLocal(t, status, reason)
}
