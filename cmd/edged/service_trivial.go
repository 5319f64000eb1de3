package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/tftp/rfc1350"
)

// buildTrivial builds the relay of TFTP on UDP 69.
func buildTrivial(ctx context.Context, d *serviceDeps) (*service, error) {
	nets, c := d.cfg.networks(), d.cfg.TFTP
	relay, err := rfc1350.New(c.Trivial, rfc1350.Deps{
		Networks: nets, RouteTo: newRouteTable(nets).network, MaxSize: int64(c.MaxSize),
		ListenPacket: func(ctx context.Context, at netip.AddrPort) (net.PacketConn, error) {
			return (&net.ListenConfig{}).ListenPacket(ctx, "udp", at.String())
		},
	}, d.log.Named("tftp.trivial"))
	if err != nil {
		return nil, err
	}
	socks, err := openPackets(ctx, "tftp.trivial.listen", c.Trivial.Listen, nets)
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
			return map[string]any{"transfers": relay.Open(), "listeners": packetNames(socks)}
		},
	}, nil
}

// packetNames returns the addresses of the sockets, for the status.
func packetNames(socks []packetSocket) []string {
	names := make([]string, len(socks))
	for i, s := range socks {
		names[i] = "udp://" + s.pc.LocalAddr().String()
	}
	return names
}

// validateTrivial adds what concerns other sections: UDP ports that are taken.
func (c *config) validateTrivial(l *faultList) {
	*l = append(*l, sectionFaults("tftp.trivial", c.TFTP.Trivial.Validate(c.networks()))...)
	taken := map[pinhole.Listen]string{}
	for i, ln := range c.SIP.Listen {
		if ln.Proto == flow.UDP {
			taken[pinhole.Listen{Proto: "udp", Network: ln.Network, Port: ln.Port}] = fmt.Sprintf("sip.listen[%d]", i)
		}
	}
	for i, ln := range c.H323.RAS {
		taken[ln] = fmt.Sprintf("h323.ras[%d]", i)
	}
	for i, ln := range c.TFTP.Trivial.Listen {
		key := fmt.Sprintf("tftp.trivial.listen[%d]", i)
		if other, used := taken[ln]; used {
			l.add(key, "%s is also the UDP port of %s", ln, other)
		}
		if p := c.Pinholes.UDP; ln.Port >= p.First && ln.Port <= p.Last {
			l.add(key, "port %d lies in pinholes.udp (%s), which is for media", ln.Port, p)
		}
	}
}
