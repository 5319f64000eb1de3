package forward

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
)

// Defaults of a rule's keys.
const (
	DefaultMaxConnections = 1024
	DefaultIdle           = 2 * time.Hour
)

// Which path a rule's connections may take.
const (
	ViaAuto   = "auto"   // the kernel where it can, else user space
	ViaKernel = "kernel" // the same, with a warning where the kernel can not
	ViaUser   = "user"   // user space
)

// maxConnections bounds max_connections and per_source.
const maxConnections = 1 << 14

// Rule is one item of the section "forwards".
type Rule struct {
	Name           string            `yaml:"name" jsonschema:"required" jsonschema_description:"name in logs and metrics: a-z, 0-9, _ and -"`
	Listen         pinhole.Listen    `yaml:"listen" jsonschema:"required" jsonschema_description:"tcp://NETWORK:PORT"`
	SNI            []string          `yaml:"sni" jsonschema_description:"the TLS server names that are forwarded, where several forwards, or SIP, share the listener: host names, *.NAME for one label more; empty: what no other forward there names"`
	Classes        []sharedport.Kind `yaml:"classes" jsonschema_description:"what is forwarded of a shared port, by its first bytes: CLASS, or tcp/CLASS and tls/CLASS for outside and inside of TLS, e.g. http, tls/http, unknown; TLS ends at the edge, and what was inside goes to the target in clear; with sni only what came for these names"`
	To             netip.AddrPort    `yaml:"to" jsonschema:"required" jsonschema_description:"ADDRESS:PORT of the target"`
	Allow          []netip.Prefix    `yaml:"allow" jsonschema:"required" jsonschema_description:"the sources that may connect"`
	MaxConnections int               `yaml:"max_connections" jsonschema:"minimum=0,maximum=16384,default=1024" jsonschema_description:"connections at the same time"`
	PerSource      int               `yaml:"per_source" jsonschema:"minimum=0,maximum=16384,default=0" jsonschema_description:"connections of one source at the same time, where user space carries them; 0 = limits.per_source.connections"`
	Idle           time.Duration     `yaml:"idle" jsonschema_description:"a connection without any byte for so long is reset, at least 1s; default 2h"`
	Via            string            `yaml:"via" jsonschema:"enum=auto,enum=kernel,enum=user,default=auto" jsonschema_description:"what carries it: auto (the kernel where it can, else user space), kernel (the same, with a warning where it can not) or user"`
	TLS            TLSMode           `yaml:"tls" jsonschema:"enum=pass,enum=terminate,default=pass" jsonschema_description:"pass (unread) or terminate: the edge shows its own certificate to clients and opens a TLS connection to the target, which tls.client_ca or the system's authorities must have signed"`
	ClientCerts    ClientCerts       `yaml:"client_certificates" jsonschema:"enum=none,enum=optional,enum=demand,default=none" jsonschema_description:"with tls: terminate, whether clients show a certificate that tls.client_ca has signed"`
	SendProxy      bool              `yaml:"proxy_protocol" jsonschema:"default=false" jsonschema_description:"the target is told the client's address by the PROXY protocol, version 2; carried by user space"`
	ServerName     string            `yaml:"server_name" jsonschema_description:"with tls: terminate, the name in the target's certificate"`
}

// TLSMode is the value of "tls".
type TLSMode string

// The values of TLSMode.
const (
	TLSPass      TLSMode = "pass"
	TLSTerminate TLSMode = "terminate"
)

// ClientCerts is the value of "client_certificates".
type ClientCerts string

// The values of ClientCerts.
const (
	CertsNone     ClientCerts = "none"
	CertsOptional ClientCerts = "optional" // verified if shown
	CertsDemand   ClientCerts = "demand"
)

// Completed returns the rule with defaults for what it does not say.
func (r Rule) Completed() Rule {
	r.MaxConnections = cmp.Or(r.MaxConnections, DefaultMaxConnections)
	r.Idle = cmp.Or(r.Idle, DefaultIdle)
	r.Via = cmp.Or(r.Via, ViaAuto)
	r.TLS = cmp.Or(r.TLS, TLSPass)
	r.ClientCerts = cmp.Or(r.ClientCerts, CertsNone)
	return r
}

