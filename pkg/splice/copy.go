package splice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Copier joins connections by two goroutines each, without loops or pipes.
type Copier struct{}

// Join does what [Joiner.Join] does.
func (Copier) Join(ctx context.Context, a, b net.Conn, o Options) Result {
	o.begin()
	return copyBoth(ctx, a, b, o)
}

// copier joins two connections that are not both TCP, by a goroutine for each direction.
type copier struct {
	conn     [2]net.Conn
	prefix   [2][]byte
	limit    [2]int64
	counters *Counters

	mu sync.Mutex
	// err is the first error; over says that the end was in order, and errors are none.
	err  error
	over bool
}

func copyBoth(ctx context.Context, a, b net.Conn, o Options) Result {
	c := &copier{conn: [2]net.Conn{a, b}, prefix: o.Prefix, limit: o.Limit, counters: o.Counters}
	var both sync.WaitGroup
	both.Go(func() { c.copy(0) })
	both.Go(func() { c.copy(1) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		both.Wait()
	}()
	c.watch(ctx, done, o.Idle)
	a.Close()
	b.Close()
	return Result{Bytes: [2]uint64{c.counters.Bytes(0), c.counters.Bytes(1)}, Err: c.err}
}

// watch returns when the copying has ended, which it makes sure of.
func (c *copier) watch(ctx context.Context, done <-chan struct{}, idle time.Duration) {
	var look <-chan time.Time
	if idle > 0 {
		t := time.NewTicker(max(idle/8, sweepMin))
		defer t.Stop()
		look = t.C
	}
	over := ctx.Done()
	for {
		select {
		case <-done:
			return
		case <-over:
			over = nil
			c.fail(ctx.Err())
		case now := <-look:
			if now.Sub(c.counters.Last()) >= idle {
				look = nil
				c.fail(ErrIdle)
			}
		}
	}
}

// fail resets both connections, which ends the copying.
func (c *copier) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.over {
		return
	}
	c.err = err
	for _, conn := range c.conn {
		reset(conn)
	}
}

// reset closes a connection so that its peer sees an error, where that can be said. What lies over TCP
// (TLS) would first say good-bye in order, and may wait for that.
func reset(conn net.Conn) {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = over.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

func (c *copier) copy(from uint8) {
	if err := c.move(from); err != nil {
		c.fail(err)
		return
	}
	c.closeWrite(1 - from)
}

func (c *copier) move(from uint8) error {
	if n := len(c.prefix[from]); n > 0 {
		if err := c.forward(from, c.prefix[from]); err != nil {
			return err
		}
	}
	b := make([]byte, copySize)
	for {
		n, err := c.conn[from].Read(b)
		if n > 0 {
			if err := c.forward(from, b[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%s: read: %w", side(from), err)
		}
	}
}

// forward counts bytes and writes them to the other side.
func (c *copier) forward(from uint8, b []byte) error {
	c.counters.add(from, len(b), time.Now().UnixNano())
	if limit := c.limit[from]; limit > 0 && c.counters.Bytes(int(from)) > uint64(limit) {
		return fmt.Errorf("%s: read: %w", side(from), ErrLimit)
	}
	if _, err := c.conn[1-from].Write(b); err != nil {
		return fmt.Errorf("%s: write: %w", side(1-from), err)
	}
	return nil
}

// closeWrite half-closes a connection, or closes it where there is no such thing.
func (c *copier) closeWrite(to uint8) {
	if half, ok := c.conn[to].(interface{ CloseWrite() error }); ok {
		// It fails if the connection is gone, which reading from there will tell.
		_ = half.CloseWrite()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.conn[to].Close()
}
