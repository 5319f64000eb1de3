// Package report writes what a benchmark has found: edged beside a peer, as JSON for programs and as a table for people.
// It judges nothing.
//
//	figures of interleaved rounds ─► Compare ─► []Row ─► Write, Table
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// Row is one figure of edged beside that of a peer.
type Row struct {
	Name   string  `json:"name"`
	Peer   string  `json:"peer"`
	Metric string  `json:"metric"`
	Edged  float64 `json:"edged"`
	Value  float64 `json:"peer_value"`
	Ratio  float64 `json:"ratio"`
	Better string  `json:"better"`
	Runs   int     `json:"runs"`
}

// Metric is a figure of what a round has found, F. Better is "lower" or "higher".
type Metric[F any] struct {
	Name, Better string
	Of           func(F) float64
}

// Compare gives the medians over the rounds, and the median of the rounds' ratios. Both have the same rounds.
func Compare[F any](name, peer string, m Metric[F], ours, theirs []F) Row {
	a, b, ratio := make([]float64, len(ours)), make([]float64, len(ours)), make([]float64, len(ours))
	for i := range ours {
		a[i], b[i] = m.Of(ours[i]), m.Of(theirs[i])
		ratio[i] = a[i] / b[i]
	}
	return Row{Name: name, Peer: peer, Metric: m.Name, Edged: Median(a), Value: Median(b), Ratio: Median(ratio), Better: m.Better, Runs: len(ours)}
}

// Median returns the median of v, which it sorts; of an even number the upper one, of none 0.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// Write stores the rows as JSON, and makes the folder.
func Write(file string, rows []Row) error {
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

// Table prints the rows.
func Table(w io.Writer, rows []Row) error {
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
