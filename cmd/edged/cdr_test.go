package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func testCDR(t *testing.T) (*cdrFile, string) {
	t.Helper()
	cfg := defaultConfig()
	cfg.State.Dir, cfg.CDR.File = t.TempDir(), "records/calls.jsonl"
	f, err := openCDR(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, filepath.Join(cfg.State.Dir, cfg.CDR.File)
}

func TestCallRecordsFollowLogrotate(t *testing.T) {
	f, path := testCDR(t)
	f.write(map[string]int{"call": 1}, zap.NewNop())
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	f.write(map[string]int{"call": 2}, zap.NewNop()) // still into the moved file
	if err := f.reopen(); err != nil {
		t.Fatal(err)
	}
	f.write(map[string]int{"call": 3}, zap.NewNop())
	for file, want := range map[string]string{path + ".1": "{\"call\":1}\n{\"call\":2}\n", path: "{\"call\":3}\n"} {
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
}

func TestRecordThatCannotBeWrittenGoesToTheLog(t *testing.T) {
	f, _ := testCDR(t)
	f.file.Close()
	core, logs := observer.New(zap.ErrorLevel)
	f.write(map[string]string{"call_id": "precious"}, zap.New(core))
	if logs.Len() != 1 {
		t.Fatalf("%d lines", logs.Len())
	}
	if text := logs.All()[0].ContextMap()["record"]; !strings.Contains(strings.ToLower(toText(text)), "precious") {
		t.Errorf("the record is not in the log: %v", text)
	}
}

func TestNoCallRecordsByDefault(t *testing.T) {
	cfg := defaultConfig()
	cfg.State.Dir = filepath.Join(t.TempDir(), "state")
	f, err := openCDR(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.write(1, zap.NewNop())
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(cfg.State.Dir); err == nil {
		t.Error("something was written")
	}
}

// TestCDRQueue: what was queued before the end is written, and a full queue blocks nobody.
func TestCDRQueue(t *testing.T) {
	f, path := testCDR(t)
	q := newCDRQueue(f, zap.NewNop())
	for i := range cap(q.records) + 10 {
		q.add(map[string]int{"n": i})
	}
	stop := make(chan struct{})
	close(stop)
	q.run(stop)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n != cap(q.records) {
		t.Fatalf("%d lines", n)
	}
}
