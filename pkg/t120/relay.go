package t120

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// refuseTime bounds telling a caller that he is refused.
const refuseTime = 2 * time.Second

// relay moves both directions until they have ended. up is called when the front is through.
func (c *session) relay(ctx context.Context, up func()) error {
	var errs [2]error
	var work sync.WaitGroup
	for from := range 2 {
		work.Go(func() {
			if errs[from] = c.pump(from, up); errs[from] != nil {
				c.refuse(errs[from])
			}
		})
	}
	work.Wait()
	if err := errors.Join(errs[0], errs[1]); err != nil {
		return err
	}
	c.mu.Lock()
	rest := c.front.stage == opaque && !c.shut
	c.mu.Unlock()
	if rest {
		c.join(ctx)
	}
	return nil
}

// pump checks what a side sends and passes it on. It returns nil at the end of the stream, when a connection
// breaks, and when nothing more is to be read.
func (c *session) pump(from int, up func()) error {
	dst := c.streams[1-from].conn
	for {
		out, done, err := c.work(from, up)
		if len(out) > 0 {
			c.patience(dst)
			if _, broken := dst.Write(out); broken != nil {
				c.close()
				done = true
			}
		}
		if err != nil || done {
			return err
		}
		switch err := c.wait(from); {
		case err == nil:
		case errors.Is(err, errHanded):
			return nil
		case errors.Is(err, io.EOF):
			closeWrite(dst)
			return nil
		default:
			c.close()
			if c.expired.Load() {
				return errSlow
			}
			return nil
		}
	}
}

// patience bounds the next write: a side that takes nothing is as idle as one that says nothing.
func (c *session) patience(dst net.Conn) {
	if idle := c.server.cfg.Idle; idle > 0 {
		dst.SetWriteDeadline(time.Now().Add(idle))
	}
}

// errHanded ends a pump whose stream goes on unread.
var errHanded = errors.New("handed over")

// work checks all TPKTs of a side that have come, and returns what the other is to get. done says that
// nothing more is to be read.
func (c *session) work(from int, up func()) (out []byte, done bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.front
	for f.stage != opaque {
		p, ok, err := c.streams[from].next()
		if err != nil || !ok {
			return out, false, err
		}
		before := f.stage
		part, err := f.receive(from, p)
		if err != nil {
			return out, true, err
		}
		out = append(out, part...)
		if f.stage >= open && before < open {
			up()
			c.upLocked()
		}
	}
	c.streams[1-from].conn.SetReadDeadline(time.Unix(1, 0)) // the other pump shall see it too
	return out, true, nil
}

// upLocked notes a conference, so that further connections find it.
func (c *session) upLocked() {
	f := c.front
	c.server.count.up(f.info.Kind)
	if f.joined && f.info.Kind != "" && !f.info.RDP && c.target.IsValid() {
		c.named, c.key = true, conferenceKey{f.call.Client.Addr(), f.id}
		c.server.note(c.key, c.target, c)
	}
	c.log.Info("t120 up", zap.String("kind", f.info.Kind), zap.String("conference", f.call.Conference),
		zap.String("caller", f.call.Caller), zap.Stringer("target", c.streams[1-f.caller].conn.RemoteAddr()))
}

// wait reads more of a side. A deadline that passes while the other is busy does not count.
func (c *session) wait(from int) error {
	idle := c.server.cfg.Idle
	for {
		c.mu.Lock()
		if c.front.stage == opaque {
			c.mu.Unlock()
			return errHanded
		}
		deadline := time.Time{}
		if idle > 0 {
			deadline = time.Unix(0, c.active.Load()).Add(idle)
		}
		c.streams[from].conn.SetReadDeadline(deadline)
		c.mu.Unlock()
		n, err := c.streams[from].read()
		if n > 0 {
			c.active.Store(time.Now().UnixNano())
			c.moved(pinhole.Side(from), n)
			return nil
		}
		quiet := idle > 0 && time.Since(time.Unix(0, c.active.Load())) >= idle
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) && !quiet {
			continue
		}
		return err
	}
}

