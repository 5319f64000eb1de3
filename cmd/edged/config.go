package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"edged.dev/edged/pkg/audiocall"
	"edged.dev/edged/pkg/firewall"
	"edged.dev/edged/pkg/forwardproxy"
	"edged.dev/edged/pkg/h323"
	"edged.dev/edged/pkg/ils"
	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/otel"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/splice/forward"
	"edged.dev/edged/pkg/syslog"
	"edged.dev/edged/pkg/t120"
	"edged.dev/edged/pkg/tftp"
	"edged.dev/edged/pkg/tunnel/agent"
	"edged.dev/edged/pkg/tunnel/link"
	"edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/turn"
	"edged.dev/edged/pkg/turn/msturn"
)

// config is the whole file: the sum of the packages' sections. What this file
// does not name keeps the value of [defaultConfig].
type config struct {
	Log      logConfig                `yaml:"log" jsonschema_description:"what is logged and how"`
	Admin    adminConfig              `yaml:"admin" jsonschema_description:"the operator's listener: API, metrics, health, profiles"`
	State    stateConfig              `yaml:"state" jsonschema_description:"what outlives a restart"`
	Networks map[string]networkConfig `yaml:"networks" jsonschema_description:"the named sides of the edge; the names are used everywhere else"`
	Pinholes media.PinholeConfig      `yaml:"pinholes" jsonschema_description:"ports that are opened for media"`
	Firewall firewall.Config          `yaml:"firewall" jsonschema_description:"the edge's own nftables table, which hands over what hosts inside send to others (transparent)"`
	Media    media.Config             `yaml:"media" jsonschema_description:"how media is relayed"`
	TLS      tlsConfig                `yaml:"tls" jsonschema_description:"certificates of the edge and of its peers"`
	SIP      sipalg.Config            `yaml:"sip" jsonschema_description:"SIP: listeners and routes; without listeners the service is off"`
	T120     t120.Config              `yaml:"t120" jsonschema_description:"T.120 data conferences: without listeners the service is off"`
	ILS      ils.Config               `yaml:"ils" jsonschema_description:"ILS, the directory of NetMeeting (LDAP): without listeners the service is off"`
	H323     h323.Config              `yaml:"h323" jsonschema_description:"H.323: call signalling; without listeners the service is off"`
	Audio    audiocall.Config         `yaml:"audiocall" jsonschema_description:"NetMeeting's audio call control of the time before H.323 (1731), unread: without listeners the service is off"`
	TFTP     tftp.Config              `yaml:"tftp" jsonschema_description:"file transfers of Messenger and Communicator, whose invitations come in SIP: without ports the service is off"`
	TURN     turn.Config              `yaml:"turn" jsonschema_description:"STUN and TURN: without listeners the service is off"`
	MSTURN   msturn.Config            `yaml:"msturn" jsonschema_description:"MS-TURN, the TURN of Office Communications Server 2007 and its clients: without listeners the service is off"`
	Links    []link.Config            `yaml:"links" jsonschema_description:"point-to-point interfaces whose other ends are devices of the tunnel: edge to edge"`
	Forwards []forward.Rule           `yaml:"forwards" jsonschema_description:"TCP ports that are forwarded unread, for who is on their allow-list"`
	Proxy    forwardproxy.Config      `yaml:"proxy" jsonschema_description:"a forward proxy (HTTP CONNECT, SOCKS 5) for hosts that reach others through it alone: without listeners the service is off"`
	Tunnel   relay.Config             `yaml:"tunnel" jsonschema_description:"the tunnel's relay, at which devices meet that may only dial out: without listeners the service is off"`
	Agent    agent.Config             `yaml:"agent" jsonschema_description:"the tunnel's agent, one device's end of it: without relays the service is off"`
	Shared   []sharedport.Config      `yaml:"shared" jsonschema_description:"ports that services share, by the first bytes of each connection; one is needed only for what is not as by default"`
	Blocked  []pinhole.Listen         `yaml:"blocked" jsonschema_description:"ports on which whoever comes is refused, counted and logged: tcp://NETWORK:PORT or udp://NETWORK:PORT"`
	Profiles []profileName            `yaml:"profiles" jsonschema_description:"roles whose listeners are added where this file has none of that section: lcs-2005, ocs-2007-r2-edge, netmeeting, groove"`
	Limits   limitsConfig             `yaml:"limits" jsonschema_description:"what one source may ask for"`
	CDR      cdrConfig                `yaml:"cdr" jsonschema_description:"call records"`
	Trace    traceConfig              `yaml:"trace" jsonschema_description:"the signalling of the last calls, kept in memory"`
	HEP      hepConfig                `yaml:"hep" jsonschema_description:"copies of signalling for a collector"`
	OTel     otel.Config              `yaml:"otel" jsonschema_description:"a trace of each call for a collector of OpenTelemetry"`

	// dir is the folder of the file; relative certificate paths start there.
	dir string
	// from says for keys that a profile has set which one; the items of a list are keys of their own.
	from map[string]profileName
	// only is the one service that runs, "" for all: `edged tunnel` runs the agent.
	only string
}

