package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
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

// TestH323Record: a call by H.323 has the fields of one by SIP, with its cause.
func TestH323Record(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := h323.Record{
		CallID: "c1", Caller: "alice", Called: "bob", From: netip.MustParseAddrPort("192.0.2.7:0"), To: netip.MustParseAddrPort("198.51.100.9:1720"),
		Networks: [2]string{"inside", "outside"}, Started: at, Connected: at.Add(time.Second), Stopped: at.Add(3 * time.Second), Reason: "undefinedReason",
		Cause: 16, Streams: []h323.Stream{{Kind: pinhole.RTP, Summary: pinhole.Summary{From: [2]pinhole.StreamStats{{Packets: 7}, {Packets: 9}}}}},
	}
	line, err := json.Marshal(h323Record(r))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Protocol, ID, From, To, Caller, Callee, Reason string
		Networks                                       [2]string
		Answered                                       *time.Time
		Seconds                                        float64
		Status, Cause                                  int
		Streams                                        []struct {
			Kind     string
			Received [2]struct{ Packets int }
		}
	}
	if err := json.Unmarshal(line, &doc); err != nil {
		t.Fatal(err)
	}
	const want = "h323 c1 alice bob 192.0.2.7 198.51.100.9:1720 undefinedReason [inside outside] 2 0 16 [{rtp [{7} {9}]}]"
	if got := fmt.Sprint(doc.Protocol, " ", doc.ID, " ", doc.From, " ", doc.To, " ", doc.Caller, " ", doc.Callee, " ", doc.Reason, " ", doc.Networks, " ", doc.Seconds, " ",
		doc.Status, " ", doc.Cause, " ", doc.Streams); got != want || !doc.Answered.Equal(r.Connected) {
		t.Errorf("%s\nwant %s\nof   %s", got, want, line)
	}
	if params := fmt.Sprint(cdrParams(h323Record(r))); !strings.Contains(params, "{protocol h323} {cause 16}") || !strings.Contains(params, "{packets_0_callee 9}") {
		t.Errorf("structured data: %s", params)
	}
	if out := h323Record(r).outcome(); out != "16 undefinedReason" {
		t.Errorf("outcome: %s", out)
	}
	if r := h323Record(h323.Record{Reason: "connection_lost"}); r.Answered != nil || r.outcome() != "connection_lost" {
		t.Errorf("never answered: %+v", r)
	}
}

// TestRecordsOfTheLastCalls: who still has calls when the daemon ends is waited for.
func TestRecordsOfTheLastCalls(t *testing.T) {
	file, path := testCDR(t)
	c := &callRecords{file: file, queue: newCDRQueue(file, zap.NewNop())}
	ctx, cancel := context.WithCancel(context.Background())
	done := c.writer()
	ended := make(chan error, 1)
	go func() { ended <- c.serve(ctx) }()
	cancel()
	c.add(sipRecord(sipalg.Record{ID: "s1", Status: 200}))
	c.add(h323Record(h323.Record{CallID: "h1"}))
	select {
	case err := <-ended:
		t.Fatalf("it has ended before its writer: %v", err)
	default:
	}
	done()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if text := string(b); err != nil || !strings.Contains(text, `"protocol":"sip","id":"s1"`) || !strings.Contains(text, `"protocol":"h323","id":"h1"`) {
		t.Errorf("%s, %v", text, err)
	}
}
