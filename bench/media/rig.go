package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/bench/veth"
)

const (
	genAddr, gwInAddr   = "10.77.1.2", "10.77.1.1"
	sinkAddr, gwOutAddr = "10.77.2.2", "10.77.2.1"
	firstPort           = 20000 // of the peers' ports; two for each stream
	genCPU, gwCPU       = 0, 1
	// Real-time priorities: a gateway's receiving goes before its programs, as a softirq does, and the
	// sink's before the generator, whose end somebody must notice.
	prioRelay, prioNAPI      = 1, 2
	prioGenerator, prioWatch = 1, 3
	// settle is how long the last packets of a trial may take.
	settle = 60 * time.Millisecond
)

// rig is the three namespaces, the wire through them, and how to look at the gateway.
type rig struct {
	*wire
	gen, gw, sink          string
	genDev, inDev          string
	outDev, sinkDev        string
	genMAC, inMAC, sinkMAC net.HardwareAddr
	// kernel are the threads whose CPU time is the gateway's: NAPI, and what the softirqs of its core leave over.
	kernel []int
	// verified and bad are the checksums of all trials.
	verified, bad uint64
	// coalesce is how long the gateway's devices collect packets before they wake it, as network cards do.
	coalesce time.Duration
	verbose  bool
}

// newRig builds all of it. The names of the devices hold the process's number: they are in the names of the
// kernel's threads, which have no namespaces.
func newRig(coalesce time.Duration) (*rig, error) {
	id := strconv.Itoa(os.Getpid())
	r := &rig{
		coalesce: coalesce,
		gen:      "bm-gen-" + id, gw: "bm-gw-" + id, sink: "bm-sink-" + id,
		genDev: "gen" + id, inDev: "in" + id, outDev: "out" + id, sinkDev: "snk" + id,
	}
	var err error
	if r.wire, err = newWire(); err != nil {
		return nil, err
	}
	if err := r.build(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *rig) build() error {
	for _, s := range r.steps() {
		if _, err := veth.Run(s[0], s[1:]...); err != nil {
			return err
		}
	}
	if err := r.names(); err != nil {
		return err
	}
	sink, err := attach(r.sink, r.sinkDev, r.objs.Sink)
	if err != nil {
		return fmt.Errorf("attach the sink: %w", err)
	}
	r.links = append(r.links, sink)
	return r.pinThreads()
}

// steps makes the network. GRO gives veth NAPI, which can then be a thread whose CPU time is known. What reaches
// the stack of a peer is dropped, for nobody listens there, and an ICMP error would disturb. The sink collects packets
// too: else who sends to it would pay for waking it, which a network card does not ask for.
func (r *rig) steps() [][]string {
	in := func(ns string, args ...string) []string { return append([]string{"ip", "netns", "exec", ns}, args...) }
	steps := [][]string{
		{"ip", "netns", "add", r.gen},
		{"ip", "netns", "add", r.gw},
		{"ip", "netns", "add", r.sink},
		{"ip", "-n", r.gen, "link", "add", r.genDev, "type", "veth", "peer", "name", r.inDev, "netns", r.gw},
		{"ip", "-n", r.gw, "link", "add", r.outDev, "type", "veth", "peer", "name", r.sinkDev, "netns", r.sink},
		in(r.gw, "sysctl", "-qw", "net.ipv4.ip_forward=1"),
	}
	for _, d := range []struct {
		ns, dev, addr, gateway string
		coalesce               time.Duration
	}{
		{r.gen, r.genDev, genAddr, gwInAddr, 0},
		{r.gw, r.inDev, gwInAddr, "", r.coalesce},
		{r.gw, r.outDev, gwOutAddr, "", r.coalesce},
		{r.sink, r.sinkDev, sinkAddr, gwOutAddr, r.coalesce / 2},
	} {
		steps = append(steps, []string{"ip", "-n", d.ns, "addr", "add", d.addr + "/24", "dev", d.dev},
			[]string{"ip", "-n", d.ns, "link", "set", "lo", "up"},
			[]string{"ip", "-n", d.ns, "link", "set", d.dev, "up"},
			in(d.ns, "ethtool", "-K", d.dev, "gro", "on"), // not earlier: the peer's ability to be redirected to would not change
			in(d.ns, "sh", "-c", "echo 1 > /sys/class/net/"+d.dev+"/threaded"))
		if d.coalesce > 0 {
			steps = append(steps, in(d.ns, "sh", "-c", fmt.Sprintf("cd /sys/class/net/%s && echo 1 > napi_defer_hard_irqs && echo %d > gro_flush_timeout",
				d.dev, d.coalesce.Nanoseconds())))
		}
		if d.gateway != "" {
			steps = append(steps, []string{"ip", "-n", d.ns, "route", "add", "default", "via", d.gateway},
				in(d.ns, "nft", "add table ip quiet; add chain ip quiet in { type filter hook prerouting priority -400; }; "+
					"add rule ip quiet in ip protocol udp drop"))
		}
	}
	return steps
}

// names finds out Ethernet addresses, and tells everybody those of the neighbours.
func (r *rig) names() error {
	macs := make(map[string]net.HardwareAddr)
	for _, d := range [][2]string{{r.gen, r.genDev}, {r.gw, r.inDev}, {r.gw, r.outDev}, {r.sink, r.sinkDev}} {
		err := veth.Within(d[0], func() error {
			i, err := net.InterfaceByName(d[1])
			if err != nil {
				return err
			}
			macs[d[1]] = i.HardwareAddr
			if d[1] == r.genDev {
				r.device, r.wire.gen = uint32(i.Index), r.gen
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	r.genMAC, r.inMAC, r.sinkMAC = macs[r.genDev], macs[r.inDev], macs[r.sinkDev]
	for _, n := range [][4]string{
		{r.gen, gwInAddr, r.inDev, r.genDev},
		{r.gw, genAddr, r.genDev, r.inDev},
		{r.gw, sinkAddr, r.sinkDev, r.outDev},
		{r.sink, gwOutAddr, r.outDev, r.sinkDev},
	} {
		if _, err := veth.Run("ip", "-n", n[0], "neigh", "replace", n[1], "lladdr", macs[n[2]].String(), "dev", n[3]); err != nil {
			return err
		}
	}
	return nil
}

// pinThreads puts the threads that receive for the gateway on its core, the others' on the other.
func (r *rig) pinThreads() error {
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	napi := 0
	for _, path := range comms {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		name, thread := strings.TrimSpace(string(text)), 0
		if thread, err = strconv.Atoi(strings.Split(path, "/")[2]); err != nil {
			return err
		}
		is := func(dev string) bool { return strings.HasPrefix(name, "napi/"+dev+"-") }
		switch {
		case is(r.inDev), is(r.outDev):
			napi++
			r.kernel = append(r.kernel, thread)
			err = realTime(thread, gwCPU, prioNAPI)
		case is(r.genDev), is(r.sinkDev):
			err = realTime(thread, genCPU, prioNAPI)
		case name == "ksoftirqd/"+strconv.Itoa(gwCPU):
			r.kernel = append(r.kernel, thread)
		}
		if err != nil {
			return err
		}
	}
	if napi < 2 {
		return errors.New("the gateway has no NAPI threads: its CPU cannot be told")
	}
	return nil
}

// realTime puts a thread (0: the calling one) on a core, before every ordinary program there.
func realTime(thread, cpu, priority int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(thread, &set); err != nil {
		return fmt.Errorf("pin %d to CPU %d: %w", thread, cpu, err)
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: uint32(priority)}
	if err := unix.SchedSetAttr(thread, &attr, 0); err != nil {
		return fmt.Errorf("real-time priority of %d: %w", thread, err)
	}
	return nil
}

// close ends what runs in the gateway, and deletes the namespaces.
func (r *rig) close() {
	pids, _ := veth.Run("ip", "netns", "pids", r.gw)
	for _, f := range strings.Fields(pids) {
		// A thread of this process may have stayed there, see within.
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
	r.wire.close()
	for _, ns := range []string{r.gen, r.gw, r.sink} {
		// A namespace that was not made cannot be deleted; nothing is left either way.
		_, _ = veth.Run("ip", "netns", "del", ns)
	}
}

// cpu returns the CPU time of the gateway: all threads of the process (0: none), and the kernel's.
func (r *rig) cpu(pid int) (time.Duration, error) {
	var paths []string
	if pid != 0 {
		var err error
		if paths, err = filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)); err != nil {
			return 0, err
		}
	}
	for _, thread := range r.kernel {
		paths = append(paths, fmt.Sprintf("/proc/%d/schedstat", thread))
	}
	return veth.Threads(paths)
}

// greet sends one packet of each stream from a peer of the gateway (gen or sink), so that a relay knows where
// its peers are before anything is measured. It takes its time: a relay in user space must not lose any.
func (r *rig) greet(ns, from, to string, ports []uint16) error {
	t := traffic{src: netip.MustParseAddr(from), dst: netip.MustParseAddr(to), to: ports, size: 160, burst: 1}
	return veth.Within(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		defer unix.Close(fd)
		peer := &unix.SockaddrInet4{Addr: t.dst.As4()}
		for i := range ports {
			// Without a UDP checksum, as IPv4 allows.
			if err := unix.Sendto(fd, t.frame(i)[ethLen:], 0, peer); err != nil {
				return fmt.Errorf("greet: %w", err)
			}
			if i%8 == 7 {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
}
