package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg"
	"edged.dev/edged/pkg/sipalg/flow"
	"edged.dev/edged/pkg/tftp"
	"edged.dev/edged/pkg/tunnel/relay"
)

// profileName is the name of a role that the edge plays for some system.
type profileName string

// The profiles.
const (
	profileLCS        profileName = "lcs-2005"
	profileOCS        profileName = "ocs-2007-r2-edge"
	profileNetMeeting profileName = "netmeeting"
	profileGroove     profileName = "groove"
)

// profile says which listeners a role needs. IN stands for every trusted network, OUT for every other.
type profile struct {
	name  profileName
	needs []need
	// listen are listeners by section; a section whose listeners the file names is left alone.
	listen []profileListener
	// files are the ports of file transfers, unless the file has some or says that there are none.
	files tftp.PortRange
	// blocked are ports of the role's systems that are nobody's business: blocked where nothing else listens.
	blocked []string
	// partners says that servers show certificates at the SIP listeners, and users do not.
	partners bool
}

// need is something that a profile cannot guess.
type need struct {
	key, why string
	given    func(*config) bool
}

type profileListener struct {
	section, listen string
	// when says whether the listener is needed on that network; nil: always.
	when func(c *config, network string) bool
}

func profiles() []profile {
	return []profile{lcsProfile(), ocsProfile(), netMeetingProfile(), grooveProfile()}
}

func hasCertificates(c *config) bool { return len(c.TLS.Certificates) > 0 }

// lcsProfile is Windows Messenger with Live Communications Server 2005, on either side.
func lcsProfile() profile {
	// The server sends to the edge on 5060 by itself only where it is not reached by TLS.
	plain := func(c *config, network string) bool { return c.plainNextHop(network) }
	secure := func(c *config, _ string) bool { return hasCertificates(c) }
	return profile{
		name:  profileLCS,
		needs: []need{nextHopNeed()},
		files: tftp.PortRange{First: 6891, Last: 6900},
		listen: []profileListener{
			{"sip", "udp://IN:5060", nil}, {"sip", "tcp://IN:5060", nil}, {"sip", "tls://IN:5061", secure},
			{"sip", "udp://OUT:5060", plain}, {"sip", "tcp://OUT:5060", plain}, {"sip", "tls://OUT:5061", secure},
			{"t120", "tcp://IN:1503", nil}, {"t120", "tcp://OUT:1503", nil},
		},
		blocked: []string{"tcp://IN:5061", "tcp://IN:1503", "udp://OUT:5060", "tcp://OUT:5060", "tcp://OUT:5061", "tcp://OUT:1503"},
	}
}

// ocsProfile is the edge server of Office Communications Server 2007 R2.
func ocsProfile() profile {
	// Without credentials nobody could use the relay.
	relays := func(c *config, _ string) bool { return len(c.MSTURN.Users)+len(c.MSTURN.Secrets) > 0 }
	hands := func(c *config, _ string) bool { return c.MSTURN.MRAS.On() }
	p := profile{
		name: profileOCS, partners: true,
		needs: []need{
			nextHopNeed(),
			{"tls.certificates", "the edge's certificate for 443 and 5061", hasCertificates},
			{"tls.client_ca", "the authorities of federated partners and of the inside servers", func(c *config) bool { return c.TLS.ClientCA != "" }},
		},
		listen: []profileListener{
			{"sip", "tcp://IN:5060", nil}, {"sip", "tls://IN:5061", nil},
			{"sip", "tls://OUT:5061", nil}, {"sip", "tls://OUT:443", nil}, {"sip", "tls://IN:5062", hands},
			{"msturn", "udp://IN:3478", relays}, {"msturn", "tcp://IN:443", relays},
			{"msturn", "udp://OUT:3478", relays}, {"msturn", "tcp://OUT:443", relays},
		},
		files: tftp.PortRange{First: 6891, Last: 6901},
		// The A/V authentication service is served inside of Microsoft's edge, TURN on both sides.
		blocked: []string{
			"tcp://IN:443", "tcp://IN:5062", "tcp://IN:8057", "udp://IN:3478",
			"udp://OUT:3478", "tcp://OUT:3478",
		},
	}
	for _, port := range []int{
		80, 88, 135, 389, 444, 3268, 5041, 5060, 5062, 5063, 5064, 5065, 5069, 5071, 5072, 5073, 5074, 8010, 8011, 8057, 8404,
	} {
		p.blocked = append(p.blocked, fmt.Sprintf("tcp://OUT:%d", port))
	}
	return p
}

