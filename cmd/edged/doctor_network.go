package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/fastpath"
)

// netView is the machine's interfaces and addresses.
type netView struct {
	links map[int]netlink.Link
	at    map[netip.Addr]int // which interface has an address
	bad   map[netip.Addr]string
	err   error
}

func viewNetwork() netView {
	v := netView{links: map[int]netlink.Link{}, at: map[netip.Addr]int{}, bad: map[netip.Addr]string{}}
	links, err := netlink.LinkList()
	if err != nil {
		v.err = fmt.Errorf("interfaces: %w", err)
		return v
	}
	for _, l := range links {
		v.links[l.Attrs().Index] = l
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		v.err = fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		v.at[ip.Unmap()] = a.LinkIndex
		switch {
		case a.Flags&unix.IFA_F_DADFAILED != 0:
			v.bad[ip] = "another host has it, too (duplicate address detection)"
		case a.Flags&unix.IFA_F_TENTATIVE != 0:
			v.bad[ip] = "it is still being checked for duplicates"
		}
	}
	return v
}

// device returns the interface that has an address.
func (v netView) device(a netip.Addr) (netlink.Link, bool) {
	l, ok := v.links[v.at[a]]
	return l, ok
}

// byName returns the networks in the order of their names.
func (c *config) byName() []string { return slices.Sorted(maps.Keys(c.Networks)) }

// ofLink tells whether an address is that of a link of the tunnel, which the daemon makes itself.
func (c *config) ofLink(a netip.Addr) bool {
	for _, l := range c.Links {
		if slices.Contains(l.Addresses, a) {
			return true
		}
	}
	return false
}

// addresses looks whether the networks' addresses are there, and their interfaces up.
func (x *exam) addresses(context.Context) []finding {
	if x.net.err != nil {
		return []finding{{Level: fastpath.Warn, About: "addresses", Text: x.net.err.Error(), Why: "interfaces cannot be judged", Remedy: "run doctor as root"}}
	}
	var list []finding
	for _, name := range x.cfg.byName() {
		for _, a := range x.cfg.Networks[name].Addresses {
			if !x.cfg.ofLink(a) {
				list = append(list, x.address(name, a))
			}
		}
	}
	return list
}

func (x *exam) address(network string, a netip.Addr) finding {
	about := "address " + network
	l, ok := x.net.device(a)
	if !ok && a.IsLoopback() {
		l, ok = x.net.links[1], x.net.links[1] != nil
	}
	if !ok {
		return finding{
			Level: fastpath.Fail, About: about, Text: fmt.Sprintf("no interface has %s", a), Why: "listeners there cannot be opened: the daemon does not start",
			Remedy: fmt.Sprintf("ip addr add %s/%d dev INTERFACE, or correct networks.%s.addresses", a, a.BitLen(), network),
		}
	}
	at := l.Attrs()
	switch {
	case at.Flags&net.FlagUp == 0:
		return finding{
			Level: fastpath.Fail, About: about, Text: fmt.Sprintf("%s is on %s, which is down", a, at.Name), Why: "nothing comes in or goes out",
			Remedy: "ip link set " + at.Name + " up",
		}
	case at.OperState == netlink.OperDown || at.OperState == netlink.OperLowerLayerDown || at.OperState == netlink.OperNotPresent:
		return finding{
			Level: fastpath.Fail, About: about, Text: fmt.Sprintf("%s is on %s, which has no carrier", a, at.Name), Why: "nothing comes in or goes out",
			Remedy: "connect the cable or the virtual network of " + at.Name + "; ip -d link show " + at.Name,
		}
	case x.net.bad[a] != "":
		return finding{
			Level: fastpath.Fail, About: about, Text: fmt.Sprintf("%s on %s cannot be used: %s", a, at.Name, x.net.bad[a]), Why: "listeners there cannot be opened",
			Remedy: "ip -6 addr show dev " + at.Name + "; give this host an address of its own",
		}
	}
	return fine(about, "%s is on %s, which is up", a, at.Name)
}

// routes looks whether packets for each network's hosts leave by its interface.
func (x *exam) routes(context.Context) []finding {
	var list []finding
	for _, name := range x.cfg.byName() {
		n := x.cfg.Networks[name]
		for _, p := range n.Subnets {
			list = append(list, x.subnetRoute(name, p)...)
		}
		if len(n.Subnets) == 0 && !n.trusted() {
			list = append(list, x.defaultRoutes(name)...)
		}
	}
	return list
}

// hostOf returns a host of a subnet: the first.
func hostOf(p netip.Prefix) netip.Addr {
	if p.IsSingleIP() {
		return p.Addr()
	}
	return p.Masked().Addr().Next()
}

// wayTo returns the interface by which packets leave for a, nil if there is none.
func (x *exam) wayTo(a netip.Addr) netlink.Link {
	routes, err := netlink.RouteGet(net.IP(a.AsSlice()))
	if err != nil || len(routes) == 0 || routes[0].Type == unix.RTN_UNREACHABLE || routes[0].Type == unix.RTN_BLACKHOLE {
		return nil
	}
	return x.net.links[routes[0].LinkIndex]
}

