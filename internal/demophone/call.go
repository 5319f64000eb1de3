package demophone

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"go.uber.org/zap"
)

// maxHistory bounds the ended calls that a phone remembers.
const maxHistory = 1024

// Call is one side of a call.
type Call struct {
	// ID is the Call-ID.
	ID string
	// Peer is the user at the other side.
	Peer string
	Role Role
	// Setup is the time from the INVITE to its answer (of the caller's side; 0 at the callee's).
	Setup time.Duration
	// Media is where the other side's SDP said that it wants audio.
	Media netip.AddrPort

	stream *Stream
	local  sip.Addr
	client *sipgo.DialogClientSession
	server *sipgo.DialogServerSession
	// answered is when audio could flow; length is set once the call has ended.
	answered time.Time
	length   time.Duration
	ended    atomic.Bool
	done     chan struct{}
}

// Stats returns the audio counters so far.
func (c *Call) Stats() StreamStats { return c.stream.Stats() }

// Ended tells whether a BYE was sent or received.
func (c *Call) Ended() bool { return c.ended.Load() }

// Length is the time from the answer to the end, or until now.
func (c *Call) Length() time.Duration {
	select {
	case <-c.done:
		return c.length
	default:
		return time.Since(c.answered)
	}
}

// Quiet stops this side's audio and leaves the call open, so that all that is under way can arrive.
func (c *Call) Quiet() { c.stream.silence() }

// Hangup ends the call with a BYE and waits for its answer.
func (c *Call) Hangup(ctx context.Context) error {
	if c.Ended() {
		return nil
	}
	defer c.end()
	if err := c.bye(ctx); err != nil {
		return fmt.Errorf("bye: %w", err)
	}
	return nil
}

func (c *Call) bye(ctx context.Context) error {
	if c.client != nil {
		req := sip.NewRequest(sip.BYE, *c.client.InviteResponse.Contact().Address.Clone())
		req.Laddr = c.local
		return c.client.WriteBye(ctx, req)
	}
	req := sip.NewRequest(sip.BYE, *c.server.InviteRequest.Contact().Address.Clone())
	req.Laddr = c.local
	return c.server.WriteBye(ctx, req)
}

// end closes the call's sockets once.
func (c *Call) end() {
	if !c.ended.Swap(true) {
		c.length = time.Since(c.answered)
		c.stream.close()
		close(c.done)
	}
}

// add makes the call known for requests within its dialog.
func (p *Phone) add(c *Call) error {
	c.done, c.answered = make(chan struct{}), time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	open := 0
	for _, other := range p.calls {
		if !other.Ended() {
			open++
		}
	}
	if _, known := p.calls[c.ID]; known || open >= maxCalls {
		return errors.New("too many calls, or a Call-ID used twice")
	}
	if len(p.history) == maxHistory {
		delete(p.calls, p.history[0].ID)
		p.history = append(p.history[:0], p.history[1:]...)
	}
	p.calls[c.ID] = c
	p.history = append(p.history, c)
	return nil
}

// drop ends a call that could not be set up.
func (p *Phone) drop(c *Call) {
	c.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.calls, c.ID)
}

func (p *Phone) find(req *sip.Request) *Call {
	id := req.CallID()
	if id == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[id.Value()]
}

// onInvite rings, answers with the phone's own description and talks once the ACK has come.
func (p *Phone) onInvite(req *sip.Request, tx sip.ServerTransaction) {
	status, reason, err := p.answer(req, tx)
	if err == nil {
		return
	}
	p.log.Debug("call not answered", zap.Int("status", status), zap.Error(err))
	if status != 0 {
		if err := tx.Respond(sip.NewResponseFromRequest(req, status, reason, nil)); err != nil {
			p.log.Debug("refusal not sent", zap.Error(err))
		}
	}
}

// answer takes a call. On an error the status, if any, is still to be sent.
func (p *Phone) answer(req *sip.Request, tx sip.ServerTransaction) (status int, reason string, err error) {
	if p.find(req) != nil {
		return 488, "Not Acceptable Here", errors.New("re-INVITE")
	}
	remote, err := mediaAddr(req.Body())
	if err != nil {
		return 488, "Not Acceptable Here", err
	}
	d, err := p.ua.ReadInvite(req, tx)
	if err != nil {
		return 400, "Bad Request", fmt.Errorf("dialog: %w", err)
	}
	stream, err := openStream(p.tap.Addr().Addr())
	if err != nil {
		return 500, "Server Internal Error", err
	}
	c := &Call{ID: req.CallID().Value(), Peer: req.From().Address.User, Role: Callee, Media: remote, stream: stream, local: p.local(), server: d}
	if err := p.add(c); err != nil {
		stream.close()
		return 486, "Busy Here", err
	}
	stream.start(p.cfg.MediaSource, NewPattern(c.ID, Callee), NewPattern(c.ID, Caller))
	if err := p.pickUp(c); err != nil {
		p.drop(c)
		return 0, "", err
	}
	return 0, "", nil
}

// pickUp sends 180 and 200, waits for the ACK and begins to talk.
func (p *Phone) pickUp(c *Call) error {
	if err := c.server.Respond(180, "Ringing", nil); err != nil {
		return fmt.Errorf("ringing: %w", err)
	}
	if err := c.server.RespondSDP(describe(p.cfg.User, c.stream.Addr())); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	c.stream.talk(c.Media)
	return nil
}

func (p *Phone) onAck(req *sip.Request, tx sip.ServerTransaction) {
	if c := p.find(req); c != nil && c.server != nil {
		if err := c.server.ReadAck(req, tx); err != nil {
			p.log.Debug("ack ignored", zap.Error(err))
		}
	}
}

func (p *Phone) onBye(req *sip.Request, tx sip.ServerTransaction) {
	c := p.find(req)
	if c == nil {
		if err := tx.Respond(sip.NewResponseFromRequest(req, 481, "Call/Transaction Does Not Exist", nil)); err != nil {
			p.log.Debug("refusal not sent", zap.Error(err))
		}
		return
	}
	var err error
	if c.client != nil {
		err = c.client.ReadBye(req, tx)
	} else {
		err = c.server.ReadBye(req, tx)
	}
	if err != nil {
		p.log.Debug("bye not answered", zap.Error(err))
	}
	c.end()
}

// onOptions answers the pings that keep a phone reachable.
func (p *Phone) onOptions(req *sip.Request, tx sip.ServerTransaction) {
	if err := tx.Respond(sip.NewResponseFromRequest(req, 200, "OK", nil)); err != nil {
		p.log.Debug("ping not answered", zap.Error(err))
	}
}
