// Command gen turns the *.schema files of the current folder into tables.go.
//
// The notation, one line a type or component, nested by tabs:
//
//	TransportAddress choice ext          a type; "ext": it has an extension marker
//		ipAddress seq                    an alternative with a type of its own
//			ip octets 4
//			port int 0..65535
//		+nsap? octets 1..20              "+": an addition, "?": optional
//	!Name ...                            has a constant in tables.go
//
// Types: null, bool, int [LO..HI] [ext], enum [ext] a b + c, octets [SIZE] [of TYPE],
// bits, ia5, numeric, printable, bmp [SIZE] ["ALPHABET" or latin], general, oid, open,
// seq, choice, list [SIZE] TYPE, or a name, of another file as file.Name.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run() error {
	g, err := load()
	if err != nil {
		return err
	}
	src, err := g.source()
	if err != nil {
		return err
	}
	return os.WriteFile("tables.go", src, 0o600)
}

// load reads the schemas of the current folder.
func load() (*generator, error) {
	var defs []*line
	for _, f := range []string{"h235.schema", "h245.schema", "h225.schema", "h460.schema", "t124.schema", "t125.schema"} {
		d, err := parse(f)
		if err != nil {
			return nil, err
		}
		defs = append(defs, d...)
	}
	g := newGenerator()
	return g, g.all(defs)
}

// line is one line of a schema with the lines nested in it.
type line struct {
	module   string
	at       string // FILE:LINE
	words    []string
	children []*line
}

func parse(path string) ([]*line, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	module := strings.TrimSuffix(filepath.Base(path), ".schema")
	root := &line{}
	stack := []*line{root}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; sc.Scan(); n++ {
		text := strings.TrimLeft(sc.Text(), "\t")
		depth := len(sc.Text()) - len(text)
		if text == "" || strings.HasPrefix(text, "//") {
			continue
		}
		l := &line{module: module, at: fmt.Sprintf("%s:%d", path, n), words: strings.Fields(text)}
		if depth >= len(stack) {
			return nil, fmt.Errorf("%s: nested too deeply", l.at)
		}
		parent := stack[depth]
		parent.children = append(parent.children, l)
		stack = append(stack[:depth+1], l)
	}
	return root.children, sc.Err()
}