// deviceOf returns the interface of a network's address of the family.
func (x *exam) deviceOf(network string, v6 bool) (netlink.Link, netip.Addr) {
	for _, a := range x.cfg.Networks[network].Addresses {
		if l, ok := x.net.device(a); ok && a.Is6() == v6 && !a.IsLoopback() {
			return l, a
		}
	}
	return nil, netip.Addr{}
}

func (x *exam) subnetRoute(name string, p netip.Prefix) []finding {
	dev, _ := x.deviceOf(name, p.Addr().Is6())
	if dev == nil || dev.Attrs().Flags&net.FlagUp == 0 {
		return nil // said already
	}
	about, own := "route "+name, dev.Attrs().Name
	way := x.wayTo(hostOf(p))
	switch {
	case way == nil:
		return []finding{{
			Level: fastpath.Fail, About: about, Text: fmt.Sprintf("there is no route to %s", p), Why: "its hosts are never answered",
			Remedy: fmt.Sprintf("ip route add %s via ROUTER dev %s, or correct networks.%s.subnets", p, own, name),
		}}
	case way.Attrs().Name != own && way.Attrs().Index != 1:
		return []finding{{
			Level: fastpath.Fail, About: about, Text: fmt.Sprintf("the route to %s leaves by %s, not by %s", p, way.Attrs().Name, own),
			Why:    "answers and media to its hosts go out on the wrong side",
			Remedy: fmt.Sprintf("ip route add %s via ROUTER dev %s, or correct networks.%s.subnets", p, own, name),
		}}
	}
	return []finding{fine(about, "%s leaves by %s", p, own)}
}

// defaultRoutes looks at a network whose hosts may be anywhere, for each family that it has an address of.
func (x *exam) defaultRoutes(name string) []finding {
	var list []finding
	for _, v6 := range []bool{false, true} {
		dev, a := x.deviceOf(name, v6)
		if dev == nil || a.IsLinkLocalUnicast() || dev.Attrs().Flags&net.FlagUp == 0 {
			continue
		}
		family, word := netlink.FAMILY_V4, "IPv4"
		if v6 {
			family, word = netlink.FAMILY_V6, "IPv6"
		}
		ways := defaultWays(family)
		if len(ways) == 0 {
			level := fastpath.Warn
			if !a.IsPrivate() && (!v6 || !x.hasV4(name)) {
				level = fastpath.Fail
			}
			list = append(list, finding{
				Level: level, About: "route " + name, Text: "there is no default route for " + word, Why: "only hosts of the interface's own subnet are reached",
				Remedy: fmt.Sprintf("ip %s route add default via ROUTER dev %s, or name the hosts in networks.%s.subnets", map[bool]string{false: "-4", true: "-6"}[v6], dev.Attrs().Name, name),
			})
			continue
		}
		if slices.Contains(ways, dev.Attrs().Index) {
			list = append(list, fine("route "+name, "the default route for %s leaves by %s", word, dev.Attrs().Name))
			continue
		}
		other := "another interface"
		if l := x.net.links[ways[0]]; l != nil {
			other = l.Attrs().Name
		}
		list = append(list, finding{
			Level: fastpath.Warn, About: "route " + name, Text: fmt.Sprintf("the default route for %s leaves by %s, not by %s", word, other, dev.Attrs().Name),
			Why:    "what is for hosts of this network that are far away goes out on another side",
			Remedy: fmt.Sprintf("ip route replace default via ROUTER dev %s, or name the hosts in networks.%s.subnets", dev.Attrs().Name, name),
		})
	}
	return list
}

func (x *exam) hasV4(name string) bool {
	return slices.ContainsFunc(x.cfg.Networks[name].Addresses, netip.Addr.Is4)
}

// defaultWays returns the interfaces of the default routes of all tables.
func defaultWays(family int) []int {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil
	}
	var out []int
	for _, r := range routes {
		all := r.Dst == nil
		if r.Dst != nil {
			ones, _ := r.Dst.Mask.Size()
			all = ones == 0
		}
		if !all || r.Type != unix.RTN_UNICAST {
			continue
		}
		out = append(out, r.LinkIndex)
		for _, hop := range r.MultiPath {
			out = append(out, hop.LinkIndex)
		}
	}
	return slices.DeleteFunc(out, func(i int) bool { return i == 0 })
}

// sysctl reads a key of /proc/sys, "" if there is none.
func (x *exam) sysctl(key string) string {
	b, err := readFile(x.root, "proc/sys/"+key)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(b)
}

// number is sysctl of a number, def if there is none.
func (x *exam) number(key string, def int) int {
	if n, err := strconv.Atoi(x.sysctl(key)); err == nil {
		return n
	}
	return def
}

