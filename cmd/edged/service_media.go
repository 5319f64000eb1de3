package main

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
	"edged.dev/edged/pkg/media/userpath"
)

// buildMedia builds the relay, which grants pinholes to the services below it in the table.
func buildMedia(_ context.Context, d *serviceDeps) (*service, error) {
	path, err := openPath(d)
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
			list, inKernel := relay.Pinholes(), 0
			for _, p := range list {
				if p.Path == "tc" {
					inKernel++
				}
			}
			return map[string]any{
				"pinholes": len(list), "in_kernel": inKernel, "path": fmt.Sprint(path), "udp_ports": d.cfg.Pinholes.UDP.String(),
			}
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

// openPath returns what moves media: the kernel where configuration and machine allow it, else user space.
func openPath(d *serviceDeps) (media.Path, error) {
	user, err := userpath.New(0)
	if err != nil {
		return nil, err
	}
	if d.cfg.Media.Datapath == media.DatapathUser {
		return user, nil
	}
	log := d.log.Named("media")
	fast, err := fastpath.New(user, d.cfg.networks(), d.cfg.Media.DSCP, log)
	if err != nil {
		level := zap.InfoLevel
		if d.cfg.Media.Datapath != media.DatapathAuto {
			level = zap.WarnLevel
		}
		log.Log(level, "no kernel media path, user space carries all media", zap.Error(err))
		return user, nil
	}
	return fast, nil
}
