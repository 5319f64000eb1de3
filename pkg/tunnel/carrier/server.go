package carrier

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	tlsTime      = 10 * time.Second // for the tunnel's TLS handshake
	preambleTime = 30 * time.Second // for the probes and the preamble
)

// Server is the relay's side of the rungs. It listens nowhere; connections are given to it. Set the fields before
// first use; a func that is nil refuses what it is for.
type Server struct {
	// TLS is the tunnel's: it demands the device's certificate.
	TLS *tls.Config
	// Session, Bulk and Enrol take carriers over, and close them. A Session may return before: the connection is
	// served until it is closed, since a session goes on with other carriers. They are called concurrently. PeerState of the
	// carrier says who it is.
	Session func(context.Context, *Carrier)
	Bulk    func(context.Context, *Carrier, [16]byte)
	Enrol   func(context.Context, *Carrier)
	// Handshakes bounds the connections that are not yet past the preamble, on all rungs together; 0: 1024. Waiting bounds
	// those that wait for that, each for at most five minutes; 0: 16384. One address (of IPv6: a network of 64 bits) may have
	// half of either, so that it does not keep all others out. Connections of QUIC do not wait.
	Handshakes, Waiting int
	// Deny tells whether an address is shut out from QUIC; nil: none is. It counts them. Connections of TCP are turned away
	// before they are given to the server.
	Deny func(netip.Addr) bool
	Log  *zap.Logger

	begun   places
	greeted atomic.Uint64
	overUDP conns
	counted [reasonCount]atomic.Uint64
}

// Why a server let a connection go.
const (
	reasonFull = iota
	reasonLate
	reasonLeft
	reasonTLS
	reasonPreamble
	reasonService
	reasonUpgrade
	reasonCount
)

func reasonName(reason int) string {
	return [reasonCount]string{reasonFull: "full", reasonLate: "late", reasonLeft: "left", reasonTLS: "tls", reasonPreamble: "preamble", reasonService: "service", reasonUpgrade: "upgrade"}[reason]
}

// reasonOf returns why a connection got no place.
func reasonOf(err error) int {
	switch {
	case errors.Is(err, errFull):
		return reasonFull
	case errors.Is(err, errLate):
		return reasonLate
	}
	return reasonLeft
}

// Refused returns how many connections were let go, by reason: full (too many wait), late (no place within five minutes),
// left (the device hung up before it had a place), tls (the tunnel's handshake),
// preamble, service (nobody takes sessions, bulk or enrolments), upgrade (no WebSocket handshake).
func (s *Server) Refused() map[string]uint64 {
	out := map[string]uint64{}
	for i := range s.counted {
		out[reasonName(i)] = s.counted[i].Load()
	}
	return out
}

func (s *Server) refuse(reason int, conn net.Conn, err error) {
	s.counted[reason].Add(1)
	s.log().Debug("tunnel connection refused", zap.String("reason", reasonName(reason)), zap.Stringer("source", conn.RemoteAddr()), zap.Error(err))
	conn.Close()
}

func (s *Server) log() *zap.Logger {
	if s.Log == nil {
		return zap.NewNop()
	}
	return s.Log
}

func (s *Server) bounds() bounds {
	b := bounds{s.Handshakes, s.Waiting}
	if b.places == 0 {
		b.places = defaultOpen
	}
	if b.waiting == 0 {
		b.waiting = defaultWaiting
	}
	return b
}

// enter takes one of the places for connections that have not yet said what they want, at once. leave gives it back, once;
// it is nil if there is none.
func (s *Server) enter(source net.Addr) (leave func()) {
	return s.leaveOf(s.begun.take(sourceOf(source), s.bounds()))
}

func (s *Server) leaveOf(p *place) func() {
	if p == nil {
		return nil
	}
	return sync.OnceFunc(func() { s.begun.give(p, s.bounds()) })
}

// queue waits for a place. Who has left meanwhile gets none.
func (s *Server) queue(ctx context.Context, conn net.Conn) (leave func(), err error) {
	waited := false
	p, err := s.begun.wait(ctx, sourceOf(conn.RemoteAddr()), s.bounds(), func() error {
		waited = true
		return remind(conn)
	})
	if err != nil {
		return nil, err
	}
	leave = s.leaveOf(p)
	if tcp, _ := tcpBelow(conn); waited && tcp != nil && hungUp(tcp) {
		leave()
		return nil, errLeft
	}
	return leave, nil
}