// netMeetingProfile is NetMeeting 2 and 3. 522 and 1731 are of version 1 and have no public syntax.
func netMeetingProfile() profile {
	return profile{
		name: profileNetMeeting,
		needs: []need{{"ils.server", "the directory: HOST:PORT, or builtin", func(c *config) bool {
			return c.ILS.Server != "" || len(c.ILS.Servers) > 0
		}}},
		listen: []profileListener{
			{"h323", "tcp://IN:1720", nil}, {"h323", "tcp://OUT:1720", nil},
			{"t120", "tcp://IN:1503", nil}, {"t120", "tcp://OUT:1503", nil},
			{"ils", "tcp://IN:389", nil},
		},
		blocked: []string{"tcp://IN:522", "tcp://IN:1731", "tcp://OUT:389", "tcp://OUT:522", "tcp://OUT:1720", "tcp://OUT:1503", "tcp://OUT:1731"},
	}
}

// grooveProfile publishes a relay of Groove, if the file says where that is.
func grooveProfile() profile {
	relays := func(c *config, _ string) bool { return len(c.Tunnel.Groove.Relays) > 0 }
	return profile{name: profileGroove, listen: []profileListener{
		{"tunnel", "groove://IN:2492", relays}, {"tunnel", "groove://OUT:2492", relays},
		{"tunnel", "groove://OUT:443", relays}, {"tunnel", "http://OUT:80", relays},
	}, blocked: []string{"tcp://IN:2492", "tcp://OUT:80", "tcp://OUT:443", "tcp://OUT:2492"}}
}

func nextHopNeed() need {
	return need{"sip.domains", "where the users' server is, e.g. example.org: {network: inside, server: tls:sip.example.org}", func(c *config) bool {
		return len(c.SIP.Domains) > 0
	}}
}

// plainNextHop tells whether a configured server is on a network and not reached by TLS. One that DNS is to find
// is none: partners are found so.
func (c *config) plainNextHop(network string) bool {
	for _, d := range c.SIP.Domains {
		proto, _, _ := strings.Cut(d.Server, ":")
		if d.Network == network && d.Server != "" && !flow.ParseProto(proto).Secure() {
			return true
		}
	}
	return false
}

// expandProfiles adds what the profiles say to what the file does not. lines are those of the file's keys; added
// keys get the line of their profile. It returns what profiles lack.
func (c *config) expandProfiles(lines map[string]int) []keyText {
	var l faultList
	e := expansion{c: c, lines: lines, set: map[string]bool{}}
	for _, section := range []string{"sip", "t120", "h323", "ils", "msturn", "tunnel"} {
		_, e.set[section] = lines[section+".listen"]
	}
	_, e.set["blocked"] = lines["blocked"]
	var on []profile
	for i, name := range c.Profiles {
		key := fmt.Sprintf("profiles[%d]", i)
		at := slices.IndexFunc(profiles(), func(p profile) bool { return p.name == name })
		switch {
		case at < 0:
			l.add(key, "%q is no profile; there are %s", name, profileNames())
		case slices.Index(c.Profiles, name) < i:
			l.add(key, "%s is listed twice", name)
		default:
			p := profiles()[at]
			if faults := c.lacks(p); len(faults) > 0 {
				for _, f := range faults {
					l.add(key, "%s", f)
				}
				continue
			}
			on = append(on, p)
		}
	}
	for _, p := range on {
		for _, x := range p.listen {
			e.listen(p.name, x)
		}
	}
	e.certificates(on)
	e.relay()
	for _, p := range on {
		e.files(p)
	}
	used := c.usedPorts()
	for _, p := range on {
		for _, text := range p.blocked {
			e.block(p.name, text, used)
		}
	}
	return l
}

func profileNames() string {
	var names []string
	for _, p := range profiles() {
		names = append(names, string(p.name))
	}
	return strings.Join(names, ", ")
}

// lacks says what a profile needs and the file does not have.
func (c *config) lacks(p profile) []string {
	var out []string
	for _, n := range p.needs {
		if !n.given(c) {
			out = append(out, fmt.Sprintf("%s needs %s: %s", p.name, n.key, n.why))
		}
	}
	if len(c.side("IN")) == 0 || len(c.side("OUT")) == 0 {
		out = append(out, fmt.Sprintf("%s needs a trusted network and one that is not, under networks", p.name))
	}
	return out
}

// side returns the networks that IN or OUT stands for.
func (c *config) side(of string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		if c.Networks[name].trusted() == (of == "IN") {
			names = append(names, name)
		}
	}
	return names
}

// expansion adds listeners to a configuration.
type expansion struct {
	c     *config
	lines map[string]int
	// set are the sections whose listeners the file names.
	set map[string]bool
}

