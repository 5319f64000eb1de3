package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
)

// buildSIP builds the SIP service and opens its sockets.
func buildSIP(ctx context.Context, d *serviceDeps) (*service, error) {
	log, nets := d.log.Named("sip"), d.cfg.networks()
	socks, err := bindSIP(ctx, d, nets)
	if err != nil {
		return nil, err
	}
	socks.guard(d.bans, false)
	server, err := sipalg.New(d.cfg.SIP, sipalg.Deps{
		Networks: nets, Opener: d.opener, Conferences: d.conferences, Limits: sipLimits(d.cfg), TLS: d.tls, Listeners: len(socks),
		RouteTo: newRouteTable(nets).network, Resolve: newResolvers(nets, d.cfg.SIP.Listen).targets, StateDir: d.cfg.State.Dir,
		Contents: d.contents, Answers: d.answers, Fingerprint: d.fingerprint,
		Trace: d.traces.sip, Deny: d.bans,
		Record: func(r sipalg.Record) {
			d.traces.ring.Name(r.CallID, r.ID)
			d.records.add(sipRecord(r))
			d.spans.add(sipRecord(r))
			d.events.publish("call_ended", sipRecord(r))
		},
	}, log)
	if err != nil {
		socks.close()
		return nil, err
	}
	recorded := d.records.writer()
	d.traces.live = server.Calls
	d.reg.MustRegister(server.Collector())
	return &service{
		serve: func(ctx context.Context) error {
			defer recorded()
			return serveSIP(ctx, server, d.cfg.SIP.Listen, socks)
		},
		ready:  server.Ready(),
		alive:  func() { server.Calls() },
		reload: func(c *config) error { return server.Reload(c.SIP, sipLimits(c)) },
		drain:  server.Drain,
		busy:   func() int { return len(server.Calls()) },
		status: func() any {
			return map[string]any{
				"calls": len(server.Calls()), "registrations": len(server.Registrations()), "listeners": sipNames(d.cfg.SIP.Listen, socks),
			}
		},
		hangUp: server.HangUp,
		expel:  server.Expel,
		views: map[string]func() any{
			"calls":         func() any { return map[string]any{"calls": server.Calls()} },
			"registrations": func() any { return map[string]any{"registrations": server.Registrations()} },
		},
	}, nil
}

func sipLimits(c *config) sipalg.Limits {
	return sipalg.Limits{MessagesPerSecond: c.Limits.PerSource.MessagesPerSecond, Connections: c.Limits.PerSource.Connections}
}

// bindSIP opens the listeners of SIP, or its part of those that services share.
func bindSIP(ctx context.Context, d *serviceDeps, nets pinhole.Networks) (sockets, error) {
	listen := make([]pinhole.Listen, len(d.cfg.SIP.Listen))
	for i, l := range d.cfg.SIP.Listen {
		listen[i] = pinhole.Listen{Proto: "udp", Network: l.Network, Port: l.Port}
		if l.Proto.Stream() {
			listen[i].Proto = "tcp"
		}
	}
	var plain, foreign net.ListenConfig
	foreign.Control = setTransparent
	udp := &plain
	if d.cfg.SIP.Transparent {
		udp = &foreign
	}
	return d.handed.bindBy(ctx, "sip.listen[%d]", listen, nets, udp, func(i int, at netip.AddrPort) (net.Listener, error) {
		if d.cfg.SIP.Transparent && d.cfg.SIP.Listen[i].Proto == flow.TCP && d.shared[at] == nil {
			return d.handed.listenTCP(ctx, "sip", at, &foreign)
		}
		return d.listen(ctx, fmt.Sprintf("sip.listen[%d]", i), listen[i], at)
	})
}

// serveSIP serves all sockets and the timers until ctx ends or one of them fails.
func serveSIP(ctx context.Context, server *sipalg.Server, listen []sipalg.Listen, socks sockets) error {
	return socks.serve(ctx, func(ctx context.Context, s socket) error {
		if s.udp != nil {
			return server.ServePacket(ctx, s.network, s.udp)
		}
		return server.ServeListener(ctx, s.network, listen[s.item].Proto, s.tcp)
	}, server.Run)
}

// sipNames returns PROTO://ADDRESS:PORT of each socket, PROTO as the configuration has it.
func sipNames(listen []sipalg.Listen, socks sockets) []string {
	names := socks.names()
	for i, s := range socks {
		_, at, _ := strings.Cut(names[i], "://")
		names[i] = listen[s.item].Proto.String() + "://" + at
	}
	return names
}

// cdrPath returns the file of call records, "" if there is none.
func (c *config) cdrPath() string {
	if c.CDR.File == "" || filepath.IsAbs(c.CDR.File) {
		return c.CDR.File
	}
	return filepath.Join(c.State.Dir, c.CDR.File)
}
