package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"edged.dev/edged/pkg/trace"
)

// traceable starts a daemon and has a phone ask it for what it refuses; the phone is the last thing returned.
func traceable(t *testing.T, callID, more string) (*testDaemon, string) {
	t.Helper()
	d := startDaemon(t, sipAt(t.TempDir(), sipOnly+more))
	pid := os.Getpid()
	conn, err := net.Dial("udp", fmt.Sprintf("127.77.%d.%d:5060", pid>>8&255, pid&255))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "INVITE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP %s;branch=z9hG4bKtest;rport\r\nMax-Forwards: 0\r\n"+
		"From: <sip:alice@example.org>;tag=1\r\nTo: <sip:bob@example.org>\r\nCall-ID: %s\r\nCSeq: 1 INVITE\r\n"+
		"Authorization: Digest username=\"alice\", response=\"0123456789abcdef\"\r\nContent-Length: 0\r\n\r\n", conn.LocalAddr(), callID)
	answer := make([]byte, 2000)
	if n, err := conn.Read(answer); err != nil || !strings.HasPrefix(string(answer[:n]), "SIP/2.0 483") {
		t.Fatalf("%v, %s", err, answer[:n])
	}
	return d, conn.LocalAddr().String()
}

// TestTraceOfARefusedCall asks the API and the command for the signalling of a call that never was.
func TestTraceOfARefusedCall(t *testing.T) {
	const callID = "a/b c@example.org"
	d, phone := traceable(t, callID, "")
	edged := func(args ...string) string {
		t.Helper()
		code, out, errs := d.edged(args...)
		if code != 0 {
			t.Fatalf("edged %v: exit code %d: %s", args, code, errs)
		}
		return out
	}
	var tr trace.Trace
	if err := json.Unmarshal([]byte(edged("trace", "--json", callID)), &tr); err != nil {
		t.Fatal(err)
	}
	if len(tr.Messages) != 2 || len(tr.Parties) != 1 || tr.Parties[0].String() != phone || tr.Messages[1].Status != 483 {
		t.Errorf("trace: %+v", tr)
	}
	if s := edged("trace", callID, "--full"); !strings.Contains(s, "─ INVITE ─") || !strings.Contains(s, "◄── 483 Too Many Hops ───│") || !strings.Contains(s, "edge") ||
		!strings.Contains(s, `response="****************"`) {
		t.Errorf("ladder:\n%s", s)
	}
	if s := edged("trace", callID, "--full", "--secrets"); !strings.Contains(s, "0123456789abcdef") {
		t.Errorf("secrets were asked for:\n%s", s)
	}
	if s := edged("trace"); !strings.Contains(s, callID) || !strings.Contains(s, "483") {
		t.Errorf("list:\n%s", s)
	}
	if _, err := d.get(context.Background(), "/api/v1/calls/unknown/trace"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an unknown call: %v", err)
	}
	if _, err := d.get(context.Background(), "/api/v1/calls/x/trace?after=y"); err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a number that is none: %v", err)
	}
}

// TestLadder draws a call between two phones, with one message rewritten and one repeated.
func TestLadder(t *testing.T) {
	entry := func(seq uint64, dir, remote, method string, status int, summary string) string {
		return fmt.Sprintf(`{"seq":%d,"time":"2026-01-02T03:04:05Z","direction":%q,"transport":"udp","local":"192.0.2.1:5060","remote":%q,"method":%q,"status":%d,"summary":%q`,
			seq, dir, remote, method, status, summary)
	}
	const alice, bob = "192.0.2.7:5060", "198.51.100.9:5060"
	doc := `{"call_id":"c1","ids":[],"from":"<sip:alice@example.org>;tag=1","to":"<sip:bob@example.org>","parties":["` + alice + `","` + bob + `"],"messages":[` +
		entry(1, "in", alice, "INVITE", 0, "INVITE sip:bob@example.org") + `,"repeat":true},` +
		entry(2, "out", bob, "INVITE", 0, "INVITE sip:bob@example.org") + `,"of":1,"diff":[{"op":"-","line":"c=1"},{"op":"+","line":"c=2"}]},` +
		entry(3, "in", bob, "BYE", 200, "200 OK") + `},` +
		entry(4, "out", alice, "INVITE", 200, "200 An answer that is too long for its line") + `}]}`
	var tr trace.Trace
	if err := json.Unmarshal([]byte(doc), &tr); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	l := &ladder{out: &out, traceFlags: traceFlags{diff: true}}
	if err := l.print(tr); err != nil {
		t.Fatal(err)
	}
	_, drawn, _ := strings.Cut(out.String(), "\n\n")
	var got []string
	for _, line := range strings.Split(strings.TrimSuffix(drawn, "\n"), "\n") {
		if i := strings.IndexAny(line, "│"); i >= 0 {
			line = line[len("15:04:05.000 "):]
		}
		got = append(got, strings.TrimRight(line, " "))
	}
	want := []string{
		"             192.0.2.7:5060            edge                      198.51.100.9:5060",
		"│──────── INVITE ────────►│ udp, again",
		"                          │──────── INVITE ────────►│ udp, lines changed: 1",
		"    - c=1",
		"    + c=2",
		"                          │◄──── 200 OK (BYE) ──────│ udp",
		"│◄ 200 An answer that i… ─│ udp",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
