package t120

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/t120/gcc"
	"edged.dev/edged/pkg/t120/mcs"
)

// readSize is how much is read at a time, in octets.
const readSize = 16 << 10

// stream is one side's connection and what was read of it.
type stream struct {
	conn  net.Conn
	split tpkt.Splitter
	tail  []byte // what split has not returned yet, as it came
	buf   []byte
	bytes atomic.Uint64
}

func newStream(conn net.Conn) *stream { return &stream{conn: conn, buf: make([]byte, readSize)} }

// read waits for octets and gives them to the splitter. They count as the tail until next has returned them.
func (s *stream) read() (int, error) {
	n, err := s.conn.Read(s.buf)
	if n > 0 {
		s.bytes.Add(uint64(n))
		s.split.Push(s.buf[:n])
		s.tail = append(s.tail, s.buf[:n]...)
		return n, nil
	}
	return 0, err
}

// next returns the next TPKT that has come, false if more must be read.
func (s *stream) next() (tpkt.Packet, bool, error) {
	p, ok, err := s.split.Next()
	if err != nil {
		return p, false, errors.Join(errTPKT, err)
	}
	s.tail = s.tail[len(s.tail)-s.split.Pending():]
	return p, ok, nil
}

// await reads until a TPKT has come.
func (s *stream) await() (tpkt.Packet, error) {
	for {
		if p, ok, err := s.next(); ok || err != nil {
			return p, err
		}
		if _, err := s.read(); err != nil {
			return tpkt.Packet{}, err
		}
	}
}

// session is one relayed connection.
type session struct {
	server  *Server
	call    Call
	log     *zap.Logger
	joiner  Joiner
	moved   func(pinhole.Side, int)
	streams [2]*stream
	target  netip.AddrPort
	active  atomic.Int64 // when something last came, Unix nanoseconds
	expired atomic.Bool  // the time for the front is over
	err     error
	began   time.Time

	// announced is the conference of a session description that this connection is part of, nil if none; the
	// caller is at its side.
	announced *announcement
	side      pinhole.Side

	mu    sync.Mutex // guards what follows
	front *front
	conns []net.Conn // to be closed
	shut  bool
	named bool // the conference is noted under key
	key   conferenceKey
}

func (s *Server) session(call Call, j Joiner) *session {
	c := &session{server: s, call: call, joiner: j, moved: func(pinhole.Side, int) {}, began: time.Now()}
	c.log = s.log.With(zap.Stringer("client", call.Client))
	c.front = newFront(&s.cfg, call, s.decide, c.hide)
	c.active.Store(time.Now().UnixNano())
	return c
}

// hide tells how addresses that a side says are to be told to the other: an inside address becomes the edge's
// on the network of who hears it. False: both are on the same side of the edge.
func (c *session) hide(from int) (gcc.Translate, bool) {
	nets := c.server.deps.Networks
	inside := func(a netip.Addr) bool {
		if name := nets.Of(a); name != "" {
			return nets[name].Trusted
		}
		return a.IsPrivate()
	}
	speaker, hearer := pinhole.AddrPortOf(c.streams[from].conn.RemoteAddr()).Addr(), pinhole.AddrPortOf(c.streams[1-from].conn.RemoteAddr()).Addr()
	if !inside(speaker) || inside(hearer) {
		return nil, false
	}
	own := c.ownFor(1-from, hearer)
	return func(a netip.Addr) (netip.Addr, bool) { return own, inside(a) && a != own }, true
}

// ownFor returns the edge's address as a side knows it: that of its network, or the one it is connected to.
func (c *session) ownFor(side int, peer netip.Addr) netip.Addr {
	nets := c.server.deps.Networks
	name := nets.Of(peer)
	if name == "" && side == 0 {
		name = c.front.call.Network
	}
	local := pinhole.AddrPortOf(c.streams[side].conn.LocalAddr()).Addr()
	if _, own, err := nets.Local(name, pinhole.FamilyOf(local)); err == nil {
		return own
	}
	return local
}

