package turn

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// maxDatagram is the longest UDP payload.
const maxDatagram = 64 << 10

// packetFront is a UDP socket of clients as pion sees it: it reads from it what the guard has composed.
type packetFront struct {
	session
	ep    *endpoint
	conn  net.PacketConn
	local netip.AddrPort
	// dialect is asked first, see [Deps]; nil: there is none.
	dialect func(front net.PacketConn, from netip.AddrPort, datagram []byte) bool
	once    sync.Once
	ended   chan struct{} // closed when pion reads no more
	octet   [maxDatagram]byte
}

func newPacketFront(ep *endpoint, conn net.PacketConn) *packetFront {
	return &packetFront{ep: ep, conn: conn, local: pinhole.AddrPortOf(conn.LocalAddr()), dialect: ep.s.deps.Dialect, ended: make(chan struct{})}
}

// ReadFrom handles datagrams until there is a request for pion. Only pion's one reader of this socket calls it.
func (f *packetFront) ReadFrom(p []byte) (int, net.Addr, error) {
	f.settle()
	if b := f.ep.probe(&f.session); b != nil {
		return copy(p, b), net.UDPAddrFromAddrPort(f.local), nil
	}
	for {
		n, from, err := f.conn.ReadFrom(f.octet[:])
		if errors.Is(err, net.ErrClosed) {
			f.once.Do(func() { close(f.ended) })
			return 0, nil, err
		}
		if err != nil {
			continue // an ICMP error about an earlier datagram
		}
		if b := f.datagram(pinhole.AddrPortOf(from), f.octet[:n]); b != nil {
			return copy(p, b), from, nil
		}
	}
}

// datagram handles what a client has sent; what it returns is for pion. The first two bits tell (RFC 8656 §12.4, RFC 7983).
func (f *packetFront) datagram(from netip.AddrPort, b []byte) []byte {
	s := f.ep.s
	o := origin{tuple: tuple{client: from, local: f.local}, ep: f.ep, to: f}
	switch {
	case from.Port() == 0:
		s.count.drop("no_port")
	case s.deps.Deny != nil && s.deps.Deny.Addr(from.Addr()):
		s.count.drop("banned")
	case f.dialect != nil && f.dialect(f.conn, from, b):
	case len(b) >= channelHead && b[0]>>6 == 1 && len(b) >= channelHead+int(binary.BigEndian.Uint16(b[2:])):
		s.fromChannel(o, b)
	case isSTUN(b):
		return s.control(o, b, &f.session)
	default:
		s.count.drop("not_stun")
	}
	return nil
}

// WriteTo sends pion's answers, amended, except those to the guard's own questions.
func (f *packetFront) WriteTo(b []byte, to net.Addr) (int, error) {
	if f.ep.probed(&f.session, b) {
		return len(b), nil
	}
	client := pinhole.AddrPortOf(to)
	_, err := f.conn.WriteTo(f.ep.s.amend(tuple{client: client, local: f.local}, b), to)
	return len(b), err
}

// reply implements [replier].
func (f *packetFront) reply(to netip.AddrPort, frame []byte) error {
	_, err := f.conn.WriteTo(frame, net.UDPAddrFromAddrPort(to))
	return err
}

// LocalAddr implements [net.PacketConn].
func (f *packetFront) LocalAddr() net.Addr { return f.conn.LocalAddr() }

// Close implements [net.PacketConn].
func (f *packetFront) Close() error { return f.conn.Close() }

// SetDeadline implements [net.PacketConn].
func (f *packetFront) SetDeadline(t time.Time) error { return f.conn.SetDeadline(t) }

// SetReadDeadline implements [net.PacketConn].
func (f *packetFront) SetReadDeadline(t time.Time) error { return f.conn.SetReadDeadline(t) }

// SetWriteDeadline implements [net.PacketConn].
func (f *packetFront) SetWriteDeadline(t time.Time) error { return f.conn.SetWriteDeadline(t) }
