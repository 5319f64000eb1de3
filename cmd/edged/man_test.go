package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestMan checks that every command and every key of the configuration has its place in the manual.
func TestMan(t *testing.T) {
	dir := t.TempDir()
	if code := execute([]string{"man", dir}, os.Stdout, os.Stderr); code != exitOK {
		t.Fatalf("edged man: exit code %d", code)
	}
	for _, name := range []string{"edged.8", "edged-run.8", "edged-check.8", "edged-turn-test.8"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() < 200 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, "edged.yaml.5"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".TH", "networks.NAME.addresses", "media.datapath", "sip.listen", "one of debug, info, warn, error", "forwards[].listen"} {
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("edged.yaml.5 says nothing of %q", want)
		}
	}
}
