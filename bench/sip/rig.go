package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

// Addresses of the rig. The gateway does not forward: what passes, passes through an edge.
const (
	callerIP  = "192.0.2.10"
	insideIP  = "192.0.2.1"
	outsideIP = "198.51.100.1"
	calleeIP  = "198.51.100.20"
)

// rig is three network namespaces in a row: inside, gateway, outside.
type rig struct {
	inside, gateway, outside string
	// dir holds configurations and statistics files.
	dir string
	// load is the path of SIPp.
	load string
	// edgeCPU and loadCPU are the processors of the edge and of the load, equal if there is one only.
	edgeCPU, loadCPU int
}

// newRig makes the namespaces. The caller must close the rig.
func newRig(ctx context.Context) (*rig, error) {
	dir, err := os.MkdirTemp("", "bench-sip-")
	if err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	id := fmt.Sprintf("bsip%d", os.Getpid())
	r := &rig{inside: id + "-in", gateway: id + "-gw", outside: id + "-out", dir: dir}
	if runtime.NumCPU() > 1 {
		r.loadCPU = 1
	}
	if err := r.link(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	for _, line := range r.setup() {
		if err := run(ctx, strings.Fields(line)...); err != nil {
			return nil, errors.Join(err, r.close())
		}
	}
	return r, nil
}

// link gives SIPp a name of its own here, so that nobody who ends SIPps elsewhere on the machine
// ends these.
func (r *rig) link() error {
	path, err := exec.LookPath("sipp")
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	r.load = filepath.Join(r.dir, "load")
	if err := os.Symlink(path, r.load); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

func (r *rig) setup() []string {
	lines := []string{}
	for _, ns := range []string{r.inside, r.gateway, r.outside} {
		lines = append(lines, "ip netns add "+ns, "ip -n "+ns+" link set lo up")
	}
	link := func(host, name, hostIP, gwIP string) {
		lines = append(lines,
			fmt.Sprintf("ip link add eth0 netns %s type veth peer name %s netns %s", host, name, r.gateway),
			fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", host, hostIP),
			fmt.Sprintf("ip -n %s link set eth0 up", host),
			fmt.Sprintf("ip -n %s addr add %s/24 dev %s", r.gateway, gwIP, name),
			fmt.Sprintf("ip -n %s link set %s up", r.gateway, name),
			fmt.Sprintf("ip -n %s route add default via %s", host, gwIP))
	}
	link(r.inside, "inside", callerIP, insideIP)
	link(r.outside, "outside", calleeIP, outsideIP)
	return lines
}

// close removes the namespaces, and with them the interfaces, and the files.
func (r *rig) close() error {
	errs := []error{os.RemoveAll(r.dir)}
	for _, ns := range []string{r.inside, r.gateway, r.outside} {
		if h, err := netns.GetFromName(ns); err == nil {
			errs = append(errs, h.Close(), netns.DeleteNamed(ns))
		}
	}
	return errors.Join(errs...)
}

// command returns a command that runs in a namespace on one processor, as leader of a process
// group of its own.
func (r *rig) command(ctx context.Context, ns string, cpu int, args ...string) *exec.Cmd {
	args = append([]string{"netns", "exec", ns, "taskset", "-c", fmt.Sprint(cpu)}, args...)
	return exec.CommandContext(ctx, "ip", args...)
}

// in calls f on a thread that is in the namespace; sockets made there stay there.
func in(ns string, f func() error) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		return fmt.Errorf("own namespace: %w", err)
	}
	defer own.Close()
	target, err := netns.GetFromName(ns)
	if err != nil {
		return fmt.Errorf("namespace %s: %w", ns, err)
	}
	defer target.Close()
	if err := netns.Set(target); err != nil {
		return fmt.Errorf("enter %s: %w", ns, err)
	}
	err = f()
	if back := netns.Set(own); back != nil {
		return errors.Join(err, back) // the thread stays locked and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// run executes a command to its end.
func run(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func addr(ip string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port)
}
