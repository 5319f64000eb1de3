package fastpath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State is what one daemon has pinned, as anybody may read it who may open the files; the daemon need not live.
type State struct {
	Instance string `json:"instance"`
	Folder   string `json:"folder"`
	// Here tells whether its network namespace is the caller's: otherwise devices have no names, and
	// filters of clsact are not seen.
	Here bool `json:"in_this_network_namespace"`
	// Live tells whether a daemon holds it.
	Live bool `json:"live"`
	// Layout names the layout of the maps, Readable tells whether it is this program's own.
	Layout   string `json:"layout"`
	Readable bool   `json:"readable"`
	// LeaseSeconds is how long the kernel goes on by itself, 0 if it has ended already.
	LeaseSeconds float64        `json:"lease_seconds"`
	Programs     []ProgramState `json:"programs"`
	Devices      []DeviceState  `json:"devices"`
	Flows        []FlowState    `json:"flows"`
	// Damaged are the paths of pins that should be links and cannot be opened as such.
	Damaged []string `json:"damaged,omitempty"`
}

// ProgramState is a pinned program. Tag is the kernel's hash of its instructions.
type ProgramState struct {
	Name string `json:"name"`
	Tag  string `json:"tag"`
}

// DeviceState is a device that has the program. Name is "" if it is not known.
type DeviceState struct {
	Index    int    `json:"index"`
	Name     string `json:"name,omitempty"`
	Attached string `json:"attached"`
}

// FlowState is one direction of a stream: what comes from Peer to Local leaves from Out to To.
type FlowState struct {
	Local       netip.AddrPort `json:"local"`
	Peer        netip.AddrPort `json:"peer"`
	Out         netip.AddrPort `json:"out"`
	To          netip.AddrPort `json:"to"`
	Device      uint32         `json:"device"`
	Packets     uint64         `json:"packets"`
	Bytes       uint64         `json:"bytes"`
	IdleSeconds float64        `json:"idle_seconds"`
}

