package t120

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "t120" of the configuration.
type Config struct {
	// Listen are the listeners: tcp://NETWORK:PORT; usually port 1503.
	Listen []pinhole.Listen `yaml:"listen" json:"listen" jsonschema:"description=T.120 listeners: tcp://NETWORK:PORT; usually port 1503"`
	// Transparent says that the listeners take connections that the gateway's rules hand over (TPROXY).
	Transparent bool `yaml:"transparent" json:"transparent,omitempty" jsonschema:"default=false,description=also take connections to others that nftables hands over (tproxy); from trusted networks they go where they were going; needs CAP_NET_ADMIN"`
	// KeepSource has the other side see the client's own address.
	KeepSource bool `yaml:"keep_source" json:"keep_source,omitempty" jsonschema:"default=false,description=with transparent: the host that was called sees the address of the caller instead of the edge's; what that answers must come back by the edge"`
	// Conferences are the hosts of conferences, by the conference's name in lower case.
	Conferences map[string]netip.AddrPort `yaml:"conferences" json:"conferences,omitempty" jsonschema:"description=ADDRESS:PORT that has a conference; the key is the conference's name in lower case"`
	// Targets are where callers of a network are brought when nothing else says where; the key is the network's name.
	Targets map[string]netip.AddrPort `yaml:"targets" json:"targets,omitempty" jsonschema:"description=ADDRESS:PORT for callers of a network when neither the conference nor a directory says where; the key is the network's name"`
	// Policy are rules for conferences and callers; the first that fits decides, and what fits none is allowed.
	Policy []Rule `yaml:"policy" json:"policy,omitempty" jsonschema:"description=rules for conferences and callers; the first that fits decides and what fits none is allowed"`
	// RDP lets terminal sessions pass, whose front is the same.
	RDP bool `yaml:"rdp" json:"rdp,omitempty" jsonschema:"default=false,description=let RDP pass too; its front is that of T.120"`
	// Addresses tells what becomes of network addresses in T.124's PDUs: hide or pass.
	Addresses AddressMode `yaml:"addresses" json:"addresses,omitempty" jsonschema:"enum=hide,enum=pass,default=hide,description=network addresses in rosters and transfers: hide removes or replaces them; pass leaves the stream unread after its front"`
	// Setup bounds the time from the connection to the answer of the conference.
	Setup time.Duration `yaml:"setup" json:"setup,omitempty" jsonschema:"type=string,default=30s,description=time from the connection to the conference's answer"`
	// Idle ends a connection on which nothing passes; 0 = never.
	Idle time.Duration `yaml:"idle" json:"idle,omitempty" jsonschema:"type=string,default=1h,description=a connection on which nothing passes for so long is closed; 0 = never"`
}

// Rule allows or denies conferences and callers.
type Rule struct {
	// Conference is a pattern for the conference's name, without regard to case: * and ? as in file names. Empty: any.
	Conference string `yaml:"conference" json:"conference,omitempty" jsonschema:"description=pattern for the conference's name with * and ?; empty = any"`
	// From are the callers. Empty: any.
	From []netip.Prefix `yaml:"from" json:"from,omitempty" jsonschema:"description=prefixes of callers; empty = any"`
	// Allow tells what becomes of those that fit.
	Allow bool `yaml:"allow" json:"allow,omitempty" jsonschema:"default=false,description=allow what fits instead of refusing it"`
}

// fits tells whether the rule is about a conference and a caller.
func (r Rule) fits(conference string, caller netip.Addr) bool {
	if r.Conference != "" {
		if ok, _ := path.Match(strings.ToLower(r.Conference), strings.ToLower(conference)); !ok {
			return false
		}
	}
	for _, p := range r.From {
		if p.Contains(caller) {
			return true
		}
	}
	return len(r.From) == 0
}

// allowed applies the rules.
func (c *Config) allowed(conference string, caller netip.Addr) bool {
	for _, r := range c.Policy {
		if r.fits(conference, caller) {
			return r.Allow
		}
	}
	return true
}

// AddressMode is the value of "addresses".
type AddressMode string

const (
	// AddressesHide removes addresses from rosters and replaces them in additions and transfers.
	AddressesHide AddressMode = "hide"
	// AddressesPass leaves them, and all that follows a connection's front, unread.
	AddressesPass AddressMode = "pass"
)

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{Addresses: AddressesHide, Setup: 30 * time.Second, Idle: time.Hour}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined. The networks are those of the
// whole configuration.
func (c Config) Validate(nets pinhole.Networks) error {
	var f pinhole.Faults
	f.Listeners("listen", c.Listen, nets, "tcp")
	target := func(key string, ap netip.AddrPort) {
		if !ap.IsValid() || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() || nets.Own(ap.Addr()) {
			f.Add(key, "%s is no ADDRESS:PORT of another host", ap)
		}
	}
	for name, ap := range c.Conferences {
		target("conferences."+name, ap)
		if name != strings.ToLower(name) {
			f.Add("conferences."+name, "write the name in lower case; case does not matter in calls")
		}
	}
	for name, ap := range c.Targets {
		f.Network("targets."+name, name, nets)
		target("targets."+name, ap)
	}
	for i, r := range c.Policy {
		if _, err := path.Match(r.Conference, ""); err != nil {
			f.Add(fmt.Sprintf("policy[%d].conference", i), "%q is no pattern", r.Conference)
		}
	}
	if c.Addresses != AddressesHide && c.Addresses != AddressesPass {
		f.Add("addresses", "%q is not hide or pass", c.Addresses)
	}
	if c.KeepSource && !c.Transparent {
		f.Add("keep_source", "the callers of whom? It needs transparent: true")
	}
	if c.Setup < time.Second || c.Setup > 10*time.Minute {
		f.Add("setup", "%v is not between 1s and 10m", c.Setup)
	}
	if c.Idle != 0 && c.Idle < time.Second {
		f.Add("idle", "%v is neither 0 nor at least 1s", c.Idle)
	}
	return f.Err()
}
