package main

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// fault is one thing wrong with the configuration. Key is a path from the top
// of the file, e.g. "sip.listen[2]", "" for the file as a whole.
type fault struct {
	Line int
	Key  string
	Text string
}

// decoder fills a struct from a YAML tree. goccy's own decoder ends at the first
// fault and forgets where a value stood; this one notes every fault and every line.
type decoder struct {
	lines   map[string]int // key → line
	anchors map[string]ast.Node
	faults  []fault
}

// decodeYAML reads data into the struct that v points to; what the file does not name keeps its value.
// It returns the line of every key, and all faults; no lines if data is not YAML at all.
func decodeYAML(data []byte, v any) (map[string]int, []fault) {
	d := &decoder{lines: map[string]int{}, anchors: map[string]ast.Node{}}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, []fault{syntaxFault(err)}
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case body != nil:
			d.fault("", doc.Body, "a second document begins here; the file must hold one")
		default:
			body = doc.Body
		}
	}
	if body != nil {
		d.value(body, reflect.ValueOf(v).Elem(), "")
	}
	return d.lines, d.faults
}

func syntaxFault(err error) fault {
	f := fault{Line: 1, Text: err.Error()}
	var se *yaml.SyntaxError
	if errors.As(err, &se) {
		f.Text = "syntax: " + se.Message
		if se.Token != nil && se.Token.Position != nil {
			f.Line = se.Token.Position.Line
		}
	}
	return f
}

func (d *decoder) fault(key string, n ast.Node, format string, a ...any) {
	d.faults = append(d.faults, fault{cmp.Or(lineOf(n), d.lines[key], 1), key, fmt.Sprintf(format, a...)})
}

func lineOf(n ast.Node) int {
	if n != nil {
		if t := n.GetToken(); t != nil && t.Position != nil {
			return t.Position.Line
		}
	}
	return 0
}

// value decodes n into v. Anchors, aliases and tags are looked through.
func (d *decoder) value(n ast.Node, v reflect.Value, key string) {
	switch t := n.(type) {
	case *ast.AnchorNode:
		d.anchors[t.Name.String()] = t.Value
		d.value(t.Value, v, key)
		return
	case *ast.AliasNode:
		name := t.Value.String()
		target, ok := d.anchors[name]
		if !ok {
			d.fault(key, n, "alias *%s has no anchor before it (a lone * must be written \"*\")", name)
			return
		}
		d.value(target, v, key)
		return
	case *ast.TagNode:
		d.value(t.Value, v, key)
		return
	}
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), key)
	case isText(v.Type()):
		d.text(n, v, key)
	case v.Kind() == reflect.Struct:
		d.mapping(n, key, structType(v), func(k string, kn ast.Node) reflect.Value { return d.field(v, key, k, kn) })
	case v.Kind() == reflect.Map:
		d.table(n, v, key)
	case v.Kind() == reflect.Slice:
		d.list(n, v, key)
	default:
		d.scalar(n, v, key)
	}
}

func structType(v reflect.Value) string {
	return "section with the keys " + strings.Join(yamlKeys(v.Type()), ", ")
}

// mapping walks the pairs of a YAML mapping; into returns where a key's value goes
// (the zero Value: nowhere, it has noted why).
func (d *decoder) mapping(n ast.Node, key, want string, into func(k string, kn ast.Node) reflect.Value) {
	var pairs []*ast.MappingValueNode
	switch t := n.(type) {
	case *ast.NullNode:
		return // an empty section
	case *ast.MappingNode:
		pairs = t.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{t}
	default:
		d.fault(key, n, "is %s, but should be a %s", kindOf(n), want)
		return
	}
	for _, p := range pairs {
		k := p.Key.GetToken().Value
		if p.Key.IsMergeKey() {
			d.fault(key, p.Key, "merge keys (<<) are not supported")
			continue
		}
		path := join(key, k)
		if first, twice := d.lines[path]; twice {
			d.fault(path, p.Key, "is given twice (first in line %d)", first)
			continue
		}
		d.lines[path] = lineOf(p.Key)
		if v := into(k, p.Key); v.IsValid() {
			d.value(p.Value, v, path)
		}
	}
}

func join(key, k string) string {
	if key == "" {
		return k
	}
	return key + "." + k
}

// field returns the field of the struct v that is called k.
func (d *decoder) field(v reflect.Value, key, k string, kn ast.Node) reflect.Value {
	for i := range v.NumField() {
		if yamlKey(v.Type().Field(i)) == k && k != "" {
			return v.Field(i)
		}
	}
	text := "unknown key"
	if s := nearest(k, yamlKeys(v.Type())); s != "" {
		text += fmt.Sprintf("; did you mean %q?", s)
	} else {
		text += "; known here: " + strings.Join(yamlKeys(v.Type()), ", ")
	}
	d.fault(join(key, k), kn, "%s", text)
	return reflect.Value{}
}

