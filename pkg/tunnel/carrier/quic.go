package carrier

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"edged.dev/edged/pkg/pinhole"
)

const (
	quicIdle   = 60 * time.Second       // without any packet; sessions ping more often
	quicLinger = 500 * time.Millisecond // for what was written last to arrive, after Close
)

func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout: tlsTime / 2, MaxIdleTimeout: quicIdle, EnableDatagrams: true,
		InitialStreamReceiveWindow: 1 << 20, MaxStreamReceiveWindow: 16 << 20,
		InitialConnectionReceiveWindow: 1 << 20, MaxConnectionReceiveWindow: 16 << 20,
		MaxIncomingStreams: 1, MaxIncomingUniStreams: -1,
	}
}

// quicConn is the one stream of a QUIC connection as a net.Conn, with the connection's datagrams (RFC 9221).
type quicConn struct {
	*quic.Stream
	conn  *quic.Conn
	below func() // ends what the connection was made on; nil at the relay
	ended sync.Once
	closing
}

func (c *quicConn) LocalAddr() net.Addr  { return c.conn.LocalAddr() }
func (c *quicConn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SendDatagram sends one datagram, which may be lost. One that is too large for the path is an error.
func (c *quicConn) SendDatagram(b []byte) error { return c.conn.SendDatagram(b) }

// ReceiveDatagram waits for the next datagram.
func (c *quicConn) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	return c.conn.ReceiveDatagram(ctx)
}

// Close ends both directions at once for the caller; what was written still has a moment to arrive.
func (c *quicConn) Close() error {
	c.mark()
	c.ended.Do(func() {
		c.Stream.CancelRead(0)
		_ = c.Stream.Close()
		c.Stream.SetWriteDeadline(time.Unix(1, 0))
		time.AfterFunc(quicLinger, func() {
			_ = c.conn.CloseWithError(0, "")
			if c.below != nil {
				c.below()
			}
		})
	})
	return nil
}

// dialQUIC connects to the relay. It sees nothing of the stream before the preamble.
func (d *Dialer) dialQUIC(ctx context.Context) (*quicConn, time.Duration, error) {
	address := d.quicAddress()
	to, err := net.DefaultResolver.LookupNetIP(ctx, "ip", hostOf(address))
	if err != nil {
		return nil, 0, err
	}
	udp, err := net.ResolveUDPAddr("udp", net.JoinHostPort(to[0].Unmap().String(), portOf(address)))
	if err != nil {
		return nil, 0, err
	}
	open := d.UDP
	if open == nil {
		open = func(ctx context.Context) (net.PacketConn, error) {
			return new(net.ListenConfig).ListenPacket(ctx, "udp", ":0")
		}
	}
	pc, err := open(ctx)
	if err != nil {
		return nil, 0, err
	}
	transport := &quic.Transport{Conn: pc}
	below := func() {
		_ = transport.Close()
		pc.Close()
	}
	conn, err := transport.Dial(ctx, udp, d.TLS, quicConfig())
	if err != nil {
		below()
		return nil, 0, fmt.Errorf("quic: %w", err)
	}
	stream, err := conn.OpenStream()
	if err != nil {
		_ = conn.CloseWithError(0, "")
		below()
		return nil, 0, fmt.Errorf("quic: %w", err)
	}
	return &quicConn{Stream: stream, conn: conn, below: below, closing: newClosing()}, conn.ConnectionStats().MinRTT, nil
}

// ServeQUIC serves rung quic on pc until ctx ends; then it closes pc and waits for what it serves.
func (s *Server) ServeQUIC(ctx context.Context, pc net.PacketConn) error {
	defer pc.Close()
	transport := &quic.Transport{Conn: pc, VerifySourceAddress: s.crowded, ConnContext: s.arrived}
	defer func() { _ = transport.Close() }()
	l, err := transport.Listen(s.TLS, quicConfig())
	if err != nil {
		return fmt.Errorf("quic: %w", err)
	}
	defer func() { _ = l.Close() }()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, quic.ErrServerClosed):
			return err
		case err != nil:
			return fmt.Errorf("quic: %w", err)
		}
		wg.Go(func() { s.serveQUIC(ctx, conn) })
	}
}

// crowded makes strangers prove their address by a further turn while many handshakes are under way (RFC 9000 §8.1.2).
func (s *Server) crowded(net.Addr) bool { return s.begun.taken() >= crowd }

const crowd = 64 // handshakes at once, on all rungs

// leaveKey is that of a connection's place in its context.
type leaveKey struct{}

// arrived gives a connection its place before its first packet has cost more than being read; it has it until its preamble
// has come, or until it has ended. ctx is the connection's.
func (s *Server) arrived(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	if s.denies(info.RemoteAddr) {
		return nil, errDenied
	}
	leave := s.enter(info.RemoteAddr)
	if leave == nil {
		s.counted[reasonFull].Add(1)
		return nil, errFull
	}
	context.AfterFunc(ctx, leave)
	return context.WithValue(ctx, leaveKey{}, leave), nil
}

// errDenied says that an address is shut out.
var errDenied = errors.New("the address is shut out")

func (s *Server) denies(a net.Addr) bool {
	return s.Deny != nil && s.Deny(pinhole.AddrPortOf(a).Addr().Unmap())
}

// conns are the connections of QUIC that are past their handshakes.
type conns struct {
	mu   sync.Mutex // guards what follows
	open map[*quic.Conn]struct{}
}

func (o *conns) add(c *quic.Conn) (remove func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.open == nil {
		o.open = map[*quic.Conn]struct{}{}
	}
	o.open[c] = struct{}{}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.open, c)
	}
}

// Expel ends the connections of QUIC whose addresses are shut out, and returns how many there were. A session is not
// ended by that: it may go on from elsewhere.
func (s *Server) Expel(shutOut func(netip.Addr) bool) int {
	var gone []*quic.Conn
	s.overUDP.mu.Lock()
	for c := range s.overUDP.open {
		if shutOut(pinhole.AddrPortOf(c.RemoteAddr()).Addr().Unmap()) {
			gone = append(gone, c)
		}
	}
	s.overUDP.mu.Unlock()
	for _, c := range gone {
		_ = c.CloseWithError(0, "")
	}
	return len(gone)
}

func (s *Server) serveQUIC(ctx context.Context, conn *quic.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWithError(0, "") })
	defer stop()
	defer s.overUDP.add(conn)()
	leave, ok := conn.Context().Value(leaveKey{}).(func())
	if !ok || s.denies(conn.RemoteAddr()) { // it may have been shut out since it arrived
		_ = conn.CloseWithError(0, "")
		return
	}
	defer leave()
	first, cancel := context.WithTimeout(ctx, tlsTime)
	stream, err := conn.AcceptStream(first)
	cancel()
	if err != nil {
		s.counted[reasonPreamble].Add(1)
		_ = conn.CloseWithError(0, "")
		return
	}
	c := &quicConn{Stream: stream, conn: conn, closing: newClosing()}
	s.serve(ctx, leave, func() (*Carrier, error) {
		return &Carrier{Conn: c, Rung: QUIC, Path: "direct", state: conn.ConnectionState().TLS}, nil
	}).wait(ctx)
}

func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
