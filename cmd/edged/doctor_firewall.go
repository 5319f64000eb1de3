package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"edged.dev/edged/pkg/firewall/survey"
	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/fastpath"
)

// firewall follows what is sent to the listeners and the media ports through the rules of others.
func (x *exam) firewall(context.Context) []finding {
	var out []finding
	if len(x.survey.Managers) > 0 {
		out = append(out, fine("firewall", "rules of %s are in force", strings.Join(x.survey.Managers, ", ")))
	}
	blocked, remedies := map[string][]string{}, map[string][]string{}
	for _, w := range x.reachable() {
		p, ok := x.packetTo(w)
		if !ok {
			continue
		}
		switch j := x.survey.Judge(p); j.Fate {
		case survey.Blocked:
			blocked[j.By] = append(blocked[j.By], w.String())
			remedies[j.By] = append(remedies[j.By], x.letIn(j, w))
		case survey.Diverted:
			out = append(out, finding{
				Level: fastpath.Fail, About: "firewall", Text: fmt.Sprintf("%s is sent on to another host by %s", w, j.By), Why: "the edge never sees it",
				Remedy: fmt.Sprintf("remove that rule, or what publishes the port (docker ps --filter publish=%d)", w.at.Port()),
			})
		}
	}
	for _, by := range slices.Sorted(maps.Keys(blocked)) {
		helps := slices.Compact(remedies[by])
		out = append(out, finding{
			Level: fastpath.Fail, About: "firewall", Text: fmt.Sprintf("%s drops what is sent to %s", by, few(blocked[by])), Why: "callers wait for an answer that never comes",
			Remedy: strings.Join(helps[:min(3, len(helps))], "; ") + x.moreRemedy(len(helps)),
		})
	}
	if len(blocked) == 0 && len(x.survey.Unseen) == 0 {
		out = append(out, fine("firewall", "no rule drops what is sent to the listeners and the media ports"))
	}
	return out
}

// few lists the first of many.
func few(list []string) string {
	const most = 6
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

func (x *exam) moreRemedy(n int) string {
	if n <= 3 {
		return ""
	}
	return fmt.Sprintf("; and so on (%d in all), or pinholes.firewall: nftables and one rule that accepts meta mark %#x", n, x.cfg.Firewall.Mark)
}

// reachable are the ports that strangers must reach: listeners, and the ends of the media ranges.
func (x *exam) reachable() []wantedPort {
	blocked := map[string]bool{}
	for _, p := range x.cfg.listeners() {
		if p.Handler == handlerBlocked {
			blocked[p.Key] = true
		}
	}
	out := slices.DeleteFunc(x.wanted(), func(w wantedPort) bool { return w.network == "" || blocked[w.key] })
	for _, name := range x.cfg.byName() {
		for _, a := range x.cfg.Networks[name].Addresses {
			for _, s := range x.cfg.spans() {
				if s.key == "pinholes.tcp" && len(x.cfg.H323.Listen)+len(x.cfg.T120.Listen) == 0 || s.key == "turn.ports" {
					continue
				}
				for _, port := range []int{s.first, s.last} {
					out = append(out, wantedPort{socketAt{s.proto, netip.AddrPortFrom(a, uint16(port))}, name, s.key})
				}
			}
		}
	}
	return out
}

// packetTo is the first packet for a port, as the rules see it.
func (x *exam) packetTo(w wantedPort) (survey.Packet, bool) {
	dev, ok := x.net.device(w.at.Addr())
	if !ok || w.at.Addr().IsLoopback() {
		return survey.Packet{}, false
	}
	p := survey.Packet{In: dev.Attrs().Name, Proto: w.proto, To: w.at}
	if x.cfg.Pinholes.Firewall == media.FirewallNFTables {
		p.Mark = x.cfg.Firewall.Mark // what is open bears it
	}
	return p, true
}

// letIn is the command that lets packets for a port in, in the words of the program that keeps the rules.
func (x *exam) letIn(j survey.Judgement, w wantedPort) string {
	port := fmt.Sprint(w.at.Port())
	for _, s := range x.cfg.spans() {
		if s.key == w.key {
			port = fmt.Sprintf("%d-%d", s.first, s.last)
		}
	}
	switch {
	case strings.Contains(j.By, "firewalld") || strings.Contains(j.By, "_ZONES"):
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%s/%s && firewall-cmd --reload", port, w.proto)
	case slices.Contains(x.survey.Managers, "ufw") && strings.Contains(j.By, "table ip"):
		return fmt.Sprintf("ufw allow %s/%s", strings.ReplaceAll(port, "-", ":"), w.proto)
	case x.cfg.Pinholes.Firewall == media.FirewallNFTables:
		mark, _, _ := strings.Cut(j.Remedy, " "+w.proto+" dport ")
		return fmt.Sprintf("%s meta mark %#x accept", mark, x.cfg.Firewall.Mark)
	}
	return strings.Replace(j.Remedy, "port "+fmt.Sprint(w.at.Port()), "port "+port, 1)
}

// helpers looks for what the kernel itself rewrites of the edge's protocols.
func (x *exam) helpers(context.Context) []finding {
	var out []finding
	handed := x.handedOver()
	for _, h := range x.survey.Helpers {
		f := finding{
			Level: fastpath.Warn, About: "helpers", Text: fmt.Sprintf("the kernel's helper %q gets packets by %s", h.Name, h.By),
			Why: "two rewrite the same messages: addresses are wrong, and calls have no audio", Remedy: h.Remedy,
		}
		if slices.ContainsFunc(handed, func(p survey.Packet) bool { return slices.Contains(names(x.survey.HelpersFor(p)), h.By) }) {
			f.Level, f.Why = fastpath.Fail, f.Why+"; the edge takes these packets over (transparent) and refuses to start"
		}
		out = append(out, f)
	}
	if len(x.survey.Modules) > 0 {
		out = append(out, finding{
			Level: fastpath.Warn, About: "helpers", Text: "loaded: " + strings.Join(x.survey.Modules, ", "), Why: "they rewrite what the edge rewrites, as soon as a rule or a sysctl names them",
			Remedy: "rmmod " + strings.Join(x.survey.Modules, " ") + " (and blacklist them in /etc/modprobe.d)",
		})
	}
	if len(out) == 0 {
		out = append(out, fine("helpers", "no rule and no loaded module of the kernel rewrites SIP or H.323"))
	}
	return out
}

func names(list []survey.Helper) []string {
	var out []string
	for _, h := range list {
		out = append(out, h.By)
	}
	return out
}

// elsewhere is an address of nobody here, as destination of what is forwarded or handed over (RFC 5737, RFC 3849).
func elsewhere(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8::1")
	}
	return netip.MustParseAddr("192.0.2.1")
}

