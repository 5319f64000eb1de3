package fastpath

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// leaseTime is how long the program goes on when nobody renews its lease.
	leaseTime = 30 * time.Second
	// lookAt is how many flows one system call reads.
	lookAt = 4096
	// clsactName is the name of the filter on kernels without tcx, by which a later run finds it.
	clsactName = "edged_media"
)

// kernel is the loaded program, its maps and the devices that it is attached to.
type kernel struct {
	objs objects
	// wantXDP says that XDP was asked for; xdp is its program, nil if it is not loaded, for which noXDP is
	// the reason.
	wantXDP bool
	xdp     *ebpf.Program
	noXDP   error
	// pins keeps it beyond the end of the daemon, nil if nothing is kept. Adopted tells whether the maps
	// are those of an earlier run.
	pins    *pins
	adopted bool
	// handle is that of this daemon's filters, where they are needed.
	handle uint32
	// clsact attaches as kernels before 6.6 do.
	clsact  bool
	devices map[int]*device
	keys    []tcKey
	values  []tcFlow
	// channelKeys are as keys.
	channelKeys []tcChannelKey
}

// device has the program at its ingress; link is nil where it is a filter of clsact.
type device struct {
	name string
	link link.Link
	// xdp is there if XDP was asked for; else noXDP says why not. mac is its own address.
	xdp   link.Link
	noXDP string
	mac   [3]uint16
}

// load loads the program, to be forgotten with the daemon.
func load() (*kernel, error) { return loadPinned(nil, 0, false) }

// loadPinned loads the program, with the maps of an earlier run if there are such; keep may be nil. The
// handle is this daemon's own. XDP is an extra: without it the rest works all the same.
func loadPinned(keep *pins, handle uint32, xdp bool) (*kernel, error) {
	k := &kernel{
		handle: handle, wantXDP: xdp, devices: make(map[int]*device),
		keys: make([]tcKey, lookAt), values: make([]tcFlow, lookAt),
		channelKeys: make([]tcChannelKey, lookAt),
	}
	spec, err := loadTc()
	if err != nil {
		return nil, err
	}
	if !xdp {
		delete(spec.Programs, xdpProgram)
	}
	if err := k.load(spec, keep); errors.Is(err, unix.EPERM) && !refused(err) {
		return nil, fmt.Errorf("CAP_NET_ADMIN and CAP_BPF are needed: %w", unix.EPERM)
	} else if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	return k, nil
}

// refused tells whether the verifier has read the program and said why not.
func refused(err error) bool {
	var said *ebpf.VerifierError
	return errors.As(err, &said) && len(said.Log) > 0
}

func (k *kernel) load(spec *ebpf.CollectionSpec, keep *pins) error {
	var earlier map[string]*ebpf.Map
	if keep != nil {
		if err := keep.useLayout(layoutOf(spec)); err != nil {
			return err
		}
		earlier = keep.maps(spec)
		defer closeMaps(earlier)
		if now, err := readClock(); err == nil {
			clearForgotten(filepath.Dir(keep.instance.Name()), spec, now.ns)
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: earlier})
	if err != nil && spec.Programs[xdpProgram] != nil {
		k.noXDP = err
		delete(spec.Programs, xdpProgram)
		c, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: earlier})
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if keep != nil {
		if err := keep.keep(c, earlier); err != nil {
			return err
		}
		k.pins, k.adopted = keep, len(earlier) > 0
	}
	if err := c.Assign(&k.objs); err != nil {
		return err
	}
	k.xdp = c.DetachProgram(xdpProgram)
	return nil
}

func (k *kernel) close() error {
	errs := []error{k.xdp.Close()}
	for index := range k.devices {
		errs = append(errs, k.detach(index))
	}
	return errors.Join(append(errs, k.objs.Close(), k.pins.remove())...)
}

// renew lets the program go on until leaseTime after c.
func (k *kernel) renew(c clock) error {
	return k.objs.LeaseUntil.Set(c.ns + uint64(leaseTime))
}

// attach puts the program at the ingress of a device, in the place of an earlier run's: no packet passes
// without one of them.
func (k *kernel) attach(index int, name string) error {
	if k.devices[index] != nil {
		return nil
	}
	d := &device{name: name}
	if !k.clsact {
		var err error
		if d.link, err = k.attachLink(index); errors.Is(err, ebpf.ErrNotSupported) {
			k.clsact = true
		} else if err != nil {
			return fmt.Errorf("attach to %s: %w", name, err)
		}
	}
	if d.link == nil {
		if err := k.attachFilter(index); err != nil {
			return fmt.Errorf("attach to %s: %w", name, err)
		}
	}
	k.devices[index] = d
	if k.wantXDP {
		k.tryXDP(index, d)
	}
	return nil
}

func (k *kernel) attachLink(index int) (link.Link, error) {
	return k.takeLink("tcx", index, k.objs.Relay, func() (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: index, Program: k.objs.Relay, Attach: ebpf.AttachTCXIngress})
	})
}

