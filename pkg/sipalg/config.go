package sipalg

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/sipalg/imfilter"
	"edged.dev/edged/pkg/sipalg/sdp"
)

// Config is the section "sip" of the configuration.
type Config struct {
	// Listen are the SIP listeners: PROTO://NETWORK:PORT, with PROTO udp, tcp, tls, ws or wss.
	Listen []Listen `yaml:"listen" json:"listen" jsonschema:"description=SIP listeners: PROTO://NETWORK:PORT with PROTO udp tcp tls ws or wss"`
	// Transparent says that the UDP and TCP listeners take what the gateway's rules hand over (TPROXY).
	Transparent bool `yaml:"transparent" json:"transparent,omitempty" jsonschema:"default=false,description=udp and tcp listeners also take what hosts of trusted networks send to others and nftables hands over (tproxy): it goes where it was going unless domains say otherwise; needs CAP_NET_ADMIN"`
	// Domains say where requests for a host go. The key is the host of the Request-URI: a domain, an
	// address, or "*" for all others.
	Domains map[string]Domain `yaml:"domains" json:"domains,omitempty" jsonschema:"description=where requests for a host go; the key is the Request-URI's host or * for all others"`
	// ICE tells what happens to ICE candidates in SDP.
	ICE ICEMode `yaml:"ice" json:"ice,omitempty" jsonschema:"enum=strip,enum=relay,enum=pass,default=strip,description=ICE candidates in SDP: strip them or replace them by the relay's own or pass them"`
	// MediaProfile is how RTP is protected on a network, by its name, or for those who signal by one transport there, by
	// PROTO://NETWORK, which goes first: what comes from there otherwise is refused, and what goes there is made so. What is not
	// named is as-offered: what a peer there and the other one agree on passes.
	MediaProfile map[string]MediaProfile `yaml:"media_profile" json:"media_profile,omitempty" jsonschema:"description=how RTP is protected on a network or for who signals by one transport there (PROTO://NETWORK): rtp (not at all) or srtp (SDES) or dtls-srtp or webrtc (with ICE) or as-offered"`
	// Origins are patterns (path.Match) of the hosts whose web pages may open a WebSocket (RFC 7118 §7) besides the host that
	// they ask for, with the port unless it is the scheme's own: www.example.org, localhost:8080, *.example.org.
	Origins []string `yaml:"origins" json:"origins,omitempty" jsonschema:"description=hosts whose web pages may open a WebSocket besides the edge's own name: www.example.org or *.example.org or localhost:8080"`
	// HideTopology removes the Via and Record-Route fields of a trusted network from what leaves it.
	HideTopology bool `yaml:"hide_topology" json:"hide_topology,omitempty" jsonschema:"default=true,description=remove Via and Record-Route of a trusted network from what leaves it (put back on the way in)"`
	// Keepalive is the interval of the OPTIONS pings that keep NAT bindings of registered clients open; 0 = off.
	Keepalive time.Duration `yaml:"keepalive" json:"keepalive,omitempty" jsonschema:"type=string,default=25s,description=interval of OPTIONS to registered clients behind NAT; 0 = off"`
	// Probe is the interval of the OPTIONS pings to configured servers; 0 = off.
	Probe time.Duration `yaml:"probe" json:"probe,omitempty" jsonschema:"type=string,default=30s,description=interval of OPTIONS to configured servers for failover; 0 = off"`
	// EarlyRefresh lets the edge answer a REGISTER itself while less than half of the binding's
	// lifetime has passed, so that short client refreshes do not load the registrar.
	EarlyRefresh bool `yaml:"early_refresh" json:"early_refresh,omitempty" jsonschema:"default=false,description=answer a refreshing REGISTER at the edge while less than half of the granted lifetime has passed"`
	// DSCP marks SIP packets, 0-63.
	DSCP int `yaml:"dscp" json:"dscp,omitempty" jsonschema:"minimum=0,maximum=63,default=24,description=DSCP of SIP packets"`
	// Scanners are beginnings of User-Agent values (lower case) whose senders are banned at once on
	// untrusted networks.
	Scanners []string `yaml:"scanners" json:"scanners,omitempty" jsonschema:"description=beginnings of User-Agent values whose senders are banned on untrusted networks"`
	// Ban is how long a scanner is banned; 0 = never ban.
	Ban time.Duration `yaml:"ban" json:"ban,omitempty" jsonschema:"type=string,default=10m,description=how long a scanner is banned; 0 = never"`
	// Access restricts who may send on a network; the key is the network's name.
	Access map[string]Access `yaml:"access" json:"access,omitempty" jsonschema:"description=who may send SIP on a network; the key is the network's name"`
	// ClientCertificates are the networks on whose TLS listeners a client certificate is demanded.
	ClientCertificates []string `yaml:"client_certificates" json:"client_certificates,omitempty" jsonschema:"description=networks on whose TLS listeners a client certificate signed by tls.client_ca is demanded"`
	// OptionalClientCertificates are the networks on whose TLS listeners a client certificate is verified if the
	// client shows one: servers do, remote users do not.
	OptionalClientCertificates []string `yaml:"optional_client_certificates" json:"optional_client_certificates,omitempty" jsonschema:"description=networks on whose TLS listeners a client certificate is verified by tls.client_ca where the client shows one"`
	// Peers are names in such certificates whose owners are trusted as the servers of domains are.
	Peers []string `yaml:"peers" json:"peers,omitempty" jsonschema:"description=names in verified client certificates whose owners are trusted as configured servers are"`
	// IMURLs says what happens to links in instant messages.
	IMURLs imfilter.Config `yaml:"im_urls" json:"im_urls,omitzero" jsonschema:"description=links in instant messages"`
}

