package main

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tftp/rfc1350"
)

// buildTrivial builds the relay of TFTP on UDP 69.
func buildTrivial(ctx context.Context, d *serviceDeps) (*service, error) {
	nets, c := d.cfg.networks(), d.cfg.TFTP
	relay, err := rfc1350.New(c.Trivial, rfc1350.Deps{
		Networks: nets, RouteTo: newRouteTable(nets).network, MaxSize: int64(c.MaxSize),
		ListenPacket: func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
			if c.Trivial.Transparent && !nets.Own(at.Addr()) && !at.Addr().IsUnspecified() {
				pc, err := listenAnyone(ctx, at)
				if err != nil {
					return nil, err
				}
				return d.bans.PacketConn(pc), nil
			}
			pc, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
			if err != nil {
				return nil, err
			}
			if d.pinholes != nil {
				pc = newPinholeConn(d, pc)
			}
			return d.bans.PacketConn(pc), nil
		},
	}, d.log.Named("tftp.trivial"))
	if err != nil {
		return nil, err
	}
	socks, err := d.handed.bindForeign(ctx, "tftp.trivial.listen[%d]", c.Trivial.Listen, nets, c.Trivial.Transparent)
	if err != nil {
		return nil, err
	}
	socks.guard(d.bans, true)
	d.reg.MustRegister(relay.Collector())
	return &service{
		serve: servePackets(socks, relay.ServePacket),
		alive: func() { relay.Open() },
		reload: func(c *config) error {
			relay.SetMaxSize(int64(c.TFTP.MaxSize))
			return nil
		},
		drain: relay.Drain,
		busy:  relay.Open,
		status: func() any {
			return map[string]any{"transfers": relay.Open(), "listeners": socks.names()}
		},
	}, nil
}

// pinholeConn is a socket of a transfer, of which the firewall knows while it is open: a server answers from another port than
// the one that was asked, and so is a stranger to connection tracking.
type pinholeConn struct {
	net.PacketConn
	close func()
}

func newPinholeConn(d *serviceDeps, pc net.PacketConn) *pinholeConn {
	at := pinhole.AddrPortOf(pc.LocalAddr())
	d.watchPorts(false, at, true)
	return &pinholeConn{pc, sync.OnceFunc(func() { d.watchPorts(false, at, false) })}
}

// Close implements [net.PacketConn].
func (c *pinholeConn) Close() error {
	c.close()
	return c.PacketConn.Close()
}
