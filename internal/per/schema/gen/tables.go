package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/format"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// row is a per.Type in the making.
type row struct {
	name, kind       string
	ext              bool
	lo, hi           *int64
	charBits, opt    int
	first, root, add int
	elem             int
	alphabet         string
}

type comp struct {
	name     string
	typ      int
	optional bool
}

type generator struct {
	ids    map[string]int // "module.Name"
	consts []string
	types  []row
	comps  []comp
	names  []string
}

// newGenerator begins with the row of the open type.
func newGenerator() *generator {
	return &generator{ids: map[string]int{}, types: []row{{kind: "Open"}}}
}

// all numbers the named types first, so that they may name each other. A name
// for another name shares its row.
func (g *generator) all(defs []*line) error {
	var rows, aliases []*line
	for _, d := range defs {
		full, exported := d.name()
		if _, dup := g.ids[full]; dup {
			return fmt.Errorf("%s: %s is there twice", d.at, full)
		}
		if exported {
			g.consts = append(g.consts, full)
		}
		if len(d.words) == 2 && unicode.IsUpper(rune(d.words[1][strings.LastIndex(d.words[1], ".")+1])) {
			aliases = append(aliases, d)
			continue
		}
		rows = append(rows, d)
		g.ids[full] = len(g.types)
		g.types = append(g.types, row{name: full})
	}
	for pass := 0; pass < 4; pass++ {
		for _, d := range aliases {
			full, _ := d.name()
			if id, ok := g.named(d.module, d.words[1]); ok {
				g.ids[full] = id
			}
		}
	}
	for _, d := range rows {
		full, _ := d.name()
		r, err := g.row(d, d.words[1:])
		if err != nil {
			return fmt.Errorf("%s: %w", d.at, err)
		}
		r.name = full
		g.types[g.ids[full]] = r
	}
	return nil
}

// name returns the full name of a definition, and whether it has a constant.
func (l *line) name() (string, bool) {
	name, exported := strings.CutPrefix(l.words[0], "!")
	return l.module + "." + name, exported
}

func (g *generator) named(module, name string) (int, bool) {
	if !strings.Contains(name, ".") {
		name = module + "." + name
	}
	id, ok := g.ids[name]
	return id, ok
}

// typ returns the number of the type that words say, a new row unless they name one.
func (g *generator) typ(l *line, words []string) (int, error) {
	if len(words) == 1 {
		if id, ok := g.named(l.module, words[0]); ok {
			return id, nil
		}
	}
	id := len(g.types)
	g.types = append(g.types, row{})
	r, err := g.row(l, words)
	g.types[id] = r
	if err == nil && len(r.alphabet) == 0 && len(l.children) == 0 {
		// Two types without names that are alike are one.
		if k := slices.Index(g.types[:id], r); k >= 0 && r.lo == nil && r.kind != "Enum" && id == len(g.types)-1 {
			g.types = g.types[:id]
			return k, nil
		}
	}
	return id, err
}

func (g *generator) row(l *line, words []string) (row, error) {
	r := row{}
	if len(words) == 0 {
		return r, errors.New("no type")
	}
	kind, rest := words[0], words[1:]
	switch kind {
	case "null", "bool", "open", "general":
		r.kind = strings.ToUpper(kind[:1]) + kind[1:]
	case "oid":
		r.kind = "OID"
	case "int":
		r.kind = "Int"
		rest = r.bounds(rest)
		if len(rest) == 1 && rest[0] == "ext" {
			r.ext, rest = true, nil
		}
	case "enum":
		return g.enum(rest), nil
	case "octets", "bits":
		r.kind = strings.ToUpper(kind[:1]) + kind[1:]
		rest = r.bounds(rest)
		if len(rest) == 2 && rest[0] == "of" {
			id, err := g.typ(l, rest[1:])
			r.elem, rest = id, nil
			if err != nil {
				return r, err
			}
		}
	case "ia5", "numeric", "printable", "bmp":
		return chars(kind, rest)
	case "seq", "choice":
		r.kind = strings.ToUpper(kind[:1]) + kind[1:]
		return r, g.compound(&r, l, rest)
	case "list":
		r.kind = "List"
		id, err := g.typ(l, r.bounds(rest))
		r.elem, rest = id, nil
		if err != nil {
			return r, err
		}
	default:
		return r, fmt.Errorf("no type %s", kind)
	}
	if len(rest) > 0 {
		return r, fmt.Errorf("what is %q", rest)
	}
	return r, nil
}

// bounds takes a range or size from the front of words: N, LO..HI or LO.. .
func (r *row) bounds(words []string) []string {
	if len(words) == 0 {
		return words
	}
	from, to, ok := strings.Cut(words[0], "..")
	lo, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return words
	}
	r.lo = &lo
	if !ok {
		r.hi = &lo
	} else if hi, err := strconv.ParseInt(to, 10, 64); err == nil {
		r.hi = &hi
	}
	return words[1:]
}

func (g *generator) enum(words []string) row {
	r := row{kind: "Enum", first: len(g.names)}
	if words[0] == "ext" {
		r.ext, words = true, words[1:]
	}
	adding := false
	for _, w := range words {
		switch {
		case w == "+":
			adding = true
			continue
		case adding:
			r.add++
		default:
			r.root++
		}
		g.names = append(g.names, w)
	}
	return r
}

