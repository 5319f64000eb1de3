package main

import (
	"context"
	"net/netip"

	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/ils"
)

// buildH323 builds the H.323 service and opens its listeners.
func buildH323(ctx context.Context, d *serviceDeps) (*service, error) {
	nets := d.cfg.networks()
	deps := h323.Deps{
		Networks: nets, Opener: d.opener, RouteTo: newRouteTable(nets).network, T120: d.t120,
		Record: func(r h323.Record) {
			d.records.add(h323Record(r))
			d.spans.add(h323Record(r))
			d.events.publish("h323_call_ended", h323Record(r))
		},
		Connections: d.cfg.Limits.PerSource.Connections,
		Trace:       d.traces.h323,
	}
	if d.directory != nil {
		deps.Directory = callDirectory{d.directory}
	}
	server, err := h323.New(d.cfg.H323, deps, d.log.Named("h323"))
	if err != nil {
		return nil, err
	}
	socks, err := d.bindShared(ctx, "h323.listen[%d]", d.cfg.H323.Listen, d.cfg.H323.Transparent)
	if err != nil {
		return nil, err
	}
	packets, err := d.handed.bindForeign(ctx, "h323.ras[%d]", d.cfg.H323.RAS, nets, d.cfg.H323.Transparent)
	if err != nil {
		socks.close()
		return nil, err
	}
	groups, err := openGroups(ctx, "h323.discovery", d.cfg.H323.Discovery, h323.DiscoveryGroup(), nets)
	if err != nil {
		socks.close()
		packets.close()
		return nil, err
	}
	packets.guard(d.bans, true)
	groups.guard(d.bans, true)
	recorded := d.records.writer()
	d.traces.liveH323 = server.Calls
	d.reg.MustRegister(server.Collector())
	return &service{
		serve: func(ctx context.Context) error {
			defer recorded()
			return socks.serve(ctx, onTCP(server.Serve), server.Run, servePackets(packets, server.ServePacket), servePackets(groups, server.ServeDiscovery))
		},
		alive: func() { server.Calls() },
		reload: func(c *config) error {
			server.SetPerSource(c.Limits.PerSource.Connections)
			return server.Reload(c.H323)
		},
		drain: server.Drain,
		busy:  func() int { return len(server.Calls()) },
		status: func() any {
			return map[string]any{"calls": len(server.Calls()), "endpoints": len(server.Registrations()), "listeners": socks.names()}
		},
		hangUp: server.HangUp,
		expel:  func() int { return server.Expel(d.bans.Addr) },
		views: map[string]func() any{
			"h323_calls":     func() any { return map[string]any{"h323_calls": server.Calls()} },
			"h323_endpoints": func() any { return map[string]any{"h323_endpoints": server.Registrations()} },
		},
	}, nil
}

// callDirectory has H.323 calls routed by the entries of the ILS.
type callDirectory struct{ *ils.Registry }

// Route implements h323.Directory.
func (d callDirectory) Route(called string, local, caller netip.Addr) (netip.AddrPort, bool) {
	return d.Registry.Route(called, local, caller, ils.H323)
}