// handedOver are packets as the transparent listeners take them: for somebody else.
func (x *exam) handedOver() []survey.Packet { return interceptedPackets(x.cfg) }

func interceptedPackets(c *config) []survey.Packet {
	var out []survey.Packet
	for _, l := range c.transparentListeners() {
		for _, a := range c.Networks[l.Network].Addresses {
			if name, err := interfaceOf(a); err == nil {
				out = append(out, survey.Packet{In: name, Proto: l.Proto, To: netip.AddrPortFrom(elsewhere(a.Is6()), l.Port)})
			}
		}
	}
	return out
}

// forwarding looks what becomes of all else that hosts inside send through this gateway, and whether bridges confuse the rules.
func (x *exam) forwarding(context.Context) []finding {
	var out []finding
	if x.sysctl("net/bridge/bridge-nf-call-iptables") == "1" {
		for _, name := range x.cfg.byName() {
			if dev, _ := x.deviceOf(name, false); dev != nil && (dev.Type() == "bridge" || dev.Attrs().MasterIndex != 0) {
				out = append(out, finding{
					Level: fastpath.Warn, About: "forwarding", Text: fmt.Sprintf("bridged packets of %s pass the rules of routing (br_netfilter)", dev.Attrs().Name),
					Why: "FORWARD chains drop, and NAT changes, what should only be bridged", Remedy: "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
				})
			}
		}
	}
	if x.sysctl("net/ipv4/ip_forward") != "1" {
		return append(out, fine("forwarding", "ip_forward is off: hosts inside reach nothing outside but by the edge, which needs no more"))
	}
	for _, from := range x.cfg.byName() {
		for _, to := range x.cfg.byName() {
			if x.cfg.Networks[from].trusted() && !x.cfg.Networks[to].trusted() {
				out = append(out, x.forwardedBetween(from, to)...)
			}
		}
	}
	return out
}

