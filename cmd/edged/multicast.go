package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// openGroups joins a multicast group of IPv4 at every IPv4 address of networks; all or none. Each socket hears only what
// comes by the interface of its address.
func openGroups(ctx context.Context, key string, networks []string, group netip.AddrPort, nets pinhole.Networks) (sockets, error) {
	var all sockets
	for i, name := range networks {
		for _, a := range nets[name].Addresses {
			if !a.Is4() {
				continue
			}
			pc, err := joinGroup(ctx, group, a)
			if err != nil {
				all.close()
				return nil, fmt.Errorf("%s[%d]: group %s at %s: %w", key, i, group, a, err)
			}
			all = append(all, socket{item: i, network: name, udp: pc})
		}
	}
	return all, nil
}

func joinGroup(ctx context.Context, group netip.AddrPort, at netip.Addr) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = errors.Join(
				os.NewSyscallError("setsockopt SO_REUSEADDR", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)),
				os.NewSyscallError("setsockopt IP_MULTICAST_ALL", unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)),
				os.NewSyscallError("setsockopt IP_ADD_MEMBERSHIP", unix.SetsockoptIPMreq(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
					&unix.IPMreq{Multiaddr: group.Addr().As4(), Interface: at.As4()})))
		})
		return errors.Join(err, failed)
	}}
	return lc.ListenPacket(ctx, "udp4", group.String())
}
