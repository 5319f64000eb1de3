package ils

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Ports of calls, as NetMeeting has them ([MS-TAIL] 4.1: sport).
const (
	portH323 = 1720
	portT120 = 1503
)

// Builtin is the value of Server that has the edge be the directory itself.
const Builtin = "builtin"

// Config is the section "ils" of the configuration.
type Config struct {
	// Listen are the listeners: tcp://NETWORK:PORT; usually the ports 389 and 1002.
	Listen []pinhole.Listen `yaml:"listen" json:"listen" jsonschema:"description=ILS (LDAP) listeners: tcp://NETWORK:PORT; usually ports 389 and 1002"`
	// Transparent says that the listeners take connections that the gateway's rules hand over (TPROXY).
	Transparent bool `yaml:"transparent" json:"transparent,omitempty" jsonschema:"default=false,description=also take connections to others that nftables hands over (tproxy); from trusted networks they go where they were going; needs CAP_NET_ADMIN"`
	// Server is the directory, HOST:PORT, or "builtin".
	Server string `yaml:"server" json:"server,omitempty" jsonschema:"description=the directory: HOST:PORT; or builtin: the edge is a small directory itself"`
	// Servers are other directories for the clients of a network; the key is the network's name.
	Servers map[string]string `yaml:"servers" json:"servers,omitempty" jsonschema:"description=another directory for the clients of one network; the key is the network's name"`
	// Pool are public addresses of the edge's of which each registered user gets one to himself while any is free.
	Pool []netip.Addr `yaml:"pool" json:"pool,omitempty" jsonschema:"description=public addresses of which each registered inside user gets one to himself while any is free; without them users share the network's and are told apart by the name that is called"`
	// Dedicated says that the directory holds nothing but calls: addresses are edited without further evidence.
	Dedicated bool `yaml:"dedicated" json:"dedicated,omitempty" jsonschema:"default=false,description=the directory is an ILS and nothing else: edit addresses even in entries that do not look like a user's"`
	// Lifetime is how long a registration holds that names no lifetime.
	Lifetime time.Duration `yaml:"lifetime" json:"lifetime,omitempty" jsonschema:"type=string,default=1h,description=how long a registration holds that names no lifetime"`
	// Memory is how long it is remembered whom an outside host looked up last.
	Memory time.Duration `yaml:"memory" json:"memory,omitempty" jsonschema:"type=string,default=10m,description=how long it is remembered whom an outside host looked up last; its calls go there"`
	// Ports are the edge's public ports of calls, written into entries in place of the hosts' own.
	Ports Ports `yaml:"ports" json:"ports,omitempty" jsonschema:"description=the edge's public ports of calls; written into entries in place of the hosts' own"`
	// MaxMessage bounds a message, in octets. Longer ones of a directory pass unread.
	MaxMessage int `yaml:"max_message" json:"max_message,omitempty" jsonschema:"minimum=4096,maximum=16777216,default=262144,description=octets of the longest message that is read; longer requests are refused and longer answers pass unread"`
	// Idle ends a connection on which nothing passes.
	Idle time.Duration `yaml:"idle" json:"idle,omitempty" jsonschema:"type=string,default=15m,description=a connection on which nothing passes for so long is closed"`
}

// Ports are public ports of calls.
type Ports struct {
	H323 uint16 `yaml:"h323" json:"h323,omitempty" jsonschema:"default=1720,description=public port of H.323 calls"`
	T120 uint16 `yaml:"t120" json:"t120,omitempty" jsonschema:"default=1503,description=public port of T.120 calls"`
}

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{
		Lifetime: time.Hour, Memory: 10 * time.Minute, Ports: Ports{H323: portH323, T120: portT120},
		MaxMessage: 256 << 10, Idle: 15 * time.Minute,
	}
}

// server returns the directory for the clients of a network.
func (c Config) server(network string) string {
	if s, ok := c.Servers[network]; ok {
		return s
	}
	return c.Server
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined. The networks are those of the
// whole configuration.
func (c Config) Validate(nets pinhole.Networks) error {
	v := validation{nets: nets}
	v.Listeners("listen", c.Listen, nets, "tcp")
	for i, l := range c.Listen {
		if c.server(l.Network) == "" {
			v.Add(fmt.Sprintf("listen[%d]", i), "there is no server for it; set server, e.g. 198.51.100.30:389")
		}
	}
	v.server("server", c.Server)
	for name, s := range c.Servers {
		v.Network("servers."+name, name, nets)
		v.server("servers."+name, s)
	}
	v.pool(c.Pool)
	for key, d := range map[string]time.Duration{"lifetime": c.Lifetime, "memory": c.Memory, "idle": c.Idle} {
		if d < time.Second || d > 7*24*time.Hour {
			v.Add(key, "%v is not between 1s and 168h", d)
		}
	}
	if c.MaxMessage < 4096 || c.MaxMessage > 16<<20 {
		v.Add("max_message", "%d is not between 4096 and 16777216", c.MaxMessage)
	}
	for key, p := range map[string]uint16{"ports.h323": c.Ports.H323, "ports.t120": c.Ports.T120} {
		if p == 0 {
			v.Add(key, "0 is no port")
		}
	}
	return v.Err()
}

// validation collects faults.
type validation struct {
	pinhole.Faults
	nets pinhole.Networks
}

func (v *validation) server(key, s string) {
	if s == "" || s == Builtin {
		return
	}
	host, port, err := net.SplitHostPort(s)
	n, errPort := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" || errPort != nil || n == 0 {
		v.Add(key, "%q is neither HOST:PORT nor %s", s, Builtin)
	}
}

func (v *validation) pool(pool []netip.Addr) {
	seen := map[netip.Addr]bool{}
	for i, a := range pool {
		key := fmt.Sprintf("pool[%d]", i)
		switch {
		case !a.IsValid(): // could not be read: said already
		case !a.Is4() || a.IsUnspecified() || a.IsMulticast():
			v.Add(key, "%s is no IPv4 address of a host; entries hold no other", a)
		case seen[a]:
			v.Add(key, "%s is listed twice", a)
		case !v.nets.Own(a):
			v.Add(key, "%s is no address of the edge; list it under networks too, so that calls to it arrive", a)
		}
		seen[a] = true
	}
}
