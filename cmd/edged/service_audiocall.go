package main

import (
	"context"
	"net/netip"

	"edged.dev/edged/pkg/audiocall"
	"edged.dev/edged/pkg/ils"
	"edged.dev/edged/pkg/pinhole"
)

// buildAudioCall builds the relay of audio call control (1731) and opens its ports.
func buildAudioCall(ctx context.Context, d *serviceDeps) (*service, error) {
	nets, cfg := d.cfg.networks(), d.cfg.Audio
	deps := audiocall.Deps{Networks: nets, RouteTo: newRouteTable(nets).network, Connections: d.cfg.Limits.PerSource.Connections}
	if d.directory != nil {
		deps.Directory = audioDirectory{d.directory}
	}
	server, err := audiocall.New(cfg, deps, d.log.Named("audiocall"))
	if err != nil {
		return nil, err
	}
	socks, err := d.handed.bindTransparent(ctx, "audiocall.listen[%d]", cfg.Listen, nets, cfg.Transparent)
	if err != nil {
		return nil, err
	}
	var ports []pinhole.Listen
	for _, port := range cfg.UDP.Each() {
		for name := range nets {
			ports = append(ports, pinhole.Listen{Proto: "udp", Network: name, Port: port})
		}
	}
	packets, err := d.handed.bindForeign(ctx, "audiocall.udp[%d]", ports, nets, cfg.Transparent)
	if err != nil {
		socks.close()
		return nil, err
	}
	socks.guard(d.bans, false)
	packets.guard(d.bans, true)
	d.reg.MustRegister(server.Collector())
	return &service{
		serve: func(ctx context.Context) error {
			return socks.serve(ctx, onTCP(server.ServeListener), servePackets(packets, server.ServePacket))
		},
		alive: func() { server.Open() },
		reload: func(c *config) error {
			server.SetPerSource(c.Limits.PerSource.Connections)
			return nil
		},
		drain: server.Drain,
		busy:  server.Open,
		status: func() any {
			return map[string]any{"connections": server.Open(), "listeners": socks.names()}
		},
	}, nil
}

// audioDirectory has calls routed by the entries of the ILS.
type audioDirectory struct{ registry *ils.Registry }

// Route implements audiocall.Directory.
func (d audioDirectory) Route(local, caller netip.Addr) (netip.Addr, bool) {
	at, ok := d.registry.Route("", local, caller, ils.H323)
	return at.Addr(), ok
}
