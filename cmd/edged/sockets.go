package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"edged.dev/edged/internal/denylist"
	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/pinhole"
)

// socket is a listener of the configuration at one address of its network.
type socket struct {
	// item is which of its list it is.
	item    int
	network string
	tcp     net.Listener
	udp     net.PacketConn // where tcp is nil
}

func (s socket) close() {
	if s.tcp != nil {
		s.tcp.Close()
		return
	}
	s.udp.Close()
}

type sockets []socket

func (all sockets) close() {
	for _, s := range all {
		s.close()
	}
}

// guard turns those away at the sockets of TCP who are shut out, and at those of UDP too if packets says so: for services
// that do not look themselves.
func (all sockets) guard(bans *denylist.List, packets bool) {
	for i, s := range all {
		switch {
		case s.tcp != nil:
			all[i].tcp = bans.Listener(s.tcp)
		case packets:
			all[i].udp = bans.PacketConn(s.udp)
		}
	}
}

// names returns PROTO://ADDRESS:PORT of each, for the status.
func (all sockets) names() []string {
	names := make([]string, len(all))
	for i, s := range all {
		if s.tcp != nil {
			names[i] = "tcp://" + s.tcp.Addr().String()
		} else {
			names[i] = "udp://" + s.udp.LocalAddr().String()
		}
	}
	return names
}

// bind opens a list of listeners, each at every address of its network; all or none. key is the format of an item's key,
// e.g. "ils.listen[%d]". tcp opens the item of TCP at an address; nil: a socket of its own.
func (h *handedSockets) bind(ctx context.Context, key string, list []pinhole.Listen, nets pinhole.Networks, tcp func(item int, at netip.AddrPort) (net.Listener, error)) (sockets, error) {
	var lc net.ListenConfig
	if tcp == nil {
		tcp = func(_ int, at netip.AddrPort) (net.Listener, error) { return h.listenTCP(ctx, sectionOf(key), at, &lc) }
	}
	return h.bindBy(ctx, key, list, nets, &lc, tcp)
}

// bindBy is bind with what opens sockets of UDP.
func (h *handedSockets) bindBy(ctx context.Context, key string, list []pinhole.Listen, nets pinhole.Networks, udp *net.ListenConfig, tcp func(item int, at netip.AddrPort) (net.Listener, error)) (sockets, error) {
	var all sockets
	for i, l := range list {
		for _, a := range nets[l.Network].Addresses {
			s, at := socket{item: i, network: l.Network}, netip.AddrPortFrom(a, l.Port)
			var err error
			if l.Proto == "udp" {
				s.udp, err = h.listenUDP(ctx, sectionOf(key), at, udp)
			} else {
				s.tcp, err = tcp(i, at)
			}
			if err != nil {
				all.close()
				return nil, fmt.Errorf(key+": %w", i, err)
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// bindTransparent is bind for listeners of TCP to which nftables may hand connections that were going elsewhere, if on.
func (h *handedSockets) bindTransparent(ctx context.Context, key string, list []pinhole.Listen, nets pinhole.Networks, on bool) (sockets, error) {
	if !on {
		return h.bind(ctx, key, list, nets, nil)
	}
	lc := net.ListenConfig{Control: setTransparent}
	return h.bind(ctx, key, list, nets, func(_ int, at netip.AddrPort) (net.Listener, error) {
		return h.listenTCP(ctx, sectionOf(key), at, &lc)
	})
}

// sectionOf returns the section that a key stands in: sip of sip.listen[0].
func sectionOf(key string) string {
	return key[:strings.IndexAny(key+".", ".[")]
}

// setTransparent has a socket take what is for other addresses and nftables hands to it (tproxy): such a
// connection's own address is the one that was called.
func setTransparent(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if network == "tcp6" || network == "udp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) })
	if errors.Is(failed, unix.EPERM) {
		failed = fmt.Errorf("transparent: %w", firewall.ErrCapability)
	}
	return errors.Join(err, failed)
}

// bindForeign is bind for listeners of UDP to which nftables may hand what was going elsewhere, if on.
func (h *handedSockets) bindForeign(ctx context.Context, key string, list []pinhole.Listen, nets pinhole.Networks, on bool) (sockets, error) {
	if !on {
		return h.bind(ctx, key, list, nets, nil)
	}
	var all sockets
	for i, l := range list {
		for _, a := range nets[l.Network].Addresses {
			pc, err := h.listenForeign(ctx, sectionOf(key), netip.AddrPortFrom(a, l.Port))
			if err != nil {
				all.close()
				return nil, fmt.Errorf(key+": %w", i, err)
			}
			all = append(all, socket{item: i, network: l.Network, udp: pc})
		}
	}
	return all, nil
}

// serve serves every socket until ctx ends or one of them fails, and what is beside them.
func (all sockets) serve(ctx context.Context, one func(context.Context, socket) error, beside ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range beside {
		g.Go(func() error { return f(ctx) })
	}
	for _, s := range all {
		g.Go(func() error { return one(ctx, s) })
	}
	return g.Wait()
}

// onTCP serves sockets that are all of TCP.
func onTCP(serve func(context.Context, string, net.Listener) error) func(context.Context, socket) error {
	return func(ctx context.Context, s socket) error { return serve(ctx, s.network, s.tcp) }
}

// onUDP serves sockets that are all of UDP.
func onUDP(serve func(context.Context, string, net.PacketConn) error) func(context.Context, socket) error {
	return func(ctx context.Context, s socket) error { return serve(ctx, s.network, s.udp) }
}

// servePackets returns what serves sockets of UDP, beside others.
func servePackets(all sockets, serve func(context.Context, string, net.PacketConn) error) func(context.Context) error {
	return func(ctx context.Context) error { return all.serve(ctx, onUDP(serve)) }
}
