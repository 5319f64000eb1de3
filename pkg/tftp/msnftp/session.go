package msnftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// session is one pair of connections.
type session struct {
	*Transfer
	conns [2]net.Conn
	// to and from are the readers of the file's receiver and its sender.
	to, from *reader
	hello    *hello
	version  string // the sender's, where Admit has asked it
	size     int64
	tell     func(pinhole.Side, int)
	octets   [2]atomic.Uint64
	active   atomic.Int64 // when something last came, Unix nanoseconds
	began    time.Time
}

// Serve fits pinhole.Request.Serve.
func (t *Transfer) Serve(ctx context.Context, conns [2]net.Conn, moved func(from pinhole.Side, octets int)) {
	over, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &session{Transfer: t, size: -1, tell: moved, began: time.Now()}
	rest := s.take(conns)
	s.to = &reader{conn: s.conns[t.Receiver], side: t.Receiver, rest: rest[t.Receiver], moved: s.moved}
	o := t.Receiver.Other()
	s.from = &reader{conn: s.conns[o], side: o, rest: rest[o], moved: s.moved}
	err := s.run(over)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	s.close(err)
	if t.Ended != nil {
		t.Ended(Outcome{
			Err: err, Size: s.size, Began: s.began, Took: time.Since(s.began),
			Octets: [2]uint64{s.octets[0].Load(), s.octets[1].Load()},
		})
	}
}

// take finds the connections, and what Admit has read from them.
func (s *session) take(conns [2]net.Conn) (rest [2][]byte) {
	s.active.Store(s.began.UnixNano())
	for i, c := range conns {
		a, ok := c.(*admitted)
		if !ok {
			s.conns[i] = c
			continue
		}
		s.conns[i], rest[i] = a.Conn, a.rest
		s.moved(pinhole.Side(i), a.octets)
		if a.hello != nil {
			s.hello = a.hello
		} else {
			s.version = a.version
		}
	}
	return rest
}

// moved counts what came from a side.
func (s *session) moved(from pinhole.Side, n int) {
	if n > 0 {
		s.octets[from].Add(uint64(n))
		s.active.Store(time.Now().UnixNano())
		s.tell(from, n)
	}
}

// close ends both connections: with a reset if one of them ended so.
func (s *session) close(err error) {
	for _, c := range s.conns {
		if tcp, ok := c.(*net.TCPConn); ok && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)) {
			tcp.SetLinger(0)
		}
		c.Close()
	}
}

// run does it all, and returns nil once the file has passed whole.
func (s *session) run(ctx context.Context) error {
	unhook := context.AfterFunc(ctx, func() { s.close(nil) })
	defer unhook()
	check, err := s.shake(ctx)
	if err != nil {
		return s.named(err)
	}
	for _, c := range s.conns {
		if err := c.SetDeadline(time.Time{}); err != nil {
			return err
		}
	}
	s.hold()
	if check == nil && s.Joiner != nil {
		unhook()
		return s.join(ctx)
	}
	return newPassage(s, check).run()
}

// small is the length of a file, in octets, up to which Linux may hold all of it in the sockets of one connection that is
// passed on. A client that does one thing at a time (pidgin-sipe) then waits for the answer to a file that is still on its
// way, while the other waits for its word on the next one. So sockets hold about buffered octets of such files.
const (
	small    = 16 << 20
	buffered = 256 << 10
)

// hold bounds what the edge holds of a small file.
func (s *session) hold() {
	if s.size > small {
		return
	}
	if c, ok := s.from.conn.(interface{ SetReadBuffer(int) error }); ok {
		_ = c.SetReadBuffer(buffered) // without it the file passes too
	}
	if c, ok := s.to.conn.(interface{ SetWriteBuffer(int) error }); ok {
		_ = c.SetWriteBuffer(buffered)
	}
}

// named gives errors of connections during the handshake the names of this package.
func (s *session) named(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrSlow, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: %w", ErrCut, err)
	}
	return err
}

// shake takes the pair through the handshake, TFR included.
func (s *session) shake(ctx context.Context) (Check, error) {
	limit := s.Handshake
	if limit <= 0 {
		limit = DefaultHandshake
	}
	for _, c := range s.conns {
		if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
			return nil, err
		}
	}
	if err := s.introduce(); err != nil {
		return nil, err
	}
	fil, words, err := s.expect(s.from, s.to, "FIL")
	if err != nil {
		return nil, err
	}
	if s.size, err = fileSize(words); err != nil {
		return nil, err
	}
	if s.MaxSize > 0 && s.size > s.MaxSize {
		return nil, s.decline(fmt.Errorf("%d octets: %w", s.size, ErrTooLarge))
	}
	if _, err := s.to.conn.Write(fil); err != nil {
		return nil, err
	}
	tfr, _, err := s.expect(s.to, s.from, "TFR")
	if err != nil {
		return nil, err
	}
	var check Check
	if s.Check != nil {
		if check, err = s.Check(ctx, s.size); err != nil {
			return nil, s.decline(fmt.Errorf("%w: %w", ErrDenied, err))
		}
	}
	_, err = s.from.conn.Write(tfr)
	return check, err
}

