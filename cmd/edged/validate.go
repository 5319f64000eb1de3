package main

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap/zapcore"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/pinhole"
)

// faultList collects faults with full keys.
type faultList []keyText

func (l *faultList) add(key, format string, a ...any) {
	*l = append(*l, keyText{key, fmt.Sprintf(format, a...)})
}

// validate returns everything that is wrong although it could be read. Each
// package judges its own section; what concerns two sections is judged here.
func (c *config) validate() []keyText {
	var l faultList
	c.Log.validate(&l)
	c.Admin.validate(&l)
	c.validateNetworks(&l)
	c.validateMedia(&l)
	l = append(l, sectionFaults("firewall", c.Firewall.Validate())...)
	if c.Pinholes.Firewall == media.FirewallNFTables && !c.Firewall.Manage {
		l.add("pinholes.firewall", "nftables needs firewall.manage: true")
	}
	c.Limits.validate(&l)
	c.Trace.validate(&l)
	c.CDR.validate(&l)
	c.HEP.validate(&l, int64(c.Trace.Memory))
	l = append(l, sectionFaults("otel", c.OTel.Validate())...)
	if !c.OTel.Endpoint.IsZero() && c.Trace.Memory == 0 {
		l.add("otel.endpoint", "needs trace.memory, which is 0")
	}
	c.validateSIP(&l)
	l = append(l, sectionFaults("h323", c.H323.Validate(c.networks()))...)
	l = append(l, sectionFaults("t120", c.T120.Validate(c.networks()))...)
	l = append(l, sectionFaults("audiocall", c.Audio.Validate(c.networks()))...)
	l = append(l, sectionFaults("ils", c.ILS.Validate(c.networks()))...)
	l = append(l, sectionFaults("tftp.trivial", c.TFTP.Trivial.Validate(c.networks()))...)
	c.validateTURN(&l)
	l = append(l, sectionFaults("msturn", c.MSTURN.Validate(c.networks()))...)
	c.validateProxy(&l)
	c.validateLinks(&l)
	c.validateTunnel(&l)
	c.validateMediaPorts(&l)
	ports := c.validatePorts(&l)
	c.validateForwards(&l, ports)
	c.validateTFTP(&l, ports)
	c.validateShared(&l)
	c.validateBlocked(&l)
	_, err := loadCertificates(c.TLS, c.dir)
	l = append(l, sectionFaults("tls", err)...)
	for i, name := range c.TLS.Legacy {
		if _, ok := c.Networks[name]; !ok {
			l.add(fmt.Sprintf("tls.legacy[%d]", i), "network %q is not defined under networks", name)
		}
	}
	return l
}

// validatePorts finds ports that two services want, or that pinholes may have. It returns who has which; forwards, which
// may share one, and blocked ports judge themselves by it.
func (c *config) validatePorts(l *faultList) map[pinhole.Listen]string {
	ports := map[pinhole.Listen]string{}
	written := map[string]bool{}
	for _, p := range c.listeners() {
		group := strings.HasPrefix(p.Key, "h323.discovery") // its socket hears nothing but the group
		if group || p.Handler == handlerForward || p.Handler == handlerBlocked {
			continue
		}
		at := pinhole.Listen{Proto: p.Proto, Network: p.Network, Port: p.Port}
		twice := p.Handler == handlerSIP && written[p.String()] // sip says so
		both := p.Handler == handlerTURN && p.Scheme == "udp" && strings.HasPrefix(ports[at], "msturn.")
		sharing := c.shared(at) && c.claimed(at, p.Key) && c.claimed(at, ports[at])
		if other := ports[at]; other != "" && !twice && !both && !sharing {
			l.add(p.Key, "%s is also the %s port of %s", p, strings.ToUpper(p.Proto), other)
		}
		c.validateNoPinhole(l, p.Key, at)
		ports[at], written[p.String()] = p.Key, true
	}
	return ports
}

// validateNoPinhole finds a port of a service among those that pinholes get.
func (c *config) validateNoPinhole(l *faultList, key string, at pinhole.Listen) {
	ports, name := c.Pinholes.TCP, "pinholes.tcp"
	if at.Proto == "udp" {
		ports, name = c.Pinholes.UDP, "pinholes.udp"
	}
	if at.Port >= ports.First && at.Port <= ports.Last {
		l.add(key, "port %d lies in %s (%s), which is for media", at.Port, name, ports)
	}
	if r := c.TURN.Ports; at.Proto == "udp" && at.Port >= r.First && at.Port <= r.Last {
		l.add(key, "port %d lies in turn.ports (%s), which is for relay ports", at.Port, r)
	}
}

// validateMediaPorts finds UDP ports of services among those of pinholes, which would take them.
func (c *config) validateMediaPorts(l *faultList) {
	m := c.Pinholes.UDP
	among := func(key string, first, last uint16) {
		if first > 0 && first <= m.Last && m.First <= last {
			l.add(key, "%d-%d is in pinholes.udp (%s)", first, last, m)
		}
	}
	if p := c.H323.MultiplexPort; p < 65535 {
		among("h323.multiplex_port", p, p+1)
	}
	among("audiocall.udp", c.Audio.UDP.First, c.Audio.UDP.Last)
}

