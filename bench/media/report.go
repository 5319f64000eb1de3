package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"edged.dev/edged/bench/report"
)

// metric is one figure of a result.
type metric struct {
	text, better string
	// unit is what people read it in.
	unit  float64
	value func(result) float64
}

func rateMetric() metric {
	return metric{"packets/s", "higher", 1000, func(r result) float64 { return r.rate }}
}

func costMetric() metric {
	return metric{"CPU ns/packet", "lower", 1, func(r result) float64 { return r.cost }}
}

func p50Metric() metric {
	return metric{"µs of delay at 50,000 packets/s, p50", "lower", 1, func(r result) float64 { return r.p50 }}
}

func p99Metric() metric {
	return metric{"µs of delay at 50,000 packets/s, p99", "lower", 1, func(r result) float64 { return r.p99 }}
}

func steadyMetric() metric {
	return metric{"CPU ns/packet at 50,000 packets/s", "lower", 1, func(r result) float64 { return r.steady }}
}

// rows compares each of edged's paths with each of the others, in every case.
func (rs *results) rows(o options) (all []report.Row) {
	for _, k := range o.cases() {
		for _, ours := range o.modes {
			if !ours.ours || len(rs.of[ours.name][k]) == 0 {
				continue
			}
			for _, peer := range o.modes {
				if peer.name != ours.name && !(o.turn && peer.ours) {
					all = append(all, rs.compare(ours, peer, k)...)
				}
			}
			if allocs := rs.allocs(ours.name, k); allocs >= 0 {
				all = append(all, report.Row{
					Name: ours.text + ", " + k.String(), Metric: "allocations/packet", Better: "lower",
					Edged: allocs, Runs: len(rs.of[ours.name][k]),
				})
			}
		}
	}
	return all
}

// compare returns what both have in common of a case; a floor has no delay.
func (rs *results) compare(ours, peer mode, k caseKey) (all []report.Row) {
	for _, m := range []metric{rateMetric(), costMetric(), p50Metric(), p99Metric(), steadyMetric()} {
		ratio, ok := rs.ratio(m, ours.name, k, peer.name, k)
		if !ok {
			continue
		}
		all = append(all, report.Row{
			Name: ours.text + ", " + k.String(), Peer: peer.text, Metric: m.text, Better: m.better, Ratio: ratio,
			Edged: median(rs.of[ours.name][k], m.value), Value: median(rs.of[peer.name][k], m.value),
			Runs: min(len(rs.of[ours.name][k]), len(rs.of[peer.name][k])),
		})
	}
	return all
}

// ratio is the median of the rounds' own ratios, since what disturbs the machine in a round disturbs both.
// It is false if there is none.
func (rs *results) ratio(m metric, a string, ka caseKey, b string, kb caseKey) (float64, bool) {
	as, bs := rs.of[a][ka], rs.of[b][kb]
	var ratios []float64
	for i := range min(len(as), len(bs)) {
		if x, y := m.value(as[i]), m.value(bs[i]); x > 0 && y > 0 {
			ratios = append(ratios, x/y)
		}
	}
	return middle(ratios), len(ratios) > 0
}

// allocs is the median of allocations per packet, -1 if they are not known.
func (rs *results) allocs(mode string, k caseKey) float64 {
	if len(rs.of[mode][k]) == 0 {
		return -1
	}
	return median(rs.of[mode][k], func(r result) float64 { return r.allocs })
}

func median(rs []result, value func(result) float64) float64 {
	var vs []float64
	for _, r := range rs {
		vs = append(vs, value(r))
	}
	return middle(vs)
}

// middle returns the median, 0 of nothing.
func middle(vs []float64) float64 {
	vs = slices.Sorted(slices.Values(vs))
	n := len(vs)
	switch {
	case n == 0:
		return 0
	case n%2 == 0:
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[n/2]
}

// publish prints the medians and the bars, and writes the result file and the plot.
func publish(o options, rs *results) error {
	rs.table(os.Stdout, o)
	if o.turn {
		fmt.Printf("\n%d checksums verified, %d bad\n", rs.verified, rs.bad)
		return report.Write(o.out, rs.rows(o))
	}
	rs.steadyTable(os.Stdout, o)
	rs.barTable(os.Stdout)
	fmt.Printf("%d checksums verified, %d bad\n", rs.verified, rs.bad)
	rows := rs.rows(o)
	return errors.Join(report.Write(o.out, rows), rs.plot(strings.TrimSuffix(o.out, filepath.Ext(o.out))+".svg", o))
}

// table prints what each mode made of each case, and its ratios to those that edged is compared with.
func (rs *results) table(out io.Writer, o options) {
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	peers := []string{modeRoute, modeNFT, modeRTPEngine}
	if o.turn {
		peers = []string{modeCoturn}
	}
	blank := strings.Repeat("\t", len(peers)+1)
	for _, k := range o.cases() {
		fmt.Fprintf(w, "\n%v\tkpps", k)
		for _, p := range peers {
			fmt.Fprintf(w, "\tx %s", p)
		}
		fmt.Fprint(w, "\tns/packet")
		for _, p := range peers {
			fmt.Fprintf(w, "\tx %s", p)
		}
		fmt.Fprintln(w, "\t")
		for _, m := range o.modes {
			if len(rs.of[m.name][k]) == 0 {
				fmt.Fprintf(w, "%s\t-%s-%s\n", m.text, blank, blank)
				continue
			}
			fmt.Fprint(w, m.text)
			for _, metric := range []metric{rateMetric(), costMetric()} {
				fmt.Fprintf(w, "\t%.0f", median(rs.of[m.name][k], metric.value)/metric.unit)
				for _, p := range peers {
					fmt.Fprintf(w, "\t%s", rs.cell(metric, m.name, p, k))
				}
			}
			fmt.Fprintln(w, "\t")
		}
	}
	for name, why := range rs.absent {
		fmt.Fprintf(w, "\n%s: %s\n", name, why)
	}
}

// cell is a ratio for people; nothing where there is none.
func (rs *results) cell(m metric, a, b string, k caseKey) string {
	r, ok := rs.ratio(m, a, k, b, k)
	if !ok || a == b {
		return ""
	}
	return fmt.Sprintf("%.2f", r)
}

// steadyTable prints the delays at the same rate for all.
func (rs *results) steadyTable(out io.Writer, o options) {
	k := caseKey{o.steadyStreams, o.steadySize, 1, kindRTP}
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', tabwriter.AlignRight)
	defer w.Flush()
	for i, m := range o.modes {
		if i == 0 {
			fmt.Fprintf(w, "\nat 50,000 packets/s, %v\tp50 µs\tp99 µs\tCPU ns/packet\t\n", k)
		}
		r := rs.of[m.name][k]
		if median(r, p99Metric().value) > 0 {
			fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t\n", m.text, median(r, p50Metric().value), median(r, p99Metric().value),
				median(r, steadyMetric().value))
		}
	}
}