// Validate returns all faults of the rule, each a [pinhole.Fault], joined. The networks are those of the whole
// configuration.
func (r Rule) Validate(nets pinhole.Networks) error {
	var f pinhole.Faults
	fault := f.Add
	if r.Name == "" || strings.Trim(r.Name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		fault("name", "%q: a name of a-z, 0-9, _ and - is needed", r.Name)
	}
	if r.Listen == (pinhole.Listen{}) {
		fault("listen", "is needed, e.g. tcp://outside:8057")
	} else if err := r.Listen.Check(nets, "tcp"); err != nil {
		fault("listen", "%v", err)
	}
	switch a := r.To.Addr(); {
	case !r.To.IsValid():
		fault("to", "the target's ADDRESS:PORT is needed")
	case a.IsUnspecified() || a.IsMulticast() || r.To.Port() == 0:
		fault("to", "%s is no target", r.To)
	case slices.Contains(nets[r.Listen.Network].Addresses, a.Unmap()) && r.To.Port() == r.Listen.Port:
		fault("to", "%s is the listener itself", r.To)
	}
	r.validateAllow(fault)
	r.validateLimits(fault)
	r.validateNames(fault)
	r.validateTLS(fault)
	return f.Err()
}

func (r Rule) validateAllow(fault func(key, format string, a ...any)) {
	if len(r.Allow) == 0 {
		fault("allow", "names nobody, so nobody could connect; 0.0.0.0/0 is everybody")
	}
	for i, p := range r.Allow {
		if p.IsValid() && p != p.Masked() {
			fault(fmt.Sprintf("allow[%d]", i), "%s names a host; the network is %s", p, p.Masked())
		}
	}
}

func (r Rule) validateLimits(fault func(key, format string, a ...any)) {
	if r.MaxConnections < 0 || r.MaxConnections > maxConnections {
		fault("max_connections", "%d is not in 1-%d", r.MaxConnections, maxConnections)
	}
	if r.PerSource < 0 || r.PerSource > maxConnections {
		fault("per_source", "%d is not in 0-%d", r.PerSource, maxConnections)
	}
	if r.Idle != 0 && r.Idle < time.Second {
		fault("idle", "%v is less than 1s", r.Idle)
	}
	if r.Via != "" && !slices.Contains([]string{ViaAuto, ViaKernel, ViaUser}, r.Via) {
		fault("via", "%q is not auto, kernel or user", r.Via)
	}
}

func (r Rule) validateNames(fault func(key, format string, a ...any)) {
	for i, k := range r.Classes {
		if len(r.SNI) > 0 && k.Outer == sharedport.OverTCP && k.Class != sharedport.TLS {
			fault(fmt.Sprintf("classes[%d]", i), "%s: there are no server names outside of TLS", k)
		}
	}
	for i, n := range r.SNI {
		if !serverName(strings.TrimPrefix(n, "*.")) {
			fault(fmt.Sprintf("sni[%d]", i), "%q is no host name in lower case, nor *. and one", n)
		}
	}
}

// serverName tells whether n may be in a ClientHello: at most 253 characters, of labels that are not empty.
func serverName(n string) bool {
	return len(n) <= 253 && strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "" && !slices.Contains(strings.Split(n, "."), "")
}

func (r Rule) validateTLS(fault func(key, format string, a ...any)) {
	if r.TLS != "" && r.TLS != TLSPass && r.TLS != TLSTerminate {
		fault("tls", "%q is not pass or terminate", r.TLS)
		return
	}
	if c := r.ClientCerts; c != "" && !slices.Contains([]ClientCerts{CertsNone, CertsOptional, CertsDemand}, c) {
		fault("client_certificates", "%q is not none, optional or demand", c)
		return
	}
	ends := r.TLS == TLSTerminate
	switch {
	case ends && r.ServerName == "":
		fault("server_name", "is needed with tls: terminate: the name in the target's certificate")
	case !ends && r.ServerName != "":
		fault("server_name", "needs tls: terminate")
	case ends && !serverName(strings.ToLower(r.ServerName)):
		fault("server_name", "%q is no host name", r.ServerName)
	}
	if !ends && r.ClientCerts != "" && r.ClientCerts != CertsNone {
		fault("client_certificates", "needs tls: terminate")
	}
	if ends && len(r.Classes) > 0 {
		fault("tls", "terminate is for TLS that no other service looks into; with classes it has ended before")
	}
	switch {
	case r.Via != ViaKernel:
	case ends || len(r.SNI) > 0:
		fault("via", "the kernel can neither read server names nor terminate TLS")
	case !r.unread():
		fault("via", "the kernel can neither read first bytes nor tell the target who the client is")
	}
}
