package h323

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "h323" of the configuration.
type Config struct {
	// Listen are the listeners of call signalling: tcp://NETWORK:PORT.
	Listen []pinhole.Listen `yaml:"listen" json:"listen" jsonschema:"description=call signalling listeners: tcp://NETWORK:PORT; usually port 1720"`
	// Transparent says that the listeners, those of RAS too, take what the gateway's rules hand over (TPROXY).
	Transparent bool `yaml:"transparent" json:"transparent,omitempty" jsonschema:"default=false,description=also take connections and RAS to others that nftables hands over (tproxy); from trusted networks calls go where they were going and RAS to the gatekeeper; needs CAP_NET_ADMIN"`
	// RAS are the listeners of the gatekeeper: udp://NETWORK:PORT.
	RAS []pinhole.Listen `yaml:"ras" json:"ras,omitempty" jsonschema:"description=listeners of the gatekeeper (RAS): udp://NETWORK:PORT; usually port 1719"`
	// Discovery are the networks on which endpoints find the gatekeeper by multicast.
	Discovery []string `yaml:"discovery" json:"discovery,omitempty" jsonschema:"description=networks on which endpoints find the gatekeeper by multicast (GRQ to 224.0.1.41:1718, IPv4)"`
	// Gatekeeper is the one behind the RAS listeners: the built-in one, or one to which RAS is passed on.
	Gatekeeper Gatekeeper `yaml:"gatekeeper" json:"gatekeeper,omitempty" jsonschema:"type=string,default=builtin,description=builtin or the ADDRESS[:PORT] of a gatekeeper to which RAS is passed on; port 1719 if none"`
	// GatekeeperID is the name of the gatekeeper.
	GatekeeperID string `yaml:"gatekeeper_id" json:"gatekeeper_id,omitempty" jsonschema:"default=edged,description=gatekeeperIdentifier of the built-in gatekeeper"`
	// Register are the networks whose endpoints may register; empty: the trusted ones.
	Register []string `yaml:"register" json:"register,omitempty" jsonschema:"description=networks whose endpoints may register; empty = the trusted ones"`
	// LRQ are those who are told where endpoints are; empty: the trusted networks.
	LRQ []Neighbour `yaml:"lrq" json:"lrq,omitempty" jsonschema:"description=who is told where endpoints are (LRQ): names of networks and ADDRESS or PREFIX of neighbour gatekeepers; empty = the trusted networks"`
	// Lifetime is the longest that a registration lasts without being refreshed.
	Lifetime time.Duration `yaml:"lifetime" json:"lifetime,omitempty" jsonschema:"type=string,default=5m,description=longest time that a registration lasts without being refreshed"`
	// MaxEndpoints bounds the registrations, 1-100000.
	MaxEndpoints int `yaml:"max_endpoints" json:"max_endpoints,omitempty" jsonschema:"minimum=1,maximum=100000,default=10000,description=registered endpoints at one time; per_source of one host"`
	// Aliases say where a called name or number is: ADDRESS[:PORT]. A key that ends with * stands for
	// all numbers and names that begin so; the longest wins.
	Aliases map[string]Target `yaml:"aliases" json:"aliases,omitempty" jsonschema:"description=where a called name or E.164 number is: ADDRESS[:PORT]; a key that ends with * stands for all that begin so"`
	// Default says, per network from which calls come, where those go that nothing else routes.
	Default map[string]Target `yaml:"default" json:"default,omitempty" jsonschema:"description=per network of the caller: where calls go that no alias and no address in the Setup routes"`
	// Signed says what becomes of messages whose H.235 signature covers everything.
	Signed Signed `yaml:"signed" json:"signed,omitempty" jsonschema:"enum=pass,enum=refuse,default=pass,description=messages whose H.235 signature covers everything: pass them unchanged or refuse the call"`
	// MultiplexPort is the port of RTP, even, that all sessions share of endpoints behind a NAT that can do that; RTCP has
	// the next one. 0: each session has ports of its own.
	MultiplexPort uint16 `yaml:"multiplex_port" json:"multiplex_port,omitempty" jsonschema:"default=0,maximum=65534,description=even UDP port that all media of H.460.19 endpoints behind a NAT share (RTCP: the next one) if they can; 0 = ports of pinholes.udp for each session"`
	// MaxCalls bounds the calls at one time, 1-100000; PerSource those of one calling host.
	MaxCalls  int `yaml:"max_calls" json:"max_calls,omitempty" jsonschema:"minimum=1,maximum=100000,default=5000,description=calls at one time"`
	PerSource int `yaml:"per_source" json:"per_source,omitempty" jsonschema:"minimum=1,maximum=100000,default=500,description=calls of one calling host at one time"`
}

// Signed is the value of "signed".
type Signed string

// The values of Signed.
const (
	SignedPass   Signed = "pass"
	SignedRefuse Signed = "refuse"
)

// The well-known ports of call signalling and RAS (H.225.0 appendix IV).
const (
	signallingPort = 1720
	rasPort        = 1719
)

// Gatekeeper is the value of "gatekeeper": the zero value is the built-in one.
type Gatekeeper struct{ netip.AddrPort }

