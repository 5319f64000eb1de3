//go:build lab

package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/internal/h323phone"
)

// edgedRun runs a command of edged on the gateway to its end, and returns what it printed.
func (e *Edge) edgedRun(t testing.TB, args ...string) string {
	t.Helper()
	bin, err := edgedBinary()
	must(t, "build edged", err)
	var out bytes.Buffer
	cmd := exec.Command(bin, append(args, "--config", e.file)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, "edged "+strings.Join(args, " "), e.rig.GW.Do(func() error {
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, &out)
		}
		return nil
	}))
	return out.String()
}

// TestH323Trace: the messages of a call through the gatekeeper are there afterwards, before and after rewriting: as a ladder, and
// as a file that Wireshark's dissectors understand, with the media if that was asked for.
func TestH323Trace(t *testing.T) {
	onlyEdged(t, "the reference has no H.323")
	r := lab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	e := r.Edge(t, EdgeConfig{Token: "a token of the lab", More: fmt.Sprintf("h323: {listen: %s, ras: %s, aliases: {bob: %q}}\ncdr: {file: calls.jsonl}\n", h323Listen, h323RAS, out.IP)})
	bob := out.H323Phone(t, h323Spec{Name: "bob", At: netip.AddrPortFrom(out.IP, 1720)})
	alice := in.H323Phone(t, h323Spec{
		Name: "alice", At: netip.AddrPortFrom(in.IP, 1720), Mode: h323phone.Mode{}, Called: "bob", Gatekeeper: netip.AddrPortFrom(r.GW.IPOn(inside, 4), 1719),
	})
	h323Heard(t, alice, bob, false)
	var doc struct {
		Calls []struct {
			ID string `json:"call_id"`
		} `json:"h323_calls"`
	}
	if code, b := e.get("/api/v1/h323_calls"); code != http.StatusOK || json.Unmarshal(b, &doc) != nil || len(doc.Calls) != 1 {
		t.Fatalf("calls: %d %s", code, b)
	}
	id, file := doc.Calls[0].ID, filepath.Join(r.Dir, "call.pcapng")
	e.edgedRun(t, "capture", id, "--media", "--for", "1s", "-o", file)
	media := 0
	for _, p := range readPcapng(t, file) {
		if !p.TCP && len(p.Payload) >= 12 && p.Payload[0]>>6 == 2 {
			media++
		}
	}
	if media < 40 {
		t.Errorf("%d packets of media in the file", media)
	}
	fmt.Fprintln(bob.stdin, "hangup")
	eventually(t, h323Time, "the call ends at alice", func() bool { return logged(alice, "ended") })
	eventually(t, 10*time.Second, "no call is left", func() bool { return e.Count("h323_calls") == 0 })
	var record struct {
		Protocol, ID, Callee, Reason string
		Seconds                      float64
	}
	line := read(filepath.Join(r.Dir, "state", "calls.jsonl"))
	t.Logf("%s", line)
	if err := json.Unmarshal(line, &record); err != nil || record.Protocol != "h323" || record.ID != id || record.Reason != "undefinedReason" ||
		record.Seconds < 1 || record.Callee != out.IP.String()+":1720" {
		t.Errorf("the record %s: %v", line, err)
	}
	ladder := e.edgedRun(t, "trace", id, "--diff")
	t.Log(ladder)
	for _, want := range []string{
		"SETUP", "CONNECT", "RELEASE COMPLETE", "terminalCapabilitySet", "openLogicalChannelAck", "- ", "+ ", in.IP.String() + ":", out.IP.String() + ":1720",
	} {
		if !strings.Contains(ladder, want) {
			t.Errorf("no %q in the ladder", want)
		}
	}
	if list := e.edgedRun(t, "trace"); !strings.Contains(list, "ras "+in.IP.String()) || !strings.Contains(list, id) {
		t.Errorf("no call, or no RAS of alice, in the list:\n%s", list)
	}
	wantTcpdumpReads(t, file)
	e.edgedRun(t, "capture", id, "-o", file)
	wantTcpdumpReads(t, file)
	need(t, "tshark")
	seen, err := exec.Command("tshark", "-r", file, "-T", "fields", "-e", "frame.interface_name", "-e", "_ws.col.Protocol", "-e", "_ws.col.Info").Output()
	must(t, "tshark", err)
	t.Logf("%s", seen)
	for _, want := range []string{"inside\tH.225.0\tCS: setup", "outside\tH.225.0\tCS: setup", "outside\tH.225.0\tCS: connect", "H.245", "openLogicalChannelAck"} {
		if !strings.Contains(string(seen), want) {
			t.Errorf("no %q in what tshark dissects", want)
		}
	}
}
