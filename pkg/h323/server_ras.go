package h323

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/internal/gate"
	"edged.dev/edged/pkg/h323/gatekeeper"
	"edged.dev/edged/pkg/h323/rasrelay"
	"edged.dev/edged/pkg/pinhole"
)

// maxDatagram is the longest RAS message.
const maxDatagram = 8 << 10

// ServePacket takes RAS on pc, bound on the named network, until ctx ends.
func (s *Server) ServePacket(ctx context.Context, network string, pc net.PacketConn) error {
	s.mu.Lock()
	s.packets[network] = append(s.packets[network], pc)
	s.mu.Unlock()
	defer s.forget(network, pc)
	local := pinhole.AddrPortOf(pc.LocalAddr())
	return gate.Packets(ctx, pc, maxDatagram, func(from net.Addr, b []byte) {
		s.datagram(network, func(c *Core) (rasrelay.Datagram, bool) {
			return c.Datagram(time.Now(), network, local, pinhole.AddrPortOf(from), b)
		})
	})
}

// ServeDiscovery takes what endpoints of the named network send to the gatekeepers' multicast group, until ctx ends. It
// is answered from a socket of ServePacket.
func (s *Server) ServeDiscovery(ctx context.Context, network string, pc net.PacketConn) error {
	return gate.Packets(ctx, pc, maxDatagram, func(from net.Addr, b []byte) {
		s.datagram(network, func(c *Core) (rasrelay.Datagram, bool) {
			return c.Discover(time.Now(), network, pinhole.AddrPortOf(from), b)
		})
	})
}

// forget removes a RAS listener that has ended.
func (s *Server) forget(network string, pc net.PacketConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packets[network] = slices.DeleteFunc(s.packets[network], func(o net.PacketConn) bool { return o == pc })
}

// datagram has the core handle a RAS message, and sends what comes of it.
func (s *Server) datagram(network string, handle func(*Core) (rasrelay.Datagram, bool)) {
	var d rasrelay.Datagram
	var pc net.PacketConn
	s.do(func(c *Core, _ *Output) {
		var ok bool
		if d, ok = handle(c); ok {
			pc = s.packetLocked(d)
		}
	})
	if pc == nil {
		return
	}
	if _, err := pc.WriteTo(d.Data, net.UDPAddrFromAddrPort(d.To)); err != nil {
		s.log.Debug("RAS message not sent", zap.String("network", network), zap.Stringer("to", d.To), zap.Error(err))
	}
}

// packetLocked returns the socket for a datagram: the one that it names, or one of its network and family.
func (s *Server) packetLocked(d rasrelay.Datagram) net.PacketConn {
	for _, pc := range s.packets[d.Network] {
		at := pinhole.AddrPortOf(pc.LocalAddr())
		if at == d.Local || !d.Local.IsValid() && pinhole.FamilyOf(at.Addr()) == pinhole.FamilyOf(d.To.Addr()) {
			return pc
		}
	}
	return nil
}

// doorOf returns what speaks on the connections that come through a door.
func (s *Server) doorOf(networks [2]string) func(context.Context, [2]net.Conn, func(pinhole.Side, int)) {
	return func(ctx context.Context, conns [2]net.Conn, moved func(pinhole.Side, int)) {
		end := context.AfterFunc(ctx, func() {
			conns[0].Close()
			conns[1].Close()
		})
		defer end()
		var ids [2]ConnID
		var local, remote [2]netip.AddrPort
		var pair [2]*conn
		for i, c := range conns {
			local[i], remote[i] = pinhole.AddrPortOf(c.LocalAddr()), pinhole.AddrPortOf(c.RemoteAddr())
		}
		s.mu.Lock()
		if len(s.conns)+len(conns) > maxConns || s.ctx.Err() != nil {
			s.core.counts.drop(refusedLimit)
			s.mu.Unlock()
			return
		}
		for i := range conns {
			s.last++
			ids[i] = s.last
			pair[i] = s.addLocked(s.last)
		}
		s.core.Entered(time.Now(), ids, networks, local, remote)
		s.mu.Unlock()
		var both sync.WaitGroup
		both.Go(func() { s.drive(pair[pinhole.Far], heard(conns, pinhole.Far, moved)) })
		s.drive(pair[pinhole.Near], heard(conns, pinhole.Near, moved))
		both.Wait()
	}
}

// heardConn tells the pinhole of what it reads, which keeps that from being idle.
type heardConn struct {
	*net.TCPConn
	moved func(int)
}

// Read implements net.Conn.
func (c heardConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.moved(n)
	return n, err
}

func heard(conns [2]net.Conn, side pinhole.Side, moved func(pinhole.Side, int)) net.Conn {
	t, ok := conns[side].(*net.TCPConn)
	if !ok {
		return conns[side]
	}
	return heardConn{t, func(n int) { moved(side, n) }}
}

// Registrations lists the endpoints that are registered, with the built-in gatekeeper or by way of the edge, in no
// order.
func (s *Server) Registrations() []gatekeeper.Registration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.registrations()
}

func (c *Core) registrations() []gatekeeper.Registration {
	switch {
	case c.outer != nil:
		return c.outer.Registrations()
	case c.gatekeeper != nil:
		return c.gatekeeper.Registrations()
	}
	return nil
}
