package forwardproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// The protocols of listeners.
const (
	HTTP   = "http"
	HTTPS  = "https" // HTTP inside TLS
	SOCKS5 = "socks5"
)

// Config is the section "proxy" of the configuration.
type Config struct {
	// Listen are the listeners.
	Listen []Listen `yaml:"listen" json:"listen" jsonschema:"description=listeners: http://NETWORK:PORT (3128)\\, https://NETWORK:PORT (inside TLS)\\, socks5://NETWORK:PORT (1080)"`
	// UsersFile is read by whoever starts the server.
	UsersFile string `yaml:"users_file" json:"users_file,omitempty" jsonschema:"description=file with a line NAME:PASSWORD for each user; relative to this file; live"`
	// Anonymous are the sources that need no name.
	Anonymous []netip.Prefix `yaml:"anonymous" json:"anonymous,omitempty" jsonschema:"description=networks whose hosts need no name and password; live"`
	Allow     []Target       `yaml:"allow" json:"allow" jsonschema:"description=destinations: [udp/]HOST:PORTS\\, where HOST is a name\\, *.NAME (every name below)\\, *\\, an address or a network\\, and PORTS is *\\, or ports and ranges with commas; live"`
	Deny      []Target       `yaml:"deny" json:"deny,omitempty" jsonschema:"description=destinations that are refused though allow has them; live"`
	// Private are addresses that are not refused as special, inside or own.
	Private        []netip.Prefix `yaml:"private" json:"private,omitempty" jsonschema:"description=addresses that allowed destinations may have although they are private\\, otherwise special\\, inside or the edge's own; live"`
	MaxConnections int            `yaml:"max_connections" json:"max_connections" jsonschema:"minimum=1,maximum=16384,default=4096,description=connections at the same time"`
	PerSource      int            `yaml:"per_source" json:"per_source,omitempty" jsonschema:"minimum=0,maximum=16384,default=0,description=connections of one source at the same time; 0 = limits.per_source.connections; live"`
	Idle           time.Duration  `yaml:"idle" json:"idle" jsonschema:"type=string,default=2h,description=a connection without any byte for so long is reset\\, at least 1s; live"`
	// Associations bounds what UDP ASSOCIATE gives to one source.
	Associations int `yaml:"associations" json:"associations" jsonschema:"minimum=0,maximum=1024,default=16,description=UDP associations of one source at the same time; 0 = none"`
}

// maxConnections bounds max_connections and per_source, maxAssociations associations.
const (
	maxConnections  = 1 << 14
	maxAssociations = 1 << 10
)

// Listen is a listener: http, https or socks5.
type Listen = pinhole.ServiceListen

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{MaxConnections: 4096, Idle: 2 * time.Hour, Associations: 16}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var f pinhole.Faults
	for i, l := range c.Listen {
		key := fmt.Sprintf("listen[%d]", i)
		if err := l.Check(nets, HTTP, HTTPS, SOCKS5); err != nil {
			f.Add(key, "%v", err)
		} else if slices.Contains(c.Listen[:i], l) {
			f.Add(key, "%s is listed twice", l)
		}
	}
	if len(c.Listen) > 0 {
		if c.UsersFile == "" && len(c.Anonymous) == 0 {
			f.Add("users_file", "nobody could use the proxy: name users_file, or networks under anonymous")
		}
		if len(c.Allow) == 0 {
			f.Add("allow", "names no destination, so none could be reached")
		}
	}
	prefixes(&f, "anonymous", c.Anonymous)
	prefixes(&f, "private", c.Private)
	c.validateLimits(&f)
	return f.Err()
}

func prefixes(f *pinhole.Faults, key string, list []netip.Prefix) {
	for i, p := range list {
		if p.IsValid() && p != p.Masked() {
			f.Add(fmt.Sprintf("%s[%d]", key, i), "%s names a host; the network is %s", p, p.Masked())
		}
	}
}

func (c Config) validateLimits(f *pinhole.Faults) {
	if c.MaxConnections < 1 || c.MaxConnections > maxConnections {
		f.Add("max_connections", "%d is not in 1-%d", c.MaxConnections, maxConnections)
	}
	if c.PerSource < 0 || c.PerSource > maxConnections {
		f.Add("per_source", "%d is not in 0-%d", c.PerSource, maxConnections)
	}
	if c.Associations < 0 || c.Associations > maxAssociations {
		f.Add("associations", "%d is not in 0-%d", c.Associations, maxAssociations)
	}
	if c.Idle < time.Second {
		f.Add("idle", "%v is less than 1s", c.Idle)
	}
}
