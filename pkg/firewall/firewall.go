// Package firewall keeps the edge's own nftables table, "inet edged", and the policy routing that goes with it. It hands
// what hosts of trusted networks send to others over to the edge's transparent listeners (TPROXY). It touches no table, rule
// or route of anybody else, speaks netlink itself, and knows no protocol: which ports there are, others say.
//
//	Rules ─► String          what would be applied, in nft's own words
//	      ─► Apply, Remove   the same by netlink: one transaction, as often as one likes
//	      ─► Keeper          applies them for a daemon, again where somebody has removed them, and reads their counters
//
//	packet from inside ─► prerouting (mangle): tproxy, mark ─► ip rule: mark ─► table: local ─► the edge's socket
//	answer to a socket that is bound to an address of others ─► prerouting: socket transparent, mark ─► the same way
package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// TableName is the name of the table, of the family inet.
const TableName = "edged"

// chainName is its one chain.
const chainName = "prerouting"

// Redirect hands packets over that come by an interface, are for a port of others, and would be forwarded.
type Redirect struct {
	// Name is what their packets are counted as: a word of at most 32 letters, digits and "_".
	Name string
	// Interface is where they come by.
	Interface string
	// Proto is tcp or udp.
	Proto string
	// To is the transparent listener; its port is also the one that the packets are for.
	To netip.AddrPort
	// For is the one address of others that is meant; the zero value is any.
	For netip.Addr
}

// Rules are what is to be applied.
type Rules struct {
	Redirects []Redirect
	// Answers are the interfaces by which packets come that are for addresses of others to which the edge's sockets are
	// bound: clients' of a server that the edge speaks for, or servers' of a client.
	Answers []string
	Config  Config
	// Guard has sets in the table of the ports on which the edge is to be reached, and packets for them marked, too:
	// a host firewall that accepts the mark may stay closed otherwise.
	Guard bool
	// Listeners are those of the ports that do not change; the others are [Pinholes].
	Listeners []Port
}

// Validate returns what is wrong with the rules, joined.
func (r Rules) Validate() error {
	var errs []error
	if err := r.Config.Validate(); err != nil {
		errs = append(errs, err)
	}
	for i, x := range r.Redirects {
		if !isInterface(x.Interface) {
			errs = append(errs, fmt.Errorf("redirects[%d]: %q is no interface", i, x.Interface))
		}
		if !isName(x.Name) {
			errs = append(errs, fmt.Errorf("redirects[%d]: %q is no name", i, x.Name))
		}
		if x.For.IsValid() && (x.For.Is4() != x.To.Addr().Is4() || x.For.Zone() != "") {
			errs = append(errs, fmt.Errorf("redirects[%d]: %v is no address of the listener's family", i, x.For))
		}
		if x.Proto != "tcp" && x.Proto != "udp" {
			errs = append(errs, fmt.Errorf("redirects[%d]: %q is not tcp or udp", i, x.Proto))
		}
		if !x.To.IsValid() || x.To.Addr().Is4In6() || x.To.Addr().Zone() != "" || x.To.Port() == 0 {
			errs = append(errs, fmt.Errorf("redirects[%d]: %v is no address and port", i, x.To))
		}
	}
	for i, name := range r.Answers {
		if !isInterface(name) {
			errs = append(errs, fmt.Errorf("answers[%d]: %q is no interface", i, name))
		}
	}
	for i, p := range r.Listeners {
		if !p.At.IsValid() || p.At.Addr().Is4In6() || p.At.Addr().Zone() != "" || p.Proto != "tcp" && p.Proto != "udp" {
			errs = append(errs, fmt.Errorf("listeners[%d]: %s %v is no port", i, p.Proto, p.At))
		}
	}
	return errors.Join(errs...)
}

// maxInterface is the longest name of an interface (IFNAMSIZ without its NUL).
const maxInterface = 15

func isInterface(name string) bool {
	return name != "" && len(name) <= maxInterface && !strings.ContainsAny(name, "\"* \t\n")
}

// isName tells whether a text can be a comment of a rule, and a label.
func isName(name string) bool {
	return name != "" && len(name) <= 32 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// String returns the rules as nft reads them; the policy routing is in comments, as commands.
func (r Rules) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	sets, marks := r.guardText()
	b.WriteString(sets)
	fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook prerouting priority mangle; policy accept;\n", chainName)
	for _, name := range r.Answers {
		fmt.Fprintf(&b, "\t\tiifname %q fib daddr type unicast socket transparent 1 counter meta mark set %#x accept comment %q\n", name, r.Config.Mark, countedAnswers)
	}
	for _, x := range r.Redirects {
		fmt.Fprintf(&b, "\t\t%s\n", x.text(r.Config.Mark))
	}
	b.WriteString(marks + "\t}\n}\n")
	for _, v6 := range r.families() {
		family, all := "-4", "0.0.0.0/0"
		if v6 {
			family, all = "-6", "::/0"
		}
		fmt.Fprintf(&b, "# ip %s rule add priority %d fwmark %#x lookup %d\n", family, r.priority(), r.Config.Mark, r.Config.RoutingTable)
		fmt.Fprintf(&b, "# ip %s route add local %s dev lo table %d\n", family, all, r.Config.RoutingTable)
	}
	return b.String()
}

func (x Redirect) text(mark uint32) string {
	family, nfproto := "ip", "ipv4"
	if x.To.Addr().Is6() {
		family, nfproto = "ip6", "ipv6"
	}
	only := ""
	if x.For.IsValid() {
		only = fmt.Sprintf("%s daddr %s ", family, x.For)
	}
	return fmt.Sprintf("iifname %q meta nfproto %s fib daddr type unicast %s%s dport %d tproxy %s to %s counter meta mark set %#x accept comment %q",
		x.Interface, nfproto, only, x.Proto, x.To.Port(), family, x.To, mark, x.Name)
}

// families tells for which families packets are handed over: false for IPv4, true for IPv6.
func (r Rules) families() []bool {
	var out []bool
	for _, v6 := range []bool{false, true} {
		for _, x := range r.Redirects {
			if x.To.Addr().Is6() == v6 {
				out = append(out, v6)
				break
			}
		}
	}
	return out
}

// countedAnswers is what packets to sockets that are bound to addresses of others are counted as.
const countedAnswers = "answers"

// priority is the place of the rule among those of the system: the table's number, before the main table's rule (32766).
func (r Rules) priority() int { return min(r.Config.RoutingTable, 32000) }
