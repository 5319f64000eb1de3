// Package survey looks who else filters and rewrites packets on this machine: firewalld, ufw, Docker, and the kernel's own
// gateways for SIP, H.323 and TFTP (conntrack helpers). It says what becomes of a packet for a port of the edge, by
// following it through the rules of nftables, which are iptables' too. It reads, and changes nothing; what to do about it
// is for others to say, and so is the edge's own table ("inet edged", package firewall), which it leaves out.
//
//	Look ─► Helpers, Modules   what rewrites too, and by which rule or switch
//	     ─► Managers           whose rules there are
//	     ─► Judge              passes, perhaps, blocked, diverted: and by which rule
package survey

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Survey is what [Look] has seen.
type Survey struct {
	// Helpers are those in use, Modules the loaded modules of the kernel that could be.
	Helpers []Helper
	Modules []string
	// Managers are the programs that keep rules of their own, sorted.
	Managers []string
	// Own tells whether the edge's own table is there.
	Own bool
	// Unseen says what could not be looked at, and why.
	Unseen []string
	rules  ruleset
}

// Helper is one way by which the kernel itself reads, and with NAT rewrites, what the edge rewrites.
type Helper struct {
	// Name is the kernel's: sip, Q.931, RAS, H.245, tftp.
	Name string
	// By is what hands packets to it, Remedy the command that ends that.
	By, Remedy string
	match      func(Packet) truth
}

// modules are the modules that rewrite what the edge rewrites, with the ports at which the kernel would look by itself.
func modules() []struct {
	name, helper string
	ports        []uint16
} {
	return []struct {
		name, helper string
		ports        []uint16
	}{
		{"nf_nat_sip", "", nil},
		{"nf_conntrack_sip", "sip", []uint16{5060}},
		{"nf_nat_h323", "", nil},
		{"nf_conntrack_h323", "Q.931", []uint16{1719, 1720}},
		{"nf_nat_tftp", "", nil},
		{"nf_conntrack_tftp", "tftp", []uint16{69}},
	}
}

// isRival tells whether a helper of the kernel's reads a protocol that the edge reads.
func isRival(helper string) bool {
	h, _, _ := strings.Cut(helper, "-") // sip-5070: another port
	return slices.Contains([]string{"sip", "Q.931", "RAS", "H.245", "tftp"}, h)
}

// Look surveys the network namespace of the caller's thread. Root is the file system's, for /proc and /sys. What it may not see
// (the rules need CAP_NET_ADMIN) is named in Unseen.
func Look(root fs.FS) *Survey {
	s := &Survey{}
	for _, m := range modules() {
		if _, err := fs.Stat(root, path.Join("sys/module", m.name, "initstate")); err == nil { // one built in has none
			s.Modules = append(s.Modules, m.name)
		}
	}
	s.automatic(root)
	rules, own, err := loadRules()
	if err != nil {
		s.Unseen = append(s.Unseen, fmt.Sprintf("rules of nftables: %v", err))
	}
	s.rules, s.Own = rules, own
	for _, t := range s.rules {
		s.helpersOf(t)
	}
	s.legacy(root)
	s.manage()
	return s
}

// automatic looks for the switch that kernels before 6.0 have: it gives every module its port, without a rule.
func (s *Survey) automatic(root fs.FS) {
	const key = "net/netfilter/nf_conntrack_helper"
	text, err := fs.ReadFile(root, "proc/sys/"+key)
	if err != nil || strings.TrimSpace(string(text)) != "1" {
		return
	}
	for _, m := range modules() {
		if _, err := fs.Stat(root, path.Join("sys/module", m.name)); err != nil || m.helper == "" {
			continue
		}
		s.Helpers = append(s.Helpers, Helper{
			Name: m.helper, By: "sysctl net.netfilter.nf_conntrack_helper = 1",
			Remedy: "sysctl -w net.netfilter.nf_conntrack_helper=0",
			match:  func(p Packet) truth { return truthOf(slices.Contains(m.ports, p.To.Port())) },
		})
	}
}

// legacy says that there are rules of the old iptables, which is another part of the kernel.
func (s *Survey) legacy(root fs.FS) {
	for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
		text, err := fs.ReadFile(root, "proc/thread-self/net/"+file)
		if names := strings.Fields(string(text)); err == nil && len(names) > 0 {
			command := map[string]string{"ip_tables_names": "iptables-legacy", "ip6_tables_names": "ip6tables-legacy"}[file]
			s.Unseen = append(s.Unseen, fmt.Sprintf("tables %s of %s: see %s-save", strings.Join(names, ", "), command, command))
		}
	}
}

// helpersOf finds the rules of a table that hand packets to a helper.
func (s *Survey) helpersOf(t *ruleTable) {
	for _, c := range t.chains {
		for i, r := range c.rules {
			for _, name := range t.helpersIn(r) {
				if !isRival(name) {
					continue
				}
				s.Helpers = append(s.Helpers, Helper{
					Name: name, By: c.String(), Remedy: c.deleteCommand(i),
					match: func(p Packet) truth { return t.matches(r, p) },
				})
			}
		}
	}
}

// manage recognises programs by the names of their tables and chains.
func (s *Survey) manage() {
	for _, t := range s.rules {
		s.managedBy(t.name, true)
		for _, c := range t.chains {
			s.managedBy(c.name, false)
		}
	}
	slices.Sort(s.Managers)
	s.Managers = slices.Compact(s.Managers)
}

func (s *Survey) managedBy(name string, table bool) {
	for _, m := range []struct {
		beginning, program string
		table              bool
	}{
		{"firewalld", "firewalld", true},
		{"INPUT_ZONES", "firewalld", false},
		{"ufw-", "ufw", false},
		{"ufw6-", "ufw", false},
		{"DOCKER", "Docker", false},
		{"docker-bridges", "Docker", true},
		{"KUBE-", "Kubernetes", false},
		{"kube-proxy", "Kubernetes", true},
		{"LIBVIRT_", "libvirt", false},
		{"libvirt_network", "libvirt", true},
	} {
		if m.table == table && strings.HasPrefix(name, m.beginning) {
			s.Managers = append(s.Managers, m.program)
		}
	}
}

// HelpersFor returns the helpers that would get hold of a packet, perhaps with a condition that cannot be judged.
func (s *Survey) HelpersFor(p Packet) []Helper {
	var out []Helper
	for _, h := range s.Helpers {
		if h.match(p) != no {
			out = append(out, h)
		}
	}
	return out
}