// hold keeps a connection for close.
func (c *session) hold(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	if c.shut {
		conn.Close()
	}
}

// close ends all connections at once.
func (c *session) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shut = true
	for _, conn := range c.conns {
		conn.Close()
	}
	for _, s := range c.streams {
		if s != nil {
			s.conn.Close()
		}
	}
}

// expire ends a connection whose front has taken too long.
func (c *session) expire() {
	c.expired.Store(true)
	c.close()
}

// connect takes the caller as far as it must to know the target, and reaches that.
func (c *session) connect(ctx context.Context) error {
	caller, f := c.streams[0], c.front
	request, err := c.take(caller)
	if err != nil {
		return err
	}
	if f.stage != wantConfirm {
		return errSequence
	}
	s := c.server
	c.target, err = c.route()
	if f.tpdu.Plain() && (err != nil || len(s.cfg.Conferences) > 0 || s.confers(f.call.Client.Addr())) {
		return c.connectLate(ctx, request)
	}
	if err != nil {
		return err
	}
	if err := c.dial(ctx); err != nil {
		return err
	}
	_, err = c.streams[1].conn.Write(request)
	return err
}

// route finds the target: that of the conference that the caller has announced, or what the server knows.
func (c *session) route() (netip.AddrPort, error) {
	s, call := c.server, c.front.call
	if !s.passing(call) {
		if to, ok := s.join(c); ok {
			return to, nil
		}
	}
	return s.route(call)
}

// take reads from the caller what the other side is to get next.
func (c *session) take(s *stream) ([]byte, error) {
	for {
		p, err := s.await()
		if err != nil {
			return nil, c.timely(err)
		}
		if out, err := c.front.receive(0, p); len(out) > 0 || err != nil {
			return out, err
		}
	}
}

// timely names the reason for a read that broke off because the time was over.
func (c *session) timely(err error) error {
	if c.expired.Load() {
		return errSlow
	}
	return err
}

// connectLate confirms the transport itself, so that the caller names his conference, and then reaches the target.
func (c *session) connectLate(ctx context.Context, request []byte) error {
	caller, f, s := c.streams[0], c.front, c.server
	if _, err := caller.conn.Write(f.confirmed()); err != nil {
		return err
	}
	var first []byte
	for f.stage == wantConnect { // keep-alives may come before
		out, err := c.take(caller)
		if err != nil {
			return err
		}
		first = out
	}
	to, err := c.route()
	if f.connect.Kind == mcs.ConnectAdditional {
		at, unclear := s.added(f.call.Client.Addr(), f.connect.ConnectID)
		if at.IsValid() || unclear != nil {
			to, err = at, unclear
		}
	}
	if c.target = to; err != nil {
		return err
	}
	if err := c.dial(ctx); err != nil {
		return err
	}
	if _, err := c.streams[1].conn.Write(request); err != nil {
		return err
	}
	p, err := c.streams[1].await()
	if err != nil {
		return c.timely(err)
	}
	if err := f.lateConfirm(p); err != nil {
		return err
	}
	_, err = c.streams[1].conn.Write(first)
	return err
}

// dial reaches the target.
func (c *session) dial(ctx context.Context) error {
	conn, err := c.server.dial(ctx, c.call, c.target)
	if err != nil {
		return errors.Join(errDial, err)
	}
	c.hold(conn)
	c.mu.Lock()
	c.streams[1] = newStream(conn)
	c.mu.Unlock()
	return nil
}

// dial connects to a target: from the caller's address where that is wanted of calls that the edge takes on their way.
func (s *Server) dial(ctx context.Context, c Call, to netip.AddrPort) (net.Conn, error) {
	from := c.Client.Addr()
	if s.cfg.KeepSource && s.deps.DialAs != nil && s.passing(c) && from.Is4() == to.Addr().Is4() {
		return s.deps.DialAs(ctx, from, to)
	}
	return s.deps.Dial(ctx, to)
}

// errDial is counted when a target cannot be reached.
var errDial = errors.New("dial")
