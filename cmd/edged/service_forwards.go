package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"edged.dev/edged/pkg/media/fastpath"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/splice/forward"
)

// buildSplice builds what joins TCP connections for the services below it in the table.
func buildSplice(_ context.Context, d *serviceDeps) (*service, error) {
	j, err := splice.New(0)
	if err != nil {
		return nil, err
	}
	d.joiner = j
	return &service{serve: j.Serve}, nil
}

// buildForwards opens the listeners of the forwards.
func buildForwards(ctx context.Context, d *serviceDeps) (*service, error) {
	rules := d.cfg.Forwards
	listen := make([]pinhole.Listen, len(rules))
	for i, r := range rules {
		listen[i] = r.Listen
	}
	socks, err := bind(ctx, "forwards[%d].listen", listen, d.cfg.networks(), func(i int, at netip.AddrPort) (net.Listener, error) {
		return d.shared.listen(ctx, at, rules[i].SNI)
	})
	if err != nil {
		return nil, err
	}
	f := forward.New(rules, forward.Deps{
		Joiner: d.joiner, Kernel: d.kernel, TLS: forwardTLS{d.tls}, PerSource: d.cfg.Limits.PerSource.Connections,
	}, d.log.Named("forwards"))
	d.reg.MustRegister(f)
	return &service{
		serve: func(ctx context.Context) error {
			return socks.serve(ctx, func(ctx context.Context, s socket) error { return f.ServeListener(ctx, rules[s.item].Name, s.tcp) })
		},
		alive: func() { f.Open() },
		reload: func(c *config) error {
			f.SetPerSource(c.Limits.PerSource.Connections)
			return nil
		},
		drain:  f.Drain,
		busy:   f.Open,
		status: func() any { return forwardsStatus(f.Infos()) },
		views:  map[string]func() any{"forwards": func() any { return map[string]any{"forwards": f.Infos()} }},
	}, nil
}

func forwardsStatus(list []forward.Info) any {
	open, inKernel := 0, 0
	for _, i := range list {
		open += i.Connections
		inKernel += i.Kernel
	}
	return map[string]any{"rules": len(list), "connections": open, "in_kernel": inKernel}
}

// validateForwards has each forward judge itself, and adds what concerns others too: names and ports
// that are taken twice. It adds its own to ports, which are those of other services.
func (c *config) validateForwards(l *faultList, ports map[pinhole.Listen]string) {
	nets, names := c.networks(), map[string]int{}
	for i, r := range c.Forwards {
		key := fmt.Sprintf("forwards[%d]", i)
		*l = append(*l, sectionFaults(key, r.Validate(nets))...)
		if j, used := names[r.Name]; used && r.Name != "" {
			l.add(key+".name", "%q is also the name of forwards[%d]", r.Name, j)
		}
		names[r.Name] = i
		if r.Listen == (pinhole.Listen{}) {
			continue
		}
		if why := c.forwardTaken(i, ports[r.Listen]); why != "" {
			l.add(key+".listen", "%s", why)
		}
		if ports[r.Listen] == "" {
			ports[r.Listen] = key + ".listen"
		}
		c.validateNoPinhole(l, key+".listen", r.Listen)
	}
}

// forwardTaken says why a forward cannot have its port, given the key of who has it already; "" if it can.
func (c *config) forwardTaken(i int, other string) string {
	r := c.Forwards[i]
	switch {
	case other == "":
		return ""
	case !c.shared(r.Listen) || other != c.sipTLS(r.Listen) && !strings.HasPrefix(other, "forwards["):
		return fmt.Sprintf("%s is also the TCP port of %s", r.Listen, other)
	case len(r.SNI) > 0:
		return ""
	}
	rest := c.sipTLS(r.Listen)
	for j, f := range c.Forwards[:i] {
		if rest == "" && f.Listen == r.Listen && len(f.SNI) == 0 {
			rest = fmt.Sprintf("forwards[%d]", j)
		}
	}
	if rest == "" {
		return ""
	}
	return fmt.Sprintf("%s gets what no other forward of %s names; list server names under sni", rest, r.Listen)
}

// kernelForwards has the kernel path carry forwards.
type kernelForwards struct{ path *fastpath.Path }

// Carry implements [forward.Kernel].
func (k kernelForwards) Carry(r forward.Rule, listen netip.AddrPort) (forward.Carried, error) {
	f, err := k.path.Forward(fastpath.ForwardRule{
		Name: r.Name, Listen: listen, To: r.To, Allow: r.Allow, MaxConnections: r.MaxConnections, Idle: r.Idle,
	})
	if err != nil {
		return nil, err
	}
	return carried{f}, nil
}

// carried is a forward in the kernel.
type carried struct{ *fastpath.Forward }

// Figures implements [forward.Carried].
func (c carried) Figures() (forward.Figures, error) {
	s, err := c.Stats()
	return forward.Figures{
		Why: s.Why, Open: s.Open, Total: s.Total, Bytes: [2]uint64{s.FromClient.Bytes, s.FromTarget.Bytes}, Refused: s.Dropped,
	}, err
}

var (
	_ forward.Kernel  = kernelForwards{}
	_ forward.Carried = carried{}
)
