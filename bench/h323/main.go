// Command h323 measures how many calls a second H.323 call signalling is set up through a gateway with one core: edged, which
// opens pinholes for media and H.245, beside the kernel's helper (nf_conntrack_h323 with NAT), in turn, in the same
// namespaces. It needs root; where the kernel lacks the helper only edged is measured, which is said.
//
//	client 192.0.2.10 ──veth── 192.0.2.1 gateway 198.51.100.1 ──veth── server 198.51.100.20
//
// A call is a connection, Setup with a fast start each way, Connect with an H.245 address, ReleaseComplete.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"edged.dev/edged/bench/report"
)

// loadEnv marks the processes that run inside of a namespace: server, or client with its target.
const loadEnv = "BENCH_H323_LOAD"

func main() {
	if role := os.Getenv(loadEnv); role != "" {
		if err := load(role); err != nil {
			fmt.Fprintln(os.Stderr, "bench/h323:", err)
			os.Exit(1)
		}
		return
	}
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of both in turn")
	flag.IntVar(&o.calls, "calls", 1000, "calls of one measurement; the kernel remembers some 1,300 for four minutes, then calls fail")
	flag.IntVar(&o.parallel, "parallel", 16, "calls at one time")
	flag.StringVar(&o.binary, "edged", "", "edged `binary`; built from this checkout if empty")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "h323.json"), "report `file`")
	flag.Parse()
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench/h323:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds, calls, parallel int
	binary, out             string
}

// result is what a client says of its run.
type result struct {
	// Rate is in calls per second.
	Rate float64
	// Rewritten is how many Setups came to the server with the gateway's addresses in fastStart, of Calls.
	Rewritten, Calls int
	// Failed are calls of which a message was lost.
	Failed int
	// CPU is what edged used, in µs per call; 0 for the kernel, whose time is not told apart.
	CPU float64
}

func bench(o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces")
	}
	dir, err := os.MkdirTemp("", "bench-h323-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.binary == "" {
		o.binary = filepath.Join(dir, "edged")
		if err := command("go", "build", "-o", o.binary, "./cmd/edged"); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var ours, theirs []result
	for round := range o.rounds {
		e, k, err := both(ctx, o, dir, round+1)
		if err != nil {
			return fmt.Errorf("round %d: %w", round+1, err)
		}
		ours, theirs = append(ours, e...), append(theirs, k...)
	}
	return write(o.out, ours, theirs)
}

// both measures edged and the helper in namespaces of their own, as the kernel forgets its expectations only with them:
// after some calls that do not count, each in turn first.
func both(ctx context.Context, o options, dir string, round int) (ours, theirs []result, err error) {
	r, err := newRig(o.binary, dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	gateways := []struct {
		name string
		run  func(options) (result, error)
		into *[]result
	}{{"edged", r.edged, &ours}, {"kernel helper", r.helper, &theirs}}
	if round%2 == 0 {
		slices.Reverse(gateways)
	}
	for _, g := range gateways {
		got, err := g.run(o)
		if errors.Is(err, errNoHelper) {
			fmt.Println("SKIPPED: kernel helper:", err)
			continue
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", g.name, err)
		}
		*g.into = append(*g.into, got)
		fmt.Printf("round %d  %-14s %7.0f calls/s  %6.0f µs of edged a call  %d failed, fastStart rewritten in %d of %d\n",
			round, g.name, got.Rate, got.CPU, got.Failed, got.Rewritten, got.Calls)
	}
	return ours, theirs, nil
}

// write reports the medians.
func write(file string, ours, theirs []result) error {
	rate := func(l []result) float64 { return median(l, func(r result) float64 { return r.Rate }) }
	cpu := median(ours, func(r result) float64 { return r.CPU })
	rows := []report.Row{}
	if cpu > 0 {
		const want = 500
		perCore := 1e6 / cpu
		rows = append(rows, report.Row{
			Name: "edged", Peer: "the figure asked for", Metric: "call set-ups a second and core",
			Edged: perCore, Value: want, Ratio: perCore / want, Better: "higher", Runs: len(ours),
		})
	}
	if len(theirs) > 0 {
		rows = append(rows, report.Row{
			Name: "edged", Peer: "nf_conntrack_h323", Metric: "call set-ups a second",
			Edged: rate(ours), Value: rate(theirs), Ratio: rate(ours) / rate(theirs), Better: "higher", Runs: len(ours),
		})
	}
	for _, x := range rows {
		fmt.Printf("%s, %s: %.0f beside %.0f of %s: %.2f\n", x.Name, x.Metric, x.Edged, x.Value, x.Peer, x.Ratio)
	}
	return report.Write(file, rows)
}

func median(l []result, of func(result) float64) float64 {
	var v []float64
	for _, r := range l {
		v = append(v, of(r))
	}
	return report.Median(v)
}