// table decodes a mapping with free keys.
func (d *decoder) table(n ast.Node, v reflect.Value, key string) {
	v.Set(reflect.MakeMap(v.Type()))
	type entry struct {
		name string
		elem reflect.Value
	}
	var entries []entry
	d.mapping(n, key, "mapping", func(k string, _ ast.Node) reflect.Value {
		e := entry{k, reflect.New(v.Type().Elem()).Elem()}
		entries = append(entries, e)
		return e.elem
	})
	for _, e := range entries {
		v.SetMapIndex(reflect.ValueOf(e.name).Convert(v.Type().Key()), e.elem)
	}
}

// list decodes a sequence; it replaces the default.
func (d *decoder) list(n ast.Node, v reflect.Value, key string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		if _, null := n.(*ast.NullNode); !null {
			d.fault(key, n, "is %s, but should be a list: [a, b]", kindOf(n))
		}
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		path := fmt.Sprintf("%s[%d]", key, i)
		d.lines[path] = cmp.Or(lineOf(item), d.lines[key])
		d.value(item, v.Index(i), path)
	}
}

// text hands a scalar to the type's own UnmarshalText.
func (d *decoder) text(n ast.Node, v reflect.Value, key string) {
	s, ok := scalarText(n)
	if !ok {
		d.fault(key, n, "is %s, but should be %s", kindOf(n), wantOf(v.Type()))
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
		if foreign(v.Type()) {
			d.fault(key, n, "%q is not %s", s, wantOf(v.Type()))
			return
		}
		d.fault(key, n, "%v", err)
	}
}

// scalar decodes a bool, string, whole number, or duration.
func (d *decoder) scalar(n ast.Node, v reflect.Value, key string) {
	s, ok := scalarText(n)
	if !ok {
		d.fault(key, n, "is %s, but should be %s", kindOf(n), wantOf(v.Type()))
		return
	}
	bad := func() { d.fault(key, n, "%q is not %s", s, wantOf(v.Type())) }
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		dur, err := time.ParseDuration(s)
		if err != nil {
			bad()
			return
		}
		v.SetInt(int64(dur))
	case v.Kind() == reflect.String:
		v.SetString(s)
	case v.Kind() == reflect.Bool:
		b, isBool := n.(*ast.BoolNode)
		if !isBool {
			bad()
			return
		}
		v.SetBool(b.Value)
	case v.CanInt():
		i, err := strconv.ParseInt(s, 10, 64)
		if err != nil || v.OverflowInt(i) {
			bad()
			return
		}
		v.SetInt(i)
	case v.CanUint():
		i, err := strconv.ParseUint(s, 10, 64)
		if err != nil || v.OverflowUint(i) {
			bad()
			return
		}
		v.SetUint(i)
	case v.CanFloat():
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			bad()
			return
		}
		v.SetFloat(f)
	default:
		d.fault(key, n, "cannot be set from YAML (%s)", v.Type())
	}
}

// scalarText returns a scalar as written, without its quotes.
func scalarText(n ast.Node) (string, bool) {
	switch t := n.(type) {
	case *ast.LiteralNode:
		return t.Value.Value, true
	case *ast.NullNode, *ast.MappingNode, *ast.MappingValueNode, *ast.SequenceNode:
		return "", false
	case ast.ScalarNode:
		return t.GetToken().Value, true
	}
	return "", false
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.NullNode:
		return "empty"
	case *ast.SequenceNode:
		return "a list"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	}
	return fmt.Sprintf("the single value %q", strings.TrimSpace(n.String()))
}

func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// foreign tells whether t is not ours, so that its errors do not speak of configuration.
func foreign(t reflect.Type) bool { return !strings.Contains(t.PkgPath(), ".") }

// wantOf says in words what a value of type t looks like.
func wantOf(t reflect.Type) string {
	switch t.String() {
	case "time.Duration":
		return "a duration such as 500ms, 60s or 1h30m"
	case "netip.Addr":
		return "an IP address"
	case "netip.Prefix":
		return "a network such as 192.0.2.0/24"
	case "netip.AddrPort":
		return "an address and port such as 192.0.2.1:5060"
	}
	switch {
	case isText(t), t.Kind() == reflect.String:
		return "a text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Float64, t.Kind() == reflect.Float32:
		return "a number"
	}
	return "a whole number"
}

// yamlKey returns the key of a struct field, "" if it has none.
func yamlKey(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if name == "-" {
		return ""
	}
	return name
}

func yamlKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		if k := yamlKey(t.Field(i)); k != "" {
			keys = append(keys, k)
		}
	}
	return keys
}

// nearest returns the word that k most likely stands for, "" if none is near.
func nearest(k string, words []string) string {
	best, bestDist := "", 1+len(k)/3
	for _, w := range words {
		if dist := editDistance(strings.ToLower(k), w); dist <= bestDist {
			best, bestDist = w, dist-1
		}
	}
	return best
}

// editDistance counts the insertions, deletions and substitutions between a and b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], slices.Min([]int{diag + cost, row[j] + 1, row[j+1] + 1})
		}
	}
	return row[len(b)]
}
