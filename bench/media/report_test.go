package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/bench/report"
)

func TestMiddle(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := middle(c.of); got != c.want {
			t.Errorf("middle of %v is %v", c.of, got)
		}
	}
}

func TestPercentile(t *testing.T) {
	tr := trial{delays: make([]uint64, slots)}
	if got := tr.percentile(50); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	tr.delays[9], tr.delays[99], tr.delays[slots-1] = 98, 1, 1
	for p, want := range map[float64]time.Duration{50: 10 * slot, 98: 10 * slot, 99: 100 * slot, 100: slots * slot} {
		if got := tr.percentile(p); got != want {
			t.Errorf("p%v is %v, want %v", p, got, want)
		}
	}
}

func someResults() *results {
	few, many := caseKey{100, 172, 1, kindRTP}, caseKey{1000, 172, 1, kindRTP}
	return &results{
		of: map[string]map[caseKey][]result{
			modeTC: {
				few:  {{rate: 1000, cost: 80}},
				many: {{rate: 1000, cost: 100, p99: 10}, {rate: 600, cost: 200, p99: 30}, {rate: 900, cost: 120, p99: 30}},
			},
			modeRoute: {many: {{rate: 1000, cost: 100, p99: 10}, {rate: 500, cost: 250, p99: 20}, {rate: 1000, cost: 100, p99: 10}}},
			modeNFT:   {many: {{rate: 500, cost: 200, p99: 20}, {rate: 300, cost: 400, p99: 20}, {rate: 500, cost: 180, p99: 20}}},
		},
		absent:   map[string]string{modeXDP: "not available: no driver"},
		verified: 100,
	}
}

func TestRatioIsOfRounds(t *testing.T) {
	rs, k := someResults(), caseKey{1000, 172, 1, kindRTP}
	// 1.0, 1.2 and 0.9; the ratio of the medians would be 0.9.
	if got, ok := rs.ratio(rateMetric(), modeTC, k, modeRoute, k); got != 1 || !ok {
		t.Errorf("ratio %v, %v", got, ok)
	}
	if _, ok := rs.ratio(rateMetric(), modeTC, k, modeRTPEngine, k); ok {
		t.Error("a ratio to what was not measured")
	}
}

func TestBars(t *testing.T) {
	var out bytes.Buffer
	someResults().barTable(&out)
	for _, want := range []string{
		"tc: packets/s >= 1.4 x nft|2|met|1000 streams of 172 bytes",
		"tc: packets/s >= 1 x route|1|met|1000 streams of 172 bytes",
		"tc: p99 delay at 50,000 packets/s <= 1 x nft|1.5|MISSED|1000 streams of 172 bytes",
		"tc: packets/s >= 7 x rtpengine|-|not measured",
		"tc: CPU per packet at 4900 streams <= 1.3 x at 100|-|not measured",
		"wrong checksums <= 0|0|met|of 100 verified",
	} {
		found := false
		for l := range strings.Lines(out.String()) {
			cells := strings.FieldsFunc(strings.TrimSpace(strings.ReplaceAll(l, "  ", "|")), func(r rune) bool { return r == '|' })
			found = found || strings.ReplaceAll(strings.Join(cells, "|"), "| ", "|") == want
		}
		if !found {
			t.Errorf("no line %q in:\n%s", want, &out)
		}
	}
}

func TestRows(t *testing.T) {
	o, err := parseOptions([]string{"-modes", "nft,xdp,tc,route", "-streams", "1000", "-sizes", "172"})
	if err != nil {
		t.Fatal(err)
	}
	rows := someResults().rows(o)
	want := report.Row{
		Name: "edged, tc, 1000 streams of 172 bytes", Peer: "nftables NAT", Metric: "CPU ns/packet", Better: "lower",
		Edged: 120, Value: 200, Ratio: 0.5, Runs: 3,
	}
	for _, r := range rows {
		if r == want {
			return
		}
	}
	t.Errorf("no row %+v in %+v", want, rows)
}

func TestOptions(t *testing.T) {
	o, err := parseOptions(nil)
	if err != nil || len(o.modes) != len(modes()) || len(o.cases()) != 8 {
		t.Errorf("defaults: %+v, %v", o, err)
	}
	for _, args := range [][]string{
		{"-modes", "fast"},
		{"-streams", "0"},
		{"-streams", "20000"},
		{"-sizes", "20"},
		{"-sizes", "173"},
		{"-sizes", "1476"},
		{"-sizes", "x"},
	} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}
