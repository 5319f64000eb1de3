package main

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// routeTable names the network by which the kernel reaches an address. It asks
// by connecting a UDP socket, which sends nothing, and remembers answers for a
// while, as messages come faster than routes change.
type routeTable struct {
	nets pinhole.Networks

	mu    sync.Mutex
	known map[netip.Addr]routeAnswer
}

type routeAnswer struct {
	network string
	until   time.Time
}

const (
	routeLife = 10 * time.Second
	routeMax  = 8192 // addresses remembered; strangers cannot make it grow further
)

func newRouteTable(nets pinhole.Networks) *routeTable {
	return &routeTable{nets: nets, known: map[netip.Addr]routeAnswer{}}
}

// network returns the name of the network, "" if the address is not reached by any.
func (t *routeTable) network(a netip.Addr) string {
	a, now := a.Unmap(), time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.known[a]; ok && now.Before(r.until) {
		return r.network
	}
	if len(t.known) >= routeMax {
		clear(t.known)
	}
	name := t.ask(a)
	t.known[a] = routeAnswer{name, now.Add(routeLife)}
	return name
}

func (t *routeTable) ask(a netip.Addr) string {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9)))
	if err != nil {
		return ""
	}
	defer conn.Close()
	local, ok := netip.AddrFromSlice(conn.LocalAddr().(*net.UDPAddr).IP)
	if !ok {
		return ""
	}
	if name := t.owner(local.Unmap()); name != "" {
		return name
	}
	// The kernel chose another address of the interface than the one that is configured.
	found := ""
	for _, other := range neighbours(local.Unmap()) {
		name := t.owner(other)
		if name != "" && found != "" && name != found {
			return "" // two networks on one interface: only subnets can tell them apart
		}
		found = cmp.Or(name, found)
	}
	return found
}

// owner returns the network that has the edge's own address a.
func (t *routeTable) owner(a netip.Addr) string {
	for name, n := range t.nets {
		if slices.Contains(n.Addresses, a) {
			return name
		}
	}
	return ""
}

// neighbours returns the addresses of the interface that has a.
func neighbours(a netip.Addr) []netip.Addr {
	links, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, link := range links {
		addrs, err := link.Addrs()
		if err != nil {
			continue
		}
		var list []netip.Addr
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil {
				list = append(list, p.Addr().Unmap())
			}
		}
		if slices.Contains(list, a) {
			return list
		}
	}
	return nil
}