// each calls f with a listener of a profile for each network that it stands for.
func (e *expansion) each(text string, f func(scheme, network string, port uint16)) {
	scheme, rest, _ := strings.Cut(text, "://")
	side, port, _ := strings.Cut(rest, ":")
	for _, network := range e.c.side(side) {
		var l sipalg.Listen
		if l.UnmarshalText([]byte("tcp://"+network+":"+port)) == nil {
			f(scheme, network, l.Port)
		}
	}
}

// listen adds a listener to its section, unless the file has said which it wants or another profile has added it.
func (e *expansion) listen(from profileName, x profileListener) {
	if e.set[x.section] {
		return
	}
	e.each(x.listen, func(scheme, network string, port uint16) {
		if x.when != nil && !x.when(e.c, network) {
			return
		}
		if x.section == "sip" {
			l := sipalg.Listen{Proto: flow.ParseProto(scheme), Network: network, Port: port}
			if !slices.Contains(e.c.SIP.Listen, l) {
				e.c.SIP.Listen = append(e.c.SIP.Listen, l)
				e.note(from, "sip.listen", len(e.c.SIP.Listen))
			}
			return
		}
		if x.section == "tunnel" {
			l := relay.Listen{Proto: scheme, Network: network, Port: port}
			if !slices.Contains(e.c.Tunnel.Listen, l) {
				e.c.Tunnel.Listen = append(e.c.Tunnel.Listen, l)
				e.note(from, "tunnel.listen", len(e.c.Tunnel.Listen))
			}
			return
		}
		list := map[string]*[]pinhole.Listen{"t120": &e.c.T120.Listen, "h323": &e.c.H323.Listen, "ils": &e.c.ILS.Listen, "msturn": &e.c.MSTURN.Listen}[x.section]
		l := pinhole.Listen{Proto: scheme, Network: network, Port: port}
		if !slices.Contains(*list, l) {
			*list = append(*list, l)
			e.note(from, x.section+".listen", len(*list))
		}
	})
}

// block adds a blocked port where nothing else listens.
func (e *expansion) block(from profileName, text string, used map[pinhole.Listen]string) {
	if e.set["blocked"] {
		return
	}
	e.each(text, func(scheme, network string, port uint16) {
		l := pinhole.Listen{Proto: scheme, Network: network, Port: port}
		if used[l] == "" && !slices.Contains(e.c.Blocked, l) {
			e.c.Blocked = append(e.c.Blocked, l)
			e.note(from, "blocked", len(e.c.Blocked))
		}
	})
}

// files sets the ports of file transfers to the widest range of the profiles, or blocks them if there shall be none.
func (e *expansion) files(p profile) {
	_, given := e.lines["tftp.ports"]
	switch {
	case p.files.First == 0:
	case !given && p.files.Last > e.c.TFTP.Ports.Last:
		e.c.TFTP.Ports = p.files
		e.remember(p.name, "tftp.ports")
	case given && e.c.TFTP.Ports.First == 0:
		used := e.c.usedPorts()
		for port := p.files.First; port <= p.files.Last; port++ {
			e.block(p.name, fmt.Sprintf("tcp://IN:%d", port), used)
			e.block(p.name, fmt.Sprintf("tcp://OUT:%d", port), used)
		}
	}
}

// certificates has peers of profiles that need it verified where they show certificates, unless the file says who
// must or may show them.
func (e *expansion) certificates(on []profile) {
	const key = "sip.optional_client_certificates"
	_, demanded := e.lines["sip.client_certificates"]
	_, optional := e.lines[key]
	if demanded || optional || !slices.ContainsFunc(on, func(p profile) bool { return p.partners }) {
		return
	}
	e.c.SIP.OptionalClientCertificates = slices.Concat(e.c.side("IN"), e.c.side("OUT"))
}

// relay has all clients of MS-TURN get ports on the one network that is not trusted, as Microsoft's edge does it, if a
// profile has added the listeners and the file does not say where.
func (e *expansion) relay() {
	_, given := e.lines["msturn.relay"]
	if out := e.c.side("OUT"); !given && len(out) == 1 && e.c.from["msturn.listen[0]"] != "" {
		e.c.MSTURN.Relay = out[0]
	}
}

// note remembers which profile has added the n-th item of a list.
func (e *expansion) note(from profileName, key string, n int) {
	e.remember(from, fmt.Sprintf("%s[%d]", key, n-1))
}

func (e *expansion) remember(from profileName, key string) {
	if e.c.from == nil {
		e.c.from = map[string]profileName{}
	}
	e.c.from[key] = from
	e.lines[key] = e.lines[fmt.Sprintf("profiles[%d]", slices.Index(e.c.Profiles, from))]
}
