// Command ft measures a Messenger file transfer through a gateway: edged, which was shown the invitation and
// checks the handshake, beside HAProxy in TCP mode, which knows nothing of either. Every round has all of them in
// turn, in the same namespaces, the gateway on one core, the clients on another. It needs root and the Debian
// package haproxy; it installs nothing.
//
//	alice 192.0.2.10 ──veth── 192.0.2.1 gateway 198.51.100.1 ──veth── 198.51.100.20 bob
//	sends, listens                                                    dials, receives
//
// The clients are the bench's own: they speak the real protocol, and send blocks as large as real clients do (2045
// octets), but of a file that is nowhere and goes nowhere. As in bench/tcp, load and gateway go before other programs
// of the machine.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// loadEnv marks the process that has moved to the load's core.
const loadEnv = "BENCH_FT_LOAD"

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of all in turn")
	flag.DurationVar(&o.time, "time", 1500*time.Millisecond, "length of one measurement")
	flag.StringVar(&o.binary, "edged", "", "edged `binary`; built from this checkout if empty")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "ft.json"), "report `file`")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/ft:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds      int
	time        time.Duration
	binary, out string
}

func bench(o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces")
	}
	if runtime.NumCPU() > 1 && os.Getenv(loadEnv) == "" {
		return onLoadCore()
	}
	if os.Getenv(loadEnv) == "" {
		return errors.New("needs two processors: one for the gateway, one for the load")
	}
	for _, tool := range []string{"ip", "ethtool", "taskset", "chrt", "haproxy"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install iproute2 ethtool util-linux haproxy", tool)
		}
	}
	r, err := newRig()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	go r.abandon(interrupted)
	if o.binary == "" {
		o.binary = filepath.Join(r.dir, "edged")
		if _, err := run("go", "build", "-trimpath", "-o", o.binary, "./cmd/edged"); err != nil {
			return err
		}
	}
	return r.rounds(o)
}

// abandon cleans up when a signal comes, and exits.
func (r *rig) abandon(interrupted <-chan os.Signal) {
	<-interrupted
	if err := r.close(); err != nil {
		note("%v", err)
	}
	os.Exit(1)
}

// onLoadCore runs this command again, on the core of the load and before what else runs there.
func onLoadCore() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	path, err := exec.LookPath("chrt")
	if err != nil {
		return errors.New("chrt is missing: apt-get install util-linux")
	}
	args := append([]string{"chrt", "--rr", "1", "taskset", "-c", fmt.Sprint(loadCPU), self}, os.Args[1:]...)
	return syscall.Exec(path, args, append(os.Environ(), loadEnv+"=1"))
}

// rounds measures all gateways in turn, and writes the report.
func (r *rig) rounds(o options) error {
	c, err := r.clients()
	if err != nil {
		return err
	}
	defer c.close()
	results := make(map[string][]figures)
	for round := range o.rounds {
		for _, g := range r.gateways(o.binary) {
			f, err := r.measure(g, c, o.time)
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			note("round %d, %-18s %s", round+1, g.name, f)
			results[g.name] = append(results[g.name], f)
		}
	}
	rows := compareAll(results)
	if err := write(o.out, rows); err != nil {
		return err
	}
	return table(os.Stdout, rows)
}

// note prints a line of progress.
func note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
