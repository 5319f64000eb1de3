package survey

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// namespace brings the test into a network namespace of its own, with the interfaces lan and wan.
func namespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: network namespaces need root")
	}
	runtime.LockOSThread() // for good: the thread ends with the test's goroutine
	ns, err := netns.New()
	if err != nil {
		t.Skipf("SKIPPED: no network namespace: %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	for _, name := range []string{"lan", "wan"} {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}); err != nil {
			t.Skipf("SKIPPED: no interface: %v", err)
		}
	}
}

// run runs lines, each a command of its own.
func run(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		argv := strings.Fields(line)
		if len(argv) == 0 {
			continue
		}
		if _, err := exec.LookPath(argv[0]); err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

// nft loads a ruleset.
func nft(t *testing.T, text string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

func packet(to string, change ...func(*Packet)) Packet {
	proto, at, _ := strings.Cut(to, "://")
	p := Packet{In: "wan", Proto: proto, To: netip.MustParseAddrPort(at)}
	for _, f := range change {
		f(&p)
	}
	return p
}

// TestJudgeJumpsOfJumps: chains that lead to one another more often than can be followed are given up.
func TestJudgeJumpsOfJumps(t *testing.T) {
	x := &ruleTable{name: "deep", family: nftables.TableFamilyINet}
	for i := range maxDepth - 1 {
		c := &ruleChain{Chain: &nftables.Chain{}, name: fmt.Sprint("c", i), table: x}
		for range 8 { // 8^15 in all
			c.rules = append(c.rules, &nftables.Rule{Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: fmt.Sprint("c", i+1)}}})
		}
		x.chains = append(x.chains, c)
	}
	x.chains[0].Hooknum = nftables.ChainHookInput
	loop := &ruleTable{name: "loop", family: nftables.TableFamilyINet}
	loop.chains = []*ruleChain{{Chain: &nftables.Chain{Hooknum: nftables.ChainHookInput}, name: "self", table: loop, rules: []*nftables.Rule{
		{Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "self"}}}, {Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "self"}}},
	}}}
	for _, table := range []*ruleTable{x, loop} {
		s := &Survey{rules: ruleset{table}}
		j := s.Judge(packet("udp://192.0.2.1:5060"))
		if given := strings.Contains(j.By, "more than"); given != (table == x) || given && j.Fate != Perhaps {
			t.Errorf("%s: %+v", table.name, j)
		}
	}
}

// FuzzExpressions: whatever the kernel says that a rule holds, judging it does not fail.
func FuzzExpressions(f *testing.F) {
	f.Add(uint32(1), uint32(16), uint32(4), []byte("sip"), []byte("\x01\x02\x03\x04"))
	f.Add(uint32(0), uint32(84), uint32(3), []byte("\t\x000000000"), []byte("0"))
	f.Add(uint32(23), uint32(1<<32-16), uint32(32), []byte{}, []byte{0})
	f.Fuzz(func(t *testing.T, register, offset, length uint32, a, b []byte) {
		x := &ruleTable{
			name: "t", family: nftables.TableFamilyINet, sets: map[string][]nftables.SetElement{"s": {{Key: a, Val: b}, {Key: b, KeyEnd: a}, {Key: a, IntervalEnd: true}}},
			spans: map[string]bool{"s": length&1 != 0},
		}
		info := xt.Unknown(a)
		for _, p := range []Packet{packet("udp://192.0.2.1:5060"), packet("tcp://[2001:db8::1]:1720")} {
			for base := range expr.PayloadBase(4) {
				x.matches(&nftables.Rule{Exprs: []expr.Any{
					&expr.Payload{Base: base, DestRegister: register, Offset: offset, Len: length},
					&expr.Bitwise{SourceRegister: register, DestRegister: offset, Len: length, Mask: a, Xor: b},
				}}, p)
			}
			for _, e := range []expr.Any{
				&expr.Immediate{Register: register, Data: a}, &expr.Cmp{Op: expr.CmpOp(offset), Register: register, Data: b}, &expr.Range{Register: register, FromData: a, ToData: b},
				&expr.Lookup{SourceRegister: register, SetName: "s", IsDestRegSet: length&2 != 0, DestRegister: length >> 2}, &expr.Match{Name: "multiport", Info: &info},
				&expr.Target{Name: "CT", Info: &info}, &expr.Meta{Key: expr.MetaKey(offset), Register: register}, &expr.Fib{Register: register, ResultOIF: true, FlagSADDR: true},
			} {
				r := &nftables.Rule{Exprs: []expr.Any{&expr.Immediate{Register: register, Data: b}, e}}
				x.matches(r, p)
				x.helpersIn(r)
			}
		}
		verdictIn(a)
	})
}