// introduce tells the sender of the receiver, whose cookie is known to be right by then.
func (s *session) introduce() (err error) {
	if s.hello == nil {
		if s.hello, err = s.hear(s.to); err != nil {
			return err
		}
	}
	if s.version == "" {
		if s.version, err = greet(s.from, s.hello.ver); err != nil {
			return err
		}
	}
	if s.version != s.hello.version {
		return fmt.Errorf("%s and %s: %w", s.hello.version, s.version, ErrVersion)
	}
	_, err = s.from.conn.Write(s.hello.usr)
	return err
}

// expect returns the line with the verb. What means nothing here passes, and a good-bye ends all.
func (s *session) expect(from, to *reader, verb string) (line, []string, error) {
	for range maxPassing {
		l, err := from.line()
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", verb, err)
		}
		words := l.words()
		if words[0] == verb {
			return l, words, nil
		}
		if _, err := to.conn.Write(l); err != nil {
			return nil, nil, err
		}
		if words[0] == "CCL" || words[0] == "BYE" {
			return nil, nil, fmt.Errorf("%s: %w", words[0], ErrCancelled)
		}
	}
	return nil, nil, fmt.Errorf("no %s: %w", verb, ErrProtocol)
}

// decline tells the sender, in the receiver's stead, that nothing is wanted. It returns err.
func (s *session) decline(err error) error {
	if _, gone := io.WriteString(s.from.conn, "CCL\r\n"); gone == nil {
		farewell(s.from.conn)
	}
	return err
}

// join has the file moved unread.
func (s *session) join(ctx context.Context) error {
	o := JoinOptions{Idle: s.idle()}
	o.Prefix[s.to.side], o.Prefix[s.from.side] = s.to.rest, s.from.rest
	o.Limit[s.to.side], o.Limit[s.from.side] = maxAnswer, mostOctets(s.size)
	w := watch{s: s, done: make(chan struct{})}
	o.Started = func(octets func(pinhole.Side) uint64) {
		w.octets = octets
		w.work.Go(w.run)
	}
	err := s.Joiner.Join(ctx, s.conns, o)
	close(w.done)
	w.work.Wait()
	whole := w.seen[s.from.side] >= uint64(leastOctets(s.size))+uint64(s.macSize())
	switch {
	case err == nil && !whole:
		return ErrCut
	case whole && w.seen[s.to.side] > 0 && !errors.Is(err, ErrLimit):
		return nil // how the connections end afterwards does not matter
	}
	return err
}

// macSize is the least that the line takes that ends a whole file.
func (s *session) macSize() int {
	if s.version == secure {
		return len("MAC \n")
	}
	return 0
}

func (s *session) idle() time.Duration {
	if s.Idle <= 0 {
		return DefaultIdle
	}
	return s.Idle
}

// watch tells the relay of octets that a joiner moves.
type watch struct {
	s      *session
	octets func(pinhole.Side) uint64
	seen   [2]uint64
	done   chan struct{} // closed when the join has ended
	work   sync.WaitGroup
}

func (w *watch) run() {
	for i, r := range w.readers() {
		w.seen[i] = uint64(len(r.rest)) // counted when it was read
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.look()
		case <-w.done:
			w.look()
			return
		}
	}
}

func (w *watch) readers() [2]*reader {
	var r [2]*reader
	r[w.s.to.side], r[w.s.from.side] = w.s.to, w.s.from
	return r
}

func (w *watch) look() {
	for i := range w.seen {
		if n := w.octets(pinhole.Side(i)); n > w.seen[i] {
			w.s.moved(pinhole.Side(i), int(n-w.seen[i]))
			w.seen[i] = n
		}
	}
}

// farewell lets the last words arrive: a connection closed with something unread is reset, and they with it.
func farewell(c net.Conn) {
	closeWrite(c)
	c.SetReadDeadline(time.Now().Add(farewellTime))
	_, _ = io.CopyN(io.Discard, c, farewellOctets) // until it ends, or has had its time
}

const (
	farewellTime   = 3 * time.Second
	farewellOctets = 8 << 20
)

// closeWrite half-closes a connection, or closes it where there is no such thing.
func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it fails where the connection is gone, which reading tells
		return
	}
	c.Close()
}