func (c logConfig) validate(l *faultList) {
	if _, err := zapcore.ParseLevel(c.Level); err != nil || !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Level) {
		l.add("log.level", "%q is not debug, info, warn or error", c.Level)
	}
	if !slices.Contains([]string{"auto", "json", "text"}, c.Format) {
		l.add("log.format", "%q is not auto, json or text", c.Format)
	}
}

// unixPath returns the path of a "unix:/path" address.
func (c adminConfig) unixPath() (string, bool) { return strings.CutPrefix(c.Listen, "unix:") }

func (c adminConfig) validate(l *faultList) {
	if c.Listen == "" {
		return
	}
	if path, unix := c.unixPath(); unix {
		if !strings.HasPrefix(path, "/") {
			l.add("admin.listen", "%q: the path of a unix socket must begin with /", c.Listen)
		}
		return
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		l.add("admin.listen", "%q is not HOST:PORT or unix:/PATH", c.Listen)
		return
	}
	addr, err := netip.ParseAddrPort(c.Listen)
	switch {
	case err != nil && host != "localhost":
		l.add("admin.listen", "%q is not an IP address and port", c.Listen)
	case err == nil && !addr.Addr().IsLoopback() && c.Token == "":
		l.add("admin.listen", "%s is not loopback: anyone there could read calls; set admin.token too", c.Listen)
	}
}

func (c *config) validateNetworks(l *faultList) {
	usedBy := map[netip.Addr]string{}
	subnetOf := map[netip.Prefix]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		n, key := c.Networks[name], "networks."+name
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" || name == "" {
			l.add(key, "a network's name may hold a-z, 0-9, _ and - only")
		}
		if len(n.Addresses) == 0 {
			l.add(key+".addresses", "at least one own address is needed")
		}
		for i, a := range n.Addresses {
			at := fmt.Sprintf("%s.addresses[%d]", key, i)
			validateOwnAddress(l, at, a)
			if other, used := usedBy[a]; used && a.IsValid() {
				l.add(at, "%s is also an address of network %q", a, other)
			}
			usedBy[a] = name
		}
		n.validateAdvertise(l, key+".advertise")
		for i, p := range n.Subnets {
			at := fmt.Sprintf("%s.subnets[%d]", key, i)
			if p != p.Masked() {
				l.add(at, "%s names a host; the network is %s", p, p.Masked())
			}
			if other, used := subnetOf[p.Masked()]; used && p.IsValid() {
				l.add(at, "%s is also a subnet of network %q", p, other)
			}
			subnetOf[p.Masked()] = name
		}
	}
}

func validateOwnAddress(l *faultList, key string, a netip.Addr) {
	switch {
	case !a.IsValid(): // could not be read: said already
	case a.IsUnspecified():
		l.add(key, "%s is no address; name the edge's own one on this network", a)
	case a.IsMulticast():
		l.add(key, "%s is a multicast address", a)
	case a.Is4In6():
		l.add(key, "%s: write it as %s", a, a.Unmap())
	}
}

func (n networkConfig) validateAdvertise(l *faultList, key string) {
	if !n.Advertise.IsValid() {
		return
	}
	validateOwnAddress(l, key, n.Advertise)
	same := func(a netip.Addr) bool { return pinhole.FamilyOf(a) == pinhole.FamilyOf(n.Advertise) }
	if !slices.ContainsFunc(n.Addresses, same) {
		l.add(key, "%s: the network has no address of this family", n.Advertise)
	}
}

// validateMedia adds what the relay cannot judge alone: the networks that its keys name.
func (c *config) validateMedia(l *faultList) {
	*l = append(*l, sectionFaults("pinholes", c.Pinholes.Validate())...)
	*l = append(*l, sectionFaults("media", c.Media.Validate())...)
	for name := range c.Pinholes.AllowTargets {
		if _, ok := c.Networks[name]; !ok {
			l.add("pinholes.allow_targets."+name, "network %q is not defined under networks", name)
		}
	}
}

// validateSIP adds what concerns other sections too: certificates.
func (c *config) validateSIP(l *faultList) {
	*l = append(*l, sectionFaults("sip", c.SIP.Validate(c.networks()))...)
	if len(c.listeners())+len(c.Profiles)+len(c.Agent.Relays) == 0 {
		l.add("sip.listen", "no service is on: name at least one listener, e.g. udp://inside:5060")
	}
	if len(c.SIP.ClientCertificates) > 0 && c.TLS.ClientCA == "" {
		l.add("sip.client_certificates", "needs tls.client_ca, the authorities of the clients")
	}
	if len(c.SIP.OptionalClientCertificates) > 0 && c.TLS.ClientCA == "" {
		l.add("sip.optional_client_certificates", "needs tls.client_ca, the authorities of the clients")
	}
	for i, ln := range c.SIP.Listen {
		if ln.Proto.Secure() && len(c.TLS.Certificates) == 0 {
			l.add(fmt.Sprintf("sip.listen[%d]", i), "%s needs a certificate under tls.certificates", ln.Proto)
		}
	}
}

func (c limitsConfig) validate(l *faultList) {
	if c.PerSource.MessagesPerSecond < 0 {
		l.add("limits.per_source.messages_per_second", "%d is negative; 0 means no limit", c.PerSource.MessagesPerSecond)
	}
	if c.PerSource.Connections < 0 {
		l.add("limits.per_source.connections", "%d is negative; 0 means no limit", c.PerSource.Connections)
	}
}
