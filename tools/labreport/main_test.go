package main

import (
	"strings"
	"testing"
)

const events = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/sub"}
{"Action":"pass","Package":"p","Test":"TestA/sub","Elapsed":1.5}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1.6}
{"Action":"run","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:7: no root here\n"}
{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}
`

func newReport(t *testing.T, in string) (*report, *strings.Builder) {
	t.Helper()
	var out strings.Builder
	r := &report{w: &out, output: map[string][]string{}, parents: map[string]bool{}}
	if err := r.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	return r, &out
}

func TestReport(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		noskip   bool
		want     string
		ok       bool
	}{
		{"pass and skip", events, false, "1 passed, 0 failed, 1 skipped\n", true},
		{"no skips in CI", events, true, "1 passed, 0 failed, 1 skipped\n", false},
		{"failure", events + `{"Action":"fail","Package":"p","Test":"TestC"}` + "\n", false, "1 passed, 1 failed, 1 skipped\n", false},
		{"did not build", `{"Action":"fail","Package":"p"}` + "\n", false, "0 passed, 1 failed, 0 skipped\n", false},
		{"nothing ran", "", false, "0 passed, 0 failed, 0 skipped\n", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, out := newReport(t, tc.in)
			if ok := r.finish(tc.noskip); ok != tc.ok {
				t.Errorf("verdict %v, want %v", ok, tc.ok)
			}
			if !strings.HasSuffix(out.String(), tc.want) {
				t.Errorf("last line of %q is not %q", out, tc.want)
			}
		})
	}
}

func TestReasonOfASkipIsShown(t *testing.T) {
	_, out := newReport(t, events)
	if !strings.Contains(out.String(), "no root here") {
		t.Errorf("no reason in %q", out)
	}
}
