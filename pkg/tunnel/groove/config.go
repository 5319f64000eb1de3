package groove

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is the part "groove" of the section "tunnel".
type Config struct {
	// Relays are the relays that are published, by the name that clients call them.
	Relays map[string]Backend `yaml:"relays" json:"relays,omitempty" jsonschema_description:"Groove relays that are published here, unread: the name of each in URIs and in the Connect of SSTP, and HOST:PORT (usually 2492) to connect to"`
	// Polling has the third mode served too.
	Polling bool `yaml:"polling" json:"polling,omitempty" jsonschema:"default=false" jsonschema_description:"experiment: the mode Polling is served too; the end of its responses is edged's own"`
	// MaxConnections bounds virtual connections and raw ones, PerSource the TCP connections of one address.
	MaxConnections int `yaml:"max_connections" json:"max_connections,omitempty" jsonschema:"minimum=0,maximum=65536,default=4096" jsonschema_description:"Groove connections at the same time"`
	PerSource      int `yaml:"per_source" json:"per_source,omitempty" jsonschema:"minimum=0,maximum=65536,default=512" jsonschema_description:"TCP connections of one address to Groove's listeners; a proxy has the address of all behind it, and two for each"`
	// Establish is how long a virtual connection may take to be established.
	Establish time.Duration `yaml:"establish" json:"establish,omitempty" jsonschema_description:"how long a Groove connection may take until both ends have said their first; 1s-5m, default 30s"`
	// Idle ends a connection on which nothing comes.
	Idle time.Duration `yaml:"idle" json:"idle,omitempty" jsonschema_description:"a Groove connection on which nothing passes for so long is closed: clients say something every 45s; 1m-24h, default 135s"`
}

// Defaults of the configuration's keys, and their bounds.
const (
	defaultConnections = 4096
	defaultPerSource   = 512
	defaultEstablish   = 30 * time.Second
	defaultIdle        = 135 * time.Second // three of the Noops that client and server send ([MS-GRVSSTP] §3.1.2)
	mostConnections    = 1 << 16
)

// Backend is where a relay is, "HOST:PORT".
type Backend struct {
	Host string // an IP address, or a name of the DNS
	Port uint16
}

// UnmarshalText reads "HOST:PORT".
func (b *Backend) UnmarshalText(text []byte) error {
	host, port, err := net.SplitHostPort(string(text))
	p, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || p == 0 || host == "" {
		return fmt.Errorf("%q is not HOST:PORT, e.g. relay.example.org:2492", text)
	}
	*b = Backend{host, uint16(p)}
	return nil
}

// MarshalText writes "HOST:PORT".
func (b Backend) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String returns "HOST:PORT".
func (b Backend) String() string { return net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))) }

// Completed returns the configuration with defaults for what it does not say.
func (c Config) Completed() Config {
	c.MaxConnections = cmp.Or(c.MaxConnections, defaultConnections)
	c.PerSource = cmp.Or(c.PerSource, defaultPerSource)
	c.Establish = cmp.Or(c.Establish, defaultEstablish)
	c.Idle = cmp.Or(c.Idle, defaultIdle)
	return c
}

// Validate returns all faults, each "key: what is wrong", joined.
func (c Config) Validate() error {
	var errs []error
	fault := func(key, format string, a ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, a...)))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Relays)) {
		if !isName(name) || name != strings.ToLower(name) {
			fault("relays."+name, "%q is no host name in lower case", name)
		}
	}
	for key, n := range map[string]int{"max_connections": c.MaxConnections, "per_source": c.PerSource} {
		if n < 0 || n > mostConnections {
			fault(key, "%d is not within 0-%d; 0 is the default", n, mostConnections)
		}
	}
	if c.Establish != 0 && (c.Establish < time.Second || c.Establish > 5*time.Minute) {
		fault("establish", "%v is not within 1s-5m", c.Establish)
	}
	if c.Idle != 0 && (c.Idle < time.Minute || c.Idle > 24*time.Hour) {
		fault("idle", "%v is not within 1m-24h", c.Idle)
	}
	return errors.Join(errs...)
}
