// Command turn measures the control of TURN and its relaying over TLS: edged's beside Debian's coturn, in turn in every round, in
// the same namespaces, the server on one core, clients and peer on another. It needs root and the Debian package coturn; it
// installs nothing. Channels over UDP, by each of edged's paths, are bench/media's with -turn.
//
//	clients 192.0.2.10 ──veth── 192.0.2.1 server 198.51.100.1 ──veth── 198.51.100.20 peer
//	UDP: allocate and keep                relay ports                          echoes
//	TLS: ChannelData in a window
//
// Every client logs in as RFC 8489 has it: a challenge, and a signed request.
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

// options are the command line.
type options struct {
	rounds      int
	allocations int
	clients     int
	time        time.Duration
	binary, out string
}

// rig is where all is measured.
type rig struct{ *veth.Rig }

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of both in turn")
	flag.IntVar(&o.allocations, "allocations", 2000, "allocations that are made and kept")
	flag.IntVar(&o.clients, "clients", 20, "clients that send over TLS")
	flag.DurationVar(&o.time, "time", 1500*time.Millisecond, "length of one measurement over TLS")
	flag.StringVar(&o.binary, "edged", "", "edged `binary`; built from this checkout if empty")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "turn-control.json"), "report `file`; the plot stands beside it")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/turn:", err)
		os.Exit(1)
	}
}

func bench(o options) (err error) {
	if err := veth.OnLoadCore(); err != nil {
		return err
	}
	for _, tool := range []string{"ip", "ethtool", "taskset", "chrt", "turnserver"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install iproute2 ethtool util-linux coturn", tool)
		}
	}
	v, err := veth.New("btu")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	v.CloseOnSignal()
	if o.binary, err = v.Build(o.binary); err != nil {
		return err
	}
	r := &rig{v}
	if err := r.certificate(); err != nil {
		return err
	}
	return r.rounds(o)
}

// figures are what one round finds of one server.
type figures struct {
	allocations float64 // a second
	allocation  float64 // CPU, µs
	memory      float64 // resident, kB for 1,000 allocations
	packets     float64 // over TLS, a second
	packet      float64 // CPU, µs
}

func (f figures) String() string {
	return fmt.Sprintf("%6.0f allocations/s, %5.1f µs, %6.0f kB per 1,000; TLS %7.0f packets/s, %5.2f µs", f.allocations, f.allocation, f.memory, f.packets, f.packet)
}

// goal is a metric and what was wanted of its ratio to coturn.
type goal struct {
	report.Metric[figures]
	ratio float64
}

func goals() []goal {
	return []goal{
		{report.Metric[figures]{Name: "allocations/s", Better: "higher", Of: func(f figures) float64 { return f.allocations }}, 1.5},
		{report.Metric[figures]{Name: "CPU µs for an allocation", Better: "lower", Of: func(f figures) float64 { return f.allocation }}, 1},
		{report.Metric[figures]{Name: "kB resident for 1,000 allocations", Better: "lower", Of: func(f figures) float64 { return f.memory }}, 0.7},
		{report.Metric[figures]{Name: "packets/s over TLS", Better: "higher", Of: func(f figures) float64 { return f.packets }}, 1},
		{report.Metric[figures]{Name: "CPU µs for a packet over TLS", Better: "lower", Of: func(f figures) float64 { return f.packet }}, 1},
	}
}

// rounds measures both in turn, and writes the report.
func (r *rig) rounds(o options) error {
	stop, err := r.echo()
	if err != nil {
		return err
	}
	defer stop()
	results := make(map[string][]figures)
	for round := range o.rounds {
		for _, s := range []server{r.edged(o.binary), r.coturn()} {
			f, err := r.measure(s, o)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			fmt.Fprintf(os.Stderr, "round %d, %-7s %s\n", round+1, s.name, f)
			results[s.name] = append(results[s.name], f)
		}
	}
	var rows []report.Row
	for _, g := range goals() {
		rows = append(rows, report.Compare("edged", "coturn", g.Metric, results["edged"], results["coturn"]))
	}
	if err := errors.Join(report.Write(o.out, rows), report.Plot(o.out[:len(o.out)-len(filepath.Ext(o.out))]+".svg", rows), report.Table(os.Stdout, rows)); err != nil {
		return err
	}
	for i, g := range goals() {
		verdict := "met"
		if (g.Better == "higher") != (rows[i].Ratio >= g.ratio) && rows[i].Ratio != g.ratio {
			verdict = "MISSED"
		}
		fmt.Printf("%s: %.2f × coturn's, wanted %.2f: %s\n", g.Name, rows[i].Ratio, g.ratio, verdict)
	}
	return nil
}

// measure starts a server, measures it twice, and ends it.
func (r *rig) measure(s server, o options) (f figures, err error) {
	if err := r.with(s, func() error { return r.allocations(o, &f) }); err != nil {
		return f, err
	}
	return f, r.with(s, func() error { return r.overTLS(o, &f) })
}
