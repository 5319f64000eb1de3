package main

import "edged.dev/edged/bench/report"

func metrics() []report.Metric[figures] {
	return []report.Metric[figures]{
		{Name: "Gb/s, 1 connection", Better: "higher", Of: func(f figures) float64 { return f.bulk1.gbits }},
		{Name: "Gb/s, 8 connections", Better: "higher", Of: func(f figures) float64 { return f.bulk8.gbits }},
		{Name: "gateway CPU s/GB, 1 connection", Better: "lower", Of: func(f figures) float64 { return f.bulk1.cpu }},
		{Name: "gateway CPU s/GB, 8 connections", Better: "lower", Of: func(f figures) float64 { return f.bulk8.cpu }},
		{Name: "64-byte messages/s, 64 connections", Better: "higher", Of: func(f figures) float64 { return f.talk64.rate }},
		{Name: "gateway CPU µs per message, 64 connections", Better: "lower", Of: func(f figures) float64 { return f.talk64.cpu }},
		{Name: "p50 µs there and back, 1 connection", Better: "lower", Of: func(f figures) float64 { return float64(f.talk1.p50.Nanoseconds()) / 1e3 }},
		{Name: "p99 µs there and back, 1 connection", Better: "lower", Of: func(f figures) float64 { return float64(f.talk1.p99.Nanoseconds()) / 1e3 }},
		{Name: "p99 µs there and back, 64 connections", Better: "lower", Of: func(f figures) float64 { return float64(f.talk64.p99.Nanoseconds()) / 1e3 }},
	}
}

// compareAll returns the rows for what was measured: what reads the bytes beside what reads them, what
// rewrites beside what rewrites, and other traffic with and without edged's program.
func compareAll(results map[string][]figures) []report.Row {
	var rows []report.Row
	for _, pair := range [][2]string{
		{edgedUser, haproxy}, {edgedUser, haproxyCpy}, {edgedUser, nginx}, {edgedUser, nat},
		{edgedTC, nat}, {edgedTC, routing}, {edgedTC, haproxy}, {routingTC, routing},
	} {
		ours, theirs := results[pair[0]], results[pair[1]]
		if len(ours) == 0 || len(ours) != len(theirs) {
			continue // skipped, and said so
		}
		for _, m := range metrics() {
			rows = append(rows, report.Compare(pair[0], pair[1], m, ours, theirs))
		}
	}
	return rows
}
