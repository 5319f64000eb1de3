package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"edged.dev/edged/internal/tproxy"
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
	var failed error
	err := c.Control(func(fd uintptr) { failed = tproxy.Tell(int(fd), network == "udp6") })
	return errors.Join(err, failed)
}

// ReadFrom implements [net.PacketConn].
func (c *foreignConn) ReadFrom(b []byte) (int, net.Addr, error) {
	var oob [128]byte
	n, some, _, from, err := c.ReadMsgUDPAddrPort(b, oob[:])
	if err != nil {
		return n, nil, err
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	called := tproxy.Called(oob[:some])
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
	n, _, err := c.WriteMsgUDPAddrPort(b, tproxy.From(called.Addr()), peer)
	return n, err
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
