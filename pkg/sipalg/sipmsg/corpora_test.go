package sipmsg

import (
	"os"
	"path/filepath"
	"testing"
)

// corpora returns where the corpora are, or would be.
func corpora(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("EDGED_CORPORA"); dir != "" {
		return dir
	}
	return filepath.Join(repository(t), "..", "shared", "corpora")
}

// corpus returns the folder name of the corpora, or skips the test.
func corpus(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(corpora(t), name)
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("SKIP: no corpus %s (set EDGED_CORPORA): %v", name, err)
	}
	return dir
}

// repository walks up to the folder of go.mod.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the package")
		}
		dir = up
	}
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
