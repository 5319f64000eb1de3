package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// DialHostDatagrams is DialHost for a service of datagrams. What it returns keeps their borders: Read returns one, cut to the
// buffer, and Write sends one, or drops and counts it as a network does. A deadline is for the calls of Read that come after it;
// Write does not wait.
func (a *Agent) DialHostDatagrams(ctx context.Context, host string, port uint16) (net.Conn, error) {
	name, service, err := a.cfg.Load().route(host, port)
	if err != nil {
		return nil, err
	}
	c, err := a.DialDatagrams(ctx, name, service)
	if err != nil {
		return nil, err
	}
	p := &packets{Conn: c, a: a}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	go func() { // the stream has no bytes: it ends with the flow
		defer p.cancel()
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1))
	}()
	return p, nil
}

// packets are the datagrams of a stream as a connection.
type packets struct {
	*Conn
	a        *Agent
	ctx      context.Context //nolint:containedctx // its end is the connection's
	cancel   context.CancelFunc
	deadline atomic.Int64 // of Read, in nanoseconds of the Unix epoch; 0: none
	closed   sync.Once
}

// Read implements [net.Conn].
func (p *packets) Read(b []byte) (int, error) {
	ctx := p.ctx
	if at := p.deadline.Load(); at != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, time.Unix(0, at))
		defer cancel()
	}
	datagram, err := p.sealed.Receive(ctx)
	switch {
	case err == nil:
		p.a.count.datagramsIn.Add(1)
		return copy(b, datagram), nil
	case p.ctx.Err() != nil:
		return 0, net.ErrClosed
	case errors.Is(err, context.DeadlineExceeded):
		return 0, os.ErrDeadlineExceeded
	}
	return 0, err
}

// Write implements [net.Conn].
func (p *packets) Write(b []byte) (int, error) {
	if p.ctx.Err() != nil {
		return 0, net.ErrClosed
	}
	p.a.send(p.sealed, b)
	return len(b), nil
}

// SetReadDeadline implements [net.Conn].
func (p *packets) SetReadDeadline(t time.Time) error {
	at := int64(0)
	if !t.IsZero() {
		at = t.UnixNano()
	}
	p.deadline.Store(at)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (p *packets) SetWriteDeadline(time.Time) error { return nil }

// SetDeadline implements [net.Conn].
func (p *packets) SetDeadline(t time.Time) error { return p.SetReadDeadline(t) }

// Close implements [net.Conn].
func (p *packets) Close() (err error) {
	p.closed.Do(func() {
		p.cancel()
		err = p.Conn.Close()
		p.a.dropped(p.sealed)
	})
	return err
}

// CloseWrite is Close: datagrams have no directions that end.
func (p *packets) CloseWrite() error { return p.Close() }
