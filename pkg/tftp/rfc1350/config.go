package rfc1350

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "tftp.trivial" of the configuration.
type Config struct {
	// Listen are the listeners: udp://NETWORK:PORT; usually port 69. The relay is off without them.
	Listen []pinhole.Listen `yaml:"listen" json:"listen,omitempty" jsonschema:"description=RFC 1350 listeners: udp://NETWORK:PORT; usually port 69; without them the relay is off"`
	// Servers are where requests of a network go; the key is the network's name.
	Servers map[string]Server `yaml:"servers" json:"servers,omitempty" jsonschema:"description=ADDRESS[:PORT] of the TFTP server for clients of a network; the key is the network's name; port 69 if none is given"`
	// Transparent says that the listeners take what clients of trusted networks send to others and the gateway's rules hand
	// over (TPROXY): it goes to the server that was asked.
	Transparent bool `yaml:"transparent" json:"transparent,omitempty" jsonschema:"default=false,description=also take requests to others that nftables hands over (tproxy); from trusted networks they go to the server that was asked; needs CAP_NET_ADMIN"`
	// KeepSource has the other side see the client's own address.
	KeepSource bool `yaml:"keep_source" json:"keep_source,omitempty" jsonschema:"default=false,description=with transparent: the server that was asked sees the client's address instead of the edge's; what that answers must come back by the edge"`
	// Clients are who may ask. Empty: everybody on the listener's network.
	Clients []netip.Prefix `yaml:"clients" json:"clients,omitempty" jsonschema:"description=prefixes of clients; empty = any"`
	// Write lets clients put files.
	Write bool `yaml:"write" json:"write,omitempty" jsonschema:"default=false,description=let clients put files; they may always get them unless a rule refuses the name"`
	// Allow and Deny are patterns for names, without regard to case: * and ? as in file names. One with a slash is for
	// the whole name, one without for its last part.
	Allow []string `yaml:"allow" json:"allow,omitempty" jsonschema:"description=patterns of names that may pass; empty = any; a pattern without a slash is for the last part of a name"`
	Deny  []string `yaml:"deny" json:"deny,omitempty" jsonschema:"description=patterns of names that are refused; checked before allow"`
	// Transfers and PerSource bound the transfers at the same time, of all clients and of one address.
	Transfers int `yaml:"transfers" json:"transfers,omitempty" jsonschema:"minimum=1,default=256,description=transfers at the same time"`
	PerSource int `yaml:"per_source" json:"per_source,omitempty" jsonschema:"minimum=1,default=8,description=transfers of one client address at the same time"`
	// Idle ends a transfer on which nothing passes.
	Idle time.Duration `yaml:"idle" json:"idle,omitempty" jsonschema:"type=string,default=30s,description=a transfer on which nothing passes for so long is ended"`
}

// DefaultConfig returns the defaults; the relay is off as long as Listen is empty.
func DefaultConfig() Config { return Config{Transfers: 256, PerSource: 8, Idle: 30 * time.Second} }

// Server is a server's address; its port is 69 where the text has none.
type Server netip.AddrPort

