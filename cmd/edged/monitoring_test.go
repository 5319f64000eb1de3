package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// documented reads the table of metrics in docs/operations.md: names with the names of their labels.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, m := range regexp.MustCompile("`(edged_[a-z0-9_]+)(?:\\{([a-z,]+)\\})?`").FindAllStringSubmatch(string(b), -1) {
		labels := append(strings.Split(m[2], ","), "instance", "job") // the last two are Prometheus' own
		out[m[1]] = append(out[m[1]], labels...)
	}
	return out
}

// named tells whether the source has a metric: its name as one literal, or the name's end in a folder that has its beginning.
func named(t *testing.T) func(metric string) bool {
	t.Helper()
	folders := map[string]string{}
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		folders[filepath.Dir(path)] += string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(metric string) bool {
		parts := strings.SplitAfter(metric, "_")
		for _, text := range folders {
			if strings.Contains(text, `"`+metric+`"`) {
				return true
			}
			for i := 1; i < len(parts); i++ {
				if strings.Contains(text, `"`+strings.Join(parts[:i], "")+`"`) && strings.Contains(text, `"`+strings.Join(parts[i:], "")+`"`) {
					return true
				}
			}
		}
		return false
	}
}

// expressions returns every query of the alerting rules and of the dashboard, by where it stands.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	read(t, "edged.rules.yaml", func(b []byte) error { return yaml.Unmarshal(b, &rules) })
	for _, r := range rules.Groups[0].Rules {
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("the alert %s does not say what to do", r.Alert)
		}
		out[r.Alert] = r.Expr
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	read(t, "grafana.json", func(b []byte) error { return json.Unmarshal(b, &board) })
	for _, p := range board.Panels {
		for i, target := range p.Targets {
			out[fmt.Sprintf("%s, %d", p.Title, i+1)] = target.Expr
		}
	}
	return out
}

func read(t *testing.T, name string, decode func([]byte) error) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../deploy/monitoring", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(b); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

var (
	metricUse = regexp.MustCompile(`\b((?:edged|process|go)_[a-z0-9_]+)(\{[^}]*\})?`)
	matcher   = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	grouping  = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// TestMonitoring checks that alerting rules and dashboard speak only of metrics and labels that exist.
func TestMonitoring(t *testing.T) {
	metrics, exists := documented(t), named(t)
	for name := range metrics {
		if !exists(name) {
			t.Errorf("docs/operations.md: no metric %s in the source", name)
		}
	}
	list := expressions(t)
	if len(list) < 30 {
		t.Fatalf("%d expressions only", len(list))
	}
	for where, expr := range list {
		if strings.Count(expr, "(") != strings.Count(expr, ")") {
			t.Errorf("%s: parentheses: %s", where, expr)
		}
		var labels []string
		for _, use := range metricUse.FindAllStringSubmatch(expr, -1) {
			has, ok := metrics[strings.TrimSuffix(use[1], "_bucket")]
			if !strings.HasPrefix(use[1], "edged_") { // of every Go program
				has, ok = []string{"instance", "job"}, slices.Contains([]string{"process_open_fds", "process_max_fds",
					"process_cpu_seconds_total", "process_resident_memory_bytes", "go_goroutines"}, use[1])
			}
			if !ok {
				t.Errorf("%s: no metric %s", where, use[1])
			}
			labels = append(labels, has...)
			for _, m := range matcher.FindAllStringSubmatch(use[2], -1) {
				if !slices.Contains(has, m[1]) {
					t.Errorf("%s: %s has no label %s", where, use[1], m[1])
				}
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(g[1], ",") {
				if !slices.Contains(labels, strings.TrimSpace(l)) {
					t.Errorf("%s: nothing has the label %s", where, l)
				}
			}
		}
	}
}
