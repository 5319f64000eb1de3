package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/pinhole"
)

// buildH323 builds the H.323 service and opens its listeners.
func buildH323(ctx context.Context, d *serviceDeps) (*service, error) {
	nets := d.cfg.networks()
	server, err := h323.New(d.cfg.H323, h323.Deps{
		Networks: nets, Opener: d.opener, RouteTo: newRouteTable(nets).network,
		Record: func(r h323.Record) { d.events.publish("h323_call_ended", r) },
	}, d.log.Named("h323"))
	if err != nil {
		return nil, err
	}
	socks, err := openStreams(ctx, "h323.listen", d.cfg.H323.Listen, nets)
	if err != nil {
		return nil, err
	}
	d.reg.MustRegister(server.Collector())
	return &service{
		serve: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			g.Go(func() error { return server.Run(ctx) })
			for _, s := range socks {
				g.Go(func() error { return server.Serve(ctx, s.network, s.ln) })
			}
			return g.Wait()
		},
		alive:  func() { server.Calls() },
		reload: func(c *config) error { return server.Reload(c.H323) },
		drain:  server.Drain,
		busy:   func() int { return len(server.Calls()) },
		status: func() any {
			names := make([]string, len(socks))
			for i, s := range socks {
				names[i] = "tcp://" + s.ln.Addr().String()
			}
			return map[string]any{"calls": len(server.Calls()), "listeners": names}
		},
		views: map[string]func() any{"h323_calls": func() any { return map[string]any{"h323_calls": server.Calls()} }},
	}, nil
}

// streamSocket is a TCP listener on a network.
type streamSocket struct {
	network string
	ln      net.Listener
}

// openStreams binds every TCP listener of a list at every address of its network; all or none. key names the list.
func openStreams(ctx context.Context, key string, listen []pinhole.Listen, nets pinhole.Networks) ([]streamSocket, error) {
	var socks []streamSocket
	var lc net.ListenConfig
	for i, l := range listen {
		for _, a := range nets[l.Network].Addresses {
			ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, l.Port).String())
			if err != nil {
				for _, s := range socks {
					s.ln.Close()
				}
				return nil, fmt.Errorf("%s[%d]: %w", key, i, err)
			}
			socks = append(socks, streamSocket{l.Network, ln})
		}
	}
	return socks, nil
}