// UnmarshalText reads "builtin" or ADDRESS[:PORT].
func (g *Gatekeeper) UnmarshalText(b []byte) error {
	if string(b) == builtin {
		*g = Gatekeeper{}
		return nil
	}
	if a, err := netip.ParseAddr(string(b)); err == nil {
		*g = Gatekeeper{netip.AddrPortFrom(a.Unmap(), rasPort)}
		return nil
	}
	ap, err := netip.ParseAddrPort(string(b))
	if err != nil || ap.Port() == 0 {
		return fmt.Errorf("%q is not builtin or ADDRESS[:PORT], e.g. 198.51.100.40:1719", b)
	}
	*g = Gatekeeper{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
	return nil
}

// MarshalText writes "builtin" or ADDRESS:PORT.
func (g Gatekeeper) MarshalText() ([]byte, error) {
	if !g.IsValid() {
		return []byte(builtin), nil
	}
	return g.AddrPort.MarshalText()
}

const builtin = "builtin"

// Neighbour is who may ask where endpoints are: the name of a network, an address or a prefix.
type Neighbour string

// prefix returns the hosts of an address or prefix; not valid for a network.
func (n Neighbour) prefix() netip.Prefix {
	if a, err := netip.ParseAddr(string(n)); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	p, err := netip.ParsePrefix(string(n))
	if err != nil {
		return netip.Prefix{}
	}
	return p.Masked()
}

func (n Neighbour) is(network string, host netip.Addr) bool {
	return string(n) == network || n.prefix().Contains(host)
}

// Target is the address of an endpoint or gatekeeper; the port is 1720 if the text has none.
type Target netip.AddrPort

// UnmarshalText reads ADDRESS[:PORT].
func (t *Target) UnmarshalText(b []byte) error {
	if a, err := netip.ParseAddr(string(b)); err == nil {
		*t = Target(netip.AddrPortFrom(a.Unmap(), signallingPort))
		return nil
	}
	ap, err := netip.ParseAddrPort(string(b))
	if err != nil || ap.Port() == 0 {
		return fmt.Errorf("%q is not ADDRESS[:PORT], e.g. 10.0.0.7:1720", b)
	}
	*t = Target(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	return nil
}

// MarshalText writes ADDRESS:PORT.
func (t Target) MarshalText() ([]byte, error) { return netip.AddrPort(t).MarshalText() }

// DefaultConfig returns the defaults; the service is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{
		Signed: SignedPass, MaxCalls: 5000, PerSource: 500, GatekeeperID: "edged", Lifetime: 5 * time.Minute, MaxEndpoints: 10_000,
	}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var f pinhole.Faults
	f.Listeners("listen", c.Listen, nets, "tcp")
	f.Listeners("ras", c.RAS, nets, "udp")
	if len(c.RAS) > 0 && len(c.Listen) == 0 {
		f.Add("ras", "a gatekeeper routes calls by the edge: set listen too, e.g. tcp://inside:1720")
	}
	c.gatekeeper(f.Add, nets)
	for i, name := range c.Register {
		f.Network(fmt.Sprintf("register[%d]", i), name, nets)
	}
	for i, name := range c.Discovery {
		on := func(l pinhole.Listen) bool { return l.Network == name }
		if !slices.ContainsFunc(c.RAS, on) {
			f.Add(fmt.Sprintf("discovery[%d]", i), "there is no listener in ras on network %q to answer from", name)
		}
	}
	for i, n := range c.LRQ {
		if _, ok := nets[string(n)]; !ok && !n.prefix().IsValid() {
			f.Add(fmt.Sprintf("lrq[%d]", i), "%q is no network, ADDRESS or PREFIX", n)
		}
	}
	c.limits(&f)
	for name := range c.Aliases {
		if strings.TrimSuffix(name, "*") == "" && name != "*" {
			f.Add("aliases", "a name is empty")
		}
	}
	for name := range c.Default {
		f.Network("default."+name, name, nets)
	}
	if c.Signed != SignedPass && c.Signed != SignedRefuse {
		f.Add("signed", "%q is not pass or refuse", c.Signed)
	}
	return f.Err()
}

// limits finds numbers that are out of range.
func (c Config) limits(f *pinhole.Faults) {
	if n := len(c.GatekeeperID); n < 1 || n > 128 {
		f.Add("gatekeeper_id", "%q has not 1-128 characters", c.GatekeeperID)
	}
	if c.Lifetime < 10*time.Second || c.Lifetime > 24*time.Hour {
		f.Add("lifetime", "%v is not between 10s and 24h", c.Lifetime)
	}
	if c.MaxEndpoints < 1 || c.MaxEndpoints > 100_000 {
		f.Add("max_endpoints", "%d is not 1-100000", c.MaxEndpoints)
	}
	if p := c.MultiplexPort; p != 0 && (p < 1024 || p%2 != 0) {
		f.Add("multiplex_port", "%d is not 0 or an even port of 1024-65534", p)
	}
	if c.MaxCalls < 1 || c.MaxCalls > 100_000 {
		f.Add("max_calls", "%d is not 1-100000", c.MaxCalls)
	}
	if c.PerSource < 1 || c.PerSource > 100_000 {
		f.Add("per_source", "%d is not 1-100000", c.PerSource)
	}
}

// gatekeeper finds what is wrong with one to which RAS is passed on.
func (c Config) gatekeeper(fault func(string, string, ...any), nets pinhole.Networks) {
	g := c.Gatekeeper
	switch {
	case !g.IsValid():
	case len(c.RAS) == 0:
		fault("gatekeeper", "RAS is passed on from where to %v? set ras, e.g. udp://inside:1719", g.AddrPort)
	case nets.Own(g.Addr()):
		fault("gatekeeper", "%v is the edge itself", g.AddrPort)
	default:
		// The gatekeeper answers to the listener of its own network.
		name := nets.Of(g.Addr())
		on := func(l pinhole.Listen) bool { return l.Network == name }
		if name != "" && !slices.ContainsFunc(c.RAS, on) {
			fault("gatekeeper", "%v is on network %q, which needs a listener in ras, e.g. udp://%s:1719", g.AddrPort, name, name)
		}
	}
}
