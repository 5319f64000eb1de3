package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// row is one line of bench/out/ft.json.
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

// metric is one figure of a round.
type metric struct {
	name, better string
	of           func(figures) float64
}

func metrics() []metric {
	return []metric{
		{"Gb/s, one file", "higher", func(f figures) float64 { return f.gbits }},
		{"gateway CPU s/GB, one file", "lower", func(f figures) float64 { return f.cpu }},
		{"ms for 1 MiB, from dialling to the MAC", "lower", func(f figures) float64 { return f.small }},
	}
}

// compareAll returns the rows for what was measured.
func compareAll(results map[string][]figures) []row {
	var rows []row
	for _, pair := range [][2]string{{edged, haproxy}, {edged, haproxyCpy}, {edgedCheck, haproxy}} {
		for _, m := range metrics() {
			rows = append(rows, compare(pair[0], pair[1], m, results[pair[0]], results[pair[1]]))
		}
	}
	return rows
}

// compare gives the medians over the rounds, and the median of the rounds' ratios.
func compare(name, peer string, m metric, ours, theirs []figures) row {
	a, b, ratio := make([]float64, len(ours)), make([]float64, len(ours)), make([]float64, len(ours))
	for i := range ours {
		a[i], b[i] = m.of(ours[i]), m.of(theirs[i])
		ratio[i] = a[i] / b[i]
	}
	return row{Name: name, Peer: peer, Metric: m.name, Edged: median(a), Value: median(b), Ratio: median(ratio), Better: m.better, Runs: len(ours)}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
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
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "what\tpeer\tmetric\tedged\tpeer's\tratio\tbetter")
	for _, r := range rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.4g\t%.4g\t%.2f\t%s\n", r.Name, r.Peer, r.Metric, r.Edged, r.Value, r.Ratio, r.Better)
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
