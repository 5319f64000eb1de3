package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn"
	"edged.dev/edged/pkg/turn/msturn"
	"edged.dev/edged/pkg/turn/peerpolicy"
	"edged.dev/edged/pkg/turn/sourcelimit"
)

// msturnChallenges is how many unsigned requests of one source are answered a second.
const msturnChallenges = 10

// buildMSTURN builds the MS-TURN server and opens its ports, but for the UDP ports that it shares with TURN: what
// comes there TURN gives to d.dialect first.
func buildMSTURN(ctx context.Context, d *serviceDeps) (*service, error) {
	nets, cfg, own := d.cfg.networks(), d.cfg.MSTURN, &hostAddresses{}
	own.refresh()
	policy := peerpolicy.New(peerpolicy.Config{
		Allow: cfg.Peers.Allow, Only: cfg.Peers.Only, Deny: cfg.Peers.Deny, DenyPorts: turn.DefaultConfig().Peers.DenyPorts,
		Own: func(a netip.Addr) bool { return nets.Own(a) || own.has(a) },
	})
	server, err := msturn.New(cfg, msturn.Deps{
		Networks: nets, Ports: d.ports, Streams: relayStreams{d.cfg.Pinholes.TCP}, Peers: policy,
		Challenge:   sourcelimit.New(msturnChallenges, 2*msturnChallenges).Allow,
		Connections: d.cfg.Limits.PerSource.Connections,
	}, d.log.Named("msturn"))
	if err != nil {
		return nil, err
	}
	alone := d.cfg.msturnAlone()
	socks, err := d.handed.bind(ctx, "msturn.listen[%d]", alone, nets, func(i int, at netip.AddrPort) (net.Listener, error) {
		return d.listen(ctx, fmt.Sprintf("msturn.listen[%d]", slices.Index(cfg.Listen, alone[i])), alone[i], at)
	})
	if err != nil {
		return nil, err
	}
	socks.guard(d.bans, true)
	d.dialect = dialect(server, nets, cfg.Listen)
	d.withRelayAuth(server)
	d.reg.MustRegister(server.Collector())
	return &service{
		serve: func(ctx context.Context) error {
			return socks.serve(ctx, func(ctx context.Context, s socket) error {
				if s.udp != nil {
					return server.ServePacket(ctx, s.network, s.udp)
				}
				return server.Serve(ctx, s.network, s.tcp)
			}, server.Run)
		},
		alive: func() { server.Open() },
		reload: func(c *config) error {
			server.SetPerSource(c.Limits.PerSource.Connections)
			own.refresh()
			return nil
		},
		drain:  server.Drain,
		busy:   server.Open,
		status: func() any { return map[string]any{"allocations": server.Open(), "listeners": cfg.Listen} },
	}, nil
}

// dialect gives the server what comes to UDP ports of TURN that are its own too.
func dialect(server *msturn.Server, nets pinhole.Networks, listen []pinhole.Listen) func(net.PacketConn, netip.AddrPort, []byte) bool {
	networks := map[netip.AddrPort]string{}
	for _, l := range listen {
		if l.Proto == "udp" {
			for _, a := range nets[l.Network].Addresses {
				networks[netip.AddrPortFrom(a, l.Port)] = l.Network
			}
		}
	}
	return func(front net.PacketConn, from netip.AddrPort, b []byte) bool {
		network, ours := networks[pinhole.AddrPortOf(front.LocalAddr())]
		return ours && server.Receive(context.Background(), network, front, from, b)
	}
}

// msturnAlone lists the listeners whose ports are not TURN's too.
func (c *config) msturnAlone() (out []pinhole.Listen) {
	for _, l := range c.MSTURN.Listen {
		if !c.turnHas(l) {
			out = append(out, l)
		}
	}
	return out
}

// turnHas tells whether TURN listens there, on UDP: both can share that port.
func (c *config) turnHas(at pinhole.Listen) bool {
	for _, l := range c.TURN.Listen {
		if at.Proto == "udp" && pinhole.Listen(l) == at {
			return true
		}
	}
	return false
}
