package turn

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "turn" of the configuration.
type Config struct {
	// Listen are the listeners: udp, tcp, tls or dtls.
	Listen []Listen `yaml:"listen" json:"listen" jsonschema:"description=listeners: udp://NETWORK:PORT (3478)\\, tcp://NETWORK:PORT\\, tls://NETWORK:PORT (5349 or 443)\\, dtls://NETWORK:PORT (5349)"`
	// Realm is part of every key: a change makes hashed passwords worthless.
	Realm string `yaml:"realm" json:"realm" jsonschema:"description=realm of the credentials; short is good: it is in every challenge"`
	// Relay is the network of the peers, where relay ports are.
	Relay string `yaml:"relay" json:"relay,omitempty" jsonschema:"description=network on which relay ports are\\, to which peers send; empty = the one of the listener by which the client came"`
	// Ports are the relay ports of UDP.
	Ports PortRange `yaml:"ports" json:"ports,omitempty" jsonschema:"type=string,description=UDP relay ports\\, e.g. 49152-57343; empty: pinholes.udp"`
	// Users are static users by name.
	Users map[string]Password `yaml:"users" json:"users,omitempty" jsonschema:"description=static users: NAME: PASSWORD\\, or md5: and the key (MD5 of NAME:REALM:PASSWORD) in hexadecimal; live"`
	// UsersFile and SecretFile are read by whoever starts the server.
	UsersFile  string `yaml:"users_file" json:"users_file,omitempty" jsonschema:"description=file with a line NAME:PASSWORD or NAME:md5:KEY for each user; relative to this file; live"`
	SecretFile string `yaml:"secret_file" json:"secret_file,omitempty" jsonschema:"description=file with secrets of time-limited credentials (TURN REST)\\, one a line\\, all of them good; relative to this file; live"`
	// UsersURL is asked by whoever starts the server.
	UsersURL string `yaml:"users_url" json:"users_url,omitempty" jsonschema:"description=address of HTTP that is asked for users nobody else knows: GET with username and realm\\; 200 and the password (or md5: and the key) or 404; believed for a minute"`
	// StrictExpiry has time-limited credentials end what was allocated with them.
	StrictExpiry bool  `yaml:"strict_expiry" json:"strict_expiry,omitempty" jsonschema:"default=false,description=refuse refreshes and permissions\\, too\\, once a time-limited credential is over; live"`
	Quota        Quota `yaml:"quota" json:"quota" jsonschema:"description=what one user\\, one allocation and all may have; live for what is allocated then"`
	Peers        Peers `yaml:"peers" json:"peers" jsonschema:"description=to whom packets may be relayed"`
	// TCP has RFC 6062 served.
	TCP bool `yaml:"tcp" json:"tcp" jsonschema:"default=true,description=relay TCP connections\\, too (RFC 6062); clients of tcp and tls listeners only"`
	// Challenges and Bindings bound what is answered to sources that have not proved who they are.
	Challenges int `yaml:"challenges" json:"challenges" jsonschema:"minimum=0,default=10,description=answers a second to unsigned requests of one source (IPv4 address\\, IPv6 /56); 0 = no limit"`
	Bindings   int `yaml:"bindings" json:"bindings" jsonschema:"minimum=0,default=50,description=STUN Binding answers a second to one source; 0 = no limit"`
	// AlternatePort turns RFC 5780 on.
	AlternatePort uint16 `yaml:"alternate_port" json:"alternate_port,omitempty" jsonschema:"default=0,description=second UDP port for NAT behaviour discovery (RFC 5780)\\, usually 3479; needs two IPv4 addresses on the network of a udp listener; 0 = off"`
}

// Quota bounds what is allocated.
type Quota struct {
	PerUser     int `yaml:"per_user" json:"per_user" jsonschema:"minimum=1,default=10,description=allocations of one user"`
	Allocations int `yaml:"allocations" json:"allocations" jsonschema:"minimum=1,default=10000,description=allocations of all users"`
	Permissions int `yaml:"permissions" json:"permissions" jsonschema:"minimum=1,maximum=1024,default=64,description=peers of one allocation"`
	// Bandwidth is in octets a second.
	Bandwidth int `yaml:"bandwidth" json:"bandwidth,omitempty" jsonschema:"minimum=0,default=0,description=octets a second and direction of one allocation; 0 = no limit; with a limit the kernel carries no channels"`
	Packets   int `yaml:"packets" json:"packets,omitempty" jsonschema:"minimum=0,default=0,description=packets a second and direction of one allocation; 0 = no limit; with a limit the kernel carries no channels"`
}

// PortRange is a range of ports, written "FIRST-LAST"; zero: none.
type PortRange struct{ First, Last uint16 }

// UnmarshalText reads "FIRST-LAST", or nothing.
func (r *PortRange) UnmarshalText(b []byte) error {
	*r = PortRange{}
	if len(b) == 0 {
		return nil
	}
	first, last, ok := strings.Cut(string(b), "-")
	from, err := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if !ok || err != nil || err2 != nil || from == 0 || to < from {
		return fmt.Errorf("%q is not FIRST-LAST", b)
	}
	*r = PortRange{uint16(from), uint16(to)}
	return nil
}

