package relay

import (
	"context"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
)

// openBulk joins the control streams of two devices one of whose streams is worth a connection of its own, and gives
// each a ticket for that. It is for devices that are both attached here; a bandwidth that is limited is counted in the
// sessions, so such streams stay there.
func (r *Relay) openBulk(ctx context.Context, a *attachment, in *mux.Incoming, h streamhead.Head) {
	r.mu.Lock()
	_, _, at, err := r.allowedLocked(a.dev.ID, h.Peer, h.Service)
	limited := r.rules.Limits.Bandwidth > 0
	known := r.joinedLocked(a.dev.ID, h.Peer, h.Service)
	r.mu.Unlock()
	if err != nil || at == nil || at.relay || limited || !known || r.pairs == nil {
		r.refuse(a, in, "bulk", mux.CodeNoSuchService)
		return
	}
	// What the tickets are for ends with the control streams, whose ends have told one another before that all has arrived:
	// devices that do not close it themselves, because the rules let it pass no more, are not asked.
	ctx, end := context.WithCancel(ctx)
	defer end()
	ours, theirs, err := r.pairs.Issue(ctx, a.dev.ID, at.dev.ID)
	if err != nil {
		r.refuse(a, in, "bulk", mux.CodeTryLater)
		return
	}
	out, err := r.offerBulk(ctx, at, h, a.dev.ID)
	if err != nil {
		r.refuse(a, in, "bulk", codeOf(err))
		return
	}
	f := &flow{From: a.dev.ID, To: h.Peer, Service: h.Service, since: time.Now(), ends: [2]*mux.Stream{in.Accept(), out}}
	for i, t := range []bulk.Ticket{ours, theirs} {
		if _, err := f.ends[i].Write(t[:]); err != nil {
			f.reset(codeOf(err))
			return
		}
	}
	r.count.opened.WithLabelValues("bulk").Inc()
	r.carry(ctx, f, a, at)
}

// joinedLocked tells whether a device has a stream to a service of another.
func (r *Relay) joinedLocked(from, to device.ID, service string) bool {
	for f := range r.flows {
		if f.From.Equal(from) && f.To.Equal(to) && f.Service == service {
			return true
		}
	}
	return false
}

func (r *Relay) offerBulk(ctx context.Context, at *attachment, h streamhead.Head, caller device.ID) (*mux.Stream, error) {
	head, err := (streamhead.Head{Kind: streamhead.BulkOffer, Peer: caller, Token: h.Token, Service: h.Service}).MarshalBinary()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	return at.s.Open(ctx, head, mux.OpenOptions{Owner: caller.String()})
}

// Bulk serves a device's connection that came with a ticket, until it has ended.
func (r *Relay) Bulk(ctx context.Context, c bulk.Carrier, peer device.ID, ticket bulk.Ticket) {
	if r.pairs == nil {
		c.Close()
		return
	}
	n, err := r.pairs.Serve(ctx, c, peer, ticket)
	r.count.spliced.Add(float64(n))
	if err != nil {
		r.count.refused.WithLabelValues("bulk").Inc()
		r.log.Info("bulk connection ended", zap.Stringer("device", peer), zap.Uint64("bytes", n), zap.Error(err))
	}
}
