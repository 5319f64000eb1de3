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
	d.opener, d.ports, d.fingerprint = relay, relay, relay.Fingerprint()
	relay.JoinWith(d.joiner)
	d.captures.tap = relay.Tap
	if d.pinholes != nil {
		relay.WatchPorts(d.watchPorts)
	}
	if fast, ok := path.(*fastpath.Path); ok {
		d.kernel = kernelForwards{fast}
	}
	return &service{
		serve: relay.Serve,
		alive: func() { relay.Pinholes() },
		status: func() any {
			list, inKernel := relay.Pinholes(), 0
			for _, p := range list {
				if p.Path == "tc" || p.Path == "xdp" {
					inKernel++
				}
			}
			st := map[string]any{
				"pinholes": len(list), "in_kernel": inKernel, "path": fmt.Sprint(path), "udp_ports": d.cfg.Pinholes.UDP.String(),
			}
			if fast, ok := path.(*fastpath.Path); ok {
				st["adopted"] = fast.Adopted()
			}
			return st
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

// pinOf returns where the kernel path is kept. Two daemons that share a state.dir could not live side by
// side anyway, so it tells them apart.
func pinOf(c *config) fastpath.Pin { return fastpath.Pin{Folder: c.Media.Pin, Name: c.State.Dir} }

// openPath returns what moves media: the kernel where configuration and machine allow it, else user space.
func openPath(d *serviceDeps) (media.Path, error) {
	user, err := userpath.New(0)
	if err != nil {
		return nil, err
	}
	log := d.log.Named("media")
	if d.cfg.Media.Datapath == media.DatapathUser {
		if err := fastpath.Forget(pinOf(d.cfg)); err != nil {
			log.Warn("what an earlier run has left in the kernel is not removed", zap.Error(err))
		}
		return user, nil
	}
	fast, err := fastpath.New(user, fastpath.Config{
		Networks: d.cfg.networks(), DSCP: d.cfg.Media.DSCP, Idle: d.cfg.Pinholes.Idle, Pin: pinOf(d.cfg),
		XDP: d.cfg.Media.Datapath == media.DatapathXDP,
	}, log)
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
