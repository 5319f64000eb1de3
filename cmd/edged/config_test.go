package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// TestBadConfigs loads each file of testdata/bad. Its first lines say which faults it has:
//
//	# want LINE KEY: beginning of the text
//
// No other fault may be found.
func TestBadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	want := regexp.MustCompile(`(?m)^# want (\d+) (.*)$`)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = loadConfig(file)
			var bad *configError
			if !errors.As(err, &bad) {
				t.Fatalf("the file was accepted: %v", err)
			}
			got := strings.Split(bad.Error(), "\n")
			wants := want.FindAllStringSubmatch(string(src), -1)
			if len(got) != len(wants) {
				t.Errorf("%d faults, want %d", len(got), len(wants))
			}
			for _, w := range wants {
				begin := file + ":" + w[1] + ": " + strings.TrimPrefix(w[2], ": ")
				if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, begin) }) {
					t.Errorf("no fault %q in\n%s", begin, bad)
				}
			}
		})
	}
}

// TestReferenceConfig: configs/edged.yaml loads, names every key, and every value is the default
// but for networks, listeners and routes, which have none.
func TestReferenceConfig(t *testing.T) {
	const file = "../../configs/edged.yaml"
	cfg, err := loadConfig(file)
	if err != nil {
		t.Fatal(err)
	}
	got, def := *cfg, defaultConfig()
	got.dir, got.Networks, got.SIP.Listen, got.SIP.Domains = "", nil, nil, nil
	equalSections(t, "", reflect.ValueOf(got), reflect.ValueOf(def))

	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := parser.ParseBytes(src, 0)
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	namedKeys(tree.Docs[0].Body, "", named)
	for _, key := range structKeys(reflect.TypeFor[config](), "") {
		inComment := regexp.MustCompile(`#.*\b` + regexp.QuoteMeta(key[strings.LastIndexByte(key, '.')+1:]) + `:`)
		if !named[key] && (!strings.Contains(key, "*") || !inComment.Match(src)) {
			t.Errorf("%s: the key %s is missing", file, key)
		}
	}
}

// equalSections compares two configurations key by key; an empty list or map equals none.
func equalSections(t *testing.T, key string, got, def reflect.Value) {
	t.Helper()
	switch {
	case got.Kind() == reflect.Struct && !isText(got.Type()):
		for i := range got.NumField() {
			if k := yamlKey(got.Type().Field(i)); k != "" {
				equalSections(t, join(key, k), got.Field(i), def.Field(i))
			}
		}
	case (got.Kind() == reflect.Slice || got.Kind() == reflect.Map) && got.Len() == 0 && def.Len() == 0:
	case !reflect.DeepEqual(got.Interface(), def.Interface()):
		t.Errorf("%s is %v, the default is %v", key, got, def)
	}
}

// structKeys lists the keys of all values under t; what a list or map holds is "*".
func structKeys(t reflect.Type, key string) []string {
	switch {
	case isText(t):
		return []string{key}
	case t.Kind() == reflect.Pointer:
		return structKeys(t.Elem(), key)
	case t.Kind() == reflect.Struct:
		var keys []string
		for i := range t.NumField() {
			if k := yamlKey(t.Field(i)); k != "" {
				keys = append(keys, structKeys(t.Field(i).Type, join(key, k))...)
			}
		}
		return keys
	case (t.Kind() == reflect.Slice || t.Kind() == reflect.Map) && t.Elem().Kind() == reflect.Struct && !isText(t.Elem()):
		return append(structKeys(t.Elem(), key+".*"), key)
	}
	return []string{key}
}

// namedKeys notes the keys of a YAML tree, with "*" for list items and, where the struct has a map, for names.
func namedKeys(n ast.Node, key string, named map[string]bool) {
	named[key] = true
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return
	}
	for _, p := range m.Values {
		k := p.Key.GetToken().Value
		if key == "networks" || key == "sip.domains" {
			k = "*"
		}
		namedKeys(p.Value, join(key, k), named)
	}
}

// TestExamples loads the examples, with certificates where they name some.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../configs/examples/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	dir := t.TempDir()
	writeTestCertificate(t, filepath.Join(dir, "tls"), "edge", "edge.example.org", time.Now().Add(time.Hour))
	writeTestCertificate(t, filepath.Join(dir, "tls"), "carrier-ca", "ca.example.org", time.Now().Add(time.Hour))
	writeTestCertificate(t, filepath.Join(dir, "tls"), "partners-ca", "ca.example.org", time.Now().Add(time.Hour))
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseConfig(filepath.Join(dir, filepath.Base(file)), src); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTrustedDefault(t *testing.T) {
	for _, tc := range []struct {
		network string
		want    bool
	}{
		{"{addresses: [10.0.0.1]}", true},
		{"{addresses: [192.168.0.1, 'fd00::1']}", true},
		{"{addresses: [127.10.0.1]}", true},
		{"{addresses: [10.0.0.1, 203.0.113.1]}", false},
		{"{addresses: [10.0.0.1], advertise: 203.0.113.1}", false},
		{"{addresses: [10.0.0.1], advertise: 203.0.113.1, trusted: true}", true},
		{"{addresses: [10.0.0.1], trusted: false}", false},
	} {
		cfg, err := parseConfig("t.yaml", fmt.Appendf(nil, "networks: {a: %s}\nsip: {listen: ['udp://a:5060']}\n", tc.network))
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.networks()["a"].Trusted; got != tc.want {
			t.Errorf("%s: trusted %v, want %v", tc.network, got, tc.want)
		}
	}
}

func TestSecretFromEnvironment(t *testing.T) {
	t.Setenv("EDGED_TEST_TOKEN", "sesame")
	cfg, err := parseConfig("t.yaml", []byte("admin: {listen: '0.0.0.0:9060', token: '${EDGED_TEST_TOKEN}'}\n"+
		"networks: {a: {addresses: [10.0.0.1]}}\nsip: {listen: ['udp://a:5060']}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Admin.Token != "sesame" {
		t.Errorf("token %q", string(cfg.Admin.Token))
	}
	if text := fmt.Sprint(cfg.Admin.Token); strings.Contains(text, "sesame") {
		t.Errorf("the token is printed: %s", text)
	}
}

func FuzzDecodeYAML(f *testing.F) {
	for _, pattern := range []string{"testdata/bad/*.yaml", "../../configs/*.yaml", "../../configs/examples/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			if src, err := os.ReadFile(file); err == nil {
				f.Add(src)
			}
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 4096 {
			return
		}
		cfg := defaultConfig()
		lines, faults := decodeYAML(src, &cfg)
		for _, bad := range faults {
			if bad.Line < 1 || bad.Text == "" {
				t.Errorf("fault without a place or text: %+v", bad)
			}
		}
		if lines != nil {
			cfg.expandProfiles(lines)
		}
		cfg.validate()
		cfg.explain()
	})
}