type logConfig struct {
	Level  string `yaml:"level" jsonschema:"enum=debug,enum=info,enum=warn,enum=error,default=info" jsonschema_description:"least severity that is logged; live"`
	Format string `yaml:"format" jsonschema:"enum=auto,enum=json,enum=text,default=auto" jsonschema_description:"auto: text on a terminal, JSON under systemd and in files"`
}

type adminConfig struct {
	Listen string         `yaml:"listen" jsonschema:"default=127.0.0.1:9060" jsonschema_description:"HOST:PORT or unix:/PATH; an address that is not loopback needs a token; empty turns the listener off"`
	Token  pinhole.Secret `yaml:"token" jsonschema:"default=" jsonschema_description:"bearer token that every request must carry; ${NAME} takes it from the environment"`
}

type stateConfig struct {
	Dir string `yaml:"dir" jsonschema:"default=/var/lib/edged" jsonschema_description:"folder for registrations and calls that outlive a restart; empty keeps them in memory only"`
}

type networkConfig struct {
	Addresses []netip.Addr   `yaml:"addresses" jsonschema:"required" jsonschema_description:"the edge's own addresses on this network; the first of each family carries media"`
	Advertise netip.Addr     `yaml:"advertise" jsonschema_description:"public address of a 1:1 NAT in front of the edge, written into messages instead of the address of its family"`
	Subnets   []netip.Prefix `yaml:"subnets" jsonschema_description:"the hosts of this network; empty: what the routing table says"`
	Trusted   *bool          `yaml:"trusted" jsonschema_description:"hosts of a trusted network may call any other network; default: true if all addresses are private and there is no advertise"`
}

type tlsConfig struct {
	Certificates []certConfig `yaml:"certificates" jsonschema_description:"the edge's certificates, chosen by server name; the first is the default; live"`
	ClientCA     string       `yaml:"client_ca" jsonschema:"default=" jsonschema_description:"PEM file with the authorities of peers: of client certificates and, beside the system's, of servers that the edge dials"`
	Legacy       []string     `yaml:"legacy" jsonschema_description:"networks on which TLS 1.0 and 1.1 with RSA and CBC are accepted, for clients and servers of the time of Windows XP; live"`
}

type certConfig struct {
	Cert string `yaml:"cert" jsonschema:"required" jsonschema_description:"PEM file with the certificate and its chain, relative to this file"`
	Key  string `yaml:"key" jsonschema:"required" jsonschema_description:"PEM file with the private key, relative to this file"`
}

type limitsConfig struct {
	PerSource perSourceConfig `yaml:"per_source" jsonschema_description:"limits for one source address"`
}

type perSourceConfig struct {
	MessagesPerSecond int `yaml:"messages_per_second" jsonschema:"minimum=0,default=100" jsonschema_description:"requests outside of dialogs and malformed messages a second; 0 = no limit; live"`
	Connections       int `yaml:"connections" jsonschema:"minimum=0,default=64" jsonschema_description:"stream connections at the same time; 0 = no limit; live"`
}

type cdrConfig struct {
	File     string        `yaml:"file" jsonschema:"default=" jsonschema_description:"file to which one JSON line is appended when a call ends, relative to state.dir; empty = none"`
	Syslog   syslog.Target `yaml:"syslog" jsonschema:"default=" jsonschema_description:"syslog receiver that gets each call record too, by RFC 5424: unix:///PATH, udp://HOST[:PORT], tcp:// or tls://; empty = none"`
	Facility string        `yaml:"facility" jsonschema:"enum=user,enum=daemon,enum=local0,enum=local1,enum=local2,enum=local3,enum=local4,enum=local5,enum=local6,enum=local7,default=local0" jsonschema_description:"facility of these messages"`
	Format   string        `yaml:"format" jsonschema:"enum=json,enum=structured,default=json" jsonschema_description:"json: the body is the JSON of the file; structured: the fields are structured data, the body is a sentence"`
}

