package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"

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
	rules := d.cfg.forwards()
	listen := make([]pinhole.Listen, len(rules))
	for i, r := range rules {
		listen[i] = r.Listen
	}
	socks, err := d.handed.bind(ctx, "forwards[%d].listen", listen, d.cfg.networks(), func(i int, at netip.AddrPort) (net.Listener, error) {
		return d.listen(ctx, fmt.Sprintf("forwards[%d]", i), listen[i], at)
	})
	if err != nil {
		return nil, err
	}
	socks.guard(d.bans, false)
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

// forwards returns the rules as they are carried: the kernel would take what others on a shared port are for.
func (c *config) forwards() []forward.Rule {
	list := slices.Clone(c.Forwards)
	for i, r := range list {
		if c.shared(r.Listen) {
			list[i].Via = forward.ViaUser
		}
	}
	return list
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
		switch other := ports[r.Listen]; {
		case other != "" && !(c.shared(r.Listen) && c.claimed(r.Listen, other)):
			l.add(key+".listen", "%s is also the TCP port of %s", r.Listen, other)
		case c.shared(r.Listen) && r.Via == forward.ViaKernel && len(r.SNI)+len(r.Classes) == 0:
			l.add(key+".via", "%s is shared: what comes is looked at in user space", r.Listen)
		}
		if ports[r.Listen] == "" {
			ports[r.Listen] = key + ".listen"
		}
		c.validateNoPinhole(l, key+".listen", r.Listen)
	}
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

// forwardTLS gives forwards the configurations of a store.
type forwardTLS struct{ store *tlsStore }

// Accept implements [forward.TLSConfigs].
func (f forwardTLS) Accept(network string, c forward.ClientCerts) *tls.Config {
	now, age := f.store.current.Load(), 0
	if slices.Contains(now.legacy, network) {
		age = 1
	}
	switch c {
	case forward.CertsOptional:
		return now.server[age][tls.VerifyClientCertIfGiven]
	case forward.CertsDemand:
		return now.server[age][tls.RequireAndVerifyClientCert]
	}
	return now.server[age][tls.NoClientCert]
}

// Dial implements [forward.TLSConfigs].
func (f forwardTLS) Dial(name string) *tls.Config {
	conf := f.store.current.Load().client[0].Clone()
	conf.ServerName = name
	return conf
}

var _ forward.TLSConfigs = forwardTLS{}
