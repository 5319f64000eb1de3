package msturn

import (
	"fmt"
	"net/netip"
	"strings"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/turn/mras"
)

// Config is the section "msturn" of the configuration.
type Config struct {
	// Listen are the listeners: udp://NETWORK:PORT, usually 3478, and tcp://NETWORK:PORT, usually 443.
	Listen []pinhole.Listen `yaml:"listen" json:"listen,omitempty" jsonschema:"description=listeners: udp://NETWORK:PORT, usually 3478, and tcp://NETWORK:PORT, usually 443; without them the service is off"`
	// Relay is the network whose addresses clients get; empty: that of the listener.
	Relay string `yaml:"relay" json:"relay,omitempty" jsonschema:"default=,description=network at whose address relay ports are, whatever listener a client came by; empty: the listener's own"`
	// Realm is part of the key of each user.
	Realm string `yaml:"realm" json:"realm,omitempty" jsonschema:"default=edged,description=realm of the credentials: part of the key"`
	// Users are names and passwords.
	Users map[string]Secret `yaml:"users" json:"users,omitempty" jsonschema:"description=passwords by user name; clients get both in base64, as the MRAS server would give them"`
	// Secrets make time-limited credentials, the newest first.
	Secrets []Secret `yaml:"secrets" json:"secrets,omitempty" jsonschema:"description=secrets of time-limited credentials: name UNIXTIME:USER, password its HMAC-SHA1; several while one replaces another; ${NAME} takes one from the environment"`
	// PerUser bounds the allocations of one user.
	PerUser int `yaml:"per_user" json:"per_user,omitempty" jsonschema:"minimum=1,default=32,description=allocations of one user at the same time"`
	// Bandwidth bounds what is relayed for one user, in kbit/s, both directions together; 0 = any.
	Bandwidth int `yaml:"bandwidth" json:"bandwidth,omitempty" jsonschema:"minimum=0,default=20000,description=kbit/s that are relayed for one user, both directions together; 0 = no limit"`
	// MRAS hands credentials out.
	MRAS mras.Config `yaml:"mras" json:"mras,omitzero" jsonschema:"description=A/V authentication service (MRAS): answers clients' requests for credentials by SIP SERVICE"`
	// Peers says whom clients reach.
	Peers PeersConfig `yaml:"peers" json:"peers,omitempty" jsonschema:"description=hosts that clients reach through the relay, beside public ones and each other's relay ports"`
}

// PeersConfig is the section "msturn.peers".
type PeersConfig struct {
	Allow []netip.Prefix `yaml:"allow" json:"allow,omitempty" jsonschema:"description=prefixes that are reached though they are private or special, e.g. the hosts inside"`
	Only  bool           `yaml:"only" json:"only,omitempty" jsonschema:"default=false,description=no host is reached that is not in allow"`
	Deny  []netip.Prefix `yaml:"deny" json:"deny,omitempty" jsonschema:"description=prefixes that are not reached though allow has them"`
}

// DefaultConfig returns the defaults; the service is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{Realm: "edged", PerUser: 32, Bandwidth: 20000, MRAS: mras.DefaultConfig()}
}

// Secret is a text that is never printed; "${NAME}" is taken from the environment.
type Secret = pinhole.Secret

const (
	maxRealm    = 127 // octets: what clients keep of it
	maxUsername = 513
	// maxSecrets bounds the work for one name that nobody knows.
	maxSecrets = 8
)

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var faults pinhole.Faults
	fault := faults.Add
	if len(c.Listen) == 0 {
		return nil
	}
	for i, l := range c.Listen {
		key := fmt.Sprintf("listen[%d]", i)
		if err := l.Check(nets, "tcp", "udp"); err != nil {
			fault(key, "%v", err)
		}
	}
	if c.Relay != "" {
		faults.Network("relay", c.Relay, nets)
	}
	if c.Realm == "" || len(c.Realm) > maxRealm || strings.ContainsAny(c.Realm, "\":") {
		fault("realm", "%q has to be 1 to %d octets without quotes and colons", c.Realm, maxRealm)
	}
	if len(c.Users)+len(c.Secrets) == 0 {
		fault("users", "there are neither users nor secrets, so nobody could use the relay")
	}
	for name, password := range c.Users {
		if name == "" || len(name) > maxUsername || password == "" {
			fault("users", "a user has no name or password, or a name that is too long")
		}
	}
	for i, s := range c.Secrets {
		if i == maxSecrets {
			fault("secrets", "more than %d secrets", maxSecrets)
		}
		if len(s) < 8 {
			fault(fmt.Sprintf("secrets[%d]", i), "shorter than 8 octets")
		}
	}
	if c.PerUser < 1 {
		fault("per_user", "%d is not positive", c.PerUser)
	}
	if c.Bandwidth < 0 {
		fault("bandwidth", "%d is negative", c.Bandwidth)
	}
	c.MRAS.Validate(&faults, nets, len(c.Secrets) > 0)
	return faults.Err()
}
