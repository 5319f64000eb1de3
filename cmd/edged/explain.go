package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sharedport"
)

// portTable is what "edged check --explain" and /api/v1/ports say: what listens, and the documents' port tables
// with what the edge does for each row.
type portTable struct {
	Profiles  []profileName  `json:"profiles"`
	Listeners []portListener `json:"listeners"`
	Tables    []explained    `json:"tables"`
}

type explained struct {
	Title   string         `json:"title"`
	Profile profileName    `json:"profile"`
	Rows    []explainedRow `json:"rows"`
}

type explainedRow struct {
	Row       string    `json:"row"`
	Component string    `json:"component"`
	Ports     string    `json:"ports"`
	Protocol  string    `json:"protocol"`
	Edge      []verdict `json:"edge"`
}

// What becomes of a port.
const (
	stateServed    = "served"    // by a service that knows the protocol
	stateForwarded = "forwarded" // unread, or terminated
	stateDialled   = "dialled"   // the edge connects to it
	stateBlocked   = "blocked"   // refused, counted and logged
	stateClosed    = "closed"    // nothing listens: the kernel refuses, nobody logs
)

// verdict is what the edge does for one leg of a row.
type verdict struct {
	Network  string `json:"network"`
	Protocol string `json:"protocol"`
	Ports    string `json:"ports"`
	State    string `json:"state"`
	Text     string `json:"text"`
}

// explain makes the table of a configuration that is valid: the documents of its profiles, or all of them if it has none.
func (c *config) explain() portTable {
	t := portTable{Profiles: append([]profileName{}, c.Profiles...), Listeners: c.listeners(), Tables: []explained{}}
	for _, d := range documents() {
		if len(c.Profiles) > 0 && !slices.Contains(c.Profiles, d.role) {
			continue
		}
		e := explained{Title: d.title, Profile: d.role}
		for _, r := range d.rows {
			x := explainedRow{Row: r.no, Component: r.component, Ports: r.ports, Protocol: r.protocol, Edge: []verdict{}}
			for _, text := range r.legs {
				l := parseLeg(text)
				for _, network := range c.side(l.side) {
					x.Edge = append(x.Edge, c.judge(l, network, t.Listeners)...)
				}
			}
			e.Rows = append(e.Rows, x)
		}
		t.Tables = append(t.Tables, e)
	}
	return t
}

// wideLeg is how many ports a leg may have for each to be looked at by itself.
const wideLeg = 64

// judge says what becomes of the ports of a leg on a network; ports of the same fate are one verdict.
func (c *config) judge(l leg, network string, all []portListener) []verdict {
	v := verdict{Network: network, Protocol: l.proto, Ports: l.text}
	switch {
	case l.want == wantMedia:
		v.State, v.Text = c.judgeMedia(l.proto)
	case l.want == wantFile:
		return []verdict{c.judgeFile(l, v, all)}
	case l.want == wantNextHop:
		v.State, v.Text = c.judgeNextHop(network)
	case l.count() > wideLeg:
		v.State, v.Text = stateClosed, "nothing listens"
	default:
		return c.judgePorts(l, v, all)
	}
	return []verdict{v}
}

func (c *config) judgePorts(l leg, v verdict, all []portListener) []verdict {
	var out []verdict
	var ports []string
	for _, span := range l.ports {
		for port := int(span.first); port <= int(span.last); port++ {
			state, text := c.judgePort(l, v.Network, uint16(port), all)
			if n := len(out); n > 0 && out[n-1].State == state && out[n-1].Text == text {
				ports = append(ports, fmt.Sprint(port))
			} else {
				v.State, v.Text = state, text
				out, ports = append(out, v), []string{fmt.Sprint(port)}
			}
			out[len(out)-1].Ports = strings.Join(ports, ",")
		}
	}
	return out
}

// judgePort says what becomes of one port.
func (c *config) judgePort(l leg, network string, port uint16, all []portListener) (state, text string) {
	var here []portListener
	for _, p := range all {
		if p.Proto == l.proto && p.Network == network && p.Port == port {
			here = append(here, p)
		}
	}
	missing := c.notServed(l.want)
	if len(here) == 0 {
		return stateClosed, strings.TrimSuffix("nothing listens; "+missing, "; ")
	}
	if here[0].Handler == handlerBlocked {
		return stateBlocked, strings.TrimSuffix("logged; "+missing, "; ")
	}
	fits := func(p portListener) bool {
		return p.Handler == l.want || l.want == wantGroove && p.carriesGroove(c) || l.want == wantTURN && p.Handler == handlerMSTURN || l.want == wantMRAS && p.Handler == handlerSIP || p.Handler == handlerForward && p.forwards(l.want)
	}
	if i := slices.IndexFunc(here, fits); i >= 0 {
		return c.judgeFitting(here[i:], l.want)
	}
	switch {
	case (l.want == wantTURN || l.want == wantGroove) && c.shared(pinhole.Listen{Proto: "tcp", Network: network, Port: port}):
		return stateBlocked, "refused by its first bytes, logged; " + missing
	case l.want == wantWeb:
		return stateBlocked, "no forward names a server: " + here[0].what() + " gets all TLS, and drops what is not its own"
	case l.want == wantBlock:
		return stateServed, here[0].what() + ", by " + here[0].why()
	}
	return stateBlocked, strings.TrimSuffix(here[0].what()+" has the port; "+missing, "; ")
}

