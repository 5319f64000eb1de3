package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
)

// buildSIP builds the SIP service and opens its sockets.
func buildSIP(ctx context.Context, d *serviceDeps) (*service, error) {
	log, nets := d.log.Named("sip"), d.cfg.networks()
	records, err := openCDR(d.cfg)
	if err != nil {
		return nil, err
	}
	queue := newCDRQueue(records, log)
	socks, err := openSockets(ctx, d.cfg.SIP.Listen, nets, d.shared)
	if err != nil {
		return nil, errors.Join(err, records.Close())
	}
	server, err := sipalg.New(d.cfg.SIP, sipalg.Deps{
		Networks: nets, Opener: d.opener, Conferences: d.conferences, Limits: sipLimits(d.cfg), TLS: d.tls, Listeners: len(socks),
		RouteTo: newRouteTable(nets).network, Resolve: newResolvers(nets, d.cfg.SIP.Listen).targets, StateDir: d.cfg.State.Dir,
		Contents: d.contents,
		Record: func(r sipalg.Record) {
			queue.add(r)
			d.events.publish("call_ended", r)
		},
	}, log)
	if err != nil {
		closeSockets(socks)
		return nil, errors.Join(err, records.Close())
	}
	d.reg.MustRegister(server.Collector())
	return &service{
		serve: func(ctx context.Context) error {
			stop, written := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(written)
				queue.run(stop)
			}()
			err := serveSIP(ctx, server, socks)
			close(stop)
			<-written
			return errors.Join(err, records.Close())
		},
		ready: server.Ready(),
		alive: func() { server.Calls() },
		reload: func(c *config) error {
			if err := records.reopen(); err != nil {
				return err
			}
			return server.Reload(c.SIP, sipLimits(c))
		},
		drain: server.Drain,
		busy:  func() int { return len(server.Calls()) },
		status: func() any {
			return map[string]any{
				"calls": len(server.Calls()), "registrations": len(server.Registrations()), "listeners": socketNames(socks),
			}
		},
		views: map[string]func() any{
			"calls":         func() any { return map[string]any{"calls": server.Calls()} },
			"registrations": func() any { return map[string]any{"registrations": server.Registrations()} },
		},
	}, nil
}

func sipLimits(c *config) sipalg.Limits {
	return sipalg.Limits{MessagesPerSecond: c.Limits.PerSource.MessagesPerSecond, Connections: c.Limits.PerSource.Connections}
}

// serveSIP serves all sockets and the timers until ctx ends or one of them fails.
func serveSIP(ctx context.Context, server *sipalg.Server, socks []sipSocket) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Run(ctx) })
	for _, s := range socks {
		g.Go(func() error {
			if s.packet != nil {
				return server.ServePacket(ctx, s.listen.Network, s.packet)
			}
			return server.ServeListener(ctx, s.listen.Network, s.listen.Proto, s.stream)
		})
	}
	return g.Wait()
}

// sipSocket is one bound socket: a listener of the configuration at one address of its network.
type sipSocket struct {
	listen sipalg.Listen
	packet net.PacketConn // UDP
	stream net.Listener   // all others
}

// Close closes the socket.
func (s sipSocket) Close() error {
	if s.packet != nil {
		return s.packet.Close()
	}
	return s.stream.Close()
}

// name returns "PROTO://ADDRESS:PORT".
func (s sipSocket) name() string {
	addr := net.Addr(nil)
	if s.packet != nil {
		addr = s.packet.LocalAddr()
	} else {
		addr = s.stream.Addr()
	}
	return s.listen.Proto.String() + "://" + addr.String()
}

func socketNames(socks []sipSocket) []string {
	names := make([]string, len(socks))
	for i, s := range socks {
		names[i] = s.name()
	}
	return names
}

// openSockets binds every listener at every address of its network; all or none.
func openSockets(ctx context.Context, listen []sipalg.Listen, nets pinhole.Networks, shared sharedPorts) ([]sipSocket, error) {
	var socks []sipSocket
	for i, l := range listen {
		for _, a := range nets[l.Network].Addresses {
			s, err := openSocket(ctx, l, netip.AddrPortFrom(a, l.Port), shared)
			if err != nil {
				closeSockets(socks)
				return nil, fmt.Errorf("sip.listen[%d]: %w", i, err)
			}
			socks = append(socks, s)
		}
	}
	return socks, nil
}

func closeSockets(socks []sipSocket) {
	for _, s := range socks {
		s.Close()
	}
}

func openSocket(ctx context.Context, l sipalg.Listen, at netip.AddrPort, shared sharedPorts) (sipSocket, error) {
	if l.Proto != flow.UDP {
		ln, err := shared.listen(ctx, at, nil)
		return sipSocket{listen: l, stream: ln}, err
	}
	var lc net.ListenConfig
	family := "udp6"
	if at.Addr().Is4() {
		family = "udp4"
	}
	pc, err := lc.ListenPacket(ctx, family, at.String())
	return sipSocket{listen: l, packet: pc}, err
}

// cdrPath returns the file of call records, "" if there is none.
func (c *config) cdrPath() string {
	if c.CDR.File == "" || filepath.IsAbs(c.CDR.File) {
		return c.CDR.File
	}
	return filepath.Join(c.State.Dir, c.CDR.File)
}

var _ io.Closer = sipSocket{}
