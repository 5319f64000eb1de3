package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	genAddr, gwInAddr   = "10.77.1.2", "10.77.1.1"
	sinkAddr, gwOutAddr = "10.77.2.2", "10.77.2.1"
	firstPort           = 20000 // of the peers' ports; two for each stream
	genCPU, gwCPU       = 0, 1
	nice                = -15
	maxRate             = 2e6
	// The search begins at firstRate packets/s and climbs by this factor.
	firstRate, climb = 25e3, 1.6
	maxSteps         = 11
	lossLimit        = 0.01
	// grace is how late a packet may arrive; settle is how long the rest may take before the next trial.
	grace  = 10 * time.Millisecond
	settle = 100 * time.Millisecond
)

// rig is the three namespaces.
type rig struct {
	gen, gw, sink string
	// genMAC and gwMAC are the ends of the first link.
	genMAC, gwMAC net.HardwareAddr
	// napi are the kernel threads that receive for the gateway.
	napi []int
	// verbose prints every trial.
	verbose bool
}

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func newRig() (*rig, error) {
	id := strconv.Itoa(os.Getpid())
	r := &rig{gen: "bm-gen-" + id, gw: "bm-gw-" + id, sink: "bm-sink-" + id}
	if err := r.build(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *rig) build() error {
	steps := [][]string{
		{"ip", "netns", "add", r.gen}, {"ip", "netns", "add", r.gw}, {"ip", "netns", "add", r.sink},
		{"ip", "-n", r.gen, "link", "add", "gen0", "type", "veth", "peer", "name", "in0", "netns", r.gw},
		{"ip", "-n", r.gw, "link", "add", "out0", "type", "veth", "peer", "name", "sink0", "netns", r.sink},
		{"ip", "-n", r.gen, "addr", "add", genAddr + "/24", "dev", "gen0"},
		{"ip", "-n", r.gw, "addr", "add", gwInAddr + "/24", "dev", "in0"},
		{"ip", "-n", r.gw, "addr", "add", gwOutAddr + "/24", "dev", "out0"},
		{"ip", "-n", r.sink, "addr", "add", sinkAddr + "/24", "dev", "sink0"},
		{"ip", "-n", r.gw, "link", "set", "lo", "up"},
		{"ip", "-n", r.gen, "link", "set", "gen0", "up"}, {"ip", "-n", r.gw, "link", "set", "in0", "up"},
		{"ip", "-n", r.gw, "link", "set", "out0", "up"}, {"ip", "-n", r.sink, "link", "set", "sink0", "up"},
		// GRO gives veth NAPI, which can then be a thread whose CPU is known.
		{"ip", "netns", "exec", r.gw, "ethtool", "-K", "in0", "gro", "on"},
		{"ip", "netns", "exec", r.sink, "ethtool", "-K", "sink0", "gro", "on"},
		{"ip", "netns", "exec", r.gw, "sh", "-c", "echo 1 > /sys/class/net/in0/threaded"},
		{"ip", "netns", "exec", r.sink, "sh", "-c", "echo 1 > /sys/class/net/sink0/threaded"},
		{"ip", "netns", "exec", r.sink, "nft", "add table ip count; " +
			"add chain ip count in { type filter hook prerouting priority -400; }; " +
			fmt.Sprintf("add rule ip count in udp dport %d-65535 drop", firstPort)},
	}
	for _, s := range steps {
		if _, err := run(s[0], s[1:]...); err != nil {
			return err
		}
	}
	var err error
	if r.genMAC, err = mac(r.gen, "gen0"); err != nil {
		return err
	}
	if r.gwMAC, err = mac(r.gw, "in0"); err != nil {
		return err
	}
	sinkMAC, err := mac(r.sink, "sink0")
	if err != nil {
		return err
	}
	if _, err := run("ip", "-n", r.gw, "neigh", "add", sinkAddr, "lladdr", sinkMAC.String(), "dev", "out0"); err != nil {
		return err
	}
	return r.pinNAPI()
}

func mac(ns, dev string) (net.HardwareAddr, error) {
	out, err := run("ip", "-n", ns, "-o", "link", "show", dev)
	if err != nil {
		return nil, err
	}
	m := regexp.MustCompile(`link/ether (\S+)`).FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("no MAC address in %q", out)
	}
	return net.ParseMAC(m[1])
}

// pinNAPI puts the threads that receive for the gateway on its core, the sink's on the other.
func (r *rig) pinNAPI() error {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	for _, path := range comms {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		name := string(text)
		pid, _ := strconv.Atoi(strings.Split(path, "/")[2])
		switch {
		case strings.HasPrefix(name, "napi/in0-"):
			r.napi = append(r.napi, pid)
			err = errors.Join(pin(pid, gwCPU), first(pid))
		case strings.HasPrefix(name, "napi/sink0-"):
			err = errors.Join(pin(pid, genCPU), first(pid))
		}
		if err != nil {
			return err
		}
	}
	if len(r.napi) == 0 {
		return errors.New("the gateway has no NAPI thread: its CPU cannot be told")
	}
	return nil
}

// pin puts a thread (0: the calling one) on a core, before others there.
func pin(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("pin %d to CPU %d: %w", tid, cpu, err)
	}
	return unix.Setpriority(unix.PRIO_PROCESS, tid, nice)
}

// first lets a kernel thread run before every program, as a softirq does: else the rings between the
// namespaces, of 256 packets, overflow whenever a program uses up its slice.
func first(tid int) error {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	return unix.SchedSetAttr(tid, &attr, 0)
}

// close ends what runs in the gateway, and deletes the namespaces.
func (r *rig) close() {
	pids, _ := run("ip", "netns", "pids", r.gw)
	for _, f := range strings.Fields(pids) {
		if pid, err := strconv.Atoi(f); err == nil {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
	for _, ns := range []string{r.gen, r.gw, r.sink} {
		// A namespace that was not made cannot be deleted; nothing is left either way.
		_, _ = run("ip", "netns", "del", ns)
	}
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

// sunk returns how many packets have arrived at the sink.
func (r *rig) sunk() (n uint64, err error) {
	err = within(r.sink, func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		m := regexp.MustCompile(`sink0: *\d+ +(\d+)`).FindStringSubmatch(string(text))
		if m == nil {
			return fmt.Errorf("no sink0 in %q", text)
		}
		n, err = strconv.ParseUint(m[1], 10, 64)
		return err
	})
	return n, err
}

// gateway is a relay under test.
type gateway interface {
	// ports are where the streams' near peers send to.
	ports() []uint16
	pid() int
	// mallocs returns the number of allocations so far, false if that cannot be known.
	mallocs() (uint64, bool)
	stop()
}

// cpu returns the CPU time of the gateway: all threads of the process, and the NAPI threads.
func (r *rig) cpu(pid int) (time.Duration, error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	for _, tid := range r.napi {
		paths = append(paths, fmt.Sprintf("/proc/%d/schedstat", tid))
	}
	var sum time.Duration
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil {
			continue // a thread that has ended; its time is lost for both ends of the difference
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
