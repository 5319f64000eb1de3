package mras

import (
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "msturn.mras" of the configuration.
type Config struct {
	// Host turns the service on: the relay as clients reach it.
	Host string `yaml:"host" json:"host,omitempty" jsonschema:"description=name or address under which clients reach this relay; empty: requests for credentials are not answered and answers not rewritten"`
	// HostInside is Host for clients that say that they are in the intranet.
	HostInside string        `yaml:"host_inside" json:"host_inside,omitempty" jsonschema:"description=the same for clients that say that they are in the intranet; empty: host"`
	UDPPort    uint16        `yaml:"udp_port" json:"udp_port,omitempty" jsonschema:"minimum=1,default=3478,description=UDP port that clients are told"`
	TCPPort    uint16        `yaml:"tcp_port" json:"tcp_port,omitempty" jsonschema:"minimum=1,default=443,description=TCP port that clients are told"`
	Networks   []string      `yaml:"networks" json:"networks,omitempty" jsonschema:"description=networks whose requests are answered and whose servers' answers are believed; empty: the trusted ones"`
	Duration   time.Duration `yaml:"duration" json:"duration,omitempty" jsonschema:"type=string,default=8h,description=how long credentials are good at the most"`
	Rewrite    bool          `yaml:"rewrite" json:"rewrite,omitempty" jsonschema:"default=false,description=have answers of another such service that pass name this relay in place of its own\\, and take its credentials"`
}

// DefaultConfig returns the defaults: off.
func DefaultConfig() Config {
	return Config{UDPPort: 3478, TCPPort: 443, Duration: 8 * time.Hour}
}

// On tells whether there is anything to do.
func (c Config) On() bool { return c.Host != "" }

// Serves tells whether requests of a network are answered, and its servers' answers believed.
func (c Config) Serves(network string, nets pinhole.Networks) bool {
	if len(c.Networks) == 0 {
		return nets[network].Trusted
	}
	for _, n := range c.Networks {
		if n == network {
			return true
		}
	}
	return false
}

// relay returns the host for a client at a location, and the location as answers say it: internet if it says none.
func (c Config) relay(location string) (host, answered string) {
	if location != "intranet" {
		return c.Host, "internet"
	}
	if c.HostInside != "" {
		return c.HostInside, location
	}
	return c.Host, location
}

// maxDuration bounds how long somebody who was let in once may use the relay.
const maxDuration = 31 * 24 * time.Hour

// Validate adds what is wrong with the section to faults, under "mras."; secrets tells whether credentials can be made.
func (c Config) Validate(faults *pinhole.Faults, nets pinhole.Networks, secrets bool) {
	if !c.On() {
		return
	}
	for key, host := range map[string]string{"mras.host": c.Host, "mras.host_inside": c.HostInside} {
		if len(host) > 255 || strings.ContainsAny(host, "<>&\"'/ \t\r\n") {
			faults.Add(key, "%q is neither a name nor an address", host)
		}
	}
	if !secrets {
		faults.Add("mras.host", "needs msturn.secrets, of which credentials are made")
	}
	if c.UDPPort == 0 || c.TCPPort == 0 {
		faults.Add("mras.udp_port", "clients need a UDP and a TCP port")
	}
	if c.Duration < time.Minute || c.Duration > maxDuration {
		faults.Add("mras.duration", "%v is not between 1m and %v", c.Duration, maxDuration)
	}
	served := false
	for _, n := range c.Networks {
		faults.Network("mras.networks", n, nets)
	}
	for name := range nets {
		served = served || c.Serves(name, nets)
	}
	if !served && len(c.Networks) == 0 {
		faults.Add("mras.networks", "no network is trusted, so nobody could ask: name those that may")
	}
}