// takeLink puts the program in the place of an earlier run's, or attaches it.
func (k *kernel) takeLink(kind string, index int, prog *ebpf.Program, attach func() (link.Link, error)) (link.Link, error) {
	if l := k.pins.link(kind, index); l != nil {
		if err := l.Update(prog); err != nil {
			_ = l.Close()
			return nil, err
		}
		return l, nil
	}
	l, err := attach()
	if err != nil {
		return nil, err
	}
	if err := k.pins.keepLink(kind, index, l); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("pin: %w", err)
	}
	return l, nil
}

// tryXDP puts XDP before the program that is attached; where it cannot be, that one carries all.
func (k *kernel) tryXDP(index int, d *device) {
	err := k.noXDP
	if err == nil {
		d.xdp, d.mac, err = k.attachXDP(index)
	}
	if err != nil {
		d.noXDP = err.Error()
	}
}

// attachFilter uses the clsact queueing discipline; it replaces what an earlier run left.
func (k *kernel) attachFilter(index int) error {
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact: %w", err)
	}
	if err := netlink.FilterReplace(k.filter(index)); err != nil {
		return fmt.Errorf("clsact filter: %w", err)
	}
	return nil
}

func (k *kernel) filter(index int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: k.handle, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: k.objs.Relay.FD(), Name: clsactName, DirectAction: true,
	}
}

// detach takes the program away; the device may be gone already.
func (k *kernel) detach(index int) error {
	d := k.devices[index]
	delete(k.devices, index)
	first := k.drop(d.xdp)
	if d.link != nil {
		return errors.Join(first, k.drop(d.link))
	}
	err := netlink.FilterDel(k.filter(index))
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return errors.Join(first, err)
}

// drop ends a link, which may be nil, and is pinned if anything is.
func (k *kernel) drop(l link.Link) error {
	if l == nil {
		return nil
	}
	if k.pins != nil {
		if err := l.Unpin(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return l.Close()
}

// sweep removes what an earlier run has left at devices that are not configured any more.
func (k *kernel) sweep() error {
	errs := []error{k.pins.sweep(func(kind string, index int) bool {
		d := k.devices[index]
		return d != nil && (kind != "xdp" || d.xdp != nil)
	})}
	filters, err := filtersOf(k.handle)
	errs = append(errs, err)
	for index, f := range filters {
		if k.devices[index] == nil || !k.clsact {
			errs = append(errs, netlink.FilterDel(f))
		}
	}
	return errors.Join(errs...)
}

// attachment names how the program is attached.
func (k *kernel) attachment() string {
	at := "tcx"
	if k.clsact {
		at = "clsact"
	}
	if k.name() == "xdp" {
		return "xdp, " + at
	}
	return at
}

// take removes a flow and returns its last figures; false if there is none.
func (k *kernel) take(key tcKey) (tcFlow, bool, error) { return take(k.objs.Flows, key) }

func take[K any](m *ebpf.Map, key K) (tcFlow, bool, error) {
	var v tcFlow
	err := m.LookupAndDelete(&key, &v)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		// Before 5.14 these are two steps; what comes between them is not counted.
		if err = m.Lookup(&key, &v); err == nil {
			err = m.Delete(&key)
		}
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	return v, err == nil, err
}

// each calls f with every flow.
func (k *kernel) each(f func(tcKey, *tcFlow)) error { return each(k, k.objs.Flows, k.keys, f) }

func each[K any](k *kernel, m *ebpf.Map, keys []K, f func(K, *tcFlow)) error {
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, k.values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read flows: %w", err)
		}
		for i := range n {
			f(keys[i], &k.values[i])
		}
		if err != nil {
			return nil
		}
	}
}

// devicesOf returns the devices that carry the addresses, nil if that cannot be known, and a reason for
// each address without one.
func devicesOf(addrs []netip.Addr, loopback bool) (map[int]string, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	at := make(map[netip.Addr]int)
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			at[ip.Unmap()] = a.LinkIndex
		}
	}
	found := make(map[int]string)
	var errs []error
	for _, a := range addrs {
		index, ok := at[a]
		if !ok && a.IsLoopback() {
			index, ok = 1, true // all of 127.0.0.0/8 is there
		}
		if !ok {
			errs = append(errs, fmt.Errorf("no device has %s", a))
			continue
		}
		l, err := netlink.LinkByIndex(index)
		if err == nil {
			err = ethernet(l, loopback)
		}
		if err == nil {
			err = noVRF(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a, err))
			continue
		}
		found[index] = l.Attrs().Name
	}
	return found, errors.Join(errs...)
}

// noVRF refuses devices whose packets are routed by another table than the daemon's sockets see.
func noVRF(l netlink.Link) error {
	if l.Attrs().MasterIndex == 0 {
		return nil
	}
	master, err := netlink.LinkByIndex(l.Attrs().MasterIndex)
	if err == nil && master.Type() == "vrf" {
		err = fmt.Errorf("device %s is in the VRF %s", l.Attrs().Name, master.Attrs().Name)
	}
	return err
}

// ethernet tells whether packets of the device have Ethernet headers.
func ethernet(l netlink.Link, loopback bool) error {
	switch kind := l.Attrs().EncapType; {
	case kind == "ether", kind == "loopback" && loopback:
		return nil
	case kind == "loopback":
		return errors.New("loopback")
	default:
		return fmt.Errorf("device %s (%s) has no Ethernet header", l.Attrs().Name, kind)
	}
}
