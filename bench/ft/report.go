package main

import "edged.dev/edged/bench/report"

func metrics() []report.Metric[figures] {
	return []report.Metric[figures]{
		{Name: "Gb/s, one file", Better: "higher", Of: func(f figures) float64 { return f.gbits }},
		{Name: "gateway CPU s/GB, one file", Better: "lower", Of: func(f figures) float64 { return f.cpu }},
		{Name: "ms for 1 MiB, from dialling to the MAC", Better: "lower", Of: func(f figures) float64 { return f.small }},
	}
}

// compareAll returns the rows for what was measured.
func compareAll(results map[string][]figures) []report.Row {
	var rows []report.Row
	for _, pair := range [][2]string{{edged, haproxy}, {edged, haproxyCpy}, {edgedCheck, haproxy}} {
		for _, m := range metrics() {
			rows = append(rows, report.Compare(pair[0], pair[1], m, results[pair[0]], results[pair[1]]))
		}
	}
	return rows
}
