package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// compileSchema runs "edged schema" and compiles what it prints.
func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	var out, stderr bytes.Buffer
	if code := execute([]string{"schema"}, &out, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	doc, err := jsonschema.UnmarshalJSON(&out)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("edged.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("edged.json")
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// yamlDocument reads YAML as a JSON schema validator sees it.
func yamlDocument(t *testing.T, src []byte) any {
	t.Helper()
	text, err := yaml.YAMLToJSON(src)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestConfigsMatchTheSchema(t *testing.T) {
	schema := compileSchema(t)
	examples, err := filepath.Glob("../../configs/examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(examples, "../../configs/edged.yaml") {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(yamlDocument(t, src)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestWrongConfigsDoNotMatchTheSchema(t *testing.T) {
	schema := compileSchema(t)
	for _, src := range []string{
		"netwoks: {}", "log: {level: loud}", "log: {level: info, colour: blue}", "networks: {inside: {addresses: 10.0.0.1}}",
		"networks: {inside: {}}", "pinholes: {idle: soon}", "media: {latch: 'on'}", "media: {dscp: ef}", "sip: {listen: 5060}",
		"sip: {ice: drop}", "sip: {domains: {example.org: 5}}", "limits: {per_source: {connections: -1}}",
		"tls: {certificates: [{cert: a.pem}]}", "admin: {listen: 9060}",
	} {
		if schema.Validate(yamlDocument(t, []byte(src))) == nil {
			t.Errorf("accepted: %s", src)
		}
	}
}

func TestEveryKeyIsDescribed(t *testing.T) {
	text, err := json.Marshal(configSchema())
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	var walk func(key string, s map[string]any)
	walk = func(key string, s map[string]any) {
		if props, ok := s["properties"].(map[string]any); ok {
			for name, p := range props {
				prop := p.(map[string]any)
				if d, _ := prop["description"].(string); len(d) < 10 {
					t.Errorf("%s has no description", strings.TrimPrefix(key+"."+name, "."))
				}
				walk(key+"."+name, prop)
			}
		}
		for _, in := range []string{"items", "additionalProperties"} {
			if sub, ok := s[in].(map[string]any); ok {
				walk(key+".*", sub)
			}
		}
	}
	walk("", root)
}

// TestSchemaFile keeps configs/edged.schema.json, which editors read, as "edged schema" prints it.
func TestSchemaFile(t *testing.T) {
	var out, stderr bytes.Buffer
	if code := execute([]string{"schema"}, &out, &stderr); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	file, err := os.ReadFile("../../configs/edged.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), file) {
		t.Error("configs/edged.schema.json is out of date: bin/edged schema >configs/edged.schema.json")
	}
}
