package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/media"
)

// buildFirewall keeps the edge's own rules in the kernel while the daemon runs: they hand over once everything is built,
// and so listens.
func buildFirewall(_ context.Context, d *serviceDeps) (*service, error) {
	rules, err := d.cfg.firewallRules(interfaceOf)
	if err != nil {
		return nil, err
	}
	log, applied := d.log.Named("firewall"), make(chan struct{})
	if rules.Guard {
		d.pinholes = firewall.NewPinholes(rules, log)
	}
	return &service{
		ready: applied,
		serve: func(ctx context.Context) error {
			if err := firewall.Apply(rules); err != nil {
				return err
			}
			log.Info("applied", zap.Int("handed_over", len(rules.Redirects)))
			close(applied)
			if d.pinholes != nil {
				d.pinholes.Serve(ctx)
			}
			<-ctx.Done()
			return firewall.Remove(rules.Config)
		},
		status: func() any {
			st := map[string]any{"handed_over": len(rules.Redirects)}
			if d.pinholes != nil {
				st["open_ports"] = len(rules.Listeners) + d.pinholes.Len()
			}
			return st
		},
	}, nil
}

// watchPorts tells the firewall of a port of the relay.
func (d *serviceDeps) watchPorts(tcp bool, port netip.AddrPort, open bool) {
	proto := "udp"
	if tcp {
		proto = "tcp"
	}
	d.pinholes.Set(firewall.Port{Proto: proto, At: port}, open)
}

// transparentListeners lists the listeners of trusted networks to which connections to others are handed over.
func (c *config) transparentListeners() []portListener {
	on := map[string]bool{
		handlerH323: c.H323.Transparent, handlerT120: c.T120.Transparent, handlerILS: c.ILS.Transparent, handlerAudio: c.Audio.Transparent,
	}
	nets := c.networks()
	var out []portListener
	for _, p := range c.listeners() {
		sip := c.SIP.Transparent && p.Handler == handlerSIP && (p.Scheme == "udp" || p.Scheme == "tcp")
		if (sip || on[p.Handler] && p.Proto == "tcp") && nets[p.Network].Trusted {
			out = append(out, p)
		}
	}
	return out
}

// firewallRules returns the rules that the configuration asks for; interfaceOf names the interface that has an address.
func (c *config) firewallRules(interfaceOf func(netip.Addr) (string, error)) (firewall.Rules, error) {
	rules := firewall.Rules{Config: c.Firewall, Guard: c.Pinholes.Firewall == media.FirewallNFTables}
	for _, p := range c.listeners() {
		if !rules.Guard || p.Handler == handlerBlocked {
			continue
		}
		for _, a := range c.Networks[p.Network].Addresses {
			rules.Listeners = append(rules.Listeners, firewall.Port{Proto: p.Proto, At: netip.AddrPortFrom(a, p.Port)})
		}
	}
	for _, p := range c.transparentListeners() {
		for _, a := range c.Networks[p.Network].Addresses {
			name, err := interfaceOf(a)
			if err != nil {
				return rules, fmt.Errorf("networks.%s: %w", p.Network, err)
			}
			rules.Redirects = append(rules.Redirects, firewall.Redirect{Interface: name, Proto: p.Proto, To: netip.AddrPortFrom(a, p.Port)})
		}
	}
	return rules, nil
}

// interfaceOf names the interface that has an address of this machine.
func interfaceOf(a netip.Addr) (string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("interfaces: %w", err)
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			return "", fmt.Errorf("addresses of %s: %w", link.Name, err)
		}
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Unmap() == a {
				return link.Name, nil
			}
		}
	}
	return "", fmt.Errorf("no interface of this machine has the address %s", a)
}