// UnmarshalText reads ADDRESS or ADDRESS:PORT.
func (s *Server) UnmarshalText(b []byte) error {
	if a, err := netip.ParseAddr(string(b)); err == nil {
		*s = Server(netip.AddrPortFrom(a.Unmap(), 69))
		return nil
	}
	ap, err := netip.ParseAddrPort(string(b))
	if err != nil {
		return fmt.Errorf("%q is not ADDRESS[:PORT]", b)
	}
	*s = Server(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	return nil
}

// MarshalText writes ADDRESS:PORT.
func (s Server) MarshalText() ([]byte, error) { return netip.AddrPort(s).MarshalText() }

// Validate returns all faults of the section, each a [pinhole.Fault], joined. The networks are those of the
// whole configuration.
func (c Config) Validate(nets pinhole.Networks) error {
	var f pinhole.Faults
	f.Listeners("listen", c.Listen, nets, "udp")
	for i, l := range c.Listen {
		if _, ok := c.Servers[l.Network]; !ok && (!c.Transparent || !nets[l.Network].Trusted) {
			f.Add(fmt.Sprintf("listen[%d]", i), "servers has no server for clients of %q", l.Network)
		}
	}
	for name, s := range c.Servers {
		at := netip.AddrPort(s)
		f.Network("servers."+name, name, nets)
		if a := at.Addr(); !a.IsValid() || at.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || nets.Own(a) {
			f.Add("servers."+name, "%v is no ADDRESS[:PORT] of another host", at)
		}
	}
	patterns := func(key string, list []string) {
		for i, p := range list {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				f.Add(fmt.Sprintf("%s[%d]", key, i), "%q is no pattern", p)
			}
		}
	}
	patterns("allow", c.Allow)
	patterns("deny", c.Deny)
	if c.KeepSource && !c.Transparent {
		f.Add("keep_source", "the clients of whom? It needs transparent: true")
	}
	if c.Transfers < 1 || c.Transfers > 10000 {
		f.Add("transfers", "%d is not between 1 and 10000", c.Transfers)
	}
	if c.PerSource < 1 || c.PerSource > c.Transfers {
		f.Add("per_source", "%d is not between 1 and transfers", c.PerSource)
	}
	if c.Idle < time.Second || c.Idle > time.Hour {
		f.Add("idle", "%v is not between 1s and 1h", c.Idle)
	}
	return f.Err()
}

// admits tells whether a client may ask.
func (c *Config) admits(a netip.Addr) bool {
	for _, p := range c.Clients {
		if p.Contains(a) {
			return true
		}
	}
	return len(c.Clients) == 0
}

// refuses returns why a request is not passed on, nil if it is.
func (c *Config) refuses(r request) *fault {
	switch {
	case r.mode != "octet" && r.mode != "netascii":
		return &fault{codeIllegal, "no such mode", "mode"} // "mail" is obsolete (RFC 1350 §1)
	case r.write && !c.Write:
		return &fault{codeAccess, "read only", "write"}
	case !plainName(r.name) || denied(c.Deny, r.name) || len(c.Allow) > 0 && !fits(c.Allow, plainPath(r.name)):
		return &fault{codeAccess, "not allowed", "name"}
	}
	return nil
}

// plainName tells whether a name is text that leads nowhere but down: no control characters, no "..", also where a
// server takes the backslash for a separator, and no other name behind it.
func plainName(name string) bool {
	if !utf8.ValidString(name) || len(name) > 255 {
		return false
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return false
		}
	}
	for part := range strings.SplitSeq(slashed(name), "/") {
		if strings.Trim(part, ". ") == "" && strings.Contains(part, "..") {
			return false
		}
	}
	return true
}

func slashed(name string) string { return strings.ReplaceAll(name, `\`, "/") }

// plainPath returns a name as a server would follow it, in lower case, from the root: without empty parts, without the dots
// and blanks at the ends of parts that Windows does not see ("a.exe. ").
func plainPath(name string) string {
	var parts []string
	for part := range strings.SplitSeq(strings.ToLower(slashed(name)), "/") {
		if part = strings.TrimRight(part, ". "); part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/")
}

// denied tells whether a name, a directory on the way to it, or the file of which it names a stream is one of the patterns'.
func denied(patterns []string, name string) bool {
	whole := plainPath(name)
	withSlash := slices.DeleteFunc(slices.Clone(patterns), func(p string) bool { return !strings.Contains(p, "/") })
	for i, c := range whole {
		if c == ':' && fits(patterns, plainPath(whole[:i])) || c == '/' && fits(withSlash, whole[:i]) {
			return true
		}
	}
	return fits(patterns, whole)
}

// fits tells whether a name is one of the patterns'.
func fits(patterns []string, name string) bool {
	for _, p := range patterns {
		p = strings.ToLower(p)
		at := path.Base(name)
		if strings.Contains(p, "/") {
			at, p = name, strings.TrimLeft(p, "/")
		}
		if ok, _ := path.Match(p, at); ok {
			return true
		}
	}
	return false
}
