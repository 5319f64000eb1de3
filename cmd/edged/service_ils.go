package main

import (
	"context"

	"edged.dev/edged/pkg/ils"
)

// buildILS builds the relay of the NetMeeting directory. What is registered there routes the calls of the
// services below it in the table.
func buildILS(ctx context.Context, d *serviceDeps) (*service, error) {
	nets := d.cfg.networks()
	server, err := ils.New(d.cfg.ILS, ils.Deps{
		Networks: nets, RouteTo: newRouteTable(nets).network, StateDir: d.cfg.State.Dir, Connections: d.cfg.Limits.PerSource.Connections,
	}, d.log.Named("ils"))
	if err != nil {
		return nil, err
	}
	socks, err := d.handed.bindTransparent(ctx, "ils.listen[%d]", d.cfg.ILS.Listen, nets, d.cfg.ILS.Transparent)
	if err != nil {
		return nil, err
	}
	socks.guard(d.bans, false)
	d.reg.MustRegister(server.Collector())
	d.directory = server.Registry()
	return &service{
		serve: func(ctx context.Context) error { return socks.serve(ctx, onTCP(server.ServeListener)) },
		alive: func() { server.Registry().Entries() },
		reload: func(c *config) error {
			server.SetPerSource(c.Limits.PerSource.Connections)
			return nil
		},
		status: func() any {
			return map[string]any{"entries": len(server.Registry().Entries()), "listeners": socks.names()}
		},
		views: map[string]func() any{"ils": func() any { return map[string]any{"ils": server.Registry().Entries()} }},
	}, nil
}
