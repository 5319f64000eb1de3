package tftp

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"edged.dev/edged/pkg/pinhole"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden plays the messages of testdata/*.txtar. A section is a step:
//
//	-- SENDER RECEIVER FROM TO [signed] [header] [status=N] [call=ID] --   a body (CRLF is written as LF)
//	-- wait 2m --   -- connect --   -- ended ID --
//
// followed by one that says what became of it: pass, refuse or the new body, then what is open.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { runGolden(t, file) })
	}
}

func runGolden(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, strings.Fields(string(a.Comment))...)
	out := &txtar.Archive{Comment: a.Comment}
	for _, step := range a.Files {
		if strings.HasPrefix(step.Name, "=") {
			continue
		}
		out.Files = append(out.Files, step, w.step(step))
	}
	got, want := txtar.Format(out), txtar.Format(a)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (run with -update and read the change):\n%s", file, diff)
	}
}

// step plays one step and says what became of it.
func (w *world) step(s txtar.File) txtar.File {
	words := strings.Fields(s.Name)
	verdict, body := "", []byte(nil)
	switch words[0] {
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.now = w.now.Add(d)
		w.e.Tick(w.now)
	case "connect":
		w.connect()
	case "ended":
		w.e.Ended(words[1])
	default:
		v := w.edit(words, bytes.ReplaceAll(s.Data, []byte("\n"), []byte("\r\n")))
		verdict = " pass"
		switch {
		case v.Refuse != 0:
			verdict = fmt.Sprintf(" refuse %d %s", v.Refuse, v.Warning)
			if v.EchoBody {
				verdict += " echo"
			}
		case v.Body != nil:
			verdict, body = " edited", bytes.ReplaceAll(v.Body, []byte("\r\n"), []byte("\n"))
		}
	}
	return txtar.File{Name: "=" + verdict + w.open(), Data: body}
}

// edit shows a content to the editor.
func (w *world) edit(words []string, body []byte) Verdict {
	c := Content{
		Type: []byte("text/x-msmsgsinvite; charset=UTF-8"), Body: body, CallID: "call-1", From: uri(words[2]), To: uri(words[3]),
		Sender: w.party(words[0]), Receiver: w.party(words[1]),
	}
	for _, flag := range words[4:] {
		name, value, _ := strings.Cut(flag, "=")
		switch name {
		case "signed":
			c.Signed = true
		case "header":
			c.Header = true
		case "call":
			c.CallID = value
		case "status":
			if _, err := fmt.Sscan(value, &c.Status); err != nil {
				w.t.Fatal(err)
			}
		default:
			w.t.Fatalf("what is %q?", flag)
		}
	}
	return w.e.Edit(w.now, c)
}

func uri(user string) string { return "sip:" + user + "@example.org" }

// party returns a host by name.
func (w *world) party(name string) Party {
	p, ok := map[string]Party{
		"alice":  {Network: "inside", Addr: netip.MustParseAddr("192.0.2.7")},
		"carol":  {Network: "inside", Addr: netip.MustParseAddr("192.0.2.8")},
		"erin":   {Network: "inside", Addr: netip.MustParseAddr("2001:db8:1::7")},
		"bob":    {Network: "outside", Addr: netip.MustParseAddr("198.51.100.77")},
		"dave":   {Network: "outside", Addr: netip.MustParseAddr("2001:db8:2::7")},
		"server": {Network: "outside", Addr: netip.MustParseAddr("198.51.100.20"), Trusted: true},
	}[name]
	if !ok {
		w.t.Fatalf("who is %q?", name)
	}
	local, _, err := networks().Local(p.Network, pinhole.FamilyOf(p.Addr))
	if err != nil {
		w.t.Fatal(err)
	}
	p.Local = local
	return p
}

// open describes the open pinholes.
func (w *world) open() string {
	var all []string
	for _, l := range w.opener.Leases() {
		if l.Closed() {
			continue
		}
		r, near, far := l.Request, l.Remote(pinhole.Near), l.Remote(pinhole.Far)
		who := "anybody"
		if far.Source.IsValid() {
			who = far.Source.String()
		}
		receiver := "the one that dials"
		if w.e.receives(l) {
			receiver = "the listener"
		}
		all = append(all, fmt.Sprintf("%s at %s:%s leads %s to %s:%s (receiver: %s)",
			r.Owner, r.Networks[pinhole.Far], l.Local(pinhole.Far).Addr, who, r.Networks[pinhole.Near], near.Addr, receiver))
	}
	slices.Sort(all)
	if len(all) == 0 {
		return ", nothing open"
	}
	return ", open: " + strings.Join(all, "; ")
}

// receives tells whether the client to which a pinhole leads is the file's receiver.
func (e *Editor) receives(l pinhole.Lease) bool {
	for _, t := range e.byKey {
		if t.lease == l {
			return t.said.receives
		}
	}
	return false
}
