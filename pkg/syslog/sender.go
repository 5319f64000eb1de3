package syslog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// queueSize is how many records may wait: some seconds of calls ending at the highest rate.
	queueSize = 4096
	// dialTime and writeTime bound what a receiver may take.
	dialTime  = 10 * time.Second
	writeTime = 5 * time.Second
	// firstPause and longestPause are between attempts to connect.
	firstPause, longestPause = 250 * time.Millisecond, 30 * time.Second
	// lastWords is how long Serve goes on after its end, for what waits.
	lastWords = 2 * time.Second
)

// Sender sends messages to one receiver. Its methods may be called concurrently.
type Sender struct {
	target Target
	conf   *tls.Config
	log    *zap.Logger
	queue  chan []byte

	sent, dropped, bytes atomic.Uint64
}

// NewSender returns a sender, which connects when it serves. conf is for TLS; its ServerName may be empty.
func NewSender(target Target, conf *tls.Config, log *zap.Logger) *Sender {
	return &Sender{target: target, conf: conf, log: log, queue: make(chan []byte, queueSize)}
}

// Add queues a message and never blocks; false if it was dropped.
func (s *Sender) Add(m Message) bool {
	select {
	case s.queue <- Append(nil, m):
		return true
	default:
		s.dropped.Add(1)
		return false
	}
}

// Counts returns how many messages and octets were written, and how many messages were dropped.
func (s *Sender) Counts() (sent, bytes, dropped uint64) {
	return s.sent.Load(), s.bytes.Load(), s.dropped.Load()
}

// Serve sends until ctx ends, and for a moment longer if something waits. It returns nil: a receiver that is away is no
// failure of the daemon.
func (s *Sender) Serve(ctx context.Context) error {
	c := &connection{sender: s, pause: firstPause}
	defer c.close()
	for {
		select {
		case b := <-s.queue:
			c.write(ctx, b)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			for {
				select {
				case b := <-s.queue:
					c.write(last, b) // drops it once that moment is over
				default:
					return nil
				}
			}
		}
	}
}

// connection is the sender's socket; only Serve uses it.
type connection struct {
	sender *Sender
	conn   net.Conn
	pause  time.Duration
	// again is when the next attempt to connect may be made.
	again time.Time
	// said tells that the log knows of the failure.
	said bool
	buf  []byte
	// gone is closed once the receiver has closed a stream: what is written to it then would be lost without an error.
	gone chan struct{}
}

// write sends one message, connecting if need be. A message that a broken connection has not taken is tried once more.
func (c *connection) write(ctx context.Context, b []byte) {
	for attempt := 0; ; attempt++ {
		if c.hungUp() {
			c.close()
		}
		err := c.connect(ctx)
		if err == nil {
			err = c.put(ctx, b)
		}
		if err == nil {
			c.sender.sent.Add(1)
			c.sender.bytes.Add(uint64(len(b)))
			c.pause, c.said = firstPause, false
			return
		}
		if c.conn != nil && attempt == 0 { // the receiver was restarted, say
			c.close()
			continue
		}
		c.failed(err)
		c.sender.dropped.Add(1)
		return
	}
}

var errPausing = errors.New("the receiver was not reached a moment ago")

func (c *connection) connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	if time.Now().Before(c.again) {
		return errPausing
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var err error
	if c.conn, err = c.sender.dial(ctx); err != nil {
		return err
	}
	if c.gone = nil; c.stream() {
		c.gone = make(chan struct{})
		go listen(c.conn, c.gone)
	}
	return nil
}

// stream tells whether messages need their lengths before them.
func (c *connection) stream() bool {
	network := c.conn.LocalAddr().Network()
	return network == "tcp" || network == "unix"
}

// listen reads until the connection ends. Receivers say nothing.
func listen(conn net.Conn, gone chan struct{}) {
	defer close(gone)
	_, _ = io.Copy(io.Discard, conn) // that it has ended is all there is to know
}

func (c *connection) hungUp() bool {
	select {
	case <-c.gone: // never if it is nil
		return c.conn != nil
	default:
		return false
	}
}

// dial connects to the receiver. A unix socket may be one of datagrams, as /dev/log is, or a stream.
func (s *Sender) dial(ctx context.Context) (conn net.Conn, err error) {
	var d net.Dialer
	switch s.target.Network {
	case "unix":
		if conn, err = d.DialContext(ctx, "unixgram", s.target.Address); err != nil {
			conn, err = d.DialContext(ctx, "unix", s.target.Address)
		}
	case "tls":
		conf := s.conf.Clone()
		conf.ServerName, _, _ = net.SplitHostPort(s.target.Address)
		conn, err = (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", s.target.Address)
	default:
		conn, err = d.DialContext(ctx, s.target.Network, s.target.Address)
	}
	if err != nil {
		return nil, fmt.Errorf("%s://%s: %w", s.target.Network, s.target.Address, err)
	}
	return conn, nil
}

// put writes a message, with its length before it on a stream. It is over when ctx is.
func (c *connection) put(ctx context.Context, b []byte) error {
	if c.stream() {
		c.buf = append(strconv.AppendInt(c.buf[:0], int64(len(b)), 10), ' ')
		b = append(c.buf, b...)
		c.buf = b
	}
	end := time.Now().Add(writeTime)
	if limit, ok := ctx.Deadline(); ok && limit.Before(end) {
		end = limit
	}
	c.conn.SetWriteDeadline(end)
	_, err := c.conn.Write(b)
	return err
}

func (c *connection) failed(err error) {
	c.close()
	if errors.Is(err, errPausing) {
		return
	}
	c.again = time.Now().Add(c.pause)
	c.pause = min(2*c.pause, longestPause)
	if !c.said {
		c.sender.log.Warn("the syslog receiver is not reached, records are dropped", zap.Error(err))
	}
	c.said = true
}

func (c *connection) close() {
	if c.conn != nil {
		c.conn.Close()
		if c.gone != nil {
			<-c.gone
		}
		c.conn, c.gone = nil, nil
	}
}
