package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// maxWays is the size of the map hops.
	maxWays = 1 << 16
	// checkEvery is how old a looked-up route may be.
	checkEvery = 5 * time.Second
)

// way is how one destination is reached from one of the gateway's addresses. Streams share it. hop and
// why are guarded by the path's mutex; only the worker writes them.
type way struct {
	dst, src netip.Addr
	slot     uint32
	refs     int
	hop      tcHop
	why      string // why it cannot be used, "" if it can
	checked  time.Time
}

// ways looks up routes and neighbours. Only the worker calls it.
type ways struct {
	loopback bool
	links    map[int]netlink.Link
	// neighbours is what the kernel knew when it was last asked.
	neighbours map[neighbour]netlink.Neigh
	ipsec      bool
	// xdp asks what devices can do with XDP.
	xdp       bool
	abilities map[uint32]uint64
}

type neighbour struct {
	device int
	ip     netip.Addr
}

// forget drops what was known of devices, and reads the neighbours and the policies anew.
func (w *ways) forget() error {
	w.links = make(map[int]netlink.Link)
	w.neighbours = make(map[neighbour]netlink.Neigh)
	w.abilities = make(map[uint32]uint64)
	list, err := netlink.NeighListExecute(netlink.Ndmsg{Family: unix.AF_UNSPEC})
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); ok {
			w.neighbours[neighbour{n.LinkIndex, ip.Unmap()}] = n
		}
	}
	// A kernel without IPsec refuses to answer, which is an answer.
	policies, err := netlink.XfrmPolicyList(unix.AF_UNSPEC)
	w.ipsec = err == nil && len(policies) > 0
	return nil
}

// resolve finds the way from src to dst; the error says why the kernel path must not be used.
func (w *ways) resolve(dst, src netip.Addr) (tcHop, error) {
	if w.ipsec {
		return tcHop{}, errors.New("IPsec policies are in force")
	}
	routes, err := netlink.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{SrcAddr: src.AsSlice()})
	switch {
	case err != nil || len(routes) == 0:
		return tcHop{}, fmt.Errorf("no route to %s", dst)
	case routes[0].Type == unix.RTN_LOCAL && w.loopback:
	case routes[0].Type == unix.RTN_LOCAL:
		return tcHop{}, errors.New("the peer is on this machine")
	case routes[0].Type != unix.RTN_UNICAST:
		return tcHop{}, fmt.Errorf("no unicast route to %s", dst)
	case routes[0].Encap != nil:
		return tcHop{}, fmt.Errorf("the route to %s is encapsulated", dst)
	}
	l, err := w.link(routes[0].LinkIndex)
	if err != nil {
		return tcHop{}, err
	}
	return w.hop(l, &routes[0], dst), nil
}

func (w *ways) link(index int) (netlink.Link, error) {
	l := w.links[index]
	if l == nil {
		var err error
		if l, err = netlink.LinkByIndex(index); err != nil {
			return nil, fmt.Errorf("device %d: %w", index, err)
		}
		w.links[index] = l
	}
	if err := ethernet(l, w.loopback); err != nil {
		return nil, err
	}
	return l, nil
}

// hop returns the neighbour that the route leads to: with its Ethernet address if that is known, else
// the kernel finds it for each packet.
func (w *ways) hop(l netlink.Link, r *netlink.Route, dst netip.Addr) tcHop {
	at := l.Attrs()
	h := tcHop{Device: uint32(at.Index), Mtu: uint32(at.MTU)}
	if r.MTU > 0 && r.MTU < at.MTU {
		h.Mtu = uint32(r.MTU)
	}
	next := dst
	if ip, ok := gateway(r); ok {
		next = ip
	}
	h.Family = unix.AF_INET6
	if next.Is4() {
		h.Family = unix.AF_INET
	}
	for i, b := 0, next.AsSlice(); i < len(b); i += 4 {
		h.Next[i/4] = binary.NativeEndian.Uint32(b[i:])
	}
	if at.EncapType == "loopback" {
		h.Flags |= hopMAC
		return h
	}
	w.setMAC(&h, at.HardwareAddr, neighbour{at.Index, next})
	w.setXDP(&h)
	return h
}

// freshen looks at the device and the neighbour of a hop again.
func (w *ways) freshen(h tcHop) (tcHop, error) {
	l, err := w.link(int(h.Device))
	if err != nil || l.Attrs().EncapType == "loopback" {
		return h, err
	}
	b := make([]byte, 0, 16)
	for _, word := range h.Next {
		b = binary.NativeEndian.AppendUint32(b, word)
	}
	next := netip.AddrFrom16([16]byte(b))
	if h.Family == unix.AF_INET {
		next = netip.AddrFrom4([4]byte(b[:4]))
	}
	h.Flags, h.Dmac, h.Smac = 0, [6]byte{}, [6]byte{}
	w.setMAC(&h, l.Attrs().HardwareAddr, neighbour{int(h.Device), next})
	w.setXDP(&h)
	return h, nil
}

// setMAC uses the neighbour's address as long as the kernel would. Redirected packets do not count as
// use, so the kernel is asked to check an address that has become old.
func (w *ways) setMAC(h *tcHop, own net.HardwareAddr, at neighbour) {
	const (
		usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT | unix.NUD_NOARP
		sure   = unix.NUD_REACHABLE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT | unix.NUD_NOARP
	)
	n, known := w.neighbours[at]
	if known && n.State&usable != 0 && len(n.HardwareAddr) == len(h.Dmac) && len(own) == len(h.Smac) {
		copy(h.Dmac[:], n.HardwareAddr)
		copy(h.Smac[:], own)
		h.Flags |= hopMAC
	}
	if !known || n.State&sure == 0 {
		// If it fails the packets ask themselves.
		_ = netlink.NeighAdd(&netlink.Neigh{LinkIndex: at.device, IP: at.ip.AsSlice(), Flags: unix.NTF_USE, Family: family(at.ip)})
	}
}

func family(ip netip.Addr) int {
	if ip.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func gateway(r *netlink.Route) (netip.Addr, bool) {
	ip := r.Gw
	if via, ok := r.Via.(*netlink.Via); ok && ip == nil {
		ip = via.Addr
	}
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}