// forwards tells whether a forward gets what is wanted of its port: by first bytes, by server names (the web), or all.
func (p portListener) forwards(want string) bool {
	if len(p.Classes) == 0 {
		return want == wantWeb || len(p.Names) == 0
	}
	class := map[string]sharedport.Class{wantWeb: sharedport.HTTP, wantTURN: sharedport.STUN, wantGroove: sharedport.Groove}[want]
	return slices.ContainsFunc(p.Classes, func(k sharedport.Kind) bool { return k.Class == class })
}

// judgeFitting describes the first listener that fits and, of forwards by name, all.
func (c *config) judgeFitting(list []portListener, want string) (state, text string) {
	if list[0].Handler != handlerForward {
		return stateServed, list[0].what() + ", by " + list[0].why()
	}
	var texts []string
	for _, p := range list {
		if p.Handler == handlerForward {
			texts = append(texts, p.what())
		}
		if want != wantWeb {
			break
		}
	}
	return stateForwarded, strings.Join(texts, "; ")
}

// notServed says what is not part of this version, or needs more than a profile, "" for all else.
func (c *config) notServed(want string) string {
	switch want {
	case wantTURN:
		if len(c.MSTURN.Users)+len(c.MSTURN.Secrets) == 0 {
			return "needs msturn.users"
		}
	case wantMRAS:
		if !c.MSTURN.MRAS.On() {
			return "needs msturn.mras.host"
		}
	case wantGroove:
		if len(c.Tunnel.Groove.Relays) == 0 {
			return "needs tunnel.groove.relays"
		}
	}
	return ""
}

func (c *config) judgeMedia(proto string) (state, text string) {
	if len(c.SIP.Listen)+len(c.H323.Listen) == 0 {
		return stateClosed, "no call service is on"
	}
	ports := c.Pinholes.UDP
	if proto == "tcp" {
		ports = c.Pinholes.TCP
	}
	return stateServed, fmt.Sprintf("opened for each call at %s", ports)
}

// judgeFile speaks of the ports of file transfers, which the profiles block all or not at all.
func (c *config) judgeFile(l leg, v verdict, all []portListener) verdict {
	if r := c.TFTP.Ports; r.First > 0 {
		why := portListener{Key: "tftp.ports", Profile: c.from["tftp.ports"]}.why()
		v.State, v.Text = stateServed, fmt.Sprintf("opened for each file at %d-%d, by %s", r.First, r.Last, why)
		return v
	}
	v.State, v.Text = c.judgePort(l, v.Network, l.ports[0].first, all)
	return v
}

// judgeNextHop lists the servers that the edge dials on a network.
func (c *config) judgeNextHop(network string) (state, text string) {
	var servers []string
	for _, domain := range slices.Sorted(maps.Keys(c.SIP.Domains)) {
		if d := c.SIP.Domains[domain]; d.Network == network {
			to := d.Server
			if to == "" {
				to = "as DNS says"
			}
			servers = append(servers, fmt.Sprintf("%s: %s", domain, to))
		}
	}
	if len(servers) == 0 {
		return stateClosed, "no server of sip.domains is there"
	}
	return stateDialled, "dialled, " + strings.Join(servers, ", ")
}

// print writes the table for people.
func (t portTable) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "LISTENER\tSERVICE\tOPENED BY")
	for _, p := range t.Listeners {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", p, p.what(), p.why())
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	for _, e := range t.Tables {
		fmt.Fprintf(w, "\n%s (profile %s)\n", e.Title, e.Profile)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "ROW\tCOMPONENT\tPORTS\tPROTOCOL\tTHE EDGE")
		for _, r := range e.Rows {
			left := fmt.Sprintf("%s\t%s\t%s\t%s", r.Row, r.Component, r.Ports, r.Protocol)
			for _, v := range r.Edge {
				fmt.Fprintf(tw, "%s\t%s\n", left, v)
				left = "\t\t\t"
			}
		}
		if err := tw.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// String returns "NETWORK PROTO/PORTS: STATE: what".
func (v verdict) String() string {
	return fmt.Sprintf("%s %s %s: %s: %s", v.Network, v.Protocol, v.Ports, v.State, v.Text)
}
