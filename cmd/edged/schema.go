package main

import (
	"encoding/json"
	"reflect"
	"time"

	"github.com/invopop/jsonschema"
	"github.com/spf13/cobra"

	"edged.dev/edged/pkg/media"
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
		LookupComment: describe,
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

// describe supplies the descriptions of sections whose package knows nothing of schemas.
func describe(t reflect.Type, field string) string {
	if t == reflect.TypeFor[media.Config]() || t == reflect.TypeFor[media.PinholeConfig]() {
		return map[string]string{
			"UDP":          "UDP ports for media, at every address of the edge; RTP takes two on each side",
			"TCP":          "TCP ports for media, at every address of the edge",
			"PerOwner":     "pinholes that one host may have at once, 1-65536",
			"Idle":         "without any packet for so long a pinhole is given up, 1s-24h",
			"Quarantine":   "a released port rests so long, 0-10m",
			"Firewall":     "nftables: each port that is open is in a set of the table inet edged, with a timeout, and packets for it bear firewall.mark; needs firewall.manage; none: nobody is told",
			"AllowTargets": "per network the hosts that anybody there may name as a media address",
			"DSCP":         "DSCP of the packets sent, 0-63",
			"Datapath":     "what may carry media: tc (the kernel, where it can), xdp (drivers too, on request), user, or auto (tc or user, the best that the machine offers)",
			"Pin":          "folder on a bpffs where the kernel's part outlives a crash of edged; empty: nowhere",
			"Latch":        "learn the port, and behind a NAT the address, that a peer really sends from",
		}[field]
	}
	return ""
}