// Greeted returns how many handshakes have begun so far, and whether one is under way now or waited for.
func (s *Server) Greeted() (n uint64, busy bool) {
	return s.greeted.Load(), s.begun.taken() > 0 || s.begun.queued() > 0
}

// Queued returns how many connections wait for a place now.
func (s *Server) Queued() int { return s.begun.queued() }

// ServeConn serves a TCP connection that begins with the tunnel's TLS: rungs tls, connect and socks5, which look alike
// from here. It returns when the connection has ended, or when a session has it, for which no goroutine waits here; ctx
// ends it.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if c := s.begin(ctx, conn, TLS); c != nil {
		context.AfterFunc(c.closed(), func() { stop() })
		return
	}
	stop()
}

// ServeVirtual serves a byte pipe of any rung below QUIC, such as a virtual connection of package groove. It returns when
// the pipe has ended.
func (s *Server) ServeVirtual(ctx context.Context, conn net.Conn, rung Rung) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s.begin(ctx, conn, rung).wait(ctx)
}

// begin serves a pipe, or returns the carrier that a session has.
func (s *Server) begin(ctx context.Context, conn net.Conn, rung Rung) *Carrier {
	leave, err := s.queue(ctx, conn)
	if err != nil {
		s.refuse(reasonOf(err), conn, err)
		return nil
	}
	defer leave()
	return s.serve(ctx, leave, func() (*Carrier, error) {
		secured, exact, err := s.handshake(ctx, conn)
		if err != nil {
			s.refuse(reasonTLS, conn, err)
			return nil, err
		}
		return &Carrier{Conn: newTLSPipe(secured, conn, exact), Rung: rung, Path: "direct", state: secured.ConnectionState(), tls: secured, exact: exact}, nil
	})
}

// closed ends when the relay's side of a carrier is closed.
func (c *Carrier) closed() context.Context {
	return c.Conn.(interface{ done() context.Context }).done()
}

// wait waits until a carrier, if there is one, is closed.
func (c *Carrier) wait(ctx context.Context) {
	if c == nil {
		return
	}
	select {
	case <-c.closed().Done():
	case <-ctx.Done():
	}
}

func (s *Server) handshake(ctx context.Context, conn net.Conn) (*tls.Conn, *recordConn, error) {
	ctx, cancel := context.WithTimeout(ctx, tlsTime)
	defer cancel()
	return secure(ctx, conn, s.TLS, 0)
}

// greeting is what a device has said first.
type greeting struct {
	c      *Carrier // nil: it was refused
	what   byte
	ticket [16]byte
}

// greet reads the preamble of the carrier that open opens.
func (s *Server) greet(open func() (*Carrier, error)) greeting {
	s.greeted.Add(1)
	c, err := open()
	if err != nil {
		return greeting{}
	}
	c.SetDeadline(time.Now().Add(preambleTime))
	what, ticket, err := readPreamble(c.Conn)
	if err != nil {
		s.refuse(reasonPreamble, c, err)
		return greeting{}
	}
	c.SetDeadline(time.Time{})
	if what != sayBulk && c.exact != nil {
		c.exact.loose.Store(true)
	}
	return greeting{c, what, ticket}
}

// serve greets a device, gives the place of enter back, and hands the carrier on; an enrolment has its place to its end. It
// returns the carrier that a session has.
func (s *Server) serve(ctx context.Context, leave func(), open func() (*Carrier, error)) *Carrier {
	// A handshake needs a deep stack, which would be kept as long as the carrier lives: a goroutine of its own takes it along.
	greeted := make(chan greeting, 1)
	go func() { greeted <- s.greet(open) }()
	g := <-greeted
	if g.what != sayEnrol { // who enrols itself is still a stranger
		leave()
	}
	c := g.c
	switch {
	case c == nil:
	case g.what == saySession && s.Session != nil:
		s.Session(ctx, c)
		return c
	case g.what == sayBulk && s.Bulk != nil:
		s.Bulk(ctx, c, g.ticket)
	case g.what == sayEnrol && s.Enrol != nil:
		s.Enrol(ctx, c)
	default:
		s.refuse(reasonService, c, errors.New("nobody takes "+string(rune(g.what))))
	}
	return nil
}

// HTTPServer returns a server for the fronts on ports 80 and 443, with limits that a slow or hostile client meets:
// 10 s for a header of at most 16 KiB, 60 s between requests. Handlers set the times for bodies themselves.
func HTTPServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 16 << 10}
}
