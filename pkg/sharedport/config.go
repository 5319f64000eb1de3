package sharedport

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Defaults of a port's keys.
const (
	DefaultFirstBytes = 3 * time.Second
	DefaultHandshake  = 5 * time.Second
	DefaultMaxPending = 1024
	DefaultPerSource  = 16
)

// Who gets the clients that say nothing after TLS.
const (
	SilentSIP  = "sip"
	SilentNone = "none"
)

// Config is one item of the section "shared".
type Config struct {
	Listen      pinhole.Listen `yaml:"listen" jsonschema:"required" jsonschema_description:"tcp://NETWORK:PORT, a port that services share; 443 is shared by itself where a service speaks TLS there"`
	Off         []Kind         `yaml:"off" jsonschema_description:"classes that are refused whoever serves them: CLASS, or tcp/CLASS and tls/CLASS for outside and inside of TLS; live"`
	Silent      string         `yaml:"silent" jsonschema:"enum=sip,enum=none" jsonschema_description:"who gets a client that says nothing for first_bytes after TLS; default: sip if SIP alone is served inside TLS, else none"`
	SilentNames []string       `yaml:"silent_names" jsonschema_description:"server names whose silent clients are SIP's whatever silent says: host names, *.NAME for one label more"`
	Trusted     []netip.Prefix `yaml:"proxy_protocol" jsonschema_description:"balancers whose PROXY protocol (versions 1 and 2) is believed; live"`
	Legacy      bool           `yaml:"legacy" jsonschema:"default=false" jsonschema_description:"TLS 1.0 and 1.1 with RSA and CBC are accepted on this port, as tls.legacy has it for a network; live"`
	FirstBytes  time.Duration  `yaml:"first_bytes" jsonschema_description:"how long a connection may take to say what it is, and again inside TLS; default 3s; live"`
	Handshake   time.Duration  `yaml:"handshake" jsonschema_description:"how long a TLS handshake may take; default 5s; live"`
	MaxPending  int            `yaml:"max_pending" jsonschema:"minimum=0,maximum=65536,default=1024" jsonschema_description:"connections of which it is not known yet what they are; live"`
	PerSource   int            `yaml:"per_source" jsonschema:"minimum=0,maximum=65536,default=16" jsonschema_description:"those of one source: an IPv4 address, or a /64 of IPv6; live"`
}

// maxPendingMost bounds max_pending and per_source.
const maxPendingMost = 1 << 16

// Completed returns the configuration with defaults for what it does not say.
func (c Config) Completed() Config {
	c.FirstBytes = cmp.Or(c.FirstBytes, DefaultFirstBytes)
	c.Handshake = cmp.Or(c.Handshake, DefaultHandshake)
	c.MaxPending = cmp.Or(c.MaxPending, DefaultMaxPending)
	c.PerSource = cmp.Or(c.PerSource, DefaultPerSource)
	return c
}

// Validate returns all faults, each "key: what is wrong", joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var errs []error
	fault := func(key, format string, a ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, a...)))
	}
	if c.Listen == (pinhole.Listen{}) {
		fault("listen", "is needed, e.g. tcp://outside:443")
	} else if err := c.Listen.Check(nets, "tcp"); err != nil {
		fault("listen", "%v", err)
	}
	if c.Silent != "" && c.Silent != SilentSIP && c.Silent != SilentNone {
		fault("silent", "%q is not sip or none", c.Silent)
	}
	for i, n := range c.SilentNames {
		if name, ok := hostName([]byte(strings.TrimPrefix(n, "*."))); !ok || name != strings.TrimPrefix(n, "*.") {
			fault(fmt.Sprintf("silent_names[%d]", i), "%q is no host name in lower case, nor *. and one", n)
		}
	}
	for i, p := range c.Trusted {
		if p.IsValid() && p != p.Masked() {
			fault(fmt.Sprintf("proxy_protocol[%d]", i), "%s names a host; the network is %s", p, p.Masked())
		}
	}
	c.validateLimits(fault)
	return errors.Join(errs...)
}

func (c Config) validateLimits(fault func(key, format string, a ...any)) {
	for key, d := range map[string]time.Duration{"first_bytes": c.FirstBytes, "handshake": c.Handshake} {
		if d != 0 && (d < 100*time.Millisecond || d > time.Minute) {
			fault(key, "%v is not within 100ms-1m", d)
		}
	}
	for key, n := range map[string]int{"max_pending": c.MaxPending, "per_source": c.PerSource} {
		if n < 0 || n > maxPendingMost {
			fault(key, "%d is not within 0-%d; 0 is the default", n, maxPendingMost)
		}
	}
}

// trusts tells whether a source's PROXY protocol is believed.
func (c *Config) trusts(source netip.Addr) bool {
	for _, p := range c.Trusted {
		if p.Contains(source.WithZone("")) {
			return true
		}
	}
	return false
}

// off tells whether a kind is switched off.
func (c *Config) off(k Kind) bool {
	for _, o := range c.Off {
		if o.Class == k.Class && (o.Outer == "" || o.Outer == k.Outer) {
			return true
		}
	}
	return false
}