// reversePath looks where the kernel would drop packets because their sender's route leaves by another interface.
func (x *exam) reversePath(context.Context) []finding {
	var list []finding
	strict := 0
	for _, name := range x.cfg.byName() {
		dev, _ := x.deviceOf(name, false)
		if dev == nil {
			continue
		}
		own := dev.Attrs().Name
		if max(x.number("net/ipv4/conf/all/rp_filter", 0), x.number("net/ipv4/conf/"+own+"/rp_filter", 0)) != 1 {
			continue
		}
		strict++
		if who := x.asymmetric(name, dev); who != "" {
			list = append(list, finding{
				Level: fastpath.Fail, About: "rp_filter", Text: fmt.Sprintf("%s checks senders strictly, but the route to %s of network %s leaves elsewhere", own, who, name),
				Why:    "the kernel drops what they send, unseen (martians): they call into nothing",
				Remedy: fmt.Sprintf("correct the route, or sysctl -w net.ipv4.conf.%s.rp_filter=2 net.ipv4.conf.all.rp_filter=2", own),
			})
		}
	}
	if len(list) == 0 {
		list = append(list, fine("rp_filter", "%d interfaces check senders strictly, and none of the networks' hosts would fail", strict))
	}
	return list
}

// asymmetric names the hosts of a network whose route does not leave by its interface, "" if there are none.
func (x *exam) asymmetric(name string, dev netlink.Link) string {
	n := x.cfg.Networks[name]
	for _, p := range n.Subnets {
		if way := x.wayTo(hostOf(p)); p.Addr().Is4() && (way == nil || way.Attrs().Index != dev.Attrs().Index && way.Attrs().Index != 1) {
			return p.String()
		}
	}
	if len(n.Subnets) == 0 && !n.trusted() && !slices.Contains(defaultWays(netlink.FAMILY_V4), dev.Attrs().Index) {
		return "distant hosts"
	}
	return ""
}

// ethernetMTU is what nearly every path carries.
const ethernetMTU = 1500

// mtu looks for interfaces whose packets another one, or the way below, does not take.
func (x *exam) mtu(context.Context) []finding {
	type end struct {
		network, dev string
		mtu          int
	}
	var ends []end
	var list []finding
	for _, name := range x.cfg.byName() {
		for _, v6 := range []bool{false, true} {
			dev, _ := x.deviceOf(name, v6)
			if dev == nil || slices.ContainsFunc(ends, func(e end) bool { return e.dev == dev.Attrs().Name }) {
				continue
			}
			ends = append(ends, end{name, dev.Attrs().Name, dev.Attrs().MTU})
			list = append(list, x.tunnelMTU(dev)...)
		}
	}
	if len(ends) == 0 {
		return nil
	}
	small := slices.MinFunc(ends, func(a, b end) int { return a.mtu - b.mtu })
	large := slices.MaxFunc(ends, func(a, b end) int { return a.mtu - b.mtu })
	switch {
	case small.mtu < 1280:
		list = append(list, finding{
			Level: fastpath.Fail, About: "MTU", Text: fmt.Sprintf("that of %s is %d", small.dev, small.mtu), Why: "IPv6 needs 1280; messages of SIP over UDP are fragmented, and get lost",
			Remedy: fmt.Sprintf("ip link set %s mtu 1500, or 1280 at least", small.dev),
		})
	case small.mtu != large.mtu:
		list = append(list, finding{
			Level: fastpath.Warn, About: "MTU", Text: fmt.Sprintf("that of %s (%s) is %d, that of %s (%s) %d", small.dev, small.network, small.mtu, large.dev, large.network, large.mtu),
			Why:    "video and large messages that come in by one side do not fit out by the other: they are fragmented in user space, or lost",
			Remedy: fmt.Sprintf("ip link set %s mtu %d, and tell its hosts so (DHCP option 26); or raise that of %s if its path takes more", large.dev, small.mtu, small.dev),
		})
	default:
		list = append(list, fine("MTU", "%d on all sides", small.mtu))
	}
	return list
}

// tunnelMTU looks for an interface that promises more than what carries it.
func (x *exam) tunnelMTU(dev netlink.Link) []finding {
	at, most, by := dev.Attrs(), 0, ""
	below := x.net.links[at.ParentIndex]
	switch dev.Type() {
	case "ppp":
		most, by = 1492, "PPPoE"
	case "wireguard":
		most, by = ethernetMTU-80, "WireGuard over Ethernet"
	case "vxlan":
		most, by = ethernetMTU-50, "VXLAN over Ethernet"
		if below != nil {
			most = below.Attrs().MTU - 50
		}
	case "gre", "ipip", "sit", "ip6tnl":
		most, by = ethernetMTU-24, "a tunnel over Ethernet"
	case "vlan", "macvlan", "ipvlan":
		if below != nil {
			most, by = below.Attrs().MTU, below.Attrs().Name
		}
	}
	if most == 0 || at.MTU <= most {
		return nil
	}
	return []finding{{
		Level: fastpath.Warn, About: "MTU", Text: fmt.Sprintf("that of %s is %d, but %s carries %d", at.Name, at.MTU, by, most),
		Why: "packets that are larger vanish on their way", Remedy: fmt.Sprintf("ip link set %s mtu %d", at.Name, most),
	}}
}
