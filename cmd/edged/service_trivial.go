package main

import (
	"context"
	"net"
	"net/netip"

	"edged.dev/edged/pkg/tftp/rfc1350"
)

// buildTrivial builds the relay of TFTP on UDP 69.
func buildTrivial(ctx context.Context, d *serviceDeps) (*service, error) {
	nets, c := d.cfg.networks(), d.cfg.TFTP
	relay, err := rfc1350.New(c.Trivial, rfc1350.Deps{
		Networks: nets, RouteTo: newRouteTable(nets).network, MaxSize: int64(c.MaxSize),
		ListenPacket: func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
			if c.Trivial.Transparent && !nets.Own(at.Addr()) && !at.Addr().IsUnspecified() {
				return listenAnyone(ctx, at)
			}
			return (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
		},
	}, d.log.Named("tftp.trivial"))
	if err != nil {
		return nil, err
	}
	socks, err := d.handed.bindForeign(ctx, "tftp.trivial.listen[%d]", c.Trivial.Listen, nets, c.Trivial.Transparent)
	if err != nil {
		return nil, err
	}
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