// Domain says where requests for a host go.
type Domain struct {
	// Network is the name of the network on which the host's server is.
	Network string `yaml:"network" json:"network" jsonschema:"description=name of the network on which the server is"`
	// Server is [PROTO:]HOST[:PORT]; empty: the domain is resolved (RFC 3263).
	Server string `yaml:"server" json:"server,omitempty" jsonschema:"description=[PROTO:]HOST[:PORT]; empty = RFC 3263 resolution of the host itself"`
	// Backups are tried in order when the server does not answer.
	Backups []string `yaml:"backups" json:"backups,omitempty" jsonschema:"description=servers tried in order when the first one does not answer"`
}

// Access lists who may send on a network; deny wins, an empty allow list allows all.
type Access struct {
	Allow []netip.Prefix `yaml:"allow" json:"allow,omitempty" jsonschema:"description=prefixes that may send; empty = all"`
	Deny  []netip.Prefix `yaml:"deny" json:"deny,omitempty" jsonschema:"description=prefixes that may not send; wins over allow"`
}

// Limits is the section "limits.per_source" as far as SIP uses it.
type Limits struct {
	// MessagesPerSecond bounds the requests outside of dialogs and the malformed messages of one
	// source address; configured servers are exempt. 0 = no limit.
	MessagesPerSecond int
	// Connections bounds the stream connections of one source address. 0 = no limit.
	Connections int
}

// ICEMode is the value of "ice": strip, relay or pass.
type ICEMode string

func (m ICEMode) sdp() sdp.ICE {
	switch m {
	case "relay":
		return sdp.Relay
	case "pass":
		return sdp.Pass
	}
	return sdp.Strip
}

// Listen is one listener.
type Listen struct {
	Proto   flow.Proto
	Network string
	Port    uint16
}

// UnmarshalText reads "PROTO://NETWORK:PORT".
func (l *Listen) UnmarshalText(b []byte) error {
	read, err := pinhole.CutListen(string(b))
	if err != nil {
		return err
	}
	proto := flow.ParseProto(read.Proto)
	if proto == 0 {
		return fmt.Errorf("%q: protocol %q is not udp, tcp, tls, ws or wss", b, read.Proto)
	}
	*l = Listen{Proto: proto, Network: read.Network, Port: read.Port}
	return nil
}

// MarshalText writes "PROTO://NETWORK:PORT".
func (l Listen) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// String returns "PROTO://NETWORK:PORT".
func (l Listen) String() string { return fmt.Sprintf("%s://%s:%d", l.Proto, l.Network, l.Port) }

// DefaultConfig returns the defaults; the section is off as long as Listen is empty.
func DefaultConfig() Config {
	return Config{
		ICE: "strip", IMURLs: imfilter.Config{Mode: imfilter.Off}, HideTopology: true, Keepalive: 25 * time.Second, Probe: 30 * time.Second,
		DSCP: 24, Ban: 10 * time.Minute,
		Scanners: []string{"friendly-scanner", "sipvicious", "sipcli", "sip-scan", "sundayddr", "iwar", "sipsak", "vaxsipuseragent", "pplsip", "smap"},
	}
}

