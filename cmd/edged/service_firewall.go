package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/media"
)

// buildFirewall keeps the edge's own rules in the kernel while the daemon runs: they hand over once everything is built,
// and so listens.
func buildFirewall(_ context.Context, d *serviceDeps) (*service, error) {
	if err := firewall.Capable(); err != nil {
		return nil, fmt.Errorf("firewall.manage: %w; or set it to false, and run \"edged firewall apply\" as root", err)
	}
	rules, err := d.cfg.firewallRules(interfaceOf)
	if err != nil {
		return nil, err
	}
	log, applied := d.log.Named("firewall"), make(chan struct{})
	keeper, err := firewall.NewKeeper(rules, log)
	if err != nil {
		return nil, err
	}
	d.pinholes = keeper.Pinholes()
	d.reg.MustRegister(keeper.Collector())
	return &service{
		ready: applied,
		serve: func(ctx context.Context) error {
			return keeper.Serve(ctx, func() {
				log.Info("applied", zap.Int("handed_over", len(rules.Redirects)))
				close(applied)
			})
		},
		reload: func(*config) error {
			if keeper.State().Off {
				return keeper.On()
			}
			return nil
		},
		status: func() any { return firewallStatus(keeper, rules) },
		actions: map[string]http.HandlerFunc{
			"POST /api/v1/firewall/on":  firewallAction("on", keeper.On),
			"POST /api/v1/firewall/off": firewallAction("off", keeper.Off),
		},
	}, nil
}

func firewallStatus(keeper *firewall.Keeper, rules firewall.Rules) any {
	s := keeper.State()
	st := map[string]any{"handed_over": len(rules.Redirects), "off": s.Off, "repairs": s.Repairs}
	if s.Error != nil {
		st["error"] = s.Error.Error()
	}
	if p := keeper.Pinholes(); p != nil {
		st["open_ports"] = len(rules.Listeners) + p.Len()
	}
	return st
}

// firewallAction has the rules put in place or removed.
func firewallAction(name string, do func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := do(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, map[string]bool{"on": name == "on"})
	}
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
		handlerH323 + "tcp": c.H323.Transparent, handlerH323 + "udp": c.H323.Transparent, handlerT120 + "tcp": c.T120.Transparent,
		handlerILS + "tcp": c.ILS.Transparent, handlerAudio + "tcp": c.Audio.Transparent, handlerAudio + "udp": c.Audio.Transparent,
		handlerTFTP + "udp": c.TFTP.Trivial.Transparent,
	}
	nets := c.networks()
	var out []portListener
	for _, p := range append(c.listeners(), c.audioPorts()...) {
		sip := c.SIP.Transparent && p.Handler == handlerSIP && (p.Scheme == "udp" || p.Scheme == "tcp")
		group := strings.HasPrefix(p.Key, "h323.discovery") // is for everybody, so for the edge too
		if (sip || on[p.Handler+p.Proto] && !group) && nets[p.Network].Trusted {
			out = append(out, p)
		}
	}
	return out
}

// audioPorts lists the UDP ports of audio calls, which are open on every network.
func (c *config) audioPorts() []portListener {
	var out []portListener
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		for _, port := range c.Audio.UDP.Each() {
			if len(c.Audio.Listen) > 0 {
				out = append(out, portListener{Proto: "udp", Network: name, Port: port, Handler: handlerAudio, Scheme: "udp", Key: "audiocall.udp"})
			}
		}
	}
	return out
}

// firewallRules returns the rules that the configuration asks for; interfaceOf names the interface that has an address.
func (c *config) firewallRules(interfaceOf func(netip.Addr) (string, error)) (firewall.Rules, error) {
	rules := firewall.Rules{Config: c.Firewall, Guard: c.Pinholes.Firewall == media.FirewallNFTables}
	for _, p := range append(c.listeners(), c.audioPorts()...) {
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
			x := firewall.Redirect{Name: p.Handler, Interface: name, Proto: p.Proto, To: netip.AddrPortFrom(a, p.Port)}
			if strings.HasPrefix(p.Key, "h323.ras") { // passed on to one gatekeeper, and no other
				x.Name, x.For = "h323_ras", c.H323.Gatekeeper.Addr()
				if x.For.IsValid() && x.For.Is4() != a.Is4() {
					continue
				}
			}
			rules.Redirects = append(rules.Redirects, x)
		}
	}
	return rules, c.addAnswers(&rules, interfaceOf)
}

// addAnswers adds where packets come to sockets that are bound to addresses of others: those of a TFTP server that the edge
// speaks for by the clients' interface, those of clients whose address is kept by any.
func (c *config) addAnswers(rules *firewall.Rules, interfaceOf func(netip.Addr) (string, error)) error {
	keep := c.TFTP.Trivial.KeepSource || c.T120.KeepSource
	tftp := c.TFTP.Trivial.Transparent && len(c.TFTP.Trivial.Listen) > 0
	for name, n := range c.networks() {
		for _, a := range n.Addresses {
			if !keep && !(tftp && n.Trusted) {
				continue
			}
			link, err := interfaceOf(a)
			if err != nil {
				return fmt.Errorf("networks.%s: %w", name, err)
			}
			rules.Answers = append(rules.Answers, link)
		}
	}
	slices.Sort(rules.Answers)
	rules.Answers = slices.Compact(rules.Answers)
	return nil
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
