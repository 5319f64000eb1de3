package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/tunnel/agent"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/link"
)

// linkEnd is this end of a link, and who is at the other.
type linkEnd struct {
	*link.Link
	cfg  link.Config
	peer device.ID
}

// buildLinks makes the interfaces of links before anything else binds their addresses. By whom they are carried is the
// business of the agent, further down the table.
func buildLinks(_ context.Context, d *serviceDeps) (*service, error) {
	var links []*link.Link
	for _, c := range d.cfg.Links {
		peer, err := d.cfg.Agent.Resolve(c.Device)
		if err != nil {
			return nil, err
		}
		tun, err := link.OpenTun(c)
		if err != nil {
			return nil, err
		}
		l := link.New(c, tun, d.log.Named("links"))
		links, d.links = append(links, l), append(d.links, linkEnd{l, c, peer})
	}
	d.reg.MustRegister(link.Collector(links))
	infos := func() []link.Info {
		list := []link.Info{}
		for _, l := range links {
			list = append(list, l.Info())
		}
		return list
	}
	return &service{
		serve: func(ctx context.Context) error {
			g, ctx := errgroup.WithContext(ctx)
			for _, l := range links {
				g.Go(func() error { return l.Run(ctx) })
			}
			return g.Wait()
		},
		status: func() any {
			up := 0
			for _, l := range links {
				if l.Up() {
					up++
				}
			}
			return map[string]any{"links": len(links), "up": up}
		},
		views: map[string]func() any{"links": func() any { return map[string]any{"links": infos()} }},
	}, nil
}

// linkHandlers are the services by which the other ends of links come.
func linkHandlers(links []linkEnd) map[string]agent.Served {
	out := map[string]agent.Served{}
	for _, l := range links {
		out[l.cfg.Service()] = agent.Served{
			Datagrams: true,
			Allow:     func(id device.ID) bool { return id == l.peer },
			Serve:     func(ctx context.Context, c *agent.Conn) { _ = carryLink(ctx, l, c) }, // how it ended is nothing to tell
		}
	}
	return out
}

// carryLink has a stream carry a link until either end closes it.
func carryLink(ctx context.Context, l linkEnd, c *agent.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reading sync.WaitGroup
	reading.Go(func() { // the stream has no octets: what comes is its end, which datagrams do not tell
		defer cancel()
		_, _ = io.Copy(io.Discard, io.LimitReader(c, 1))
	})
	err := l.Carry(ctx, c.Datagrams())
	_ = c.Close() // the stream is over, either way
	reading.Wait()
	return err
}

// keepLinks reaches the other ends of links until ctx ends, and returns nil. Of two devices that whose ID is the smaller begins.
func keepLinks(ctx context.Context, links []linkEnd, a *agent.Agent, own device.ID) error {
	var all sync.WaitGroup
	for _, l := range links {
		all.Go(func() {
			l.Keep(ctx, bytes.Compare(own[:], l.peer[:]) < 0, func(ctx context.Context) error {
				c, err := a.DialDatagrams(ctx, l.peer.String(), l.cfg.Service())
				if err != nil {
					return err
				}
				return carryLink(ctx, l, c)
			})
		})
	}
	all.Wait()
	return nil
}

// validateLinks has each link judge itself, and adds what concerns others.
func (c *config) validateLinks(l *faultList) {
	for i, x := range c.Links {
		key := fmt.Sprintf("links[%d]", i)
		*l = append(*l, sectionFaults(key, x.Validate())...)
		if _, err := c.Agent.Resolve(x.Device); err != nil && x.Device != "" {
			l.add(key+".device", "%v", err)
		}
		if slices.ContainsFunc(c.Links[:i], func(o link.Config) bool { return o.Name == x.Name }) {
			l.add(key+".name", "%q is also the name of another link", x.Name)
		}
		for j, a := range x.Addresses {
			if !c.networks().Own(a) && a.IsValid() {
				l.add(fmt.Sprintf("%s.addresses[%d]", key, j), "%s is under no network's addresses, so nothing would use the link", a)
			}
		}
	}
	if len(c.Links) > 0 && len(c.Agent.Relays) == 0 {
		l.add("links", "agent.relays is needed: links lead through one")
	}
}
