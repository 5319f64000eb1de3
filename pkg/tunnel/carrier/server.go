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

	"edged.dev/edged/pkg/pinhole"
)

const (
	tlsTime      = 10 * time.Second // for the tunnel's TLS handshake
	preambleTime = 30 * time.Second // for the probes and the preamble
	defaultOpen  = 1024             // connections that are not yet past the preamble
)

// Server is the relay's side of the rungs. It listens nowhere; connections are given to it. Set the fields before
// first use; a func that is nil refuses what it is for.
type Server struct {
	// TLS is the tunnel's: it demands the device's certificate.
	TLS *tls.Config
	// Session, Bulk and Enrol take carriers over, and close them. A Session may return before: what served the connection
	// waits until it is closed, since a session goes on with other carriers. They are called concurrently. PeerState of the
	// carrier says who it is.
	Session func(context.Context, *Carrier)
	Bulk    func(context.Context, *Carrier, [16]byte)
	Enrol   func(context.Context, *Carrier)
	// Handshakes bounds the connections that are not yet past the preamble, on all rungs together; 0: 1024. One address (of
	// IPv6: a network of 64 bits) may have half of them, so that it does not keep all others out.
	Handshakes int
	Log        *zap.Logger

	begun   places
	counted [reasonCount]atomic.Uint64
}

// Why a server let a connection go.
const (
	reasonFull = iota
	reasonTLS
	reasonPreamble
	reasonService
	reasonUpgrade
	reasonCount
)

func reasonName(reason int) string {
	return [reasonCount]string{reasonFull: "full", reasonTLS: "tls", reasonPreamble: "preamble", reasonService: "service", reasonUpgrade: "upgrade"}[reason]
}

// Refused returns how many connections were let go, by reason: full (too many at once), tls (the tunnel's handshake),
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

// enter takes one of the places for connections that have not yet said what they want. leave gives it back, once; it is
// nil if there is none.
func (s *Server) enter(source net.Addr) (leave func()) {
	limit := s.Handshakes
	if limit == 0 {
		limit = defaultOpen
	}
	from := sourceOf(source)
	if !s.begun.take(from, limit) {
		return nil
	}
	return sync.OnceFunc(func() { s.begun.give(from) })
}

// places counts who is in. The zero value is nobody.
type places struct {
	mu      sync.Mutex
	all     int
	sources map[netip.Prefix]int
}

func (p *places) take(from netip.Prefix, limit int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= limit || from.IsValid() && p.sources[from] >= max(limit/2, 1) {
		return false
	}
	if p.sources == nil {
		p.sources = map[netip.Prefix]int{}
	}
	p.all++
	p.sources[from]++
	return true
}

func (p *places) give(from netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if p.sources[from]--; p.sources[from] == 0 {
		delete(p.sources, from)
	}
}

func (p *places) taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}

// sourceOf returns what one site may have for itself; the zero value where there is no address.
func sourceOf(a net.Addr) netip.Prefix {
	bits := 32
	at := pinhole.AddrPortOf(a).Addr().Unmap().WithZone("")
	if at.Is6() {
		bits = 64
	}
	p, err := at.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

var errFull = errors.New("too many handshakes at once")

// ServeConn serves a TCP connection that begins with the tunnel's TLS: rungs tls, connect and socks5, which look alike
// from here. It returns when the connection has ended; ctx ends it.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) { s.ServeVirtual(ctx, conn, TLS) }

// ServeVirtual serves a byte pipe of any rung below QUIC, such as a virtual connection of package groove.
func (s *Server) ServeVirtual(ctx context.Context, conn net.Conn, rung Rung) {
	leave := s.enter(conn.RemoteAddr())
	if leave == nil {
		s.refuse(reasonFull, conn, errFull)
		return
	}
	defer leave()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	secured, exact, err := s.handshake(ctx, conn)
	if err != nil {
		s.refuse(reasonTLS, conn, err)
		return
	}
	c := &Carrier{Conn: newTLSPipe(secured, conn, exact), Rung: rung, Path: "direct", state: secured.ConnectionState(), tls: secured, exact: exact}
	s.serve(ctx, c, leave)
}

func (s *Server) handshake(ctx context.Context, conn net.Conn) (*tls.Conn, *recordConn, error) {
	ctx, cancel := context.WithTimeout(ctx, tlsTime)
	defer cancel()
	return secure(ctx, conn, s.TLS, false)
}

// serve reads the preamble, gives the place of enter back, and hands the carrier on; an enrolment has its place to its end.
func (s *Server) serve(ctx context.Context, c *Carrier, leave func()) {
	c.SetDeadline(time.Now().Add(preambleTime))
	what, ticket, err := readPreamble(c.Conn)
	if what != sayEnrol { // who enrols itself is still a stranger
		leave()
	}
	if err != nil {
		s.refuse(reasonPreamble, c, err)
		return
	}
	c.SetDeadline(time.Time{})
	if what != sayBulk && c.exact != nil {
		c.exact.loose.Store(true)
	}
	switch {
	case what == saySession && s.Session != nil:
		s.Session(ctx, c)
		select {
		case <-c.Conn.(interface{ done() <-chan struct{} }).done():
		case <-ctx.Done():
		}
	case what == sayBulk && s.Bulk != nil:
		s.Bulk(ctx, c, ticket)
	case what == sayEnrol && s.Enrol != nil:
		s.Enrol(ctx, c)
	default:
		s.refuse(reasonService, c, errors.New("nobody takes "+string(rune(what))))
	}
}

// HTTPServer returns a server for the fronts on ports 80 and 443, with limits that a slow or hostile client meets:
// 10 s for a header of at most 16 KiB, 60 s between requests. Handlers set the times for bodies themselves.
func HTTPServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 16 << 10}
}
