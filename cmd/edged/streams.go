package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/pinhole"
)

// streamSocket is a TCP listener on a network.
type streamSocket struct {
	network string
	ln      net.Listener
}

// openStreams binds every TCP listener of a list at every address of its network; all or none. key names the list.
func openStreams(ctx context.Context, key string, listen []pinhole.Listen, nets pinhole.Networks) ([]streamSocket, error) {
	var socks []streamSocket
	var lc net.ListenConfig
	for i, l := range listen {
		for _, a := range nets[l.Network].Addresses {
			ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, l.Port).String())
			if err != nil {
				for _, s := range socks {
					s.ln.Close()
				}
				return nil, fmt.Errorf("%s[%d]: %w", key, i, err)
			}
			socks = append(socks, streamSocket{l.Network, ln})
		}
	}
	return socks, nil
}

// serveStreams serves every socket until ctx ends or one of them fails, and what is beside them.
func serveStreams(ctx context.Context, socks []streamSocket, serve func(context.Context, string, net.Listener) error, beside ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range beside {
		g.Go(func() error { return f(ctx) })
	}
	for _, s := range socks {
		g.Go(func() error { return serve(ctx, s.network, s.ln) })
	}
	return g.Wait()
}

// streamNames returns the addresses of the sockets, for the status.
func streamNames(socks []streamSocket) []string {
	names := make([]string, len(socks))
	for i, s := range socks {
		names[i] = "tcp://" + s.ln.Addr().String()
	}
	return names
}
