package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"edged.dev/edged/bench/report"
)

func TestParseStats(t *testing.T) {
	head := []string{"StartTime", "SuccessfulCall(C)", "FailedCall(C)", "Retransmissions(C)"}
	o, err := parseStats(head, []string{"x", "120", "3", "7"})
	if err != nil || o.ok != 120 || o.failed != 3 || o.retransmitted != 7 {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := parseStats(head, []string{"x", "120"}); err == nil {
		t.Error("a line that was cut short was read")
	}
}

func TestGood(t *testing.T) {
	fine := outcome{ok: 3000, retransmitted: 3, elapsed: stepTime + ring + talk}
	for name, c := range map[string]struct {
		change func(*outcome)
		want   bool
	}{
		"fine":               {func(*outcome) {}, true},
		"one failed":         {func(o *outcome) { o.ok, o.failed = 2999, 1 }, false},
		"one missing":        {func(o *outcome) { o.ok-- }, false},
		"retransmissions":    {func(o *outcome) { o.retransmitted++ }, false},
		"later than planned": {func(o *outcome) { o.elapsed += stepTime / 4 }, false},
	} {
		o := fine
		c.change(&o)
		if got := o.good(3000); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestProbeMessages(t *testing.T) {
	invite := request("id-1", "INVITE", "sip:probe@198.51.100.20:5090", nil, "", sdp("alice", callerIP))
	answer := response([]byte("INVITE sip:x SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKe\r\n"+
		"Record-Route: <sip:198.51.100.1;lr>, <sip:192.0.2.1;lr>\r\nTo: <sip:probe@example.org>\r\n\r\n"+invite), ";tag=callee", "")
	target, routes := dialog([]byte(answer))
	if target != "sip:probe@198.51.100.20:5090" || !slices.Equal(routes, []string{"<sip:192.0.2.1;lr>", "<sip:198.51.100.1;lr>"}) {
		t.Errorf("target %q, routes %q", target, routes)
	}
}

func TestCompareTakesMedians(t *testing.T) {
	rounds := func(rates ...float64) (out []round) {
		for _, r := range rates {
			out = append(out, round{capacity: r, cpu: time.Millisecond, invite: []time.Duration{time.Millisecond}})
		}
		return out
	}
	rows := compare(rounds(100, 900, 300), rounds(150, 100, 10))
	if r := rows[0]; r.Edged != 300 || r.Value != 100 || r.Ratio != 3 || r.Better != "higher" || r.Runs != 3 {
		t.Errorf("%+v", r)
	}
}

func TestPlotIsXML(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sip.svg")
	if err := report.Plot(file, []report.Row{newRow("a & b", "µs <x>", "lower", 1, 2, 3), newRow("zero", "", "higher", 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Rects []struct {
			Width int `xml:"width,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Rects) != 4 || doc.Rects[0].Width*2 != doc.Rects[1].Width || doc.Rects[2].Width != 0 {
		t.Errorf("bars: %+v", doc.Rects)
	}
}
