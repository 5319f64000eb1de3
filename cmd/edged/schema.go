package main

import (
	"encoding/json"
	"reflect"
	"time"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"
)

func newSchemaCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON schema of the configuration, for editors",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(configSchema())
		},
	}
}

// configSchema is made from the structs that the file is read into, so it cannot drift from them.
func configSchema() *jsonschema.Schema {
	r := &jsonschema.Reflector{
		FieldNameTag: "yaml", RequiredFromJSONSchemaTags: true,
		ExpandedStruct: true, Anonymous: true, DoNotReference: true, Mapper: textSchema,
	}
	s := r.Reflect(&config{})
	s.Title = "edged.yaml"
	return s
}

// textSchema maps what is written as text: types with UnmarshalText, and durations.
func textSchema(t reflect.Type) *jsonschema.Schema {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{
			{Type: "string", Pattern: `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}, {Const: 0},
		}}
	case isText(t):
		return &jsonschema.Schema{Type: "string"}
	}
	return nil
}