func defaultConfig() config {
	return config{
		Log:      logConfig{Level: "info", Format: "auto"},
		Admin:    adminConfig{Listen: "127.0.0.1:9060"},
		State:    stateConfig{Dir: "/var/lib/edged"},
		Pinholes: media.DefaultPinholeConfig(),
		Firewall: firewall.DefaultConfig(),
		Media:    media.DefaultConfig(),
		SIP:      sipalg.DefaultConfig(),
		T120:     t120.DefaultConfig(),
		ILS:      ils.DefaultConfig(),
		H323:     h323.DefaultConfig(),
		Audio:    audiocall.DefaultConfig(),
		TFTP:     tftp.DefaultConfig(),
		TURN:     turn.DefaultConfig(),
		MSTURN:   msturn.DefaultConfig(),
		Proxy:    forwardproxy.DefaultConfig(),
		Tunnel:   relay.DefaultConfig(),
		Agent:    agent.DefaultConfig(),
		Trace:    traceConfig{Memory: defaultTraceMemory, Media: true},
		HEP:      hepConfig{ID: 2001},
		CDR:      cdrConfig{Facility: "local0", Format: "json"},
		Limits:   limitsConfig{PerSource: perSourceConfig{MessagesPerSecond: 100, Connections: 64}},
	}
}

// configError holds all faults of a file.
type configError struct {
	file   string
	faults []fault
}

// Error returns one line per fault: FILE:LINE: key: what is wrong.
func (e *configError) Error() string {
	lines := make([]string, len(e.faults))
	for i, f := range e.faults {
		lines[i] = fmt.Sprintf("%s:%d: %s", e.file, f.Line, f.Text)
		if f.Key != "" {
			lines[i] = fmt.Sprintf("%s:%d: %s: %s", e.file, f.Line, f.Key, f.Text)
		}
	}
	return strings.Join(lines, "\n")
}

// loadConfig reads and checks a file. Everything that is wrong with it comes in one *configError.
func loadConfig(file string) (*config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return parseConfig(file, data)
}

func parseConfig(file string, data []byte) (*config, error) {
	cfg := defaultConfig()
	cfg.dir = filepath.Dir(file)
	lines, faults := decodeYAML(data, &cfg)
	if lines != nil {
		missing := cfg.expandProfiles(lines)
		faults = addValidation(faults, lines, append(missing, cfg.validate()...))
	}
	if len(faults) > 0 {
		slices.SortStableFunc(faults, func(a, b fault) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
		})
		return nil, &configError{file, faults}
	}
	return &cfg, nil
}

// addValidation gives the packages' faults their lines, and leaves out those of
// values that could not even be read.
func addValidation(faults []fault, lines map[string]int, found []keyText) []fault {
	unread := faults
	for _, f := range found {
		known := slices.ContainsFunc(unread, func(u fault) bool {
			return f.Key == u.Key || u.Key != "" && strings.HasPrefix(f.Key, u.Key+".")
		})
		if !known {
			faults = append(faults, fault{lineOfKey(lines, f.Key), f.Key, f.Text})
		}
	}
	return faults
}

// lineOfKey returns the line of key or, where the file does not name it, of what it would stand in.
func lineOfKey(lines map[string]int, key string) int {
	for key != "" {
		if l, ok := lines[key]; ok {
			return l
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return 1
}

// keyText is a fault before its line is known.
type keyText struct{ Key, Text string }

// sectionFaults takes apart what a section's Validate returned: errors, joined, each
// "key: what is wrong" with the key as it stands in the section.
func sectionFaults(section string, err error) []keyText {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []keyText
		for _, e := range many.Unwrap() {
			out = append(out, sectionFaults(section, e)...)
		}
		return out
	}
	key, text, ok := strings.Cut(err.Error(), ": ")
	var keyed interface{ FaultKey() string }
	if errors.As(err, &keyed) { // a key may hold ": " itself
		key = keyed.FaultKey()
		text, ok = strings.CutPrefix(err.Error(), key+": ")
	}
	if !ok {
		return []keyText{{section, err.Error()}}
	}
	if key == section || strings.HasPrefix(key, section+".") {
		return []keyText{{key, text}} // the section named itself
	}
	return []keyText{{join(section, key), text}}
}

// networks returns the networks in the words of the seam.
func (c *config) networks() pinhole.Networks {
	nets := make(pinhole.Networks, len(c.Networks))
	for name, n := range c.Networks {
		nets[name] = pinhole.Network{Addresses: n.Addresses, Advertise: n.Advertise, Subnets: n.Subnets, Trusted: n.trusted()}
	}
	return nets
}

// trusted applies the default: a network whose addresses are all private and not advertised is the inside.
func (n networkConfig) trusted() bool {
	if n.Trusted != nil {
		return *n.Trusted
	}
	for _, a := range n.Addresses {
		if !a.IsPrivate() && !a.IsLoopback() {
			return false
		}
	}
	return !n.Advertise.IsValid()
}
