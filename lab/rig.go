//go:build lab

package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// prefix begins the name of every namespace of the lab: prefix-PID-RIG-HOST.
const prefix = "edlab"

// side is the network that a host of the rig is on.
type side int

const (
	inside side = iota
	outside
)

var (
	nets4 = [...]string{inside: "10.77.1.", outside: "198.51.100."}
	nets6 = [...]string{inside: "fd77:1::", outside: "2001:db8:77::"}
)

// Host is one network namespace with an address of each family.
type Host struct {
	Name string
	Side side
	IP   netip.Addr
	IP6  netip.Addr
	ns   string
	fd   netns.NsHandle
	dir  string
	by   []string // what starts programs, see Knows
}

// Rig is a gateway between an inside and an outside network, with hosts on both.
type Rig struct {
	t        testing.TB
	Dir      string // logs, captures, recordings
	GW       *Host  // lan and wan are its interfaces
	hosts    []*Host
	id       string
	next     [2]int
	captures int
}

// newRig builds the switch and the gateway. Everything is removed when the test ends.
func newRig(t testing.TB) *Rig {
	t.Helper()
	r := &Rig{t: t, id: fmt.Sprintf("%s-%d-%06x", prefix, os.Getpid(), rand.IntN(1<<24)), next: [2]int{10, 10}}
	r.Dir = logDir(t)
	t.Cleanup(r.remove)
	r.ip("netns add %s-sw", r.id)
	for _, b := range []string{"brin", "brout"} {
		r.ip("-n %s-sw link add %s type bridge forward_delay 0 mcast_snooping 0", r.id, b)
		r.ip("-n %s-sw link set %s up", r.id, b)
	}
	r.GW = r.namespace("gw")
	r.plug(r.GW, inside, "lan", 1)
	r.plug(r.GW, outside, "wan", 1)
	r.setForward(false)
	return r
}

// logDir returns the test's own directory: below EDGED_LAB_KEEP if set (it stays), temporary otherwise.
func logDir(t testing.TB) string {
	keep := os.Getenv("EDGED_LAB_KEEP")
	if keep == "" {
		return t.TempDir()
	}
	dir := filepath.Join(keep, strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatalf("log directory: %v", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("log directory: %v", err)
	}
	return dir
}

// Inside adds a host on the inside network.
func (r *Rig) Inside(name string) *Host { return r.host(name, inside) }

// Outside adds a host on the outside network.
func (r *Rig) Outside(name string) *Host { return r.host(name, outside) }

func (r *Rig) host(name string, s side) *Host {
	r.t.Helper()
	h := r.namespace(name)
	r.next[s]++
	r.plug(h, s, "eth0", r.next[s])
	// outside hosts have no way to the inside but the gateway's own address: .254 does not exist
	router := [...]int{inside: 1, outside: 254}[s]
	r.ip("-n %s route add default via %s%d", h.ns, nets4[s], router)
	r.ip("-n %s -6 route add default via %s%x", h.ns, nets6[s], router)
	return h
}

// BehindNAT adds an outside host whose packets are masqueraded by a router of its own, as in a
// home. Its IP is private (192.0.2.2); the second result is the router.
func (r *Rig) BehindNAT(name string) (phone, router *Host) {
	r.t.Helper()
	router = r.host(name+"-r", outside)
	phone = r.namespace(name)
	r.ip("link add home netns %s type veth peer name eth0 netns %s", router.ns, phone.ns)
	r.ip("-n %s addr add 192.0.2.1/24 dev home", router.ns)
	r.ip("-n %s link set home up", router.ns)
	r.ip("-n %s addr add 192.0.2.2/24 dev eth0", phone.ns)
	r.ip("-n %s link set eth0 up", phone.ns)
	r.ip("-n %s route add default via 192.0.2.1", phone.ns)
	phone.IP, phone.Side = netip.MustParseAddr("192.0.2.2"), outside
	must(r.t, "forward", router.writeSysctl("net/ipv4/ip_forward", "1"))
	r.masquerade(router, "eth0")
	return phone, router
}

// masquerade makes h hide what it routes out of dev behind its own address.
func (r *Rig) masquerade(h *Host, dev string) {
	r.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table ip labnat {\n chain post {\n  type nat hook postrouting priority 100\n  oifname \"" + dev + "\" masquerade\n }\n}\n")
	must(r.t, "nft", h.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}))
}

// PlainNAT makes the gateway what many sites have: a router with NAT and no ALG.
func (r *Rig) PlainNAT() {
	r.t.Helper()
	r.setForward(true)
	r.masquerade(r.GW, "wan")
}

// setForward sets routing on the gateway, and checks that it is so.
func (r *Rig) setForward(on bool) {
	r.t.Helper()
	want := map[bool]string{false: "0", true: "1"}[on]
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		must(r.t, "forwarding", r.GW.writeSysctl(key, want))
		if got := r.GW.readSysctl(key); got != want {
			r.t.Fatalf("gateway %s = %q, want %s", key, got, want)
		}
	}
}

