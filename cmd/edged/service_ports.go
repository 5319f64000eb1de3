package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/refuse"
	"edged.dev/edged/pkg/sharedport"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/splice/forward"
)

// portHTTPS is where so many protocols are sent that what comes is looked at before TLS is spoken.
const portHTTPS = 443

// shared tells whether the connections to a TCP port are looked at before a service gets them: where server names
// choose a forward, and where SIP has the port 443.
func (c *config) shared(at pinhole.Listen) bool {
	names := func(r forward.Rule) bool { return r.Listen == at && len(r.SNI) > 0 }
	return slices.ContainsFunc(c.Forwards, names) || at.Port == portHTTPS && c.sipTLS(at) != ""
}

// sipTLS returns the key of the SIP listener that speaks TLS at a port, "" if there is none.
func (c *config) sipTLS(at pinhole.Listen) string {
	for i, l := range c.SIP.Listen {
		if l.Proto.Secure() && l.Network == at.Network && l.Port == at.Port {
			return fmt.Sprintf("sip.listen[%d]", i)
		}
	}
	return ""
}

// sharedPorts are the open ports that services share.
type sharedPorts map[netip.AddrPort]*sharedport.Port

// listen opens a TCP port, or takes a part of one that is shared: the TLS connections with one of these server names
// or, if none are given, all others.
func (s sharedPorts) listen(ctx context.Context, at netip.AddrPort, names []string) (net.Listener, error) {
	if p := s[at]; p != nil {
		return p.Listener(sharedport.Match{Class: sharedport.TLS, Names: names})
	}
	var lc net.ListenConfig
	family := "tcp6"
	if at.Addr().Is4() {
		family = "tcp4"
	}
	return lc.Listen(ctx, family, at.String())
}

// sharedListens lists the ports that services share.
func (c *config) sharedListens() []pinhole.Listen {
	var list []pinhole.Listen
	for _, r := range c.Forwards {
		list = append(list, r.Listen)
	}
	for _, l := range c.SIP.Listen {
		if l.Proto != flow.UDP {
			list = append(list, pinhole.Listen{Proto: "tcp", Network: l.Network, Port: l.Port})
		}
	}
	var out []pinhole.Listen
	for _, at := range list {
		if c.shared(at) && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// buildShared opens the ports that services share, for the services below it in the table.
func buildShared(ctx context.Context, d *serviceDeps) (*service, error) {
	count := sharedport.NewCounters()
	var ports []*sharedport.Port
	var open []net.Listener
	d.shared = sharedPorts{}
	for _, at := range d.cfg.sharedListens() {
		for _, a := range d.cfg.Networks[at.Network].Addresses {
			addr := netip.AddrPortFrom(a, at.Port)
			ln, err := sharedPorts(nil).listen(ctx, addr, nil)
			if err != nil {
				for _, ln := range open {
					ln.Close()
				}
				return nil, fmt.Errorf("%s: %w", at, err)
			}
			p := sharedport.New(ln, d.cfg.Limits.PerSource.Connections, count, d.log.Named("ports"))
			open, ports, d.shared[addr] = append(open, ln), append(ports, p), p
		}
	}
	d.reg.MustRegister(count)
	return &service{
		serve: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			for _, p := range ports {
				g.Go(func() error { return p.Serve(ctx) })
			}
			return g.Wait()
		},
		reload: func(c *config) error {
			for _, p := range ports {
				p.SetPerSource(c.Limits.PerSource.Connections)
			}
			return nil
		},
	}, nil
}

// validateShared finds what cannot share a port.
func (c *config) validateShared(l *faultList) {
	names := map[string]string{} // port and server name → key
	for i, r := range c.Forwards {
		key := fmt.Sprintf("forwards[%d]", i)
		if r.TLS == forward.TLSTerminate && len(c.TLS.Certificates) == 0 {
			l.add(key+".tls", "terminate needs a certificate under tls.certificates")
		}
		asked := r.ClientCerts == forward.CertsDemand || r.ClientCerts == forward.CertsOptional
		if asked && r.TLS == forward.TLSTerminate && c.TLS.ClientCA == "" {
			l.add(key+".client_certificates", "needs tls.client_ca, the authorities of the clients")
		}
		for j, n := range r.SNI {
			at := fmt.Sprintf("%s.sni[%d]", key, j)
			if other, used := names[r.Listen.String()+" "+n]; used {
				l.add(at, "%s is also named by %s", n, other)
			}
			names[r.Listen.String()+" "+n] = at
		}
	}
}

// buildBlocked opens the ports that are blocked.
func buildBlocked(ctx context.Context, d *serviceDeps) (*service, error) {
	socks, err := bind(ctx, "blocked[%d]", d.cfg.Blocked, d.cfg.networks(), nil)
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