// Inspect returns what is pinned in a folder, by instance. It changes nothing.
func Inspect(folder string) ([]State, error) {
	names, err := instances(folder)
	if err != nil {
		return nil, err
	}
	var list []State
	for _, name := range names {
		s, err := inspect(filepath.Join(folder, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // its daemon has just ended
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// instances returns the names of the instances in a folder; none if it does not exist.
func instances(folder string) (names []string, err error) {
	if err := onBPF(folder); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range list {
		if e.IsDir() && namespaceOf(e.Name()) != 0 {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func inspect(dir string) (State, error) {
	name := filepath.Base(dir)
	own, err := networkNamespace()
	if err != nil {
		return State{}, err
	}
	s := State{
		Instance: name, Folder: dir, Here: namespaceOf(name) == own,
		Programs: []ProgramState{}, Devices: []DeviceState{}, Flows: []FlowState{},
	}
	held, err := lock(dir, 0)
	if s.Live = errors.Is(err, ErrLive); err != nil && !s.Live {
		return State{}, err
	}
	if held != nil {
		held.Close()
	}
	spec, err := loadTc()
	if err != nil {
		return State{}, err
	}
	for _, layout := range entries(dir) {
		s.Layout, s.Readable = layout, layout == layoutOf(spec)
		if err := s.read(&pins{dir: filepath.Join(dir, layout)}, spec); err != nil {
			return State{}, err
		}
	}
	if !s.Here {
		return s, nil
	}
	filters, err := filtersOf(handleOf(name))
	for index := range filters {
		s.Devices = append(s.Devices, DeviceState{Index: index, Name: deviceName(index), Attached: "clsact"})
	}
	slices.SortFunc(s.Devices, func(a, b DeviceState) int { return cmp.Compare(a.Index, b.Index) })
	return s, err
}

// read adds what one layout's folder holds.
func (s *State) read(p *pins, spec *ebpf.CollectionSpec) error {
	for _, e := range entries(p.dir) {
		kind, _, isLink := linkName(e)
		if !isLink {
			continue
		}
		l, err := link.LoadPinnedLink(filepath.Join(p.dir, e), nil)
		if damaged(err) {
			s.Damaged = append(s.Damaged, filepath.Join(p.dir, e))
			continue
		}
		if err != nil {
			return err
		}
		if index := deviceOf(l); index != 0 {
			d := DeviceState{Index: index, Attached: kind}
			if s.Here {
				d.Name = deviceName(index)
			}
			s.Devices = append(s.Devices, d)
		}
		_ = l.Close()
	}
	for name := range spec.Programs {
		if prog, err := ebpf.LoadPinnedProgram(p.path(name), nil); err == nil {
			if info, err := prog.Info(); err == nil {
				s.Programs = append(s.Programs, ProgramState{info.Name, info.Tag})
			}
			_ = prog.Close()
		}
	}
	if !s.Readable {
		return nil
	}
	c, err := readClock()
	if err != nil {
		return err
	}
	if err := s.readLease(p, spec, c); err != nil {
		return err
	}
	return s.readFlows(p, c)
}

func (s *State) readLease(p *pins, spec *ebpf.CollectionSpec, c clock) error {
	until, err := leaseUntil(p, spec)
	if until > c.ns {
		s.LeaseSeconds = time.Duration(until - c.ns).Seconds()
	}
	return err
}

// leaseUntil returns when a pinned lease ends, on the program's clock. The layout must be this program's own.
func leaseUntil(p *pins, spec *ebpf.CollectionSpec) (uint64, error) {
	v := spec.Variables["lease_until"]
	m, err := ebpf.LoadPinnedMap(p.path(v.SectionName), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer func() { _ = m.Close() }()
	section := make([]byte, m.ValueSize())
	if err := m.Lookup(uint32(0), section); err != nil {
		return 0, fmt.Errorf("lease: %w", err)
	}
	return binary.NativeEndian.Uint64(section[v.Offset:]), nil
}

func (s *State) readFlows(p *pins, c clock) error {
	m, err := ebpf.LoadPinnedMap(p.path(tcMapFlows), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	var k tcKey
	var v tcFlow
	flows := m.Iterate()
	for flows.Next(&k, &v) {
		f := FlowState{
			Local: k.addr(), Peer: v.source(), Out: v.out(), To: v.to(),
			Device: v.Device, Packets: v.Packets, Bytes: v.Bytes,
		}
		if c.ns > v.Last {
			f.IdleSeconds = time.Duration(c.ns - v.Last).Seconds()
		}
		s.Flows = append(s.Flows, f)
	}
	slices.SortFunc(s.Flows, func(a, b FlowState) int { return a.Local.Compare(b.Local) })
	if err := flows.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return fmt.Errorf("flows: %w", err) // aborted: they change faster than they can be read
	}
	return nil
}

func deviceName(index int) string {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return l.Attrs().Name
}

// Detach takes the programs from the devices and removes what is pinned in a folder. It returns the instances
// that are removed. What a running daemon holds is left alone unless force says so.
func Detach(folder string, force bool) (removed []string, err error) {
	names, err := instances(folder)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, name := range names {
		if err := detachInstance(filepath.Join(folder, name), force); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}

// forgottenAfter is how long a lease must have ended for nobody to come back for what it was for.
const forgottenAfter = time.Hour

// clearForgotten removes what daemons of other names or network namespaces have left and not come back for: the maps
// take memory. It leaves alone what it cannot read.
func clearForgotten(folder string, spec *ebpf.CollectionSpec, now uint64) {
	names, err := instances(folder)
	if err != nil {
		return
	}
	for _, name := range names {
		dir := filepath.Join(folder, name)
		held, err := lock(dir, 0)
		if err != nil {
			continue // its daemon lives
		}
		until, err := leaseUntil(&pins{dir: filepath.Join(dir, layoutOf(spec))}, spec)
		if err == nil && until+uint64(forgottenAfter) < now {
			_ = os.RemoveAll(dir)
		}
		held.Close()
	}
}

// Forget removes what an earlier run of this daemon has pinned or left attached, for a daemon that does not
// use the kernel path.
func Forget(pin Pin) error {
	name, err := instanceName(pin.Name)
	if err != nil {
		return err
	}
	if pin.Folder != "" {
		dir := filepath.Join(pin.Folder, name)
		if _, err := os.Stat(dir); err == nil {
			return detachInstance(dir, false)
		}
	}
	return nil
}

func detachInstance(dir string, force bool) error {
	held, err := lock(dir, lockPatience)
	if err != nil && !(force && errors.Is(err, ErrLive)) {
		return err
	}
	if held != nil {
		defer held.Close()
	}
	own, err := networkNamespace()
	if err != nil {
		return err
	}
	links, err := detachLinks(dir)
	if err != nil {
		return err
	}
	name := filepath.Base(dir)
	switch {
	case namespaceOf(name) == own:
		filters, err := filtersOf(handleOf(name))
		if err != nil {
			return err
		}
		for index, f := range filters {
			if err := netlink.FilterDel(f); err != nil {
				return fmt.Errorf("device %d: %w", index, err)
			}
		}
	case links == 0:
		return fmt.Errorf("%s may have filters in the network namespace %d: repeat this there (nsenter --net)", name, namespaceOf(name))
	}
	return os.RemoveAll(dir)
}

// damaged tells whether a pin cannot be opened for what it is: the kernel says the same of what is no link
// and to those who may not open it, but root may. A pin that has just gone is not damaged.
func damaged(err error) bool {
	return err != nil && !errors.Is(err, fs.ErrNotExist) && (os.Geteuid() == 0 || !errors.Is(err, fs.ErrPermission))
}

// detachLinks detaches the pinned links, also those that somebody else has open, and counts them.
func detachLinks(dir string) (n int, err error) {
	for _, layout := range entries(dir) {
		for _, e := range entries(filepath.Join(dir, layout)) {
			if _, _, ok := linkName(e); !ok {
				continue
			}
			l, err := link.LoadPinnedLink(filepath.Join(dir, layout, e), nil)
			if damaged(err) {
				continue // it goes with the folder
			}
			if err != nil {
				return n, err
			}
			n++
			err = l.Detach()
			_ = l.Close()
			if err != nil && !errors.Is(err, unix.ENOLINK) {
				return n, err
			}
		}
	}
	return n, nil
}
