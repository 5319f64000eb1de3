package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// row is one line of bench/out/sip.json.
type row struct {
	Name   string  `json:"name"`
	Peer   string  `json:"peer"`
	Metric string  `json:"metric"`
	Edged  float64 `json:"edged"`
	Value  float64 `json:"peer_value"`
	Ratio  float64 `json:"ratio"`
	Better string  `json:"better"`
	Runs   int     `json:"runs"`
}

// compare returns the rows for the rounds of edged and of the peer: medians of all rounds.
func compare(edged, peer []round) []row {
	line := func(name, metric, better string, of func(round) float64) row {
		return newRow(name, metric, better, middle(edged, of), middle(peer, of), len(edged))
	}
	us := func(sorted []time.Duration, p int) float64 {
		return float64(percentile(sorted, p)) / float64(time.Microsecond)
	}
	return []row{
		line("call rate", "calls/s on one core, 0 failed", "higher", func(m round) float64 { return m.capacity }),
		line("CPU", "ms of CPU per call", "lower", func(m round) float64 { return float64(m.cpu) / float64(time.Millisecond) }),
		line("INVITE p50", "µs through the edge", "lower", func(m round) float64 { return us(m.invite, 50) }),
		line("INVITE p99", "µs through the edge", "lower", func(m round) float64 { return us(m.invite, 99) }),
		line("answer p50", "µs through the edge", "lower", func(m round) float64 { return us(m.answer, 50) }),
		line("answer p99", "µs through the edge", "lower", func(m round) float64 { return us(m.answer, 99) }),
	}
}

// compareHeld returns the rows for calls that are held.
func compareHeld(edged, peer held) []row {
	return []row{
		newRow("memory", fmt.Sprintf("KiB per established call, %d held", edged.calls), "lower", edged.perCall/1024, peer.perCall/1024, 1),
		newRow("memory", fmt.Sprintf("MiB in all with %d calls held", edged.calls), "lower", float64(edged.total)/(1<<20), float64(peer.total)/(1<<20), 1),
	}
}

func newRow(name, metric, better string, edged, peer float64, runs int) row {
	r := row{Name: name, Peer: peerName, Metric: metric, Edged: edged, Value: peer, Better: better, Runs: runs}
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
	slices.Sort(v)
	return v[len(v)/2]
}

// percentile returns the p-th percentile of sorted durations, 0 if there are none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*p/100]
}

// write stores the rows as JSON.
func write(file string, rows []row) error {
	b, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}

// table prints the rows.
func table(w io.Writer, rows []row) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "what\tmetric\tedged\t%s\tratio\tbetter\t\n", peerName)
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%.4g\t%.4g\t%.2f\t%s\t\n", r.Name, r.Metric, r.Edged, r.Value, r.Ratio, r.Better)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
