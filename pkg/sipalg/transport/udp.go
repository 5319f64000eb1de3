package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/internal/tproxy"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// datagramMax is more than a UDP payload can have, so that nothing is cut off unseen.
const datagramMax = 65536

// socketBuffer is asked for in each direction: a second of messages from a registration storm.
const socketBuffer = 4 << 20

type sockKey struct {
	network string
	local   netip.AddrPort
}

// packetSock is a UDP socket that is served.
type packetSock struct {
	network string
	addrs   []netip.AddrPort
	pc      net.PacketConn
	raw     syscall.RawConn // nil if pc is no UDP socket of the system
	v6      bool            // the socket's own family
	foreign bool            // it takes, and sends from, addresses of others (IP_TRANSPARENT)
	ops     sync.Pool       // *sendOp
}

// ServePacket reads SIP messages from pc until ctx ends; then it closes pc and returns nil. One
// goroutine reads, so that messages of one source stay in order: more throughput takes several
// sockets with SO_REUSEPORT, each with its own call. An error of the socket (such as an ICMP error
// of some peer) does not stop it; only closing does.
func (t *Transport) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	s := &packetSock{network: network, pc: pc, addrs: t.addresses(network, pc.LocalAddr())}
	udp, _ := pc.(*net.UDPConn)
	if udp != nil {
		s.tune(udp, t.cfg.Load().Dscp)
	}
	t.addSock(s)
	stop := context.AfterFunc(ctx, func() { pc.Close() })
	defer func() {
		stop()
		pc.Close()
		t.removeSock(s)
	}()
	err := t.readPackets(ctx, s, s.reader(udp))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve udp %v: %w", pc.LocalAddr(), err)
}

// datagramReader reads one datagram: its length, its source, and whom it was for if that is not the socket's own address.
type datagramReader func(b []byte) (n int, src, called netip.AddrPort, err error)

// reader returns the fastest way to read the socket; those for UDP sockets do not allocate.
func (s *packetSock) reader(udp *net.UDPConn) datagramReader {
	switch {
	case s.foreign:
		return s.foreignReader(udp)
	case udp != nil:
		return func(b []byte) (n int, src, called netip.AddrPort, err error) {
			n, src, err = udp.ReadFromUDPAddrPort(b)
			return n, src, called, err
		}
	}
	return func(b []byte) (n int, src, called netip.AddrPort, err error) {
		n, a, err := s.pc.ReadFrom(b)
		return n, pinhole.AddrPortOf(a), called, err
	}
}

func (t *Transport) readPackets(ctx context.Context, s *packetSock, read datagramReader) error {
	buf := make([]byte, datagramMax)
	var wait backoff
	for {
		n, src, called, err := read(buf)
		switch {
		case err == nil:
			wait.reset()
			t.packet(s, buf[:n], netip.AddrPortFrom(src.Addr().Unmap(), src.Port()), called)
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			t.log.Debug("udp read", zap.String("network", s.network), zap.Error(err))
			if !wait.pause(ctx) {
				return ctx.Err()
			}
		}
	}
}

// packet handles one datagram; called is valid if it was for somebody else.
func (t *Transport) packet(s *packetSock, b []byte, src, called netip.AddrPort) {
	f := flow.Flow{Network: s.network, Proto: flow.UDP, Local: s.localFor(src.Addr()), Remote: src, Called: called}
	switch {
	case len(b) > t.cfg.Load().MaxMessage:
		t.count.drop(oversize)
	case isSTUN(b):
		var room [128]byte
		answer, ok := appendSTUN(room[:0], b, src)
		if !ok {
			t.count.drop(badSTUN)
		} else if len(answer) > 0 {
			_ = t.writePacket(s, answer, src, called.Addr()) // counted there; the asker tries again
		}
	case blank(b):
		t.count.drop(emptyDatagram)
	default:
		t.count.received(flow.UDP)
		t.h.Receive(f, b)
	}
}

// blank tells whether b is one of the things that phones send to keep a NAT open: CRLF, CRLFCRLF, NULs, nothing.
func blank(b []byte) bool {
	for _, c := range b {
		if c != '\r' && c != '\n' && c != 0 {
			return false
		}
	}
	return true
}

func (s *packetSock) localFor(a netip.Addr) netip.AddrPort {
	for _, l := range s.addrs {
		if l.Addr().Is4() == a.Is4() {
			return l
		}
	}
	return s.addrs[0]
}

func (t *Transport) addSock(s *packetSock) {
	t.mu.Lock()
	for _, a := range s.addrs {
		k := sockKey{s.network, a}
		t.socks[k] = append(t.socks[k], s)
	}
	t.mu.Unlock()
	t.listen(s.network, flow.UDP, s.addrs, s)
}

func (t *Transport) removeSock(s *packetSock) {
	t.mu.Lock()
	for _, a := range s.addrs {
		k := sockKey{s.network, a}
		var kept []*packetSock
		for _, other := range t.socks[k] {
			if other != s {
				kept = append(kept, other)
			}
		}
		if t.socks[k] = kept; kept == nil {
			delete(t.socks, k)
		}
	}
	t.mu.Unlock()
	t.unlisten(s)
}

