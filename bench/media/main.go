// Command media measures the relay's user-space path against rtpengine's: the same
// streams, the same core, one after the other, in several rounds. It needs root.
//
//	namespace gen              namespace gw                  namespace sink
//	AF_PACKET, sendmmsg ─ veth ─► relay or rtpengine ─ veth ─► counted, dropped
//	    CPU 0                     CPU 1 (NAPI thread too)        CPU 0
//
// For each number of streams and packet size the highest rate with at most 1 % loss
// (or later than 10 ms) is searched. CPU is that of the relay's threads and of the NAPI thread that receives for
// it. The generator's own limit is printed first: figures near it say nothing of the
// gateway. The relay under test is this program, started with the argument "relay".
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

type options struct {
	rounds  int
	trial   time.Duration
	streams []int
	sizes   []int
	out     string
	peer    bool
	verbose bool
}

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "relay" {
		err = serveRelay(os.Args[2:])
	} else {
		err = bench()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-media:", err)
		os.Exit(1)
	}
}

func parseOptions() (options, error) {
	var o options
	var streams, sizes string
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	flag.DurationVar(&o.trial, "trial", 250*time.Millisecond, "length of one trial")
	flag.StringVar(&streams, "streams", "1,100,1000,4900", "numbers of streams")
	flag.StringVar(&sizes, "sizes", "172,1200", "UDP payload sizes")
	flag.StringVar(&o.out, "out", filepath.Join("bench", "out", "media.json"), "result file")
	flag.BoolVar(&o.peer, "peer", true, "measure rtpengine too")
	flag.BoolVar(&o.verbose, "v", false, "print every trial")
	flag.Parse()
	for _, list := range []struct {
		text string
		to   *[]int
	}{{streams, &o.streams}, {sizes, &o.sizes}} {
		for f := range strings.SplitSeq(list.text, ",") {
			n, err := strconv.Atoi(f)
			if err != nil || n < 1 || n > 60000 {
				return o, fmt.Errorf("%q is no list of numbers", list.text)
			}
			*list.to = append(*list.to, n)
		}
	}
	return o, nil
}

// result is one measurement of one product.
type result struct {
	// rate is in packets/s, cost in ns of CPU per packet; allocs is per packet, -1 if not known.
	rate, cost, allocs float64
}

type caseKey struct {
	streams, size int
}

func bench() error {
	o, err := parseOptions()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("namespaces need root")
	}
	rig, err := newRig()
	if err != nil {
		return err
	}
	defer rig.close()
	rig.verbose = o.verbose
	interrupted := make(chan os.Signal, 1) // one is enough to end
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	go func() {
		<-interrupted
		rig.close()
		os.Exit(1)
	}()
	alone, err := rig.generatorAlone(o.trial)
	if err != nil {
		return err
	}
	fmt.Printf("generator and network alone: %.0f kpps of 172 bytes\n", alone/1000)
	results := map[string]map[caseKey][]result{"edged": {}, "rtpengine": {}}
	products := []string{"edged", "rtpengine"}
	if !o.peer {
		products = products[:1]
	}
	for round := range o.rounds {
		for _, size := range o.sizes {
			for _, n := range o.streams {
				for _, product := range products {
					r, err := rig.measure(product, n, size, o.trial)
					if err != nil {
						return fmt.Errorf("%s, %d streams of %d bytes: %w", product, n, size, err)
					}
					k := caseKey{n, size}
					results[product][k] = append(results[product][k], r)
					fmt.Printf("round %d  %-9s %5d x %4d B  %7.1f kpps  %6.0f ns/packet\n",
						round+1, product, n, size, r.rate/1000, r.cost)
				}
			}
		}
	}
	return report(o, results)
}

// line is one entry of the result file.
type line struct {
	Name      string  `json:"name"`
	Peer      string  `json:"peer"`
	Metric    string  `json:"metric"`
	Edged     float64 `json:"edged"`
	PeerValue float64 `json:"peer_value"`
	Ratio     float64 `json:"ratio"`
	Better    string  `json:"better"`
	Runs      int     `json:"runs"`
}

// report prints the medians and writes the file. A ratio is the median of the rounds' own ratios,
// since what disturbs the machine in a round disturbs both.
func report(o options, results map[string]map[caseKey][]result) error {
	lines := []line{}
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "streams\tbytes\tedged kpps\trtpengine\tratio\tedged ns/packet\trtpengine\tratio\tallocs/packet\t")
	for _, size := range o.sizes {
		for _, n := range o.streams {
			k := caseKey{n, size}
			e, p := results["edged"][k], results["rtpengine"][k]
			name := fmt.Sprintf("%d streams of %d bytes", n, size)
			rate := compare(name, "packets/s at <= 1 % loss", "higher", e, p, func(r result) float64 { return r.rate })
			cost := compare(name, "CPU ns/packet", "lower", e, p, func(r result) float64 { return r.cost })
			allocs := line{
				Name: name, Metric: "allocations/packet", Better: "lower", Runs: len(e),
				Edged: median(e, func(r result) float64 { return r.allocs }),
			}
			lines = append(lines, rate, cost, allocs)
			fmt.Fprintf(w, "%d\t%d\t%.1f\t%.1f\t%.2f\t%.0f\t%.0f\t%.2f\t%.4f\t\n", n, size, rate.Edged/1000, rate.PeerValue/1000,
				rate.Ratio, cost.Edged, cost.PeerValue, cost.Ratio, allocs.Edged)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if growth, ok := growth(o, results["edged"]); ok {
		lines = append(lines, growth)
		fmt.Printf("edged: a packet at 4900 streams costs %.2f x one at 100\n", growth.Ratio)
	}
	text, err := json.MarshalIndent(lines, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(o.out, append(text, '\n'), 0o644)
}

func compare(name, metric, better string, e, p []result, value func(result) float64) line {
	l := line{Name: name, Metric: metric, Better: better, Runs: len(e), Edged: median(e, value)}
	if len(p) > 0 {
		l.Peer, l.PeerValue = "rtpengine (user space)", median(p, value)
		var ratios []float64
		for i := range min(len(e), len(p)) {
			ratios = append(ratios, value(e[i])/value(p[i]))
		}
		l.Ratio = middle(ratios)
	}
	return l
}

// growth compares the cost of a packet at 4900 streams with that at 100.
func growth(o options, e map[caseKey][]result) (line, bool) {
	size := o.sizes[0]
	few, many := e[caseKey{100, size}], e[caseKey{4900, size}]
	if len(few) == 0 || len(many) == 0 {
		return line{}, false
	}
	cost := func(r result) float64 { return r.cost }
	l := line{
		Name: fmt.Sprintf("4900 streams against 100, %d bytes", size), Peer: "edged at 100 streams", Metric: "CPU ns/packet",
		Better: "lower", Runs: len(many), Edged: median(many, cost), PeerValue: median(few, cost),
	}
	l.Ratio = l.Edged / l.PeerValue
	return l, true
}

func median(rs []result, value func(result) float64) float64 {
	var vs []float64
	for _, r := range rs {
		vs = append(vs, value(r))
	}
	return middle(vs)
}

func middle(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	if n := len(vs); n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[len(vs)/2]
}