func (x *exam) forwardedBetween(from, to string) []finding {
	in, _ := x.deviceOf(from, false)
	outDev, _ := x.deviceOf(to, false)
	if in == nil || outDev == nil {
		return nil
	}
	p := survey.Packet{In: in.Attrs().Name, Out: outDev.Attrs().Name, Proto: "tcp", To: netip.AddrPortFrom(elsewhere(false), 443)}
	j := x.survey.Judge(p)
	if j.Fate != survey.Blocked {
		return []finding{fine("forwarding", "from %s to %s nothing stands in the way of all else that hosts send", from, to)}
	}
	remedy := j.Remedy
	if i := strings.Index(remedy, " tcp dport"); i >= 0 {
		remedy = fmt.Sprintf("%s iifname %q oifname %q accept", remedy[:i], p.In, p.Out)
	}
	if i := strings.Index(remedy, " -p tcp"); i >= 0 {
		remedy = fmt.Sprintf("%s -i %s -o %s -j ACCEPT", remedy[:i], p.In, p.Out)
	}
	why := "calls by the edge do not need it, but all else of the hosts does: DNS, web, the answers to both"
	if slices.Contains(x.survey.Managers, "Docker") {
		remedy = fmt.Sprintf("iptables -I DOCKER-USER -i %s -o %s -j ACCEPT; iptables -I DOCKER-USER -i %s -o %s -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", p.In, p.Out, p.Out, p.In)
		why = "Docker closes FORWARD when it starts; " + why
	}
	return []finding{{
		Level: fastpath.Warn, About: "forwarding", Text: fmt.Sprintf("%s drops what is forwarded from %s to %s", j.By, p.In, p.Out), Why: why, Remedy: remedy,
	}}
}

// transparent looks whether the rules that hand over are there, where the configuration asks for them.
func (x *exam) transparent(context.Context) []finding {
	c := x.cfg
	if !(c.SIP.Transparent || c.H323.Transparent || c.T120.Transparent || c.ILS.Transparent || c.Audio.Transparent || c.TFTP.Trivial.Transparent) {
		return nil
	}
	if len(c.transparentListeners()) == 0 {
		return []finding{{
			Level: fastpath.Fail, About: "transparent", Text: "no listener of a trusted network is transparent", Why: "nothing is handed over",
			Remedy: "networks.NAME.trusted: true for the hosts' network, with a udp:// or tcp:// listener there",
		}}
	}
	var out []finding
	bad := func(text, why, remedy string) {
		out = append(out, finding{Level: fastpath.Fail, About: "transparent", Text: text, Why: why, Remedy: remedy})
	}
	switch {
	case len(x.survey.Unseen) > 0: // the rules cannot be seen
	case !x.survey.Own && !c.Firewall.Manage:
		bad("the table inet edged is not there, and firewall.manage is off", "nothing is handed over: clients that know of no edge pass it by", "edged firewall apply, or firewall: {manage: true}")
	case !x.survey.Own && x.daemon.runs():
		bad("the table inet edged is not there, though the daemon runs", "nothing is handed over: somebody has removed the rules", "edged firewall apply")
	case x.survey.Own && !x.policyRouted():
		bad(fmt.Sprintf("no rule of policy routing delivers the mark %#x", c.Firewall.Mark), "what is handed over is forwarded or dropped instead", "edged firewall apply")
	}
	if x.sysctl("net/ipv4/conf/all/src_valid_mark") == "1" {
		bad("net.ipv4.conf.all.src_valid_mark is 1 (wg-quick sets it)", "the kernel takes the senders of what is handed over for this machine, and drops it",
			"sysctl -w net.ipv4.conf.all.src_valid_mark=0")
	}
	if len(out) == 0 {
		out = append(out, fine("transparent", "%d listeners take what is handed over", len(c.transparentListeners())))
	}
	return out
}

// policyRouted tells whether the mark leads to the routing table of the edge.
func (x *exam) policyRouted() bool {
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	return err != nil || slices.ContainsFunc(rules, func(r netlink.Rule) bool {
		return r.Mark == x.cfg.Firewall.Mark && r.Table == x.cfg.Firewall.RoutingTable
	})
}

// unseen says what could not be looked at.
func (x *exam) unseen(context.Context) []finding {
	if len(x.survey.Unseen) == 0 {
		return nil
	}
	return []finding{{
		Level: fastpath.Warn, About: "not seen", Text: strings.Join(x.survey.Unseen, "; "), Why: "whether others drop or rewrite packets is not known",
		Remedy: "sudo edged doctor (rules need CAP_NET_ADMIN); what iptables-legacy shows compare by hand, or move to iptables-nft",
	}}
}
