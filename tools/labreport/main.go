// Command labreport turns the output of `go test -json` into one line per case
// and a last line that counts them. It prints the whole output of a case that failed.
//
// It is no test framework: it reads standard input and decides the exit code.
// Nothing passed, anything failed, or (with -noskip) anything skipped is exit code 1.
//
//	go test -tags lab -json ./lab/... | labreport [-noskip]
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// testEvent is one line of `go test -json` (cmd/test2json).
type testEvent struct {
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}

// report gathers what is known of the cases so far.
type report struct {
	w                       io.Writer
	output                  map[string][]string // by package and test
	parents                 map[string]bool     // tests that have subtests: not counted
	passed, failed, skipped int
}

func main() {
	noskip := flag.Bool("noskip", os.Getenv("CI") == "true", "a skipped case is a failure (default: in CI)")
	flag.Parse()
	r := &report{w: os.Stdout, output: map[string][]string{}, parents: map[string]bool{}}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "labreport:", err)
		os.Exit(1)
	}
	if !r.finish(*noskip) {
		os.Exit(1)
	}
}

// read handles events until r ends. Lines that are no events are passed through.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e testEvent
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(r.w, lines.Text())
			continue
		}
		r.event(e)
	}
	return lines.Err()
}

func (r *report) event(e testEvent) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "run":
		if i := strings.LastIndexByte(e.Test, '/'); i > 0 {
			r.parents[e.Package+" "+e.Test[:i]] = true
		}
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test != "" {
			r.result(e, key)
			delete(r.output, key)
		} else if e.Action == "fail" && r.failed == 0 {
			r.failed++ // the package did not build, or died outside of a test
			r.dump("FAIL", e, key)
		}
	}
}

func (r *report) result(e testEvent, key string) {
	parent := r.parents[key]
	switch {
	case e.Action == "fail":
		if !parent {
			r.failed++
		}
		r.dump("FAIL", e, key)
	case parent:
	case e.Action == "skip":
		r.skipped++
		fmt.Fprintf(r.w, "skip  %-60s %s\n", e.Test, r.reason(key))
	default:
		r.passed++
		fmt.Fprintf(r.w, "pass  %-60s %6.1f s\n", e.Test, e.Elapsed)
	}
}

// dump prints a failed case and everything that it said.
func (r *report) dump(word string, e testEvent, key string) {
	name := e.Test
	if name == "" {
		name = e.Package
	}
	fmt.Fprintf(r.w, "%s  %-60s %6.1f s\n", word, name, e.Elapsed)
	for _, line := range append(r.output[" "], r.output[key]...) {
		fmt.Fprint(r.w, "      ", line)
	}
}

// reason returns what a case said when it skipped.
func (r *report) reason(key string) string {
	for _, line := range r.output[key] {
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			_, text, _ = strings.Cut(text, ": ")
			return strings.TrimSpace(text)
		}
	}
	return ""
}

// finish prints the counts, last, and tells whether all is well.
func (r *report) finish(noskip bool) bool {
	if noskip && r.skipped > 0 {
		fmt.Fprintln(r.w, "FAIL  cases were skipped, and here none may be")
	}
	if r.passed+r.failed+r.skipped == 0 {
		fmt.Fprintln(r.w, "FAIL  no case was found")
	}
	fmt.Fprintf(r.w, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return r.failed == 0 && r.passed+r.skipped > 0 && (!noskip || r.skipped == 0)
}
