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
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"edged.dev/edged/bench/report"
	"edged.dev/edged/bench/veth"
)

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

// rig is where all is measured.
type rig struct{ *veth.Rig }

type options struct {
	rounds      int
	time        time.Duration
	binary, out string
	only        string
}

func bench(o options) (err error) {
	if err := veth.OnLoadCore(); err != nil {
		return err
	}
	for _, tool := range []string{"ip", "nft", "ethtool", "taskset", "chrt", "haproxy", "nginx"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install iproute2 nftables ethtool util-linux haproxy nginx libnginx-mod-stream", tool)
		}
	}
	if _, err := os.Stat(nginxStream); err != nil {
		return fmt.Errorf("%s is missing: apt-get install libnginx-mod-stream", nginxStream)
	}
	v, err := veth.New("btcp")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	v.CloseOnSignal()
	if o.binary, err = v.Build(o.binary); err != nil {
		return err
	}
	r := &rig{v}
	s, err := r.serve()
	if err != nil {
		return err
	}
	defer s.close()
	return r.rounds(o, s)
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
	if err := report.Write(o.out, rows); err != nil {
		return err
	}
	if err := report.Plot(strings.TrimSuffix(o.out, filepath.Ext(o.out))+".svg", rows); err != nil {
		return err
	}
	return report.Table(os.Stdout, rows)
}

// note prints a line of progress.
func note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
