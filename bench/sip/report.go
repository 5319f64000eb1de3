package main

import (
	"fmt"
	"time"

	"edged.dev/edged/bench/report"
)

// compare returns the rows for the rounds of edged and of the peer: medians of all rounds.
func compare(edged, peer []round) []report.Row {
	line := func(name, metric, better string, of func(round) float64) report.Row {
		return newRow(name, metric, better, middle(edged, of), middle(peer, of), len(edged))
	}
	us := func(sorted []time.Duration, p int) float64 {
		return float64(percentile(sorted, p)) / float64(time.Microsecond)
	}
	return []report.Row{
		line("call rate", "calls/s on one core, 0 failed", "higher", func(m round) float64 { return m.capacity }),
		line("CPU", "ms of CPU per call", "lower", func(m round) float64 { return float64(m.cpu) / float64(time.Millisecond) }),
		line("INVITE p50", "µs through the edge", "lower", func(m round) float64 { return us(m.invite, 50) }),
		line("INVITE p99", "µs through the edge", "lower", func(m round) float64 { return us(m.invite, 99) }),
		line("answer p50", "µs through the edge", "lower", func(m round) float64 { return us(m.answer, 50) }),
		line("answer p99", "µs through the edge", "lower", func(m round) float64 { return us(m.answer, 99) }),
	}
}

// compareHeld returns the rows for calls that are held.
func compareHeld(edged, peer held) []report.Row {
	return []report.Row{
		newRow("memory", fmt.Sprintf("KiB per established call, %d held", edged.calls), "lower", edged.perCall/1024, peer.perCall/1024, 1),
		newRow("memory", fmt.Sprintf("MiB in all with %d calls held", edged.calls), "lower", float64(edged.total)/(1<<20), float64(peer.total)/(1<<20), 1),
	}
}

func newRow(name, metric, better string, edged, peer float64, runs int) report.Row {
	r := report.Row{Name: name, Peer: peerName, Metric: metric, Edged: edged, Value: peer, Better: better, Runs: runs}
	if peer > 0 {
		r.Ratio = edged / peer
	}
	return r
}

// middle returns the median of a figure over the rounds.
func middle(rounds []round, of func(round) float64) float64 {
	v := make([]float64, len(rounds))
	for i, m := range rounds {
		v[i] = of(m)
	}
	return report.Median(v)
}

// percentile returns the p-th percentile of sorted durations, 0 if there are none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*p/100]
}
