// Package archtest keeps the shape of the project: who may import whom, which
// package names and functions do not exist here, and that every package says
// what it is. It parses the files itself; a test that ran `go list` would be
// served stale results from the test cache.
//
// It is not a linter: style is golangci-lint's business (.golangci.yml).
//
//	*.go files ─► parse ─► rules (one function each) ─► faults ─► the test fails
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Module is the path of the module that is checked.
const Module = "edged.dev/edged"

// file is one parsed Go file.
type file struct {
	path string // from the root, with slashes
	ast  *ast.File
	pos  *token.FileSet
	test bool
}

// dir returns the file's folder, "." for the root.
func (f file) dir() string { return path.Dir(f.path) }

// imports returns the paths that the file imports.
func (f file) imports() []string {
	var out []string
	for _, im := range f.ast.Imports {
		if p, err := strconv.Unquote(im.Path.Value); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func (f file) line(n ast.Node) int { return f.pos.Position(n.Pos()).Line }

// Check parses every Go file under fsys, except nested modules and hidden
// folders, and returns what breaks a rule as "FILE:LINE: what".
func Check(fsys fs.FS) ([]string, error) {
	files, err := parseAll(fsys)
	if err != nil {
		return nil, err
	}
	var faults []string
	for _, f := range files {
		faults = append(faults, checkImports(f)...)
		faults = append(faults, checkNames(f)...)
		faults = append(faults, checkDecls(f)...)
		faults = append(faults, checkSleep(f)...)
	}
	return append(faults, checkPackageComments(files)...), nil
}

func parseAll(fsys fs.FS) ([]file, error) {
	var files []file
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(fsys, p)
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, p, src, parser.ParseComments)
		if err != nil {
			return fmt.Errorf("parse: %w", err)
		}
		files = append(files, file{p, parsed, set, strings.HasSuffix(p, "_test.go")})
		return nil
	})
	return files, err
}

func skipDir(fsys fs.FS, p string) error {
	name := path.Base(p)
	if p != "." && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata") {
		return fs.SkipDir
	}
	if _, err := fs.Stat(fsys, path.Join(p, "go.mod")); err == nil && p != "." {
		return fs.SkipDir // a module of its own
	}
	return nil
}

// mayImport says which of our packages a part of the tree may import besides
// itself and its own subfolders. The longest matching folder decides.
func mayImport() map[string][]string {
	alg := []string{"pkg/pinhole", "internal/gate"}
	codec := []string{"pkg/pinhole", "internal/gate", "internal/tpkt", "internal/per"}
	return map[string][]string{
		"cmd":                 {"pkg", "internal"},
		"bench":               {"pkg", "internal", "lab"},
		"lab":                 {"pkg", "internal"},
		"internal":            {"pkg/pinhole"},
		"pkg/pinhole":         {},
		"pkg/media":           {"pkg/pinhole", "pkg/splice"},
		"pkg/sipalg":          {"pkg/pinhole", "internal/gate", "internal/tproxy"},
		"pkg/h323":            codec,
		"pkg/t120":            codec,
		"pkg/ils":             alg,
		"pkg/tftp":            alg,
		"pkg/audiocall":       alg,
		"pkg/turn":            alg,
		"pkg/tunnel":          {"pkg/pinhole", "internal/gate", "pkg/splice"},
		"pkg/splice":          {},
		"pkg/sharedport":      alg,
		"pkg/refuse":          alg,
		"pkg/firewall":        {"pkg/pinhole"},
		"pkg/firewall/survey": {"pkg/firewall"},
		"pkg/console":         {},
		"pkg/trace":           {},
		"pkg/syslog":          {},
		"pkg/otel":            {},
		"internal/per":        {},
		// A phone speaks the protocol that it tests.
		"internal/h323phone": {"pkg/h323", "internal/tpkt", "internal/per"},
		// It is configured and fed like an ALG; pkg/splice, which joins the connections, is not.
		"pkg/splice/forward": {"pkg/splice", "pkg/pinhole", "pkg/sharedport", "internal/gate"},
		// Whom TURN's clients may reach is judged by the same list of special addresses.
		"pkg/forwardproxy": {"pkg/splice", "pkg/pinhole", "pkg/turn/peerpolicy", "internal/gate"},
		// It is configured like an ALG.
		"pkg/tunnel/link": {"pkg/pinhole"},
		// It judges the product, and has nothing of it.
		"internal/groovepeer": {},
		// It publishes relays of others.
		"pkg/tunnel/groove": {"pkg/splice", "pkg/pinhole", "internal/gate"},
	}
}