// MarshalText writes "FIRST-LAST", or nothing.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// String returns "FIRST-LAST", or nothing.
func (r PortRange) String() string {
	if r == (PortRange{}) {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// Peers is the policy of peers.
type Peers struct {
	Allow     []netip.Prefix `yaml:"allow" json:"allow,omitempty" jsonschema:"description=peers that may be reached although their addresses are private or otherwise special\\, e.g. the hosts inside"`
	Only      bool           `yaml:"only" json:"only,omitempty" jsonschema:"default=false,description=refuse every peer that is not in allow"`
	Deny      []netip.Prefix `yaml:"deny" json:"deny,omitempty" jsonschema:"description=peers that may not be reached although allow has them"`
	DenyPorts []uint16       `yaml:"deny_ports" json:"deny_ports" jsonschema:"description=UDP ports to which nothing is sent"`
	TCPPorts  []uint16       `yaml:"tcp_ports" json:"tcp_ports,omitempty" jsonschema:"description=TCP ports below 1024 to which clients may have connections made"`
}

// Password is a password or a key; it is never printed.
type Password string

// UnmarshalText takes the text as it is.
func (p *Password) UnmarshalText(b []byte) error {
	*p = Password(b)
	return nil
}

// String hides the password.
func (Password) String() string { return "***" }

// MarshalText hides the password.
func (Password) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Listen is a listener: udp, tcp, tls or dtls.
type Listen = pinhole.ServiceListen

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{
		TCP: true, Challenges: 10, Bindings: 50,
		Quota: Quota{PerUser: 10, Allocations: 10000, Permissions: 64},
		// Services that answer more than they are asked, or believe their source.
		Peers: Peers{DenyPorts: []uint16{53, 69, 111, 123, 137, 161, 389, 520, 1900, 5353, 11211}},
	}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var faults pinhole.Faults
	fault := faults.Add
	for i, l := range c.Listen {
		if err := l.Check(nets, "udp", "tcp", "tls", "dtls"); err != nil {
			fault(fmt.Sprintf("listen[%d]", i), "%v", err)
		}
	}
	if c.Relay != "" {
		faults.Network("relay", c.Relay, nets)
	}
	if len(c.Listen) > 0 && c.Realm == "" {
		fault("realm", "is needed: it is part of the users' keys, e.g. example.org")
	}
	if len(c.Realm) > 127 {
		fault("realm", "has %d octets; at most 127 may be sent", len(c.Realm))
	}
	if len(c.Listen) > 0 && len(c.Users) == 0 && c.UsersFile == "" && c.SecretFile == "" && c.UsersURL == "" {
		fault("users", "nobody could log in: name users, users_file, users_url or secret_file")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Users)) {
		if _, err := keyOf(name, c.Realm, string(c.Users[name])); err != nil {
			fault("users."+name, "%v", err)
		} else if c.Users[name] == "" || name == "" || len(name) > maxUsername {
			fault("users."+name, "needs a name of at most %d octets and a password", maxUsername)
		}
	}
	if u, err := url.Parse(c.UsersURL); c.UsersURL != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		fault("users_url", "%q is not an address of HTTP", c.UsersURL)
	}
	c.validateLimits(nets, fault)
	return faults.Err()
}

func (c Config) validateLimits(nets pinhole.Networks, fault func(key, format string, a ...any)) {
	for _, n := range []struct {
		key        string
		value, low int
	}{
		{"quota.per_user", c.Quota.PerUser, 1}, {"quota.allocations", c.Quota.Allocations, 1}, {"quota.permissions", c.Quota.Permissions, 1},
		{"quota.bandwidth", c.Quota.Bandwidth, 0}, {"quota.packets", c.Quota.Packets, 0}, {"challenges", c.Challenges, 0}, {"bindings", c.Bindings, 0},
	} {
		if n.value < n.low {
			fault(n.key, "%d is less than %d", n.value, n.low)
		}
	}
	if c.Quota.Permissions > 1024 {
		fault("quota.permissions", "%d is more than 1024", c.Quota.Permissions)
	}
	if b := c.Quota.Bandwidth; b > 0 && b < 2*maxRelayed {
		fault("quota.bandwidth", "%d octets a second is less than two packets", b)
	}
	for key, list := range map[string][]netip.Prefix{"peers.allow": c.Peers.Allow, "peers.deny": c.Peers.Deny} {
		for i, p := range list {
			if p.IsValid() && p != p.Masked() {
				fault(fmt.Sprintf("%s[%d]", key, i), "%s names a host; the network is %s", p, p.Masked())
			}
		}
	}
	if c.Peers.Only && len(c.Peers.Allow) == 0 {
		fault("peers.only", "needs peers.allow: nobody could be reached")
	}
	if c.AlternatePort == 0 {
		return
	}
	able := func(l Listen) bool { return l.Proto == "udp" && len(discoveryAddresses(nets[l.Network])) == 2 }
	if !slices.ContainsFunc(c.Listen, able) {
		fault("alternate_port", "needs a udp listener on a network with two IPv4 addresses")
	}
	for _, l := range c.Listen {
		if l.Transport().Proto == "udp" && l.Port == c.AlternatePort {
			fault("alternate_port", "%d is the port of %s", c.AlternatePort, l)
		}
	}
}

// discoveryAddresses returns the two addresses with which RFC 5780 is served on a network, or less.
func discoveryAddresses(n pinhole.Network) (out []netip.Addr) {
	for _, a := range n.Addresses {
		if a.Is4() && len(out) < 2 {
			out = append(out, a)
		}
	}
	return out
}

// Discovery lists the further UDP ports to open for NAT behaviour discovery (RFC 5780): at the two addresses of each udp
// listener's network that has them.
func (c Config) Discovery(nets pinhole.Networks) (out []pinhole.Listen) {
	for _, l := range c.Listen {
		p := pinhole.Listen{Proto: "udp", Network: l.Network, Port: c.AlternatePort}
		if c.AlternatePort != 0 && l.Proto == "udp" && len(discoveryAddresses(nets[l.Network])) == 2 && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
