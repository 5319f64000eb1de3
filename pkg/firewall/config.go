package firewall

import (
	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "firewall" of the configuration.
type Config struct {
	// Manage has the daemon apply the rules when it starts and remove them when it ends.
	Manage bool `yaml:"manage" json:"manage,omitempty" jsonschema:"default=false,description=apply the table inet edged and the policy routing when the daemon starts and remove both when it ends; needs CAP_NET_ADMIN"`
	// Mark is set on the packets that are for the edge.
	Mark uint32 `yaml:"mark" json:"mark,omitempty" jsonschema:"minimum=1,default=25956,description=mark of the packets that are handed over"`
	// RoutingTable has them delivered to this host.
	RoutingTable int `yaml:"routing_table" json:"routing_table,omitempty" jsonschema:"minimum=1,default=25956,description=number of the routing table that has packets with the mark delivered to this host"`
	// Helpers says what is done where the kernel itself rewrites what is handed over (conntrack helpers).
	Helpers string `yaml:"helpers" json:"helpers,omitempty" jsonschema:"enum=refuse,enum=accept,default=refuse,description=where a conntrack helper of the kernel gets hold of what transparent listeners take: refuse to start or accept that both rewrite"`
}

// What Helpers may say.
const (
	HelpersRefuse = "refuse"
	HelpersAccept = "accept"
)

// DefaultConfig returns the section as it is when nothing is written: "ed" in ASCII is a number that others hardly use.
func DefaultConfig() Config {
	return Config{Mark: 0x6564, RoutingTable: 0x6564, Helpers: HelpersRefuse}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate() error {
	var faults pinhole.Faults
	if c.Mark == 0 {
		faults.Add("mark", "0 is no mark")
	}
	if !validTable(c.RoutingTable) {
		faults.Add("routing_table", "%d is not in 1-2147483647 without the system's 253-255", c.RoutingTable)
	}
	if c.Helpers != HelpersRefuse && c.Helpers != HelpersAccept {
		faults.Add("helpers", "%q is not refuse or accept", c.Helpers)
	}
	return faults.Err()
}

func validTable(n int) bool { return n >= 1 && n <= 1<<31-1 && (n < 253 || n > 255) }
