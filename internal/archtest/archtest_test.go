package archtest

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

const doc = "// Package x is\n// here for\n// a test.\n"

func TestProject(t *testing.T) {
	faults, err := Check(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

// TestRules shows each rule a tree that breaks it, and one that does not.
func TestRules(t *testing.T) {
	imports := func(p string) string { return doc + "package x\n\nimport _ \"" + p + "\"\n" }
	for _, tc := range []struct {
		name, path, src string
		want            string // part of the fault; "" = no fault
	}{
		{"alg imports the seam", "pkg/sipalg/a.go", imports(Module + "/pkg/pinhole"), ""},
		{"alg imports its subfolder", "pkg/sipalg/a.go", imports(Module + "/pkg/sipalg/sdp"), ""},
		{"subfolder imports its sibling", "pkg/sipalg/proxy/a.go", imports(Module + "/pkg/sipalg/flow"), ""},
		{"alg imports the relay", "pkg/sipalg/a.go", imports(Module + "/pkg/media"), "pkg/sipalg must not import pkg/media"},
		{"test of an alg imports the relay", "pkg/sipalg/a_test.go", imports(Module + "/pkg/media"), "must not import pkg/media"},
		{"alg imports another", "pkg/h323/a.go", imports(Module + "/pkg/sipalg"), "pkg/h323 must not import pkg/sipalg"},
		{"name begins like another's", "pkg/sipalg/a.go", imports(Module + "/pkg/sipalgx"), "must not import pkg/sipalgx"},
		{"codec of h323", "pkg/h323/q931/a.go", imports(Module + "/internal/tpkt"), ""},
		{"codec of h323 in sip", "pkg/sipalg/a.go", imports(Module + "/internal/tpkt"), "must not import internal/tpkt"},
		{"relay imports an alg", "pkg/media/a.go", imports(Module + "/pkg/sipalg"), "pkg/media must not import pkg/sipalg"},
		{"path imports the relay", "pkg/media/userpath/a.go", imports(Module + "/pkg/media"), ""},
		{"seam imports a module", "pkg/pinhole/a.go", imports("go.uber.org/zap"), "standard library only"},
		{"seam imports the standard library", "pkg/pinhole/a.go", imports("net/netip"), ""},
		{"tunnel imports an ALG", "pkg/tunnel/a.go", imports(Module + "/pkg/sipalg"), "pkg/tunnel must not import"},
		{"somebody imports cmd", "lab/a.go", imports(Module + "/cmd/edged"), "lab must not import cmd/edged"},
		{"somebody imports a config package", "cmd/edged/a.go", imports(Module + "/internal/config"), "sections belong to packages"},
		{"unknown part", "stuff/a.go", imports(Module + "/pkg/pinhole"), "a new part of the tree"},
		{"test uses a test package", "pkg/media/a_test.go", imports(Module + "/internal/golden"), ""},
		{"product uses a test package", "pkg/media/a.go", imports(Module + "/internal/golden"), "must not import internal/golden"},
		{"package util", "pkg/sipalg/util/a.go", doc + "package util\n", "package util"},
		{"init", "pkg/media/a.go", doc + "package x\n\nfunc init() {}\n", "init function"},
		{"method init", "pkg/media/a.go", doc + "package x\n\ntype t int\n\nfunc (t) init() {}\n", ""},
		{"no comment", "pkg/media/a.go", "package x\n", "has 0 lines"},
		{"one line", "pkg/media/a.go", "// Package x is short.\npackage x\n", "has 1 lines"},
		{"long comment", "pkg/media/a.go", strings.Repeat("// x\n", 16) + "package x\n", "has 16 lines"},
		{"sleep", "pkg/media/a.go", doc + "package x\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", "time.Sleep"},
		{"sleep in a test", "pkg/media/a_test.go", doc + "package x\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", "time.Sleep"},
		{"sleep in a bubble", "pkg/media/a_test.go", doc + "package x\n\nimport (\n_ \"testing/synctest\"\n\"time\")\n\nfunc f() { time.Sleep(1) }\n", ""},
		{"sleep in the lab", "lab/a.go", doc + "package x\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", ""},
		{"module of its own", "tools/a.go", "package x\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree := fstest.MapFS{tc.path: {Data: []byte(tc.src)}, "tools/go.mod": {Data: []byte("module tools\n")}}
			faults, err := Check(tree)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(faults, "\n")
			if tc.want == "" && got != "" {
				t.Errorf("unexpected: %s", got)
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestDocs(t *testing.T) {
	faults, err := CheckDocs(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
}

func TestDocsRules(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"good", "[a](docs/a.md), `TestA`, `make test`, [web](https://example.org)", ""},
		{"dead link", "[b](docs/b.md)", "link to docs/b.md"},
		{"no such test", "`TestB`", "the test TestB"},
		{"no such target", "`make coffee`", "make coffee"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			faults, err := CheckDocs(fstest.MapFS{
				"README.md": {Data: []byte(tc.text)}, "docs/a.md": {}, "Makefile": {Data: []byte("test: all\n")},
				"a_test.go": {Data: []byte("package a\n\nfunc TestA(t *testing.T) {}\n")},
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(faults, "\n"); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
