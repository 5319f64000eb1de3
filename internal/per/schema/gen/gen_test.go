package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestTables: tables.go is what the schemas say.
func TestTables(t *testing.T) {
	t.Chdir("..")
	g, err := load()
	if err != nil {
		t.Fatal(err)
	}
	have, err := os.ReadFile("tables.go")
	if err != nil {
		t.Fatal(err)
	}
	if want, err := g.source(); err != nil || !bytes.Equal(have, want) {
		t.Error("tables.go is not what the schemas say: run go generate in internal/per/schema")
	}
}

// TestFaults: what the notation does not allow is said with its line.
func TestFaults(t *testing.T) {
	for _, c := range []struct{ text, says string }{
		{"A seq\n\tb Nothing\n", "x.schema:2: no type Nothing"},
		{"A seq\n\t+b null\n", "x.schema:2: an addition without a marker"},
		{"A seq ext\n\t+b null\n\tc null\n", "x.schema:3: an addition without a marker, or not at the end"},
		{"A int 1 2\n", `what is ["2"]`},
		{"A bool\nA bool\n", "x.A is there twice"},
		{"A seq\n\t\t\tb null\n", "x.schema:2: nested too deeply"},
		{"A ia5 1 2 3\n", "what is"},
	} {
		path := t.TempDir() + "/x.schema"
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		defs, err := parse(path)
		if err == nil {
			g := newGenerator()
			err = g.all(defs)
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, want %q", c.text, err, c.says)
		}
	}
}