// TestJudgeNftables: packets through rules as people write them.
func TestJudgeNftables(t *testing.T) {
	namespace(t)
	nft(t, `
table inet site {
	set friends { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }
	set open { type inet_proto . inet_service; flags interval; elements = { udp . 30000-30099, tcp . 2222 } }
	chain services {
		meta l4proto vmap { tcp : jump stream, udp : jump datagram }
	}
	chain stream {
		tcp dport { 5060-5062, 1720 } accept
		tcp dport 2000-2010 return
		tcp dport 443 counter log limit rate 10/second accept
	}
	chain datagram {
		udp dport 5060 iifname "wan" accept
		ip saddr @friends udp dport 5070 accept
		udp dport 5080 reject
	}
	chain input {
		type filter hook input priority filter; policy drop;
		ct state vmap { invalid : drop, established : accept, related : accept }
		iif lo accept
		meta mark 0x6564 accept
		jump services
		meta l4proto . th dport @open accept
		ip6 daddr 2001:db8::1 udp dport 69 accept
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname "wan" oifname "lan" udp dport 40000 drop
	}
}
table ip nat {
	chain pre { type nat hook prerouting priority dstnat; udp dport 7000 dnat to 10.0.0.9:7000; }
}
`)
	marked := func(p *Packet) { p.Mark = 0x6564 }
	onLan := func(p *Packet) { p.In = "lan" }
	through := func(p *Packet) { p.Out = "lan" }
	from := func(a string) func(*Packet) { return func(p *Packet) { p.From = netip.MustParseAddr(a) } }
	s := Look(fstest.MapFS{})
	if len(s.Unseen) > 0 {
		t.Fatal(s.Unseen)
	}
	for _, tt := range []struct {
		p    Packet
		want Fate
		by   string
	}{
		{packet("udp://192.0.2.1:5060"), Passes, ""},
		{packet("udp://192.0.2.1:5060", onLan), Blocked, "chain input of table inet site (policy drop)"},
		{packet("udp://192.0.2.1:5060", onLan, marked), Passes, ""},
		{packet("tcp://192.0.2.1:5061"), Passes, ""},
		{packet("tcp://192.0.2.1:5063"), Blocked, "policy drop"},
		{packet("tcp://192.0.2.1:2005"), Blocked, "policy drop"},
		{packet("tcp://192.0.2.1:443"), Passes, ""},
		{packet("udp://192.0.2.1:30050"), Passes, ""},
		{packet("udp://192.0.2.1:30100"), Blocked, "policy drop"},
		{packet("tcp://192.0.2.1:30050"), Blocked, "policy drop"},
		{packet("tcp://192.0.2.1:2222"), Passes, ""},
		{packet("udp://192.0.2.1:5070"), Perhaps, "policy drop"},
		{packet("udp://192.0.2.1:5070", from("203.0.113.7")), Passes, ""},
		{packet("udp://192.0.2.1:5070", from("198.51.100.7")), Blocked, "policy drop"},
		{packet("udp://192.0.2.1:5080"), Blocked, "rule 3 of chain datagram"},
		{packet("udp://[2001:db8::1]:69"), Passes, ""},
		{packet("udp://[2001:db8::2]:69"), Blocked, ""},
		{packet("udp://192.0.2.1:7000"), Diverted, "chain pre of table ip nat"},
		{packet("udp://192.0.2.9:40000", through), Blocked, "rule 1 of chain forward"},
		{packet("udp://192.0.2.9:40001", through), Passes, ""},
	} {
		got := s.Judge(tt.p)
		if got.Fate != tt.want || !strings.Contains(got.By, tt.by) {
			t.Errorf("%+v: %+v, want %d by %q", tt.p, got, tt.want, tt.by)
		}
		if got.Fate == Blocked {
			if got.Remedy == "" {
				t.Errorf("%+v: no remedy", tt.p)
				continue
			}
			run(t, got.Remedy)
			if again := Look(fstest.MapFS{}).Judge(tt.p); again.Fate != Passes {
				t.Errorf("%+v: after %q it is %+v", tt.p, got.Remedy, again)
			}
		}
	}
}

// TestJudgeIptables: the same by iptables' own matches.
func TestJudgeIptables(t *testing.T) {
	namespace(t)
	run(t, `
iptables-nft -P INPUT DROP
iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables-nft -N ufw-user-input
iptables-nft -A INPUT -j ufw-user-input
iptables-nft -A ufw-user-input -i wan -p udp -m multiport --dports 5060,50000:50099 -m comment --comment phones -j ACCEPT
iptables-nft -A ufw-user-input -p tcp --dport 1720:1731 -j ACCEPT
iptables-nft -A ufw-user-input -p udp -s 203.0.113.0/24 --dport 69 -j ACCEPT
iptables-nft -A ufw-user-input -p tcp --sport 20 -j ACCEPT
iptables-nft -t nat -N DOCKER
iptables-nft -t nat -A PREROUTING -j DOCKER
iptables-nft -t nat -A DOCKER ! -i docker0 -p udp --dport 3478 -j DNAT --to-destination 172.17.0.2:3478
iptables-nft -P FORWARD DROP
`)
	s := Look(fstest.MapFS{})
	if !slices.Equal(s.Managers, []string{"Docker", "ufw"}) {
		t.Errorf("managers: %v", s.Managers)
	}
	through := func(p *Packet) { p.In, p.Out = "lan", "wan" }
	for _, tt := range []struct {
		p    Packet
		want Fate
	}{
		{packet("udp://192.0.2.1:5060"), Passes},
		{packet("udp://192.0.2.1:5060", func(p *Packet) { p.In = "lan" }), Blocked},
		{packet("udp://192.0.2.1:50042"), Passes},
		{packet("udp://192.0.2.1:50100"), Blocked},
		{packet("tcp://192.0.2.1:1720"), Passes},
		{packet("tcp://192.0.2.1:1732"), Perhaps}, // from port 20 it would pass
		{packet("udp://192.0.2.1:69"), Perhaps},
		{packet("udp://192.0.2.1:3478"), Diverted},
		{packet("tcp://198.51.100.7:80", through), Blocked},
	} {
		if got := s.Judge(tt.p); got.Fate != tt.want {
			t.Errorf("%+v: %+v, want %d", tt.p, got, tt.want)
		}
	}
}