// Validate returns all faults of the section, each a [pinhole.Fault], joined. The networks are those of the
// whole configuration.
func (c Config) Validate(nets pinhole.Networks) error {
	var faults pinhole.Faults
	fault := faults.Add
	known := func(key, name string) { faults.Network(key, name, nets) }
	seen := map[string]bool{}
	for i, l := range c.Listen {
		key := fmt.Sprintf("listen[%d]", i)
		known(key, l.Network)
		if seen[l.String()] {
			fault(key, "%s is listed twice", l)
		}
		seen[l.String()] = true
	}
	for host, d := range c.Domains {
		key := "domains." + host
		known(key+".network", d.Network)
		if host == "*" && d.Server == "" {
			fault(key+".server", "is needed for the domain *")
		}
		if d.Server == "" && len(d.Backups) > 0 {
			fault(key+".backups", "needs a server")
		}
		for i, s := range append([]string{d.Server}, d.Backups...) {
			if _, err := parseServer(s); err != nil && s != "" {
				fault(key+[]string{".server", fmt.Sprintf(".backups[%d]", max(i-1, 0))}[min(i, 1)], "%v", err)
			}
		}
	}
	if !slices.Contains([]ICEMode{"strip", "relay", "pass"}, c.ICE) {
		fault("ice", "%q is not strip, relay or pass", c.ICE)
	}
	c.validateMedia(fault, known)
	for key, d := range map[string]time.Duration{"keepalive": c.Keepalive, "probe": c.Probe, "ban": c.Ban} {
		if d < 0 || d > 0 && d < time.Second {
			fault(key, "%v is neither 0 nor at least 1s", d)
		}
	}
	if c.DSCP < 0 || c.DSCP > 63 {
		fault("dscp", "%d is not in 0-63", c.DSCP)
	}
	for name := range c.Access {
		known("access."+name, name)
	}
	c.validateCertificates(fault, known)
	faults = append(faults, c.IMURLs.Validate(nets))
	return faults.Err()
}

// validateMedia judges how media are protected, and who may bring browsers.
func (c Config) validateMedia(fault func(key, format string, a ...any), known func(key, network string)) {
	for name, p := range c.MediaProfile {
		proto, network, cut := strings.Cut(name, "://")
		if !cut {
			network = name
		} else if flow.ParseProto(proto) == 0 || proto != strings.ToLower(proto) {
			fault("media_profile."+name, "protocol %q is not udp, tcp, tls, ws or wss", proto)
		}
		known("media_profile."+name, network)
		if !slices.Contains([]MediaProfile{AsOffered, PlainRTP, SDES, DTLS, WebRTC}, p) {
			fault("media_profile."+name, "%q is not rtp, srtp, dtls-srtp, webrtc or as-offered", p)
		}
	}
	for i, o := range c.Origins {
		if _, err := path.Match(o, "example.org"); err != nil || o == "" || strings.ContainsAny(o, "/@ ") {
			fault(fmt.Sprintf("origins[%d]", i), "%q is not HOST or HOST:PORT, with * for any characters", o)
		}
	}
}

// validateCertificates judges what concerns clients' certificates.
func (c Config) validateCertificates(fault func(key, format string, a ...any), known func(key, network string)) {
	for i, name := range c.ClientCertificates {
		known(fmt.Sprintf("client_certificates[%d]", i), name)
	}
	for i, name := range c.OptionalClientCertificates {
		key := fmt.Sprintf("optional_client_certificates[%d]", i)
		known(key, name)
		if slices.Contains(c.ClientCertificates, name) {
			fault(key, "network %q demands them under client_certificates", name)
		}
	}
	for i, name := range c.Peers {
		if name == "" || strings.ContainsAny(name, " */:@") {
			fault(fmt.Sprintf("peers[%d]", i), "%q is not the name of a host", name)
		}
	}
	if len(c.Peers) > 0 && len(c.ClientCertificates)+len(c.OptionalClientCertificates) == 0 {
		fault("peers", "needs networks under client_certificates or optional_client_certificates")
	}
}

// server is a parsed [PROTO:]HOST[:PORT].
type server struct {
	Host  string
	Port  uint16     // 0: not said
	Proto flow.Proto // 0: not said
}

func parseServer(s string) (server, error) {
	var sv server
	rest := s
	if p, r, ok := strings.Cut(s, ":"); ok && flow.ParseProto(p) != 0 {
		sv.Proto, rest = flow.ParseProto(p), r
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		host, port = strings.Trim(rest, "[]"), ""
	}
	if host == "" || strings.ContainsAny(host, " /@;?") {
		return sv, fmt.Errorf("%q is not [PROTO:]HOST[:PORT]", s)
	}
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return sv, fmt.Errorf("%q is not [PROTO:]HOST[:PORT]", s)
		}
	}
	sv.Host = host
	if port != "" {
		ap, err := netip.ParseAddrPort("0.0.0.0:" + port)
		if err != nil || ap.Port() == 0 {
			return sv, fmt.Errorf("%q: port %q is not a number from 1 to 65535", s, port)
		}
		sv.Port = ap.Port()
	}
	return sv, nil
}
