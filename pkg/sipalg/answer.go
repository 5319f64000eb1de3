package sipalg

import (
	"bytes"
	"time"

	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/sipmsg"
)

// Question is a request outside of dialogs that a service of the edge may answer.
type Question struct {
	Method string
	// Type is the Content-Type, Body the body; both are valid during the call only.
	Type, Body []byte
	// From and To are the URIs of these header fields.
	From, To string
	Sender   ContentParty
}

// Reply is the answer to a [Question].
type Reply struct {
	Status int // 200-699
	Reason string
	// Type and Body are the content; no Type: there is none.
	Type string
	Body []byte
}

// Answerer answers requests in place of whom they are for. It is called under the server's lock: it must not block
// and must not call back.
type Answerer interface {
	// Answer returns the answer; ok is false for a request that goes on its way. It is asked again for each repetition.
	Answer(now time.Time, q Question) (r Reply, ok bool)
}

// answered has the request at hand answered by a service of the edge, if one does. Requests of clients that ignore answers
// without their server's signature go on.
func (c *Core) answered(f flow.Flow, via *sipmsg.Via) bool {
	m := &c.m
	if c.answers == nil || len(m.Body()) == 0 || m.Method() == "INVITE" || m.Method() == "REGISTER" || signedByClient(m) {
		return false
	}
	r, ok := c.answers.Answer(c.now, Question{
		Method: m.Method(), Type: unfold(m.ContentType()), Body: m.Body(), From: string(m.From().URI), To: string(m.To().URI),
		Sender: c.party(f, c.localOf(f)),
	})
	if !ok {
		return false
	}
	if r.Type == "" {
		c.reply(f, via, r.Status, r.Reason)
		return true
	}
	var tag [16]byte
	appendHex(tag[:0], c.serverKey(m, via, f))
	c.buf = c.appendReply(c.buf[:0], f, via, r.Status, r.Reason, tag[:], "Content-Type: "+r.Type)
	c.buf = bytes.TrimSuffix(c.buf, []byte("0\r\n\r\n")) // Content-Length comes last
	c.buf = append(append(appendUint(c.buf, uint64(len(r.Body))), "\r\n\r\n"...), r.Body...)
	c.out.sendCopy(backFlow(f, via), c.buf)
	return true
}