// inTestsToo are packages that tests of any part may import: they hold no product.
func inTestsToo() []string {
	return []string{"internal/golden", "internal/groovepeer", "internal/natsim", "internal/tpkt/tpkttest", "pkg/pinhole/pinholetest"}
}

func checkImports(f file) []string {
	var faults []string
	part, allowed := partOf(f.dir())
	for _, im := range f.imports() {
		if strings.Contains(im, "/config") && strings.HasPrefix(im, Module) {
			faults = append(faults, fmt.Sprintf("%s: imports %s; sections belong to packages, their sum to cmd/edged", f.path, im))
		}
		own, ours := strings.CutPrefix(im, Module+"/")
		switch {
		case ours && part == "":
			faults = append(faults, fmt.Sprintf("%s: a new part of the tree; say in internal/archtest what it may import", f.path))
		case ours && !within(own, part) && !anyWithin(own, allowed) && (!f.test || !anyWithin(own, inTestsToo())):
			faults = append(faults, fmt.Sprintf("%s: %s must not import %s", f.path, part, own))
		case !ours && f.dir() == "pkg/pinhole" && !f.test && strings.Contains(im, "."):
			faults = append(faults, fmt.Sprintf("%s: pkg/pinhole uses the standard library only, not %s", f.path, im))
		}
	}
	return faults
}

// partOf returns the longest folder of the table that holds dir, and what it may import.
func partOf(dir string) (string, []string) {
	best, allowed := "", []string(nil)
	for part, list := range mayImport() {
		if within(dir, part) && len(part) > len(best) {
			best, allowed = part, list
		}
	}
	return best, allowed
}

// within tells whether p is folder or below it.
func within(p, folder string) bool { return p == folder || strings.HasPrefix(p, folder+"/") }

func anyWithin(p string, folders []string) bool {
	return slices.ContainsFunc(folders, func(folder string) bool { return within(p, folder) })
}

// checkNames refuses package names that say nothing about what is inside.
func checkNames(f file) []string {
	empty := []string{"util", "utils", "common", "helper", "helpers", "types", "defs", "base", "core", "manager", "misc", "shared"}
	if name := strings.TrimSuffix(f.ast.Name.Name, "_test"); slices.Contains(empty, name) {
		return []string{fmt.Sprintf("%s: package %s: name it for what it provides", f.path, name)}
	}
	return nil
}

// checkDecls refuses init functions: what happens at start stands in main.
func checkDecls(f file) []string {
	var faults []string
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			faults = append(faults, fmt.Sprintf("%s:%d: init function", f.path, f.line(fn)))
		}
	}
	return faults
}

// sleepAllowed are the places where time.Sleep may stand outside of synctest, with the reason.
func sleepAllowed() map[string]string {
	return map[string]string{
		"lab":   "real peers in other processes are paced by the wall clock",
		"bench": "load is paced by the wall clock",
	}
}

// checkSleep refuses time.Sleep but in tests under testing/synctest, where it costs nothing and races nothing.
func checkSleep(f file) []string {
	if f.test && slices.Contains(f.imports(), "testing/synctest") || !slices.Contains(f.imports(), "time") ||
		anyWithin(f.dir(), slices.Collect(maps.Keys(sleepAllowed()))) {
		return nil
	}
	var faults []string
	ast.Inspect(f.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok || sel.Sel.Name != "Sleep" {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == "time" {
			faults = append(faults, fmt.Sprintf("%s:%d: time.Sleep; wait for a condition, or use synctest", f.path, f.line(sel)))
		}
		return true
	})
	return faults
}

// checkPackageComments demands one package comment of 3 to 15 lines for each package.
func checkPackageComments(files []file) []string {
	lines, packages := map[string]int{}, map[string]bool{}
	for _, f := range files {
		if f.test {
			continue
		}
		packages[f.dir()] = true
		if f.ast.Doc != nil {
			lines[f.dir()] += strings.Count(strings.TrimSpace(f.ast.Doc.Text()), "\n") + 1
		}
	}
	var faults []string
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		if n := lines[dir]; n < 3 || n > 15 {
			faults = append(faults, fmt.Sprintf("%s: the package comment has %d lines, not 3 to 15", dir, n))
		}
	}
	return faults
}