func (r *Rig) namespace(name string) *Host {
	r.t.Helper()
	h := &Host{Name: name, ns: r.id + "-" + name, dir: r.Dir}
	r.ip("netns add %s", h.ns)
	r.ip("-n %s link set lo up", h.ns)
	fd, err := netns.GetFromName(h.ns)
	must(r.t, "namespace", err)
	h.fd = fd
	r.hosts = append(r.hosts, h)
	return h
}

// plug connects h to the switch of side s with the address that ends in n.
func (r *Rig) plug(h *Host, s side, dev string, n int) {
	r.t.Helper()
	port := fmt.Sprintf("p%d%s", len(r.hosts), dev)
	r.ip("link add %s netns %s type veth peer name %s netns %s-sw", dev, h.ns, port, r.id)
	r.ip("-n %s-sw link set %s master %s", r.id, port, [...]string{"brin", "brout"}[s])
	r.ip("-n %s-sw link set %s up", r.id, port)
	r.ip("-n %s addr add %s%d/24 dev %s", h.ns, nets4[s], n, dev)
	r.ip("-n %s addr add %s%x/64 dev %s nodad", h.ns, nets6[s], n, dev)
	r.ip("-n %s link set %s up", h.ns, dev)
	h.Side = s
	h.IP = netip.MustParseAddr(nets4[s] + strconv.Itoa(n))
	h.IP6 = netip.MustParseAddr(fmt.Sprintf("%s%x", nets6[s], n))
}

// ip runs the ip command; any failure ends the test.
func (r *Rig) ip(format string, args ...any) {
	r.t.Helper()
	line := fmt.Sprintf(format, args...)
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		r.t.Fatalf("ip %s: %v: %s", line, err, out)
	}
}

func (r *Rig) remove() {
	for _, h := range r.hosts {
		_ = h.fd.Close()
		_ = exec.Command("ip", "netns", "del", h.ns).Run()
	}
	_ = exec.Command("ip", "netns", "del", r.id+"-sw").Run()
}

// sweep deletes namespaces that a killed run of the lab left behind.
func sweep() {
	list, _ := os.ReadDir("/run/netns")
	for _, e := range list {
		var pid int
		if n, _ := fmt.Sscanf(e.Name(), prefix+"-%d-", &pid); n != 1 {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, os.ErrNotExist) {
			_ = exec.Command("ip", "netns", "del", e.Name()).Run()
		}
	}
}

// Do runs fn on a thread that is inside the host's namespace. Sockets that fn makes and
// processes that it starts belong to the namespace for good.
func (h *Host) Do(fn func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("namespace: %w", err)
	}
	defer func() { _ = home.Close() }()
	if err := netns.Set(h.fd); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter %s: %w", h.ns, err)
	}
	err = fn()
	if back := netns.Set(home); back != nil {
		return errors.Join(err, back) // the thread stays locked and dies with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

func (h *Host) writeSysctl(key, value string) error {
	return h.Do(func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644) })
}

func (h *Host) readSysctl(key string) (value string) {
	_ = h.Do(func() error {
		b, err := os.ReadFile("/proc/sys/" + key)
		value = strings.TrimSpace(string(b))
		return err
	})
	return value
}

// Addr returns the host's address with a port, in the family asked for (4 or 6).
func (h *Host) Addr(family int, port uint16) netip.AddrPort {
	if family == 6 {
		return netip.AddrPortFrom(h.IP6, port)
	}
	return netip.AddrPortFrom(h.IP, port)
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// until polls cond every 5 ms and tells whether it came true within d.
func until(d time.Duration, cond func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); ; <-tick.C {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// patience is by how much longer the lab waits for what should come than it takes on a machine that does nothing else.
const patience = 3

// eventually fails the test if cond does not come true within d and more.
func eventually(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	if d *= patience; !until(d, cond) {
		t.Fatalf("not within %v: %s", d, what)
	}
}

// pass lets d go by: the length of a conversation, never a substitute for a condition.
func pass(d time.Duration) { <-time.After(d) }

// IPOn returns the gateway's address of the family on side s.
func (h *Host) IPOn(s side, family int) netip.Addr {
	if family == 6 {
		return netip.MustParseAddr(nets6[s] + "1")
	}
	return netip.MustParseAddr(nets4[s] + "1")
}

// owns tells whether a is the gateway's address on side s.
func (h *Host) owns(s side, a netip.Addr) bool { return a == h.IPOn(s, 4) || a == h.IPOn(s, 6) }

// listens tells whether a UDP or TCP socket of the host is bound to the port.
func (h *Host) listens(t testing.TB, port int) bool {
	t.Helper()
	found := false
	must(t, "sockets", h.Do(func() error {
		for _, file := range []string{"udp", "tcp", "udp6", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			found = found || strings.Contains(string(b), fmt.Sprintf(":%04X ", port))
		}
		return nil
	}))
	return found
}

// or returns v, or def if v is the zero value.
func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