// sendPacket writes a message from the listener with the flow's local address.
func (t *Transport) sendPacket(f flow.Flow, raw []byte) error {
	t.mu.RLock()
	list := t.socks[sockKey{f.Network, f.Local}]
	t.mu.RUnlock()
	if len(list) == 0 {
		return ErrGone
	}
	err := t.writePacket(list[0], raw, f.Remote, f.Called.Addr())
	if err == nil {
		t.count.sent(flow.UDP)
	}
	return err
}

// sendToPacket is SendTo for UDP.
func (t *Transport) sendToPacket(tg flow.Target, raw []byte) (flow.Flow, error) {
	addr := netip.AddrPortFrom(tg.Addr.Addr().Unmap(), tg.Addr.Port())
	f := flow.Flow{Network: tg.Network, Proto: flow.UDP, Remote: addr}
	var ok bool
	if f.Local, ok = t.LocalFor(tg.Network, flow.UDP, pinhole.FamilyOf(addr.Addr())); !ok {
		return f, fmt.Errorf("udp from %s to %v: %w", tg.Network, addr, ErrNoListener)
	}
	return f, t.sendPacket(f, raw)
}

func (t *Transport) writePacket(s *packetSock, b []byte, to netip.AddrPort, from netip.Addr) error {
	err := s.write(b, to, from)
	if err != nil {
		t.count.drop(sendFailed)
		return fmt.Errorf("send to %v: %w", to, err)
	}
	return nil
}

// write does not wait for room in the socket's buffer. That matters: datagrams for a dead host on
// the link wait there for ARP, and would hold up those for all others. from is the source's address where that is not the
// socket's own; a socket that may not use it uses its own.
func (s *packetSock) write(b []byte, to netip.AddrPort, from netip.Addr) error {
	if s.raw == nil || to.Addr().Zone() != "" {
		_, err := s.pc.WriteTo(b, net.UDPAddrFromAddrPort(to))
		return err
	}
	op, _ := s.ops.Get().(*sendOp)
	if op == nil {
		op = &sendOp{}
		op.run = op.send // bound once: a method value allocates
	}
	defer s.ops.Put(op)
	op.b, op.v6, op.oob = b, s.v6, nil
	if s.foreign && from.IsValid() {
		op.oob = tproxy.From(from)
	}
	op.sa4.Port, op.sa6.Port = int(to.Port()), int(to.Port())
	if s.v6 {
		op.sa6.Addr = to.Addr().As16()
	} else if to.Addr().Is4() {
		op.sa4.Addr = to.Addr().As4()
	} else {
		return unix.EAFNOSUPPORT
	}
	err := s.raw.Write(op.run)
	op.b, op.oob = nil, nil
	if err == nil {
		err = op.err
	}
	return err
}

// sendOp is one sendto(2), kept for reuse so that sending does not allocate.
type sendOp struct {
	b   []byte
	oob []byte // the source's address, if it is not the socket's own
	v6  bool
	sa4 unix.SockaddrInet4
	sa6 unix.SockaddrInet6
	err error
	run func(fd uintptr) bool
}

func (o *sendOp) send(fd uintptr) bool {
	var to unix.Sockaddr = &o.sa4
	if o.v6 {
		to = &o.sa6
	}
	for {
		if o.oob == nil {
			o.err = unix.Sendto(int(fd), o.b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to)
		} else {
			o.err = unix.Sendmsg(int(fd), o.b, o.oob, to, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		if !errors.Is(o.err, unix.EINTR) {
			return true
		}
	}
}

// tune enlarges the buffers as far as the system allows, marks what is sent, and learns the socket's family.
func (s *packetSock) tune(udp *net.UDPConn, dscp int) {
	udp.SetReadBuffer(socketBuffer)
	udp.SetWriteBuffer(socketBuffer)
	raw, err := udp.SyscallConn()
	if err != nil {
		return
	}
	ctlErr := raw.Control(func(fd uintptr) {
		// Beyond the system's maximum, where the edge has the privilege.
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		sa, nameErr := unix.Getsockname(int(fd))
		_, s.v6 = sa.(*unix.SockaddrInet6)
		err = nameErr
		s.foreign = takesForeign(int(fd), s.v6)
	})
	if ctlErr == nil && err == nil {
		s.raw = raw
	}
	s.foreign = s.foreign && s.raw != nil
	markDSCP(udp, dscp)
}

// markDSCP sets the DSCP of what a socket sends, for both families where the socket has both.
func markDSCP(sc syscall.Conn, dscp int) {
	raw, err := sc.SyscallConn()
	if err != nil || dscp == 0 {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, dscp<<2)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscp<<2)
	})
}

// backoff paces the repetition of what keeps failing: at once, then 5 ms doubling to 1 s.
type backoff struct{ next time.Duration }

func (b *backoff) reset() { b.next = 0 }

// pause returns false if ctx ended meanwhile.
func (b *backoff) pause(ctx context.Context) bool {
	d := b.next
	b.next = min(max(2*d, 5*time.Millisecond), time.Second)
	if d == 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
