package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCmd writes the manual pages; what packages the program calls it.
func newManCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the manual pages into a folder: one of section 8 for each command, edged.yaml(5)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			head := &doc.GenManHeader{Section: "8", Source: "edged " + version, Manual: "edged"}
			cmd.Root().DisableAutoGenTag = true // the same input gives the same page
			if err := doc.GenManTree(cmd.Root(), head, args[0]); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(args[0], "edged.yaml.5"), configManual(), 0o644) //nolint:gosec // everybody reads manuals
		},
	}
}

// configManual is edged.yaml(5), made from the schema: every key with its meaning and default.
func configManual() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%% \"EDGED.YAML\" \"5\" \"\" \"edged %s\" \"edged\"\n", version)
	b.WriteString("# NAME\n\nedged.yaml - configuration of edged(8)\n\n# DESCRIPTION\n\n" +
		"YAML. A section that is missing is a service that is off; a key that is missing has its default. " +
		"**edged check** judges a file; **systemctl reload edged** takes over what may change while calls live.\n\n# KEYS\n\n")
	manualKeys(&b, configSchema(), "")
	b.WriteString("# SEE ALSO\n\n**edged-check**(8), **edged-run**(8), **edged-schema**(8)\n")
	return md2man.Render(b.Bytes())
}

// manualKeys writes one entry for each key below a schema, by its whole name.
func manualKeys(b *bytes.Buffer, s *jsonschema.Schema, prefix string) {
	if s.Items != nil {
		manualKeys(b, s.Items, prefix+"[]")
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Properties != nil {
		manualKeys(b, s.AdditionalProperties, prefix+".NAME")
	}
	if s.Properties == nil {
		return
	}
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		name := strings.TrimPrefix(prefix+"."+p.Key, ".")
		if p.Value.Description != "" {
			fmt.Fprintf(b, "**%s**\n: %s\n\n", name, manualText(p.Value))
		}
		manualKeys(b, p.Value, name)
	}
}

// manualText is what a key means, its values and its default.
func manualText(s *jsonschema.Schema) string {
	parts := []string{escapeManual(s.Description)}
	if len(s.Enum) > 0 {
		var values []string
		for _, v := range s.Enum {
			values = append(values, fmt.Sprint(v))
		}
		parts = append(parts, "one of "+escapeManual(strings.Join(values, ", ")))
	}
	if s.Default != nil && !slices.Contains([]any{"", false}, s.Default) {
		parts = append(parts, "default "+escapeManual(fmt.Sprint(s.Default)))
	}
	return strings.Join(parts, "; ")
}

// escapeManual keeps Markdown's signs as they are.
func escapeManual(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `_`, `\_`, `<`, `\<`, `[`, `\[`, "\n", " ").Replace(s)
}
