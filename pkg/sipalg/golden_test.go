package sipalg

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// random matches what differs from run to run: branches, session and network tokens, alias tokens,
// tags and Call-IDs of the edge.
var random = regexp.MustCompile(`z9hG4bKe[0-9a-f]{24}|;e=[0-9a-f]{16}|;n=[0-9a-f]{16}|~[a-z2-7]{13}@|tag=[0-9a-f]{16}|Call-ID: [0-9a-f]{16}@edge`)

// transcript writes what passed the edge, with names in the place of random texts: the same text has
// the same name.
func (w *world) transcript() string {
	names := map[string]string{}
	count := map[string]int{}
	var b strings.Builder
	for _, e := range w.log {
		dir := e.who + " > edge"
		if e.toWho {
			dir = "edge > " + e.who
		}
		raw := random.ReplaceAllStringFunc(e.raw, func(s string) string {
			if names[s] == "" {
				kind := map[byte]string{'z': "z9hG4bKe%c", ';': s[:min(3, len(s))] + "%c", '~': "~%c@", 't': "tag=%c", 'C': "Call-ID: %c@edge"}[s[0]]
				count[kind]++
				names[s] = strings.ReplaceAll(kind, "%c", fmt.Sprintf("{%d}", count[kind]))
			}
			return names[s]
		})
		fmt.Fprintf(&b, "-- %v %s %s --\n%s\n", e.at, e.proto, dir, strings.TrimRight(strings.ReplaceAll(raw, "\r\n", "\n"), "\n"))
	}
	return b.String()
}

// golden compares what passed the edge with testdata/NAME.txt, byte for byte.
func (w *world) golden(name string) {
	w.t.Helper()
	path := filepath.Join("testdata", name+".txt")
	got := w.transcript()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		w.t.Errorf("%s (run with -update and read the change):\n%s", path, diff)
	}
}
