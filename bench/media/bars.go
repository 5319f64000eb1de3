package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// bar is one thing that the measurements must show.
type bar struct {
	text  string
	limit float64
	// least says that the limit is a lower one.
	least bool
	// value returns the worst of the cases that were measured, and which that was. It is false if none was, and where
	// says then where to look instead.
	value func(*results) (v float64, where string, ok bool)
}

// bars are the promises of docs/performance.md about media.
func bars() []bar {
	many := []int{1000, 4900}
	every := []int{1, 100, 1000, 4900}
	atLeast := func(limit float64, ours, peer string, streams []int) bar {
		return bar{
			text: fmt.Sprintf("%s: packets/s >= %g x %s", ours, limit, peer), limit: limit, least: true,
			value: worst(rateMetric(), ours, peer, streams, true),
		}
	}
	costs := func(limit float64, ours, peer string, streams []int) bar {
		return bar{
			text: fmt.Sprintf("%s: CPU per packet <= %g x %s", ours, limit, peer), limit: limit,
			value: worst(costMetric(), ours, peer, streams, false),
		}
	}
	return []bar{
		atLeast(7, modeTC, modeRTPEngine, many),
		costs(0.14, modeTC, modeRTPEngine, many),
		atLeast(1.4, modeTC, modeNFT, many),
		costs(0.65, modeTC, modeNFT, many),
		atLeast(1, modeTC, modeRoute, many),
		{text: "tc: CPU per packet at 4900 streams <= 1.3 x at 100", limit: 1.3, value: growth},
		{
			text: "tc: p99 delay at 50,000 packets/s <= 1 x nft", limit: 1,
			value: worst(p99Metric(), modeTC, modeNFT, every, false),
		},
		{text: "tc: other TCP traffic keeps >= 0.97", limit: 0.97, least: true, value: elsewhere("make bench-tcp")},
		costs(0.06, modeXDP, modeRTPEngine, many),
		costs(0.30, modeXDP, modeNFT, many),
		costs(4, modeXDP, modeDrop, many),
		atLeast(1.8, modeUser, modeRTPEngine, many[:1]),
		{text: "user: allocations per packet <= 0.001", limit: 0.001, value: mostAllocs},
		{text: "wrong checksums <= 0", limit: 0, value: func(rs *results) (float64, string, bool) {
			return float64(rs.bad), fmt.Sprintf("of %d verified", rs.verified), rs.verified > 0
		}},
	}
}

// elsewhere is the value of a bar that another benchmark measures.
func elsewhere(where string) func(*results) (float64, string, bool) {
	return func(*results) (float64, string, bool) { return 0, where, false }
}

// worst returns a bar's value: the ratio of two modes in the worst case of these numbers of streams.
func worst(m metric, ours, peer string, streams []int, least bool) func(*results) (float64, string, bool) {
	return func(rs *results) (v float64, where string, ok bool) {
		for _, n := range streams {
			for k := range rs.of[ours] {
				if k.streams != n || k.burst > 1 {
					continue
				}
				r, is := rs.ratio(m, ours, k, peer, k)
				if is && (!ok || least && r < v || !least && r > v) {
					v, where, ok = r, k.String(), true
				}
			}
		}
		return v, where, ok
	}
}

// growth is how much more a packet costs on the tc path with many streams than with few.
func growth(rs *results) (v float64, where string, ok bool) {
	for k := range rs.of[modeTC] {
		if k.streams != 4900 || k.burst > 1 {
			continue
		}
		r, is := rs.ratio(costMetric(), modeTC, k, modeTC, caseKey{100, k.size, 1, kindRTP})
		if is && (!ok || r > v) {
			v, where, ok = r, fmt.Sprintf("%d bytes", k.size), true
		}
	}
	return v, where, ok
}

func mostAllocs(rs *results) (v float64, where string, ok bool) {
	for k := range rs.of[modeUser] {
		if a := rs.allocs(modeUser, k); a >= 0 && (!ok || a > v) {
			v, where, ok = a, k.String(), true
		}
	}
	return v, where, ok
}

// verdict says whether the value meets the bar.
func (b bar) verdict(v float64) string {
	if b.least && v >= b.limit || !b.least && v <= b.limit {
		return "met"
	}
	return "MISSED"
}

// barTable prints every bar with the worst value of it.
func (rs *results) barTable(out io.Writer) {
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "\nbar\tvalue\t\tworst case")
	for _, b := range bars() {
		v, where, ok := b.value(rs)
		if !ok {
			fmt.Fprintf(w, "%s\t-\tnot measured\t%s\n", b.text, where)
			continue
		}
		fmt.Fprintf(w, "%s\t%.3g\t%s\t%s\n", b.text, v, b.verdict(v), where)
	}
}
