package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// What devices can do with XDP, as the kernel tells since Linux 6.3 (netdev.yaml, xdp-act).
const (
	xdpBasic    = 1 << 0
	xdpRedirect = 1 << 1
	xdpTransmit = 1 << 2 // takes frames that are redirected to it
)

// xdpProgram is the name of the second entry point; loaded only on request, as it needs Linux 5.18.
const xdpProgram = "relay_xdp"

// objects is tcObjects without the program that is loaded only on request.
type objects struct {
	Relay *ebpf.Program `ebpf:"relay"`
	tcMaps
	tcVariables
}

func (o *objects) Close() error { return errors.Join(o.Relay.Close(), o.tcMaps.Close()) }

// xdpAbilities returns what a device can do with XDP. It asks for one device, as the answer for all lacks the mark
// of an answer in parts, and is cut short by package netlink.
func xdpAbilities(device int) (uint64, error) {
	const (
		get      = 1 // NETDEV_CMD_DEV_GET
		index    = 1 // NETDEV_A_DEV_IFINDEX
		features = 3 // NETDEV_A_DEV_XDP_FEATURES
	)
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return 0, fmt.Errorf("the kernel does not tell what drivers can do, which takes Linux 6.3: %w", err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddRawData([]byte{get, uint8(family.Version), 0, 0}) // nl.Genlmsg leaves the reserved bytes to chance
	req.AddRawData(nl.NewRtAttr(index, nl.Uint32Attr(uint32(device))).Serialize())
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("abilities of device %d: %w", device, err)
	}
	for _, m := range msgs {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("abilities of device %d: %w", device, err)
		}
		for _, a := range attrs {
			if a.Attr.Type == features && len(a.Value) == 8 {
				return binary.NativeEndian.Uint64(a.Value), nil
			}
		}
	}
	return 0, fmt.Errorf("abilities of device %d: no answer", device)
}

// refusesXDP says why XDP must not be used at a device, with what can be done about it; nil if it may.
// others are all devices.
func refusesXDP(l netlink.Link, can uint64, others []netlink.Link) error {
	at := l.Attrs()
	if l.Type() == "vlan" {
		return errors.New("it is a VLAN, whose frames XDP would meet at the device below")
	}
	if can&(xdpBasic|xdpRedirect) != xdpBasic|xdpRedirect {
		return fmt.Errorf("its driver (%s) has no native XDP", l.Type())
	}
	for _, o := range others {
		// Hardware may take the tag off a frame before XDP sees it, which then looks like the device's own.
		if o.Type() == "vlan" && o.Attrs().ParentIndex == at.Index {
			return fmt.Errorf("it carries the VLAN %s, whose tags XDP may not see", o.Attrs().Name)
		}
	}
	return nil
}

// attachXDP puts the program before the one at the ingress of the device, in the driver. It also returns the
// device's address.
func (k *kernel) attachXDP(index int) (link.Link, [3]uint16, error) {
	var none [3]uint16
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, none, err
	}
	can, err := xdpAbilities(index)
	if err != nil {
		return nil, none, err
	}
	others, err := netlink.LinkList()
	if err != nil {
		return nil, none, fmt.Errorf("list devices: %w", err)
	}
	if err := refusesXDP(l, can, others); err != nil {
		return nil, none, err
	}
	// Never in generic mode: it loses what senders leave to be cut or summed up.
	at, err := k.takeLink("xdp", index, k.xdp, func() (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: k.xdp, Interface: index, Flags: link.XDPDriverMode})
	})
	if errors.Is(err, unix.EBUSY) {
		err = errors.New("it has another XDP program")
	}
	return at, mac(l.Attrs().HardwareAddr), err
}

// setXDP lets XDP use the hop if its device can send what XDP redirects to it.
func (w *ways) setXDP(h *tcHop) {
	if !w.xdp {
		return
	}
	can, known := w.abilities[h.Device]
	if !known {
		can, _ = xdpAbilities(int(h.Device)) // 0 if that fails: tc carries the packets
		w.abilities[h.Device] = can
	}
	if can&xdpTransmit != 0 {
		h.Flags |= hopXDP
	}
}

// mac returns an Ethernet address as the program compares it.
func mac(addr []byte) (m [3]uint16) {
	if len(addr) == 2*len(m) {
		for i := range m {
			m[i] = binary.NativeEndian.Uint16(addr[2*i:])
		}
	}
	return m
}

// carriedBy says which of the two programs carries what comes by a device and takes the way, and why it is not XDP if
// that was asked for.
func (k *kernel) carriedBy(device uint32, forth *way) (path, why string) {
	d := k.devices[int(device)]
	switch {
	case !k.wantXDP || d == nil:
		return "tc", ""
	case d.noXDP != "":
		return "tc", "no XDP: " + d.noXDP
	case forth.hop.Flags&hopXDP == 0:
		return "tc", "no XDP: the device to the peer does not send what XDP redirects to it (a veth does if the other end has GRO on)"
	case forth.hop.Flags&hopMAC == 0:
		return "tc", "no XDP: the neighbour's address is not known"
	}
	return "xdp", ""
}

// name returns the fastest program that is attached anywhere.
func (k *kernel) name() string {
	for _, d := range k.devices {
		if d.xdp != nil {
			return "xdp"
		}
	}
	return "tc"
}

// sayXDP tells of a device that was to have XDP and has not.
func (p *Path) sayXDP(d *device) {
	if d.noXDP != "" {
		p.log.Warn("kernel media path: no XDP, tc carries the device's media", zap.String("device", d.name), zap.String("reason", d.noXDP))
	}
}

// freshenMACs has streams come anew whose device has got another address. Only the worker calls it.
func (p *Path) freshenMACs() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kern == nil {
		return
	}
	for index, d := range p.kern.devices {
		l, err := p.ways.link(index)
		if d.xdp == nil || err != nil || mac(l.Attrs().HardwareAddr) == d.mac {
			continue
		}
		d.mac = mac(l.Attrs().HardwareAddr)
		for _, st := range p.streams {
			if st.on && int(st.seen.Device) == index {
				p.takeLocked(st, "being looked at")
				p.lookLocked(st)
			}
		}
	}
}
