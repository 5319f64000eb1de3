package main

import (
	"context"
	"net"
	"net/netip"
	"time"

	"edged.dev/edged/pkg/ils"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/t120"
)

// buildT120 builds the relay of data conferences.
func buildT120(ctx context.Context, d *serviceDeps) (*service, error) {
	nets := d.cfg.networks()
	deps := t120.Deps{Networks: nets, Joiner: t120Joiner{d.joiner}, DialAs: dialAs, Connections: d.cfg.Limits.PerSource.Connections}
	if d.directory != nil {
		deps.Router = t120Router{d.directory}
	}
	server, err := t120.New(d.cfg.T120, deps, d.log.Named("t120"))
	if err != nil {
		return nil, err
	}
	socks, err := d.bindShared(ctx, "t120.listen[%d]", d.cfg.T120.Listen, d.cfg.T120.Transparent)
	if err != nil {
		return nil, err
	}
	d.reg.MustRegister(server.Collector())
	d.t120 = server.ServePair
	if len(socks) > 0 {
		d.conferences = server.Announcer()
	}
	return &service{
		serve: func(ctx context.Context) error { return socks.serve(ctx, onTCP(server.ServeListener), untilEnd) },
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

// untilEnd does nothing until ctx ends: without listeners the service still serves what H.323 opens.
func untilEnd(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// t120Router has data conferences routed by the entries of the ILS.
type t120Router struct{ registry *ils.Registry }

// Route implements t120.Router.
func (r t120Router) Route(c t120.Call) (netip.AddrPort, bool) {
	called := c.Called
	if called == "" {
		called = c.Conference
	}
	return r.registry.Route(called, c.Local.Addr(), c.Client.Addr(), ils.T120)
}

// t120Joiner has the rest of a conference spliced.
type t120Joiner struct{ joiner *splice.Joiner }

// Join implements t120.Joiner.
func (j t120Joiner) Join(ctx context.Context, conns [2]net.Conn, prefix [2][]byte, idle time.Duration) ([2]uint64, error) {
	r := j.joiner.Join(ctx, conns[0], conns[1], splice.Options{Prefix: prefix, Idle: idle})
	return r.Bytes, r.Err
}
