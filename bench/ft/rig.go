package main

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

const (
	clientIP, nearIP = "192.0.2.10", "192.0.2.1"
	farIP, serverIP  = "198.51.100.1", "198.51.100.20"
	// clientPort is where the file's sender listens, gatePort where HAProxy does for it.
	clientPort, gatePort = 6895, 6891
	sipPort              = 5060
	loadCPU, gwCPU       = 0, 1
)

// rig is the three namespaces.
type rig struct {
	client, gw, server string
	// dir holds configurations.
	dir string
	// napi are the kernel threads that receive for the gateway.
	napi []int
}

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func newRig() (*rig, error) {
	dir, err := os.MkdirTemp("", "bench-ft-")
	if err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	id := strconv.Itoa(os.Getpid())
	r := &rig{client: "bf-cli-" + id, gw: "bf-gw-" + id, server: "bf-srv-" + id, dir: dir}
	if err := r.build(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// build makes namespaces and links. Device names are unique, so that kernel threads can be told apart.
func (r *rig) build() error {
	id := strconv.Itoa(os.Getpid())
	var steps []string
	for _, ns := range []string{r.client, r.gw, r.server} {
		steps = append(steps, "ip netns add "+ns, "ip -n "+ns+" link set lo up")
	}
	link := func(host, own, device, hostIP, gwIP string) {
		steps = append(steps,
			fmt.Sprintf("ip link add %s netns %s type veth peer name %s netns %s", own, host, device, r.gw),
			fmt.Sprintf("ip -n %s addr add %s/24 dev %s", host, hostIP, own),
			fmt.Sprintf("ip -n %s addr add %s/24 dev %s", r.gw, gwIP, device))
		for _, end := range [][3]string{{host, own, "gro on tso off gso off"}, {r.gw, device, "gro on tso on gso on"}} {
			steps = append(steps,
				fmt.Sprintf("ip -n %s link set %s up", end[0], end[1]),
				fmt.Sprintf("ip netns exec %s ethtool -K %s %s", end[0], end[1], end[2]),
				fmt.Sprintf("ip netns exec %s tee /sys/class/net/%s/threaded", end[0], end[1]))
		}
		steps = append(steps, fmt.Sprintf("ip -n %s route add default via %s", host, gwIP))
	}
	link(r.client, "c"+id, "i"+id, clientIP, nearIP)
	link(r.server, "s"+id, "o"+id, serverIP, farIP)
	steps = append(steps, "ip netns exec "+r.gw+" sysctl -qw net.ipv4.ip_forward=0")
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
func (r *rig) pinNAPI(id string) error {
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
			cpu = gwCPU
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

// close ends what runs in the gateway, and removes the namespaces, with them the devices, and the files.
func (r *rig) close() error {
	pids, _ := run("ip", "netns", "pids", r.gw) // none if it was not made
	for _, f := range strings.Fields(pids) {
		if pid, err := strconv.Atoi(f); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
	errs := []error{os.RemoveAll(r.dir)}
	for _, ns := range []string{r.client, r.gw, r.server} {
		if h, err := netns.GetFromName(ns); err == nil {
			errs = append(errs, h.Close(), netns.DeleteNamed(ns))
		}
	}
	return errors.Join(errs...)
}

// within runs f on a thread that is in the namespace; sockets that it makes stay there.
func within(ns string, f func() error) error {
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

// cpu returns the CPU time of the gateway so far: of all processes in its namespace, and of its NAPI threads.
// What ends in between is lost, so no process may.
func (r *rig) cpu() (time.Duration, error) {
	pids, err := run("ip", "netns", "pids", r.gw)
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
	var sum time.Duration
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue // a thread that has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
