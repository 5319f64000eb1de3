package demophone

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"
	"go.uber.org/zap"
)

const (
	// maxBindings bounds the users that a registrar knows.
	maxBindings = 1024
	// maxExpires is the longest registration granted.
	maxExpires = 3600
)

// Registrar is a registrar and proxy for one domain, as small as phones can use: one contact for
// each user, no authentication, no Record-Route, so that requests within a dialog pass it by.
type Registrar struct {
	*agent
	domain string
	log    *zap.Logger

	mu       sync.Mutex
	bindings map[string]binding
}

type binding struct {
	contact sip.Uri
	expires time.Time
}

// NewRegistrar returns a registrar at the socket tap, which [Registrar.Serve] reads and closes.
func NewRegistrar(domain string, tap *Tap, log *zap.Logger) (*Registrar, error) {
	a, err := newAgent("registrar", domain, tap, log)
	if err != nil {
		return nil, fmt.Errorf("registrar: %w", err)
	}
	r := &Registrar{agent: a, domain: domain, log: log, bindings: make(map[string]binding)}
	a.server.OnRegister(r.onRegister)
	a.server.OnInvite(r.onRequest)
	a.server.OnOptions(r.onOptions)
	// The ACK of a refusal ends at its transaction; one of an answer goes to the contact.
	a.server.OnAck(func(*sip.Request, sip.ServerTransaction) {})
	return r, nil
}

// Serve works until ctx ends; then it closes the socket and returns nil.
func (r *Registrar) Serve(ctx context.Context) error { return r.serve(ctx) }

// Contact returns the host and port at which a user is registered; ok is false if it is not.
func (r *Registrar) Contact(user string) (contact netip.AddrPort, ok bool) {
	u, ok := r.lookup(user)
	if !ok {
		return contact, false
	}
	a, err := netip.ParseAddrPort(u.HostPort())
	return a, err == nil
}

func (r *Registrar) lookup(user string) (sip.Uri, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.bindings[user]
	if !ok || time.Now().After(b.expires) {
		return sip.Uri{}, false
	}
	return *b.contact.Clone(), true
}

// onRegister binds the To user to the request's contact (RFC 3261 §10.3).
func (r *Registrar) onRegister(req *sip.Request, tx sip.ServerTransaction) {
	to, contact := req.To(), req.Contact()
	if to == nil || to.Address.Host != r.domain || to.Address.User == "" || contact == nil {
		r.respond(req, tx, 400, "Bad Request")
		return
	}
	seconds := expiry(req)
	r.mu.Lock()
	_, known := r.bindings[to.Address.User]
	full := !known && len(r.bindings) >= maxBindings
	switch {
	case seconds == 0:
		delete(r.bindings, to.Address.User)
	case !full:
		r.bindings[to.Address.User] = binding{
			contact: *contact.Address.Clone(),
			expires: time.Now().Add(time.Duration(seconds) * time.Second),
		}
	}
	r.mu.Unlock()
	if full {
		r.respond(req, tx, 503, "Service Unavailable")
		return
	}
	granted := sip.ContactHeader{Address: *contact.Address.Clone()}
	granted.Params.Add("expires", strconv.Itoa(seconds))
	r.respond(req, tx, 200, "OK", &granted)
}

// expiry returns the seconds that a REGISTER asks for, at most maxExpires.
func expiry(req *sip.Request) int {
	value := ""
	if h := req.GetHeader("Expires"); h != nil {
		value = h.Value()
	}
	if v, ok := req.Contact().Params.Get("expires"); ok {
		value = v
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > maxExpires {
		return maxExpires
	}
	return n
}

func (r *Registrar) onOptions(req *sip.Request, tx sip.ServerTransaction) {
	r.respond(req, tx, 200, "OK")
}

// onRequest forwards a request to the contact of the user that it names (RFC 3261 §16).
func (r *Registrar) onRequest(req *sip.Request, tx sip.ServerTransaction) {
	contact, ok := r.lookup(req.Recipient.User)
	if req.Recipient.Host != r.domain || !ok {
		r.respond(req, tx, 404, "Not Found")
		return
	}
	out := req.Clone()
	out.Recipient = contact
	out.RemoveHeader("Route")
	out.SetDestination(contact.HostPort())
	out.Laddr = r.local()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	forward, err := r.client.TransactionRequest(ctx, out, sipgo.ClientRequestAddVia, sipgo.ClientRequestDecreaseMaxForward)
	if err != nil {
		r.log.Debug("request not forwarded", zap.Error(err))
		r.respond(req, tx, 480, "Temporarily Unavailable")
		return
	}
	// A repeated 200 has no transaction left to pass through here; it is carried without one.
	forward.OnRetransmission(func(res *sip.Response) {
		if err := r.server.WriteResponse(backward(req, res)); err != nil {
			r.log.Debug("response not repeated", zap.Error(err))
		}
	})
	r.relay(req, tx, forward)
}

// relay carries responses back until the final one, and its ACK or its time has come.
func (r *Registrar) relay(req *sip.Request, tx sip.ServerTransaction, forward sip.ClientTransaction) {
	for {
		select {
		case res := <-forward.Responses():
			if res.StatusCode == 100 {
				continue
			}
			if err := tx.Respond(backward(req, res)); err != nil {
				r.log.Debug("response not carried", zap.Error(err))
			}
			if !res.IsProvisional() && !res.IsSuccess() {
				return
			}
		case <-forward.Done():
			return
		case <-tx.Done():
			return
		}
	}
}

// backward returns the response to send to the sender of req: without the topmost Via.
func backward(req *sip.Request, res *sip.Response) *sip.Response {
	out := sip.CopyResponse(res)
	out.RemoveHeader("Via")
	out.SetDestination(req.Source())
	return out
}

func (r *Registrar) respond(req *sip.Request, tx sip.ServerTransaction, status int, reason string, headers ...sip.Header) {
	res := sip.NewResponseFromRequest(req, status, reason, nil)
	for _, h := range headers {
		res.AppendHeader(h)
	}
	if err := tx.Respond(res); err != nil {
		r.log.Debug("response not sent", zap.Int("status", status), zap.Error(err))
	}
}