// TestHelpers: helpers in rules of nftables, by an object, by a map, and of iptables; each remedy ends its helper.
func TestHelpers(t *testing.T) {
	sip, h323 := packet("udp://198.51.100.7:5060"), packet("tcp://198.51.100.7:1720")
	for _, tt := range []struct {
		name, nft, commands string
		for5060, for1720    bool
	}{
		{name: "object", for5060: true, nft: `table inet fw {
	ct helper phones { type "sip" protocol udp; l3proto inet; }
	chain pre { type filter hook prerouting priority 0; udp dport { 5060, 5080 } ct helper set "phones"; }
}`},
		{name: "another port", nft: `table inet fw {
	ct helper phones { type "sip" protocol udp; l3proto inet; }
	chain pre { type filter hook prerouting priority 0; udp dport 5080 ct helper set "phones"; }
}`},
		{name: "map", for5060: true, nft: `table ip fw {
	ct helper phones { type "sip" protocol udp; }
	chain pre { type filter hook prerouting priority 0; meta l4proto udp ct helper set udp dport map { 5060 : "phones" }; }
}`},
		{name: "iptables", for1720: true, commands: "iptables-nft -t raw -A PREROUTING -p tcp --dport 1720 -j CT --helper Q.931\n"},
		{name: "of no concern", nft: `table inet fw {
	ct helper f { type "ftp" protocol tcp; l3proto inet; }
	chain pre { type filter hook prerouting priority 0; tcp dport 21 ct helper set "f"; }
}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			namespace(t)
			if tt.nft != "" {
				nft(t, tt.nft)
			}
			run(t, tt.commands)
			s := Look(fstest.MapFS{})
			if len(s.Unseen) > 0 {
				t.Fatal(s.Unseen)
			}
			if got := len(s.HelpersFor(sip)) > 0; got != tt.for5060 {
				t.Errorf("SIP: %t, of %+v", got, s.Helpers)
			}
			if got := len(s.HelpersFor(h323)) > 0; got != tt.for1720 {
				t.Errorf("H.323: %t, of %+v", got, s.Helpers)
			}
			for _, h := range s.Helpers {
				run(t, h.Remedy)
			}
			if s := Look(fstest.MapFS{}); len(s.Helpers) > 0 {
				t.Errorf("after the remedies there is %+v", s.Helpers)
			}
		})
	}
}

// TestModules: what is loaded, and what the kernel's switch gives its ports by itself.
func TestModules(t *testing.T) {
	loaded := fstest.MapFS{
		"sys/module/nf_nat_sip/initstate": {}, "sys/module/nf_conntrack_sip/initstate": {}, "sys/module/nf_conntrack_h323/parameters/x": {},
		"proc/sys/net/netfilter/nf_conntrack_helper": {Data: []byte("1\n")},
	}
	s := Look(loaded)
	if !slices.Equal(s.Modules, []string{"nf_nat_sip", "nf_conntrack_sip"}) {
		t.Errorf("modules: %v", s.Modules)
	}
	if len(s.HelpersFor(packet("udp://192.0.2.1:5060"))) != 1 || len(s.HelpersFor(packet("tcp://192.0.2.1:1720"))) != 1 || len(s.HelpersFor(packet("udp://192.0.2.1:69"))) != 0 {
		t.Errorf("helpers: %+v", s.Helpers)
	}
	loaded["proc/sys/net/netfilter/nf_conntrack_helper"] = &fstest.MapFile{Data: []byte("0\n")}
	if s := Look(loaded); len(s.Helpers) != 0 {
		t.Errorf("switched off: %+v", s.Helpers)
	}
	old := fstest.MapFS{"proc/thread-self/net/ip_tables_names": {Data: []byte("filter\nnat\n")}}
	if s := Look(old); !slices.ContainsFunc(s.Unseen, func(x string) bool { return strings.Contains(x, "iptables-legacy-save") }) {
		t.Errorf("legacy: %v", s.Unseen)
	}
}
