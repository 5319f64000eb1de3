// Command tunnel measures a stream through the tunnel, from one agent by the relay to another, beside what others
// use for that: a pair of stunnels, OpenSSH's -L, HAProxy in TCP mode (one hop, no encryption) and TCP alone. All are
// processes of this machine, over loopback, in turn in every round. It needs the Debian packages haproxy, stunnel4 and
// openssh; those that are missing are left out, loudly.
//
//	source ─► entry [ agent a ─ relay ─ agent b | stunnel ─ stunnel | ssh ─ sshd | haproxy ] ─► sink
//
// The load takes part of the same processors, so trust ratios and CPU per GB, which is that of the tunnel's processes
// alone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"edged.dev/edged/bench/delay"
	"edged.dev/edged/bench/report"
)

type options struct {
	rounds      int
	time, warm  time.Duration
	rtt, queue  time.Duration
	rate        float64
	binary, out string
	base, only  string
	congestion  string
}

// figures are what one measurement has found.
type figures struct {
	gbits, cpu float64 // Gb/s; seconds of CPU per GB
}

func main() {
	delay.Serve()
	serveProbes()
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of all in turn")
	flag.DurationVar(&o.time, "time", 2*time.Second, "length of one measurement")
	flag.DurationVar(&o.rtt, "rtt", 0, "over a path of this round trip `time`, made of namespaces; needs root; 0: over loopback")
	flag.Float64Var(&o.rate, "rate", 0, "with -rtt: what the path carries, in Mb/s; 0: what the machine can")
	flag.DurationVar(&o.queue, "queue", 10*time.Millisecond, "with -rate: how long a packet may wait for others before it is dropped")
	flag.StringVar(&o.congestion, "congestion", "cubic", "with -rtt: TCP's congestion `control`")
	flag.DurationVar(&o.warm, "warm", 3*time.Second, "with -rtt: how long a stream runs before it is measured")
	flag.StringVar(&o.binary, "edged", filepath.Join("bin", "edged"), "edged `binary`")
	flag.StringVar(&o.base, "base", "", "another edged `binary` to compare with")
	flag.StringVar(&o.only, "only", "", "measure only these `ways`, by their names and commas")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "tunnel.json"), "report `file`")
	flag.Parse()
	run := bench
	if o.rtt > 0 {
		run = benchDelay
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/tunnel:", err)
		os.Exit(1)
	}
}

func bench(o options) (err error) {
	here := place{ip: "127.0.0.1"}
	b, err := newBuilder(o, here, here)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	ways, err := b.ways([]wayMaker{
		{"tcp", b.plain},
		{"bulk", func() (*way, error) { return b.edged("bulk", b.binary, "tls", "") }},
		{"in-mux", func() (*way, error) { return b.edged("in-mux", b.binary, "tls", inMux) }},
		{"bulk-base", func() (*way, error) { return b.edged("bulk-base", b.base, "tls", "") }},
		{"in-mux-base", func() (*way, error) { return b.edged("in-mux-base", b.base, "tls", inMux) }},
		{"stunnel", b.stunnel},
		{"haproxy", b.haproxy},
		{"ssh", b.ssh},
	})
	if err != nil {
		return err
	}
	results := map[string][]figures{}
	for round := range o.rounds {
		for _, w := range ways {
			f, err := w.measure(b, o.time)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d, %-12s %6.2f Gb/s, %5.2f CPU-s/GB\n", round+1, w.name, f.gbits, f.cpu)
			results[w.name] = append(results[w.name], f)
		}
	}
	rows := compare(results, ways)
	if err := report.Write(o.out, rows); err != nil {
		return err
	}
	return report.Table(os.Stdout, rows)
}

// compare sets both of edged's ways beside each of the others.
func compare(results map[string][]figures, ways []*way) (rows []report.Row) {
	speed := report.Metric[figures]{Name: "Gb/s", Better: "higher", Of: func(f figures) float64 { return f.gbits }}
	cpu := report.Metric[figures]{Name: "CPU-s/GB", Better: "lower", Of: func(f figures) float64 { return f.cpu }}
	for _, ours := range []string{"bulk", "in-mux"} {
		if len(results[ours]) == 0 {
			continue
		}
		for _, w := range ways {
			if w.name == "bulk" || w.name == "in-mux" {
				continue
			}
			rows = append(rows, report.Compare(ours, w.name, speed, results[ours], results[w.name]))
			if len(w.procs) > 0 {
				rows = append(rows, report.Compare(ours, w.name, cpu, results[ours], results[w.name]))
			}
		}
	}
	return rows
}
