// Command tcp measures what carries TCP through a gateway: edged's joins in user space (splice) and its
// rewriting in the kernel, beside HAProxy with and without splicing, nginx's stream module, nftables NAT and
// plain routing. Every round has all of them in turn, in the same namespaces, the gateway on one core, client
// and server on another. It needs root, and the Debian packages haproxy, nginx and libnginx-mod-stream; it
// installs nothing.
//
//	client 192.0.2.10 ──veth── 192.0.2.1 gateway 198.51.100.1 ──veth── server 198.51.100.20
//
// Load and gateway go before other programs of the machine (SCHED_RR), since a message that waits for the processor
// costs more than one that does not: whatever else runs is starved for a minute or two.
// Client and server send MTU-sized frames, as they come from a wire; the gateway's devices have GRO and TSO, as network
// cards have.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// loadEnv marks the process that has moved to the load's core.
const loadEnv = "BENCH_TCP_LOAD"

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of all in turn")
	flag.DurationVar(&o.time, "time", 1500*time.Millisecond, "length of one measurement")
	flag.StringVar(&o.binary, "edged", "", "edged `binary`; built from this checkout if empty")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "tcp.json"), "report `file`; a plot is written beside it")
	flag.StringVar(&o.only, "only", "", "measure only gateways whose names match this `regexp`, and write no report")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/tcp:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds      int
	time        time.Duration
	binary, out string
	only        string
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
	for _, tool := range []string{"ip", "nft", "ethtool", "taskset", "chrt", "haproxy", "nginx"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install iproute2 nftables ethtool util-linux haproxy nginx libnginx-mod-stream", tool)
		}
	}
	if _, err := os.Stat(nginxStream); err != nil {
		return fmt.Errorf("%s is missing: apt-get install libnginx-mod-stream", nginxStream)
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
	s, err := r.serve()
	if err != nil {
		return err
	}
	defer s.close()
	return r.rounds(o, s)
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
func (r *rig) rounds(o options, s *server) error {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	list := r.gateways(o.binary)
	results := make(map[string][]figures)
	skipped := map[string]bool{}
	for round := range o.rounds {
		for _, g := range list {
			if !only.MatchString(g.name) || skipped[g.name] {
				continue
			}
			f, err := r.measure(g, s, o.time)
			var skip skipError
			if errors.As(err, &skip) {
				note("%s: skipped: %v", g.name, err)
				skipped[g.name] = true
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			note("round %d, %-22s %s", round+1, g.name, f)
			results[g.name] = append(results[g.name], f)
		}
	}
	if o.only != "" {
		return nil
	}
	rows := compareAll(results)
	if err := write(o.out, rows); err != nil {
		return err
	}
	if err := plot(strings.TrimSuffix(o.out, filepath.Ext(o.out))+".svg", rows); err != nil {
		return err
	}
	return table(os.Stdout, rows)
}

// note prints a line of progress.
func note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
