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
	"path/filepath"
	"time"

	"edged.dev/edged/bench/report"
	"edged.dev/edged/bench/veth"
)

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

// rig is where all is measured.
type rig struct{ *veth.Rig }

type options struct {
	rounds      int
	time        time.Duration
	binary, out string
}

func bench(o options) (err error) {
	if err := veth.OnLoadCore(); err != nil {
		return err
	}
	for _, tool := range []string{"ip", "ethtool", "taskset", "chrt", "haproxy"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install iproute2 ethtool util-linux haproxy", tool)
		}
	}
	v, err := veth.New("bft")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	v.CloseOnSignal()
	if o.binary, err = v.Build(o.binary); err != nil {
		return err
	}
	r := &rig{v}
	return r.rounds(o)
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
	if err := report.Write(o.out, rows); err != nil {
		return err
	}
	return report.Table(os.Stdout, rows)
}

// note prints a line of progress.
func note(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
