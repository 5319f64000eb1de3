package main

import (
	"context"
	"fmt"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/refuse"
)

// buildBlocked opens the ports that are blocked.
func buildBlocked(ctx context.Context, d *serviceDeps) (*service, error) {
	socks, err := d.handed.bind(ctx, "blocked[%d]", d.cfg.Blocked, d.cfg.networks(), nil)
	if err != nil {
		return nil, err
	}
	r := refuse.New(d.log.Named("blocked"))
	d.reg.MustRegister(r)
	return &service{
		serve: func(ctx context.Context) error {
			return socks.serve(ctx, func(ctx context.Context, s socket) error {
				port := d.cfg.Blocked[s.item].String()
				if s.tcp != nil {
					return r.ServeListener(ctx, port, s.tcp)
				}
				return r.ServePacket(ctx, port, s.udp)
			})
		},
		status: func() any { return map[string]any{"ports": len(d.cfg.Blocked), "sources": len(r.Attempts())} },
		views:  map[string]func() any{"blocked": func() any { return map[string]any{"attempts": r.Attempts()} }},
	}, nil
}

// validateBlocked finds blocked ports that a service needs.
func (c *config) validateBlocked(l *faultList) {
	nets, used := c.networks(), c.usedPorts()
	seen := map[pinhole.Listen]bool{}
	for i, p := range c.Blocked {
		key := fmt.Sprintf("blocked[%d]", i)
		switch err := p.Check(nets, "tcp", "udp"); {
		case err != nil:
			l.add(key, "%v", err)
		case seen[p]:
			l.add(key, "%s is listed twice", p)
		case used[p] != "":
			l.add(key, "%s is the port of %s", p, used[p])
		default:
			c.validateNoPinhole(l, key, p)
		}
		seen[p] = true
	}
}

// usedPorts returns the listeners of all services, each with its key.
func (c *config) usedPorts() map[pinhole.Listen]string {
	used := map[pinhole.Listen]string{}
	for _, l := range c.listeners() {
		if l.Handler != handlerBlocked {
			used[pinhole.Listen{Proto: l.Proto, Network: l.Network, Port: l.Port}] = l.Key
		}
	}
	return used
}
