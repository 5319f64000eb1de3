package agent

import (
	"context"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/streamhead"
)

// bulkTime bounds a move, from asking the relay until both ends are joined.
const bulkTime = 40 * time.Second

// worth returns what moves a stream that this device has opened, once it is worth it.
func (a *Agent) worth(service string, datagrams bool) func(*Conn) {
	if a.deps.Bulk == nil || datagrams {
		return nil
	}
	return func(c *Conn) { go a.askBulk(c, service) } // ends by itself, after bulkTime at the latest
}

// askBulk asks for a connection beside the session, and moves a stream there. It stays where it is if that fails.
func (a *Agent) askBulk(c *Conn, service string) {
	ctx, cancel := context.WithTimeout(context.Background(), bulkTime)
	defer cancel()
	err := func() error {
		head, err := (streamhead.Head{Kind: streamhead.Bulk, Peer: c.peer, Token: c.token, Service: service}).MarshalBinary()
		if err != nil {
			return err
		}
		ctl, err := a.openRelay(ctx, head, mux.OpenOptions{})
		if err != nil {
			return err
		}
		return a.enter(ctx, c, ctl)
	}()
	if err != nil {
		c.below.Stay()
		a.log.Debug("stream stays in the session", zap.String("service", service), zap.Stringer("peer", c.peer), zap.Error(err))
	}
}

// enter dials with the ticket that the control stream begins with, and moves c.
func (a *Agent) enter(ctx context.Context, c *Conn, ctl *mux.Stream) error {
	stop := context.AfterFunc(ctx, func() { ctl.Reset(mux.CodeCanceled) })
	var ticket bulk.Ticket
	_, err := io.ReadFull(ctl, ticket[:])
	var carrier bulk.Carrier
	if err == nil {
		carrier, err = a.deps.Bulk(ctx, ticket)
	}
	if err != nil {
		stop()
		ctl.Reset(mux.CodeCanceled)
		return fmt.Errorf("bulk: %w", err)
	}
	tcp, err := bulk.Enter(ctx, carrier)
	if !stop() && err == nil {
		tcp.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		ctl.Reset(mux.CodeCanceled)
		return err
	}
	a.count.moved.Add(1)
	return c.below.Move(ctl, tcp)
}

// movable lets the other device move a stream, until the returned function is called.
func (a *Agent) movable(c *Conn) func() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.served[c.token] = c
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.served, c.token)
	}
}

// offeredBulk moves a stream that the other device wants to move.
func (a *Agent) offeredBulk(ctx context.Context, in *mux.Incoming, h streamhead.Head) {
	a.mu.Lock()
	c := a.served[h.Token]
	a.mu.Unlock()
	if c == nil || !c.peer.Equal(h.Peer) || a.deps.Bulk == nil || in.Datagrams {
		a.refuse(in, h, "bulk", mux.CodeNoSuchService)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, bulkTime)
	defer cancel()
	if err := a.enter(ctx, c, in.Accept()); err != nil {
		a.log.Debug("stream stays in the session", zap.String("service", h.Service), zap.Stringer("peer", c.peer), zap.Error(err))
	}
}
