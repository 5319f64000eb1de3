package gate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// retryTime is how long accepting rests when it fails: out of descriptors, others will close theirs.
	retryTime = 50 * time.Millisecond
	// packetRetry is how long reading rests after an error: ICMP's word of an earlier datagram, or want of memory.
	packetRetry = 10 * time.Millisecond
)

// Accept gives each connection of ln to took, which must not block and owns it, until ctx ends; then it closes ln and
// returns nil. An error that may pass is told to failed, and accepting tried again after a rest. The error that it
// returns is that of a listener that somebody else has closed.
func Accept(ctx context.Context, ln net.Listener, took func(net.Conn), failed func(error)) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			took(conn)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			failed(err)
			if !Rest(ctx) {
				return nil
			}
		}
	}
}

// Packets gives each datagram of pc, of at most size octets (a longer one is cut), to take until ctx ends; then it closes
// pc and returns nil. The octets are take's until it returns. The error that it returns is that of a socket that somebody
// else has closed.
func Packets(ctx context.Context, pc net.PacketConn, size int, take func(from net.Addr, b []byte)) error {
	defer context.AfterFunc(ctx, func() { pc.Close() })()
	buf := make([]byte, size)
	for {
		n, from, err := pc.ReadFrom(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			take(from, buf[:n])
		case errors.Is(err, net.ErrClosed):
			return err
		case !rest(ctx, packetRetry):
			return nil
		}
	}
}

// Rest waits a little before what failed is tried again; false if ctx ended before.
func Rest(ctx context.Context) bool { return rest(ctx, retryTime) }

func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Reset closes a connection of TCP so that its peer sees an error and not an orderly end, and no state stays behind.
// One of TLS, or through a balancer, is closed beneath.
func Reset(conn net.Conn) {
	for {
		over, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = over.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

const (
	// sayEvery is how often one source is logged at most, maxSaid how many are remembered for that.
	sayEvery = time.Minute
	maxSaid  = 4096
)

// Said keeps a log from being flooded by those who are refused. The zero value is ready; it may be used concurrently.
type Said struct {
	mu   sync.Mutex
	last map[netip.Addr]time.Time
}

// Again tells whether a source is to be logged at now: once a minute. With too many sources all are forgotten, so that
// some are logged earlier.
func (s *Said) Again(source netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, known := s.last[source]; known && now.Sub(last) < sayEvery {
		return false
	}
	if s.last == nil || len(s.last) >= maxSaid {
		s.last = make(map[netip.Addr]time.Time)
	}
	s.last[source] = now
	return true
}
