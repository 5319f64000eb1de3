package fastpath

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Pin says where the programs, maps and links are kept, so that they outlive the daemon.
type Pin struct {
	// Folder is on a bpffs; "" keeps nothing. It is made if it does not exist.
	Folder string
	// Name tells the daemons of one network namespace apart, and is the same at each start of one.
	Name string
}

// ErrLive says that a daemon holds what it has pinned.
var ErrLive = errors.New("a running daemon holds it")

// pins is one daemon's part of the folder. It is locked as long as the daemon lives, however it ends.
//
//	FOLDER/INSTANCE/LAYOUT/{flows,hops,bss,...}  maps
//	                      /relay, relay_xdp      programs
//	                      /tcx_INDEX, xdp_INDEX  links to a device; filters of clsact need none
type pins struct {
	// instance is the locked folder.
	instance *os.File
	dir      string
}

// instanceName is made of the network namespace, whose devices and addresses these are, and of a name.
func instanceName(name string) (string, error) {
	ns, err := networkNamespace()
	return fmt.Sprintf("%d-%08x", ns, hashOf(name)), err
}

func networkNamespace() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("network namespace: %w", err)
	}
	return st.Ino, nil
}

// namespaceOf returns the network namespace of an instance, 0 if its name does not say so.
func namespaceOf(instance string) uint64 {
	ino, _, _ := strings.Cut(instance, "-")
	n, _ := strconv.ParseUint(ino, 10, 64)
	return n
}

// handleOf returns the handle of an instance's filters, where the program is one.
func handleOf(instance string) uint32 { return hashOf(instance)>>1 | 1 }

func hashOf(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return h.Sum32()
}

// openPins locks the daemon's part of the folder, which stays empty until the program is loaded.
func openPins(p Pin) (*pins, error) {
	if err := onBPF(p.Folder); err != nil {
		return nil, err
	}
	name, err := instanceName(p.Name)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(p.Folder, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := lock(dir, lockPatience)
	if err != nil {
		return nil, err
	}
	return &pins{instance: f}, nil
}

// onBPF tells whether the folder is on a bpffs, or can be made there.
func onBPF(folder string) error {
	var st unix.Statfs_t
	at := existing(folder)
	if err := unix.Statfs(at, &st); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)", folder)
	}
	return nil
}

// existing returns the folder, or what it would be made in.
func existing(folder string) string {
	for {
		_, err := os.Stat(folder)
		if up := filepath.Dir(folder); errors.Is(err, fs.ErrNotExist) && up != folder {
			folder = up
			continue
		}
		return folder
	}
}

// lockPatience is how long to wait for who only looks at a folder, or is just ending.
const lockPatience = time.Second

// lock locks a folder, and waits for it if it must.
func lock(dir string, patience time.Duration) (*os.File, error) {
	for end := time.Now().Add(patience); ; <-time.After(20 * time.Millisecond) {
		f, err := tryLock(dir)
		if !errors.Is(err, ErrLive) || !time.Now().Before(end) {
			return f, err
		}
	}
}

// tryLock locks a folder, and makes it again if its last user has removed it between our opening and locking it.
func tryLock(dir string) (*os.File, error) {
	for {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrLive
			}
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		locked, err := f.Stat()
		if err == nil {
			if now, err := os.Stat(dir); err == nil && os.SameFile(locked, now) {
				return f, nil
			}
		}
		f.Close()
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

// useLayout makes the folder of the layout.
func (p *pins) useLayout(layout string) error {
	p.dir = filepath.Join(p.instance.Name(), layout)
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// path returns the place of an object; names on a bpffs hold no dots.
func (p *pins) path(name string) string {
	return filepath.Join(p.dir, strings.ReplaceAll(strings.TrimPrefix(name, "."), ".", "_"))
}

// maps returns the maps of an earlier run: all that outlive a daemon, or none if one is missing or does not fit.
func (p *pins) maps(spec *ebpf.CollectionSpec) map[string]*ebpf.Map {
	found := make(map[string]*ebpf.Map)
	for name := range spec.Maps {
		if !outlives(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(p.path(name), nil)
		if err != nil {
			closeMaps(found)
			return nil
		}
		found[name] = m
	}
	return found
}

func closeMaps(list map[string]*ebpf.Map) {
	for _, m := range list {
		_ = m.Close()
	}
}

// keep pins what was loaded, in the place of what an earlier run has pinned.
func (p *pins) keep(c *ebpf.Collection, adopted map[string]*ebpf.Map) error {
	for name, m := range c.Maps {
		if !outlives(name) || adopted[name] != nil {
			continue
		}
		if err := replace(p.path(name), m.Pin); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for name, prog := range c.Programs {
		if err := replace(p.path(name), prog.Pin); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

func replace(path string, pin func(string) error) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return pin(path)
}

// linkPath returns where the link to a device is pinned; kind is how it is attached.
func (p *pins) linkPath(kind string, index int) string {
	return filepath.Join(p.dir, kind+"_"+strconv.Itoa(index))
}

// link returns the link of an earlier run to a device, nil if there is none. A device that has got the
// number of another one that is gone has none.
func (p *pins) link(kind string, index int) link.Link {
	if p == nil {
		return nil
	}
	l, err := link.LoadPinnedLink(p.linkPath(kind, index), nil)
	if err != nil {
		return nil
	}
	if deviceOf(l) != index {
		_ = l.Close()
		return nil
	}
	return l
}

// keepLink pins a new link.
func (p *pins) keepLink(kind string, index int, l link.Link) error {
	if p == nil {
		return nil
	}
	return replace(p.linkPath(kind, index), l.Pin)
}

// deviceOf returns the number of the device that a link is attached to, 0 if it is gone.
func deviceOf(l link.Link) int {
	info, err := l.Info()
	if err != nil {
		return 0
	}
	if x := info.TCX(); x != nil {
		return int(x.Ifindex)
	}
	if x := info.XDP(); x != nil {
		return int(x.Ifindex)
	}
	return 0
}

// sweep removes the links for which wanted is false, and what other layouts have left.
func (p *pins) sweep(wanted func(kind string, index int) bool) error {
	if p == nil {
		return nil
	}
	var errs []error
	for _, e := range entries(p.instance.Name()) {
		if at := filepath.Join(p.instance.Name(), e); at != p.dir {
			errs = append(errs, os.RemoveAll(at))
		}
	}
	for _, e := range entries(p.dir) {
		if kind, index, ok := linkName(e); ok && !wanted(kind, index) {
			errs = append(errs, os.Remove(filepath.Join(p.dir, e)))
		}
	}
	return errors.Join(errs...)
}

// linkName takes the name of a pinned link apart.
func linkName(name string) (kind string, index int, ok bool) {
	kind, number, ok := strings.Cut(name, "_")
	index, err := strconv.Atoi(number)
	return kind, index, ok && err == nil
}

// entries returns the names in a folder, none if it cannot be read.
func entries(dir string) (names []string) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// remove removes everything and gives the lock back.
func (p *pins) remove() error {
	if p == nil {
		return nil
	}
	return errors.Join(os.RemoveAll(p.instance.Name()), p.instance.Close())
}