// closeWrite says the end of one direction (TCP FIN).
func closeWrite(conn net.Conn) {
	if hc, ok := conn.(interface{ CloseWrite() error }); ok && hc.CloseWrite() == nil {
		return
	}
	conn.Close()
}

// join hands the rest of both streams over.
func (c *session) join(ctx context.Context) {
	conns := [2]net.Conn{c.streams[0].conn, c.streams[1].conn}
	prefix := [2][]byte{c.streams[0].tail, c.streams[1].tail}
	for _, conn := range conns {
		conn.SetDeadline(time.Time{})
	}
	var octets [2]uint64
	var err error
	if c.joiner != nil {
		octets, err = c.joiner.Join(ctx, conns, prefix, c.server.cfg.Idle)
	} else {
		octets = c.copyBoth(conns, prefix)
	}
	for i := range octets {
		c.streams[i].bytes.Add(octets[i] - min(octets[i], uint64(len(prefix[i]))))
	}
	if err != nil {
		c.log.Debug("t120 join ended", zap.Error(err))
	}
}

// copyBoth moves what is left of both streams.
func (c *session) copyBoth(conns [2]net.Conn, prefix [2][]byte) (octets [2]uint64) {
	var work sync.WaitGroup
	for from := range 2 {
		work.Go(func() { octets[from] = c.copy(from, conns, prefix[from]) })
	}
	work.Wait()
	return octets
}

func (c *session) copy(from int, conns [2]net.Conn, rest []byte) (octets uint64) {
	buf, idle := make([]byte, 2*readSize), c.server.cfg.Idle
	for {
		if len(rest) > 0 {
			octets += uint64(len(rest))
			c.active.Store(time.Now().UnixNano())
			c.patience(conns[1-from])
			if _, err := conns[1-from].Write(rest); err != nil {
				c.close()
				return octets
			}
		}
		if idle > 0 {
			conns[from].SetReadDeadline(time.Unix(0, c.active.Load()).Add(idle))
		}
		n, err := conns[from].Read(buf)
		rest = buf[:n]
		if n > 0 {
			c.moved(pinhole.Side(from), n)
			continue
		}
		busy := idle > 0 && time.Since(time.Unix(0, c.active.Load())) < idle
		switch {
		case err == nil, errors.Is(err, os.ErrDeadlineExceeded) && busy:
		case errors.Is(err, io.EOF):
			closeWrite(conns[1-from])
			return octets
		default:
			c.close()
			return octets
		}
	}
}

// refuse tells the caller, if there is a way, and closes all.
func (c *session) refuse(err error) {
	c.mu.Lock()
	f := c.front
	msg, caller := f.refusal(err), c.streams[f.caller]
	if other := c.streams[1-f.caller]; other != nil {
		other.conn.Close()
	}
	c.mu.Unlock()
	if len(msg) > 0 && !c.expired.Load() {
		caller.conn.SetDeadline(time.Now().Add(refuseTime))
		if _, err := caller.conn.Write(msg); err == nil {
			closeWrite(caller.conn)
			_, _ = io.Copy(io.Discard, io.LimitReader(caller.conn, maxConnect)) // what is unread would reset what was just said
		}
	}
	c.close()
}

// end says what became of the connection.
func (c *session) end(ctx context.Context) {
	c.close()
	s, f := c.server, c.front
	if c.named {
		s.forget(c.key, c)
	}
	s.leave(c)
	s.count.changes(f.change)
	fields := []zap.Field{
		zap.Duration("duration", time.Since(c.began)), zap.String("conference", f.call.Conference), zap.String("caller", f.call.Caller),
		zap.Uint64("from_client", c.octets(0)), zap.Uint64("from_target", c.octets(1)), zap.Int("addresses_hidden", f.change.Removed+f.change.Replaced),
	}
	switch {
	case c.err != nil && ctx.Err() == nil:
		s.count.drop(reason(c.err))
		c.log.Info("t120 refused", append(fields, zap.String("reason", reason(c.err)), zap.Error(c.err))...)
	default:
		c.log.Info("t120 ended", fields...)
	}
}

func (c *session) octets(i int) uint64 {
	if c.streams[i] == nil {
		return 0
	}
	return c.streams[i].bytes.Load()
}
