package demophone

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"go.uber.org/zap"
)

// maxCalls bounds a phone's calls; one more is answered 486 (Busy Here).
const maxCalls = 64

// Config says who a phone is and what it talks to.
type Config struct {
	// User and Domain make the address of record, sip:User@Domain.
	User, Domain string
	// Proxy is where requests outside a dialog are sent.
	Proxy netip.AddrPort
	// MediaSource is the only host from which audio is taken: the edge's address on the phone's network.
	MediaSource netip.Addr
}

// Phone is a SIP user agent with any number of calls. Its methods may be called concurrently.
type Phone struct {
	*agent
	cfg Config
	log *zap.Logger
	ua  sipgo.DialogUA

	mu    sync.Mutex
	calls map[string]*Call
	// history keeps the calls in the order in which they began.
	history []*Call
}

// New returns a phone at the socket tap, which [Phone.Serve] reads and closes.
func New(cfg Config, tap *Tap, log *zap.Logger) (*Phone, error) {
	a, err := newAgent(cfg.User, cfg.Domain, tap, log)
	if err != nil {
		return nil, fmt.Errorf("phone %s: %w", cfg.User, err)
	}
	p := &Phone{agent: a, cfg: cfg, log: log, calls: make(map[string]*Call)}
	p.ua = sipgo.DialogUA{Client: a.client, ContactHDR: p.contact()}
	a.server.OnInvite(p.onInvite)
	a.server.OnAck(p.onAck)
	a.server.OnBye(p.onBye)
	a.server.OnOptions(p.onOptions)
	return p, nil
}

// Serve answers calls until ctx ends; then it drops all calls, closes the socket and returns nil.
func (p *Phone) Serve(ctx context.Context) error {
	err := p.serve(ctx)
	for _, c := range p.Calls() {
		c.end()
	}
	return err
}

// Register binds the phone's address of record for the time expires and returns the time that the
// registrar granted (RFC 3261 §10). It waits until the phone is served.
func (p *Phone) Register(ctx context.Context, expires time.Duration) (time.Duration, error) {
	if err := p.ready(ctx); err != nil {
		return 0, err
	}
	req := sip.NewRequest(sip.REGISTER, sip.Uri{Scheme: "sip", Host: p.cfg.Domain})
	aor := sip.Uri{Scheme: "sip", User: p.cfg.User, Host: p.cfg.Domain}
	req.AppendHeader(&sip.ToHeader{Address: aor})
	contact := p.contact()
	req.AppendHeader(&contact)
	req.AppendHeader(sip.NewHeader("Expires", strconv.Itoa(int(expires/time.Second))))
	req.SetDestination(p.cfg.Proxy.String())
	res, err := p.client.Do(ctx, req)
	if err != nil {
		return 0, fmt.Errorf("register %s: %w", p.cfg.User, err)
	}
	if !res.IsSuccess() {
		return 0, fmt.Errorf("register %s: %d %s", p.cfg.User, res.StatusCode, res.Reason)
	}
	return granted(res, expires), nil
}

// KeepRegistered registers again at half of each granted time until ctx ends.
func (p *Phone) KeepRegistered(ctx context.Context, expires time.Duration) error {
	for {
		got, err := p.Register(ctx, expires)
		if err != nil && ctx.Err() == nil {
			return err
		}
		refresh := time.NewTimer(max(got/2, time.Second))
		select {
		case <-ctx.Done():
			refresh.Stop()
			return nil
		case <-refresh.C:
		}
	}
}

// granted returns the expiry of a REGISTER's answer: the Contact's, or the message's, or what was asked.
func granted(res *sip.Response, asked time.Duration) time.Duration {
	value := ""
	if h := res.GetHeader("Expires"); h != nil {
		value = h.Value()
	}
	if c := res.Contact(); c != nil {
		if v, ok := c.Params.Get("expires"); ok {
			value = v
		}
	}
	if n, err := strconv.Atoi(value); err == nil && n >= 0 {
		return time.Duration(n) * time.Second
	}
	return asked
}

// Call calls a user of the phone's domain through the proxy. It returns once audio flows, or with
// the error of the refusal; when ctx ends before, the call is given up.
func (p *Phone) Call(ctx context.Context, user string) (*Call, error) {
	return p.CallAt(ctx, user, p.cfg.Proxy)
}

// CallAt is Call with another next hop than the proxy.
func (p *Phone) CallAt(ctx context.Context, user string, hop netip.AddrPort) (*Call, error) {
	if err := p.ready(ctx); err != nil {
		return nil, err
	}
	stream, err := openStream(p.tap.Addr().Addr())
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", user, err)
	}
	c, err := p.invite(ctx, user, hop, stream)
	if err != nil {
		stream.close()
		return nil, fmt.Errorf("call %s: %w", user, err)
	}
	return c, nil
}

func (p *Phone) invite(ctx context.Context, user string, hop netip.AddrPort, stream *Stream) (*Call, error) {
	req := sip.NewRequest(sip.INVITE, sip.Uri{Scheme: "sip", User: user, Host: p.cfg.Domain})
	req.SetDestination(hop.String())
	req.AppendHeader(sip.NewHeader("Content-Type", "application/sdp"))
	req.SetBody(describe(p.cfg.User, stream.Addr()))
	begin := time.Now()
	d, err := p.ua.WriteInvite(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("invite: %w", err)
	}
	// Without this cause sipgo would wait half a minute for an answer to a CANCEL that it cannot send.
	wait, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(sipgo.WaitAnswerForceCancelErr) })()
	if err := d.WaitAnswer(wait, sipgo.AnswerOptions{}); err != nil {
		return nil, errors.Join(fmt.Errorf("no answer: %w", err), ctx.Err())
	}
	remote, err := mediaAddr(d.InviteResponse.Body())
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if d.InviteResponse.Contact() == nil {
		return nil, errors.New("the answer has no Contact")
	}
	c := &Call{ID: req.CallID().Value(), Peer: user, Role: Caller, Setup: time.Since(begin), Media: remote, stream: stream, local: p.local(), client: d}
	if err := p.add(c); err != nil {
		return nil, err
	}
	stream.start(p.cfg.MediaSource, NewPattern(c.ID, Caller), NewPattern(c.ID, Callee))
	if err := d.Ack(ctx); err != nil {
		p.drop(c)
		return nil, fmt.Errorf("ack: %w", err)
	}
	stream.talk(remote)
	return c, nil
}

// Calls returns the phone's calls, ended ones too, in the order in which they began.
func (p *Phone) Calls() []*Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]*Call(nil), p.history...)
}

// Find returns the call with the given Call-ID, nil if the phone never had it.
func (p *Phone) Find(id string) *Call {
	for _, c := range p.Calls() {
		if c.ID == id {
			return c
		}
	}
	return nil
}

func (p *Phone) contact() sip.ContactHeader {
	a := p.tap.Addr()
	return sip.ContactHeader{Address: sip.Uri{
		Scheme: "sip", User: p.cfg.User, Host: a.Addr().String(), Port: int(a.Port()),
	}}
}
