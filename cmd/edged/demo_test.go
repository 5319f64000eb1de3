package main

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"edged.dev/edged/internal/demophone/scenario"
)

// lockedBuffer is a buffer that the demo's goroutines may share.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The demo in this process. What makes its verdict bad is tested in internal/demophone/scenario.
func TestDemo(t *testing.T) {
	var out lockedBuffer
	err := runDemo(t.Context(), &out, demoOptions{seconds: 1})
	text := out.String()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, want := range []string{
		"PASS  no way around the edge", "PASS  carol is registered", "PASS  alice calls bob", "PASS  bob calls carol",
		"PASS  bob calls alice", "PASS  H.323, slow start: alice calls bob", "PASS  H.323, fast start: bob calls alice", "PASS  H.323, T.120: alice calls bob",
		"PASS  inside addresses stay inside", "PASS  nothing is left at the edge", ", 0 failed",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestDemoVerdictFails(t *testing.T) {
	plan, err := scenario.NewPlan()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	d := demo{plan: plan, stage: &scenario.Stage{}, edge: &apiClient{}, screen: newDemoScreen(&out)}
	if err := d.verdict([]scenario.Check{{Name: "a", OK: true}, {Name: "b", Detail: "why"}}); err == nil {
		t.Error("a failed check made a good verdict")
	}
	if text := out.String(); !strings.Contains(text, "FAIL  b: why") || !strings.Contains(text, "1 checks passed, 1 failed") {
		t.Errorf("output: %s", text)
	}
}

func TestDemoShowConfigIsAConfiguration(t *testing.T) {
	var out bytes.Buffer
	if err := runDemo(t.Context(), &out, demoOptions{seconds: 1, showConfig: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := parseConfig("demo.yaml", out.Bytes()); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestDemoScreenRedrawsTheTable(t *testing.T) {
	var out bytes.Buffer
	s := &demoScreen{w: &out, terminal: true, width: func() int { return 16 }}
	rows := []scenario.Row{{From: "alice", To: "bob", State: "talking"}}
	s.table(rows, edgeCounts{1, 1})
	out.Reset()
	s.line("something happens")
	// The table's three lines go away, the text comes, the table comes back.
	if got := out.String(); !strings.HasPrefix(got, "\033[3A\033[Jsomething happens\n") || !strings.Contains(got, "  alice → bob  t\n") {
		t.Errorf("%q", got)
	}
	s.freeze()
	out.Reset()
	s.line("the end")
	if got := out.String(); got != "the end\n" {
		t.Errorf("%q", got)
	}
}
