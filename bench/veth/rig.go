// Package veth is the network of benchmarks of TCP: client, gateway and server, each a namespace, joined by veth pairs that
// behave as wires and network cards do. It tells the CPU time of the gateway to the nanosecond, kernel included. It
// measures nothing by itself, and needs root and two processors.
//
//	client 192.0.2.10 ──veth── 192.0.2.1 gateway 198.51.100.1 ──veth── 198.51.100.20 server
//	                                     CPU 1                          client and server: CPU 0
//
// Client and server send MTU-sized frames, as they come from a wire; the gateway's devices have GRO and TSO, as network
// cards have. veth receives in threads, which run before load and gateways, and these before what else runs.
package veth

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses of the client, of the gateway towards it and towards the server, and of the server.
const (
	ClientIP, NearIP = "192.0.2.10", "192.0.2.1"
	FarIP, ServerIP  = "198.51.100.1", "198.51.100.20"
)

const loadCPU, gatewayCPU = 0, 1

// Rig is the three namespaces, by their names.
type Rig struct {
	Client, Gateway, Server string
	// Dir is a folder for configurations; it goes with the rig.
	Dir string

	// napi are the kernel threads that receive for the gateway.
	napi []int
}

// Run runs a program to its end, and returns what it says.
func Run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// New makes the namespaces; name goes into their names. The caller must close the rig.
func New(name string) (*Rig, error) {
	dir, err := os.MkdirTemp("", "bench-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { // nginx's worker is nobody
		return nil, fmt.Errorf("folder: %w", err)
	}
	id := strconv.Itoa(os.Getpid())
	r := &Rig{Client: name + "-cli-" + id, Gateway: name + "-gw-" + id, Server: name + "-srv-" + id, Dir: dir}
	if err := r.build(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// build makes namespaces and links. Device names are unique, so that kernel threads can be told apart.
func (r *Rig) build() error {
	id := strconv.Itoa(os.Getpid())
	var steps []string
	for _, ns := range []string{r.Client, r.Gateway, r.Server} {
		steps = append(steps, "ip netns add "+ns, "ip -n "+ns+" link set lo up")
	}
	link := func(host, own, device, hostIP, gwIP string) {
		steps = append(steps,
			fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", own, host, device, r.Gateway),
			fmt.Sprintf("ip -n %s addr add %s/24 dev %s", host, hostIP, own),
			fmt.Sprintf("ip -n %s addr add %s/24 dev %s", r.Gateway, gwIP, device))
		for _, end := range [][3]string{{host, own, "gro on tso off gso off"}, {r.Gateway, device, "gro on tso on gso on"}} {
			steps = append(steps,
				fmt.Sprintf("ip -n %s link set %s up", end[0], end[1]),
				fmt.Sprintf("ip netns exec %s ethtool -K %s %s", end[0], end[1], end[2]),
				fmt.Sprintf("ip netns exec %s tee /sys/class/net/%s/threaded", end[0], end[1]))
		}
		steps = append(steps, fmt.Sprintf("ip -n %s route add default via %s", host, gwIP))
	}
	link(r.Client, "c"+id, "i"+id, ClientIP, NearIP)
	link(r.Server, "s"+id, "o"+id, ServerIP, FarIP)
	steps = append(steps, "ip netns exec "+r.Gateway+" sysctl -qw net.ipv4.ip_forward=0")
	for _, line := range steps {
		args := strings.Fields(line)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = strings.NewReader("1") // for tee
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return r.pinNAPI(id)
}

// pinNAPI puts the threads that receive for the gateway on its core, the others on the load's. They run before
// every program, as a softirq does.
func (r *Rig) pinNAPI(id string) error {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	found := 0
	for _, path := range comms {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		name, ours := strings.CutPrefix(string(text), "napi/")
		if !ours || !strings.HasPrefix(name[1:], id+"-") {
			continue
		}
		found++
		tid, cpu := 0, loadCPU
		if tid, err = strconv.Atoi(strings.Split(path, "/")[2]); err != nil {
			return err
		}
		if name[0] == 'i' || name[0] == 'o' {
			r.napi = append(r.napi, tid)
			cpu = gatewayCPU
		}
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(tid, &set); err != nil {
			return fmt.Errorf("pin %d to CPU %d: %w", tid, cpu, err)
		}
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 2} // gateways and load have 1
		if err := unix.SchedSetAttr(tid, &attr, 0); err != nil {
			return fmt.Errorf("priority of %d: %w", tid, err)
		}
	}
	if found != 4 {
		return fmt.Errorf("%d NAPI threads, not 4: the gateway's CPU cannot be told", found)
	}
	return nil
}

// Close ends what runs in the gateway, and removes the namespaces, with them the devices, and the files.
func (r *Rig) Close() error {
	pids, _ := Run("ip", "netns", "pids", r.Gateway) // none if it was not made
	for _, f := range strings.Fields(pids) {
		if pid, err := strconv.Atoi(f); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
	errs := []error{os.RemoveAll(r.Dir)}
	for _, ns := range []string{r.Client, r.Gateway, r.Server} {
		if h, err := netns.GetFromName(ns); err == nil {
			errs = append(errs, h.Close(), netns.DeleteNamed(ns))
		}
	}
	return errors.Join(errs...)
}

// Within runs f on a thread that is in the namespace; sockets that it makes stay there.
func Within(ns string, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		// The thread is not unlocked: it ends with the goroutine, and its namespace with it.
		runtime.LockOSThread()
		h, err := netns.GetFromName(ns)
		if err == nil {
			err = netns.Set(h)
			h.Close()
		}
		if err == nil {
			err = f()
		}
		failed <- err
	}()
	return <-failed
}

// CPU returns the CPU time of the gateway so far: of all processes in its namespace, and of its NAPI threads.
// What ends in between is lost, so no process may.
func (r *Rig) CPU() (time.Duration, error) {
	pids, err := Run("ip", "netns", "pids", r.Gateway)
	if err != nil {
		return 0, err
	}
	var paths []string
	for _, pid := range strings.Fields(pids) {
		tasks, err := filepath.Glob("/proc/" + pid + "/task/*/schedstat")
		if err != nil {
			return 0, err
		}
		paths = append(paths, tasks...)
	}
	for _, tid := range r.napi {
		paths = append(paths, fmt.Sprintf("/proc/%d/schedstat", tid))
	}
	return Threads(paths)
}

// Threads returns the CPU time of threads so far, by the paths of their schedstat files (proc(5)); one that has ended
// counts nothing.
func Threads(paths []string) (sum time.Duration, err error) {
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
