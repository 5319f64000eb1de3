package h323

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"edged.dev/edged/pkg/pinhole"
)

// Config is the section "h323" of the configuration.
type Config struct {
	// Listen are the listeners of call signalling: tcp://NETWORK:PORT.
	Listen []pinhole.Listen `yaml:"listen" json:"listen" jsonschema:"description=call signalling listeners: tcp://NETWORK:PORT; usually port 1720"`
	// Aliases say where a called name or number is: ADDRESS[:PORT]. A key that ends with * stands for
	// all numbers and names that begin so; the longest wins.
	Aliases map[string]Target `yaml:"aliases" json:"aliases,omitempty" jsonschema:"description=where a called name or E.164 number is: ADDRESS[:PORT]; a key that ends with * stands for all that begin so"`
	// Default says, per network from which calls come, where those go that nothing else routes.
	Default map[string]Target `yaml:"default" json:"default,omitempty" jsonschema:"description=per network of the caller: where calls go that no alias and no address in the Setup routes"`
	// Signed says what becomes of messages whose H.235 signature covers everything.
	Signed Signed `yaml:"signed" json:"signed,omitempty" jsonschema:"enum=pass,enum=refuse,default=pass,description=messages whose H.235 signature covers everything: pass them unchanged or refuse the call"`
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

// signallingPort is the well-known port of call signalling (H.225.0 appendix IV).
const signallingPort = 1720

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
	return Config{Signed: SignedPass, MaxCalls: 5000, PerSource: 500}
}

// Fault is one thing wrong with the section; Key is relative to it, e.g. "listen[2]".
type Fault struct{ Key, Text string }

// Error returns "key: text".
func (f Fault) Error() string { return f.Key + ": " + f.Text }

// FaultKey returns the key, for whoever knows its line.
func (f Fault) FaultKey() string { return f.Key }

// Validate returns all faults of the section, each a [Fault], joined.
func (c Config) Validate(nets pinhole.Networks) error {
	var errs []error
	fault := func(key, format string, a ...any) { errs = append(errs, Fault{key, fmt.Sprintf(format, a...)}) }
	seen := make(map[pinhole.Listen]bool)
	for i, l := range c.Listen {
		key := fmt.Sprintf("listen[%d]", i)
		if err := l.Check(nets, "tcp"); err != nil {
			fault(key, "%v", err)
		} else if seen[l] {
			fault(key, "%q is listed twice", l)
		}
		seen[l] = true
	}
	for name := range c.Aliases {
		if strings.TrimSuffix(name, "*") == "" && name != "*" {
			fault("aliases", "a name is empty")
		}
	}
	for name := range c.Default {
		if _, ok := nets[name]; !ok {
			fault("default."+name, "there is no network %q", name)
		}
	}
	if c.Signed != SignedPass && c.Signed != SignedRefuse {
		fault("signed", "%q is not pass or refuse", c.Signed)
	}
	if c.MaxCalls < 1 || c.MaxCalls > 100_000 {
		fault("max_calls", "%d is not 1-100000", c.MaxCalls)
	}
	if c.PerSource < 1 || c.PerSource > 100_000 {
		fault("per_source", "%d is not 1-100000", c.PerSource)
	}
	return errors.Join(errs...)
}
