package main

import (
	"context"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/userpath"
)

// buildMedia builds the relay, which grants pinholes to the services below it in the table.
func buildMedia(_ context.Context, d *serviceDeps) (*service, error) {
	path, err := userpath.New(0)
	if err != nil {
		return nil, err
	}
	relay, err := media.New(d.cfg.Pinholes, d.cfg.Media, d.cfg.networks(), path, d.log.Named("media"))
	if err != nil {
		return nil, err
	}
	d.reg.MustRegister(relay)
	d.opener = relay
	return &service{
		serve: relay.Serve,
		alive: func() { relay.Pinholes() },
		status: func() any {
			return map[string]any{"pinholes": len(relay.Pinholes()), "path": path.String(), "udp_ports": d.cfg.Pinholes.UDP.String()}
		},
		views: map[string]func() any{"pinholes": func() any {
			list := relay.Pinholes()
			if list == nil {
				list = []media.Info{}
			}
			return map[string]any{"pinholes": list}
		}},
	}, nil
}
