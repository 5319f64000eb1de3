package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/sipalg"
)

func toText(v any) string { return fmt.Sprint(v) }

func TestCallsAreATable(t *testing.T) {
	up := time.Now().Add(-90 * time.Second)
	body, err := json.Marshal(map[string]any{"calls": []sipalg.CallInfo{
		{ID: "1", From: "sip:alice@example.org", To: "sip:bob@example.org", Networks: [2]string{"inside", "outside"},
			Caller: "10.0.0.7:5060", Callee: "198.51.100.20:5060", State: "up", Started: up, Answered: &up, Pinholes: 2},
		{ID: "22", From: "sip:\x1b[2Jevil@example.org", To: "sip:" + strings.Repeat("x", 80), Networks: [2]string{"outside", "inside"},
			Caller: "192.0.2.1:5060", State: "ringing", Started: time.Now()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printCalls(&out, body); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "ID") {
		t.Fatalf("%q", lines)
	}
	if want := "sip:alice@example.org"; strings.Index(lines[1], want) != strings.Index(lines[0], "FROM") {
		t.Errorf("columns are not aligned:\n%s", &out)
	}
	if !strings.Contains(lines[1], "1m30s") || !strings.Contains(lines[1], "outside 198.51.100.20:5060") {
		t.Errorf("%q", lines[1])
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(lines[2], strings.Repeat("x", 50)) {
		t.Errorf("hostile text reaches the terminal: %q", lines[2])
	}
}

func TestStatusShowsWhatIsWrong(t *testing.T) {
	body, err := json.Marshal(statusDoc{
		Build: buildInfo{Version: "1.2.3"}, PID: 7, State: "draining", Uptime: 61,
		Config:   reloadState{Error: "a.yaml:1: x\na.yaml:2: y\na.yaml:3: z", RestartRequired: []string{"sip.listen"}},
		Services: map[string]any{"sip": map[string]any{"calls": 3, "listeners": []string{"udp://10.0.0.1:5060"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printStatus(&out, body); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"1.2.3", "pid 7", "up 1m1s", "draining", "reload refused: a.yaml:1: x (and 2 more)", "restart required: sip.listen",
		"calls 3, listeners udp://10.0.0.1:5060",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestLogFormat(t *testing.T) {
	for _, tc := range []struct {
		format, journal string
		json            bool
	}{
		{"json", "", true}, {"text", "", false}, {"text", "8:1", false},
		{"auto", "", true}, // what is written to here is no terminal
		{"auto", "8:1", true},
	} {
		t.Setenv("JOURNAL_STREAM", tc.journal)
		var out bytes.Buffer
		newLogger(&out, tc.format, zap.NewAtomicLevel()).Info("ready", zap.Int("calls", 3))
		if json.Valid(out.Bytes()) != tc.json {
			t.Errorf("%+v: %s", tc, &out)
		}
	}
}

func TestLogLevelIsLive(t *testing.T) {
	var out bytes.Buffer
	level := zap.NewAtomicLevel()
	log := newLogger(&out, "json", level)
	log.Debug("one")
	setLevel(level, "debug")
	log.Debug("two")
	setLevel(level, "nonsense") // changes nothing
	log.Debug("three")
	if got := strings.Count(out.String(), "\n"); got != 2 || strings.Contains(out.String(), "one") {
		t.Errorf("%s", &out)
	}
}
