// Package delay joins two namespaces by a path that holds every IP packet for a time, for kernels without netem. Near
// and far each have a TUN device; a process of its own, before all others on the machine, moves packets from one to the
// other when they have waited for so long. Segmentation offload is on: 64 KiB of TCP pass as one packet, so the path
// carries some Gb/s, or a rate that is given. It loses only what its queue has no room for, which it counts.
//
//	near 192.0.2.1 ─ tun ─► queue, 20 ms ─► tun ─ 198.51.100.1 far
//	               ◄─────── queue, 20 ms ◄──────
//
// A program that makes a Path calls Serve first thing in main: the process that holds packets is the same program.
package delay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"edged.dev/edged/bench/veth"
)

// The addresses of both ends.
var (
	NearIP = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	FarIP  = netip.AddrFrom4([4]byte{198, 51, 100, 1})
)

// sysctls returns what TCP's windows need on such a path: a gateway wants it too. It is set in both namespaces.
func sysctls() []string {
	return []string{"net.ipv4.tcp_rmem=4096 131072 33554432", "net.ipv4.tcp_wmem=4096 65536 33554432"}
}

// Path is the two namespaces, by their names, and what holds packets between them.
type Path struct {
	Near, Far string

	child *exec.Cmd
	stop  io.Closer
	stats io.Reader
}

// Stats are of both directions together.
type Stats struct {
	Packets, Dropped int64         // as they pass: 64 KiB may be one
	Late             int64         // held for a millisecond longer than they should be
	Latest           time.Duration // by how much, at most
}

// Config says what the path is like, in each direction.
type Config struct {
	OneWay time.Duration // how long a packet is held
	Limit  int           // how much is held at most, in bytes
	Rate   float64       // how much passes, in bit/s; 0: what the machine can
	Queue  time.Duration // with Rate: how long a packet may wait for others; beyond, it is dropped

	Congestion string // TCP's congestion control; "cubic" is Linux's, unless it is told otherwise
}

// largest returns how much of TCP passes as one packet, in bytes. With a rate it is less: it is dropped as one, too.
func (c Config) largest() int {
	if c.Rate > 0 {
		return 8 << 10
	}
	return 64 << 10
}

// New makes the path; name goes into the names of its namespaces. It needs root. The caller must close it.
func New(name string, c Config) (*Path, error) {
	id := strconv.Itoa(os.Getpid())
	p := &Path{Near: name + "-near-" + id, Far: name + "-far-" + id}
	if err := p.start(c); err != nil {
		_, closing := p.Close()
		return nil, errors.Join(err, closing)
	}
	return p, nil
}

func (p *Path) start(c Config) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces")
	}
	var tuns []*os.File
	defer func() {
		for _, f := range tuns {
			f.Close()
		}
	}()
	for ns, ips := range map[string][2]netip.Addr{p.Near: {NearIP, FarIP}, p.Far: {FarIP, NearIP}} {
		if _, err := veth.Run("ip", "netns", "add", ns); err != nil {
			return err
		}
		var tun *os.File
		err := veth.Within(ns, func() (err error) {
			tun, err = openTun()
			return err
		})
		if err != nil {
			return fmt.Errorf("tun: %w", err)
		}
		tuns = append(tuns, tun)
		if err := setUp(ns, ips[0], ips[1], c); err != nil {
			return err
		}
	}
	return p.hold(tuns, c)
}

const device = "delay0"

// openTun makes the device in the namespace of this thread.
func openTun() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	tun := os.NewFile(uintptr(fd), device)
	req, err := unix.NewIfreq(device)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6)
	}
	if err != nil {
		tun.Close()
		return nil, err
	}
	return tun, nil
}

func setUp(ns string, own, other netip.Addr, c Config) error {
	steps := [][]string{
		{"ip", "-n", ns, "link", "set", "lo", "up"},
		{"ip", "-n", ns, "addr", "add", own.String(), "peer", other.String(), "dev", device},
		{"ip", "-n", ns, "link", "set", device, "txqueuelen", "5000", "gso_max_size", strconv.Itoa(c.largest()), "up"},
		// A namespace may not choose any congestion control, but a route may.
		{"ip", "-n", ns, "route", "replace", other.String(), "dev", device, "proto", "kernel", "scope", "link", "src", own.String(), "congctl", c.Congestion},
	}
	for _, s := range sysctls() {
		steps = append(steps, []string{"ip", "netns", "exec", ns, "sysctl", "-qw", s})
	}
	for _, s := range steps {
		if _, err := veth.Run(s[0], s[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// hold starts the process that holds packets, before all others.
func (p *Path) hold(tuns []*os.File, c Config) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	p.child = exec.Command("chrt", "--rr", "3", self)
	p.child.Env = append(os.Environ(), holdEnv+"="+string(text))
	p.child.ExtraFiles, p.child.Stderr = tuns, os.Stderr
	if p.stop, err = p.child.StdinPipe(); err != nil {
		return err
	}
	if p.stats, err = p.child.StdoutPipe(); err != nil {
		return err
	}
	if err := p.child.Start(); err != nil {
		p.child = nil
		return fmt.Errorf("start: %w", err)
	}
	return nil
}

// Close ends what runs in both namespaces and removes them. It tells what the path has done.
func (p *Path) Close() (s Stats, err error) {
	if p.child != nil {
		p.stop.Close()
		err = errors.Join(json.NewDecoder(p.stats).Decode(&s), p.child.Wait())
	}
	for _, ns := range []string{p.Near, p.Far} {
		pids, _ := veth.Run("ip", "netns", "pids", ns) // none if it was not made
		for _, f := range strings.Fields(pids) {
			if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() { // one of its threads may have been left there
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
			}
		}
		if h, missing := netns.GetFromName(ns); missing == nil {
			err = errors.Join(err, h.Close(), netns.DeleteNamed(ns))
		}
	}
	return s, err
}
