package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// foreignConn is a transparent socket of UDP, to which datagrams for others are handed. Their senders are
// [pinhole.CalledAddr], and what is sent to one that has last asked somebody else comes from that one's address, so that it
// hears whom it has called.
type foreignConn struct {
	*net.UDPConn
	own netip.AddrPort
	mu  sync.Mutex
	// called says whom peers have last called, those of late; before has those of earlier.
	called, before map[netip.AddrPort]netip.AddrPort
}

// remembered bounds the peers of each of a socket's two maps.
const remembered = 4096

// listenForeign opens a transparent socket of a section of the configuration.
func (h *handedSockets) listenForeign(ctx context.Context, section string, at netip.AddrPort) (net.PacketConn, error) {
	pc, err := h.listenUDP(ctx, section, at, &net.ListenConfig{Control: setForeign})
	if err != nil {
		return nil, err
	}
	udp, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no socket of UDP", pc), pc.Close())
	}
	return &foreignConn{UDPConn: udp, own: at, called: map[netip.AddrPort]netip.AddrPort{}}, nil
}

// setForeign is setTransparent for sockets of UDP that want to know whom datagrams were for.
func setForeign(network, address string, c syscall.RawConn) error {
	if err := setTransparent(network, address, c); err != nil {
		return err
	}
	level, option := unix.SOL_IP, unix.IP_RECVORIGDSTADDR
	if network == "udp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(err, os.NewSyscallError("setsockopt IP_RECVORIGDSTADDR", failed))
}

// ReadFrom implements [net.PacketConn].
func (c *foreignConn) ReadFrom(b []byte) (int, net.Addr, error) {
	var oob [128]byte
	n, some, _, from, err := c.ReadMsgUDPAddrPort(b, oob[:])
	if err != nil {
		return n, nil, err
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	called := originalDestination(oob[:some])
	if called == c.own {
		called = netip.AddrPort{}
	}
	c.remember(from, called)
	udp := net.UDPAddrFromAddrPort(from)
	if !called.IsValid() {
		return n, udp, nil
	}
	return n, pinhole.CalledAddr{UDPAddr: udp, Called: called}, nil
}

// remember notes whom a peer has called; not valid: the edge.
func (c *foreignConn) remember(peer, called netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !called.IsValid() {
		delete(c.called, peer)
		delete(c.before, peer)
		return
	}
	if _, known := c.called[peer]; !known && len(c.called) >= remembered {
		c.before, c.called = c.called, map[netip.AddrPort]netip.AddrPort{}
	}
	c.called[peer] = called
}

// calledBy returns whom a peer has last called; not valid: the edge, or unknown.
func (c *foreignConn) calledBy(peer netip.AddrPort) netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if called, ok := c.called[peer]; ok {
		return called
	}
	return c.before[peer]
}

// WriteTo implements [net.PacketConn].
func (c *foreignConn) WriteTo(b []byte, to net.Addr) (int, error) {
	peer, called := pinhole.AddrPortOf(to), pinhole.CalledOf(to)
	if !called.IsValid() {
		called = c.calledBy(peer)
	}
	var from []byte
	switch a := called.Addr(); {
	case a.Is4():
		from = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
	case a.Is6():
		from = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
	}
	n, _, err := c.WriteMsgUDPAddrPort(b, from, peer)
	return n, err
}

// originalDestination returns whom a datagram was for, from its ancillary data (ip(7), IP_RECVORIGDSTADDR).
func originalDestination(oob []byte) netip.AddrPort {
	for len(oob) >= unix.SizeofCmsghdr {
		head, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case head.Level == unix.SOL_IP && head.Type == unix.IP_ORIGDSTADDR && len(data) >= 8:
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[4:])), binary.BigEndian.Uint16(data[2:]))
		case head.Level == unix.SOL_IPV6 && head.Type == unix.IPV6_ORIGDSTADDR && len(data) >= 24:
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(data[8:])).Unmap(), binary.BigEndian.Uint16(data[2:]))
		}
		oob = rest
	}
	return netip.AddrPort{}
}

// listenAnyone opens a UDP socket at an address that need not be the edge's: packets for it come by the rules for answers
// (docs/firewall.md).
func listenAnyone(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
	return (&net.ListenConfig{Control: setTransparent}).ListenPacket(ctx, "udp", at.String())
}

// dialAs connects to a host from the address of another one, at any port.
func dialAs(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Control: setTransparent}
	return d.DialContext(ctx, "tcp", to.String())
}
