package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/mux"
)

// ServeTCP brings connections of a listener to the forward's service until ctx ends. It closes the listener.
func (a *Agent) ServeTCP(ctx context.Context, ln net.Listener, f Forward) error {
	flows := f.Flows
	if flows == 0 {
		flows = DefaultFlows
	}
	g := gate.New(flows, 0)
	return g.Serve(ctx, ln, func(ctx context.Context, conn net.Conn) { a.forwardTCP(ctx, conn, f) }, func(why string) {
		a.count.refused.WithLabelValues("flows").Inc()
		a.log.Warn("connection refused", zap.Stringer("listen", f.Listen), zap.String("reason", why))
	})
}

// forwardTCP joins one connection to the service, or resets it.
func (a *Agent) forwardTCP(ctx context.Context, conn net.Conn, f Forward) {
	defer conn.Close()
	local, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	c, err := a.Dial(ctx, f.Device, f.Service)
	if err != nil {
		a.log.Warn("connection not forwarded", zap.Stringer("listen", f.Listen), zap.Error(err))
		gate.Reset(local)
		return
	}
	a.join(ctx, local, c)
}

// serveTCP connects another device to a service of this site.
func (a *Agent) serveTCP(ctx context.Context, c *Conn, s Service) {
	conn, ok := a.dialFor(ctx, c, "tcp", s.TCP)
	if !ok {
		return
	}
	defer conn.Close()
	a.join(ctx, conn.(*net.TCPConn), c) //nolint:forcetypeassert // what dialing tcp gives
}

// dialFor dials a service of this site for another device, and tells that device how it went.
func (a *Agent) dialFor(ctx context.Context, c *Conn, network, address string) (net.Conn, bool) {
	conn, err := a.dial.DialContext(ctx, network, address)
	if err != nil {
		a.count.refused.WithLabelValues("unreachable").Inc()
		a.log.Warn("service not reached", zap.String(network, address), zap.Error(err))
		if c.answer(mux.CodeHostNotReachable) == nil {
			c.Close()
		}
		return nil, false
	}
	if err := c.answer(mux.CodeClosed); err != nil {
		conn.Close()
		c.Reset(mux.CodeHostNotReachable)
		return nil, false
	}
	return conn, true
}

// join moves bytes, their ends and resets both ways until both have ended or ctx does.
func (a *Agent) join(ctx context.Context, local *net.TCPConn, c *Conn) {
	defer context.AfterFunc(ctx, func() {
		c.Reset(mux.CodeCanceled)
		local.Close()
	})()
	direct, err := splice.NewDirect(local)
	if err != nil {
		c.Reset(mux.CodeCanceled)
		return
	}
	var ways sync.WaitGroup
	ways.Go(func() {
		n, rerr, werr := a.copy(c, direct)
		a.count.sent.Add(uint64(n))
		switch {
		case rerr != nil:
			c.Reset(mux.CodeCanceled)
		case werr != nil:
			local.CloseRead()
		default:
			c.CloseWrite()
		}
	})
	n, rerr, werr := a.copy(direct, c)
	a.count.received.Add(uint64(n))
	switch {
	case rerr != nil:
		gate.Reset(local)
	case werr != nil:
		c.Reset(mux.CodeCanceled)
	default:
		local.CloseWrite()
	}
	ways.Wait()
	c.Close()
}

const (
	// little is what is read at once while little passes; more takes a buffer of much.
	little = 4 << 10
	much   = 16 * chunk
)

// copy moves one way and tells whose error ended it; at the end of from both are nil.
func (a *Agent) copy(to io.Writer, from io.Reader) (total int64, rerr, werr error) {
	small := make([]byte, little)
	var big *[]byte
	giveBack := func() {
		if big != nil {
			a.count.buffers.Put(big)
			big = nil
		}
	}
	defer giveBack()
	for b := small; ; {
		n, err := from.Read(b)
		if n > 0 {
			if _, werr = to.Write(b[:n]); werr != nil {
				return total, nil, werr
			}
			total += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil, nil
		case err != nil:
			return total, err, nil
		case n >= little && big == nil:
			big = a.muchBuffer()
			b = *big
		case n < little:
			giveBack()
			b = small
		}
	}
}

// muchBuffer returns one of the buffers that streams share.
func (a *Agent) muchBuffer() *[]byte {
	if b, ok := a.count.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, much)
	return &b
}