// chars works out how many bits a character takes in the aligned variant
// (X.691 §27.5.2-4): a power of two, by index if the alphabet's largest
// character would not fit.
func chars(kind string, words []string) (row, error) {
	r := row{kind: "Chars", charBits: map[string]int{"ia5": 8, "numeric": 4, "printable": 8, "bmp": 16}[kind]}
	words = r.bounds(words)
	alphabet := ""
	if kind == "numeric" {
		alphabet = " 0123456789"
	}
	if len(words) == 1 {
		if words[0] == "latin" {
			r.charBits, words = 8, nil
		} else {
			alphabet, words = strings.Trim(words[0], `"`), nil
		}
	}
	if len(words) > 0 {
		return r, fmt.Errorf("what is %q", words)
	}
	if alphabet == "" {
		return r, nil
	}
	sorted := []byte(alphabet)
	slices.Sort(sorted)
	r.charBits = 1
	for 1<<r.charBits < len(sorted) {
		r.charBits *= 2
	}
	if int(sorted[len(sorted)-1]) >= 1<<r.charBits {
		r.alphabet = string(sorted)
	}
	return r, nil
}

// compound reads the lines nested in a seq or choice.
func (g *generator) compound(r *row, l *line, words []string) error {
	if len(words) == 1 && words[0] == "ext" {
		r.ext = true
	} else if len(words) > 0 {
		return fmt.Errorf("what is %q", words)
	}
	own := make([]comp, len(l.children))
	for i, c := range l.children {
		name, addition := strings.CutPrefix(c.words[0], "+")
		name, optional := strings.CutSuffix(name, "?")
		id, err := g.typ(c, c.words[1:])
		if err != nil {
			return fmt.Errorf("%s: %w", c.at, err)
		}
		own[i] = comp{name, id, optional}
		switch {
		case addition && !r.ext || !addition && r.add > 0:
			return fmt.Errorf("%s: an addition without a marker, or not at the end", c.at)
		case addition:
			r.add++
		default:
			r.root++
			if optional {
				r.opt++
			}
		}
	}
	r.first = len(g.comps)
	g.comps = append(g.comps, own...)
	if r.opt > 55 {
		return fmt.Errorf("%d optional components", r.opt)
	}
	return nil
}

// source writes tables.go.
func (g *generator) source() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("// Code generated by gen; DO NOT EDIT.\n\npackage schema\n\nimport \"edged.dev/edged/internal/per\"\n\n")
	b.WriteString("// The types that code names.\nconst (\n")
	for _, full := range g.consts {
		fmt.Fprintf(&b, "%s per.TypeID = %d // %s\n", constName(full), g.ids[full], full)
	}
	b.WriteString(")\n\nvar tables = per.Schema{\nTypes: []per.Type{\n")
	for i := range g.types {
		b.WriteString(g.types[i].literal())
	}
	b.WriteString("},\nComps: []per.Comp{")
	for i, c := range g.comps {
		optional := ""
		if c.optional {
			optional = "|per.Optional"
		}
		fmt.Fprintf(&b, "%s%d%s,", wrap(i, 10), c.typ, optional)
	}
	b.WriteString("\n},\nCompNames: []string{")
	for i, c := range g.comps {
		fmt.Fprintf(&b, "%s%q,", wrap(i, 6), c.name)
	}
	b.WriteString("\n},\nNames: []string{")
	for i, n := range g.names {
		fmt.Fprintf(&b, "%s%q,", wrap(i, 6), n)
	}
	b.WriteString("\n},\n}\n")
	return format.Source(b.Bytes())
}

// wrap begins a line before every n-th item.
func wrap(i, n int) string {
	if i%n == 0 {
		return "\n"
	}
	return ""
}

func (r *row) literal() string {
	var b strings.Builder
	if r.name != "" {
		fmt.Fprintf(&b, "Name: %q, ", r.name)
	}
	fmt.Fprintf(&b, "Kind: per.%s", r.kind)
	if r.ext {
		b.WriteString(", Ext: true")
	}
	if r.lo != nil {
		fmt.Fprintf(&b, ", HasLo: true, Lo: %d", *r.lo)
	}
	if r.hi != nil {
		fmt.Fprintf(&b, ", HasHi: true, Hi: %d", *r.hi)
	}
	for _, f := range []struct {
		key string
		v   int
	}{{"CharBits", r.charBits}, {"Opt", r.opt}, {"First", r.first}, {"Root", r.root}, {"Adds", r.add}, {"Elem", r.elem}} {
		if f.v != 0 {
			fmt.Fprintf(&b, ", %s: %d", f.key, f.v)
		}
	}
	if r.alphabet != "" {
		fmt.Fprintf(&b, ", Alphabet: %q", r.alphabet)
	}
	return "{" + b.String() + "},\n"
}

// constName is h225.Setup-UUIE → H225SetupUUIE.
func constName(full string) string {
	out := strings.NewReplacer(".", "", "-", "").Replace(full)
	return strings.ToUpper(out[:1]) + out[1:]
}
