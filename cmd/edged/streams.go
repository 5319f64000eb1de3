package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// streamSocket is a TCP listener on a network.
type streamSocket struct {
	network string
	ln      net.Listener
}

// openStreams binds every TCP listener of a list at every address of its network; all or none. key names the list.
func openStreams(ctx context.Context, key string, listen []pinhole.Listen, nets pinhole.Networks, transparent bool) ([]streamSocket, error) {
	var socks []streamSocket
	var lc net.ListenConfig
	if transparent {
		lc.Control = setTransparent
	}
	for i, l := range listen {
		for _, a := range nets[l.Network].Addresses {
			ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, l.Port).String())
			if err != nil {
				closeStreams(socks)
				return nil, fmt.Errorf("%s[%d]: %w", key, i, err)
			}
			socks = append(socks, streamSocket{l.Network, ln})
		}
	}
	return socks, nil
}

// setTransparent has a listener take connections to other addresses, which nftables hands to it (tproxy): such a
// connection's own address is the one that was called.
func setTransparent(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) })
	if errors.Is(failed, unix.EPERM) {
		failed = fmt.Errorf("transparent: the capability CAP_NET_ADMIN is missing: %w", failed)
	}
	return errors.Join(err, failed)
}

func closeStreams(socks []streamSocket) {
	for _, s := range socks {
		s.ln.Close()
	}
}

// packetSocket is a UDP socket on a network.
type packetSocket struct {
	network string
	pc      net.PacketConn
}

// openPackets binds every UDP listener of a list at every address of its network; all or none.
func openPackets(ctx context.Context, key string, listen []pinhole.Listen, nets pinhole.Networks) ([]packetSocket, error) {
	var socks []packetSocket
	var lc net.ListenConfig
	for i, l := range listen {
		for _, a := range nets[l.Network].Addresses {
			pc, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(a, l.Port).String())
			if err != nil {
				closePackets(socks)
				return nil, fmt.Errorf("%s[%d]: %w", key, i, err)
			}
			socks = append(socks, packetSocket{l.Network, pc})
		}
	}
	return socks, nil
}

func closePackets(socks []packetSocket) {
	for _, s := range socks {
		s.pc.Close()
	}
}

// servePackets returns what serves every socket until its context ends or one of them fails.
func servePackets(socks []packetSocket, serve func(context.Context, string, net.PacketConn) error) func(context.Context) error {
	return func(ctx context.Context) error {
		g, ctx := errgroup.WithContext(ctx)
		for _, s := range socks {
			g.Go(func() error { return serve(ctx, s.network, s.pc) })
		}
		return g.Wait()
	}
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
