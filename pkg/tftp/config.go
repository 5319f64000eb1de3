package tftp

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/tftp/content"
	"edged.dev/edged/pkg/tftp/rfc1350"
)

// Config is the section "tftp" of the configuration.
type Config struct {
	// Ports are where the edge listens for data connections; the section is off without them.
	Ports PortRange `yaml:"ports" json:"ports" jsonschema:"type=string,description=TCP ports for file transfers of Messenger and Communicator; their clients take 6891-6901 and no others; without ports the service is off"`
	// Deny and Allow are extensions without a dot, in lower case.
	Deny  []string `yaml:"deny" json:"deny,omitempty" jsonschema:"description=extensions of files that are refused; one anywhere in a name counts"`
	Allow []string `yaml:"allow" json:"allow,omitempty" jsonschema:"description=if set only files whose last extension is listed may pass"`
	// MaxSize is the longest file; 0 = any.
	MaxSize pinhole.Size `yaml:"max_size" json:"max_size,omitempty" jsonschema:"oneof_type=string;integer,default=0,description=longest file that may pass such as 1GiB; 0 = any"`
	// Directions tells which way files may go between trusted networks and others.
	Directions Directions `yaml:"directions" json:"directions,omitempty" jsonschema:"enum=both,enum=in,enum=out,default=both,description=which way files may go: in to a trusted network or out of it"`
	// Policy are rules for users; the first that fits decides, and what fits none is allowed.
	Policy []Rule `yaml:"policy" json:"policy,omitempty" jsonschema:"description=rules for users; the first that fits decides and what fits none is allowed"`
	// GUIDs are applications besides file transfer whose invitations pass, unread and unedited.
	GUIDs []string `yaml:"guids" json:"guids,omitempty" jsonschema:"description=applications besides file transfer whose invitations pass as they are; all others are refused"`
	// Plain lets clients exchange files without encryption.
	Plain bool `yaml:"plain" json:"plain,omitempty" jsonschema:"default=false,description=let MSNFTP of old clients pass which is not encrypted"`
	// Pending bounds the time from an address in an invitation to the connection.
	Pending time.Duration `yaml:"pending" json:"pending,omitempty" jsonschema:"type=string,default=2m,description=a port to which nobody connects for so long is given back"`
	// Idle ends a transfer on which nothing passes.
	Idle time.Duration `yaml:"idle" json:"idle,omitempty" jsonschema:"type=string,default=1m,description=a transfer on which nothing passes for so long is ended"`
	// MaxInvitations bounds the invitations that are remembered.
	MaxInvitations int `yaml:"max_invitations" json:"max_invitations,omitempty" jsonschema:"minimum=1,default=4096,description=invitations that are remembered at the same time"`
	// Content tells what is looked at in files while they pass.
	Content content.Config `yaml:"content" json:"content,omitempty" jsonschema:"description=what is looked at in files while they pass; without any of it they are not read"`
	// Trivial is the relay of RFC 1350, another protocol by the same name, with listeners of its own.
	Trivial rfc1350.Config `yaml:"trivial" json:"trivial,omitempty" jsonschema:"description=relay of TFTP on UDP 69 (RFC 1350): another protocol by the same name; max_size counts here too"`
}

// Rule allows or denies files by who sends them to whom.
type Rule struct {
	// From and To are patterns for user@domain without regard to case; * stands for any text, ? for one character.
	// Empty: any.
	From string `yaml:"from" json:"from,omitempty" jsonschema:"description=pattern for the sender's user@domain with * and ?; empty = any"`
	To   string `yaml:"to" json:"to,omitempty" jsonschema:"description=pattern for the receiver's user@domain with * and ?; empty = any"`
	// Allow tells what becomes of those that fit.
	Allow bool `yaml:"allow" json:"allow,omitempty" jsonschema:"default=false,description=allow what fits instead of refusing it"`
}

// Directions is the value of "directions".
type Directions string

// The ways in which files may go.
const (
	Both Directions = "both"
	In   Directions = "in"
	Out  Directions = "out"
)

// PortRange is a range of ports, both ends included, written "6891-6901".
type PortRange struct{ First, Last uint16 }

// UnmarshalText reads "A-B", "A" for a single port, or nothing for none.
func (r *PortRange) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*r = PortRange{}
		return nil
	}
	first, last, ok := strings.Cut(string(b), "-")
	if !ok {
		last = first
	}
	x, errX := strconv.ParseUint(strings.TrimSpace(first), 10, 16)
	y, errY := strconv.ParseUint(strings.TrimSpace(last), 10, 16)
	if errX != nil || errY != nil {
		return fmt.Errorf("%q is not a port range such as 6891-6901", b)
	}
	*r = PortRange{uint16(x), uint16(y)}
	return nil
}

// MarshalText writes "A-B", nothing for the zero value.
func (r PortRange) MarshalText() ([]byte, error) {
	if r == (PortRange{}) {
		return nil, nil
	}
	return fmt.Appendf(nil, "%d-%d", r.First, r.Last), nil
}

// has tells whether the port is one of them.
func (r PortRange) has(port uint16) bool { return port >= r.First && port <= r.Last }

// clientPorts are what the clients listen on.
func clientPorts() PortRange { return PortRange{6891, 6901} }

// DefaultConfig returns the defaults; the section is off as long as Ports is zero.
func DefaultConfig() Config {
	return Config{Directions: Both, Pending: 2 * time.Minute, Idle: time.Minute, MaxInvitations: 4096, Content: content.DefaultConfig(), Trivial: rfc1350.DefaultConfig()}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate() error {
	var f pinhole.Faults
	if r := c.Ports; r != (PortRange{}) && (r.First < 1024 || r.Last < r.First) {
		f.Add("ports", "%d-%d is no range of ports from 1024 up", r.First, r.Last)
	}
	extensionList := func(key string, list []string) {
		for i, ext := range list {
			parts, plain := extensions("x." + ext)
			if !plain || len(parts) != 1 || parts[0] != ext {
				f.Add(fmt.Sprintf("%s[%d]", key, i), "%q is no extension in lower case and without its dot, such as exe", ext)
			}
		}
	}
	extensionList("deny", c.Deny)
	extensionList("allow", c.Allow)
	if c.Directions != Both && c.Directions != In && c.Directions != Out {
		f.Add("directions", "%q is not both, in or out", c.Directions)
	}
	for i, r := range c.Policy {
		if r.From == "" && r.To == "" {
			f.Add(fmt.Sprintf("policy[%d]", i), "names nobody; write from: \"*\" if all are meant")
		}
	}
	form := regexp.MustCompile(`^\{[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}$`)
	for i, g := range c.GUIDs {
		if !form.MatchString(g) {
			f.Add(fmt.Sprintf("guids[%d]", i), "%q is not {XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX}", g)
		}
	}
	if c.Plain && c.Content.Enabled() {
		f.Add("plain", "clients could hide a file from content by what they say of its encryption; one of both only")
	}
	between := func(key string, d, from, to time.Duration) {
		if d < from || d > to {
			f.Add(key, "%v is not between %v and %v", d, from, to)
		}
	}
	between("pending", c.Pending, time.Second, time.Hour)
	between("idle", c.Idle, time.Second, 24*time.Hour)
	if c.MaxInvitations < 1 || c.MaxInvitations > 1<<20 {
		f.Add("max_invitations", "%d is not between 1 and %d", c.MaxInvitations, 1<<20)
	}
	return f.Err()
}
