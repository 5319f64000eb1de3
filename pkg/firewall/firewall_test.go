package firewall

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

func someRules() Rules {
	return Rules{Config: DefaultConfig(), Redirects: []Redirect{
		{Name: "h323", Interface: "lan", Proto: "tcp", To: netip.MustParseAddrPort("192.0.2.1:1720")},
		{Name: "h323_ras", Interface: "lan", Proto: "udp", To: netip.MustParseAddrPort("192.0.2.1:1719"), For: netip.MustParseAddr("198.51.100.7")},
		{Name: "ils", Interface: "a-name-of-15-ch", Proto: "tcp", To: netip.MustParseAddrPort("[2001:db8::1]:389")},
		{Name: "sip", Interface: "lan", Proto: "udp", To: netip.MustParseAddrPort("[2001:db8::1]:5060"), For: netip.MustParseAddr("2001:db8::2")},
	}, Answers: []string{"lan"}}
}

func TestString(t *testing.T) {
	const want = `table inet edged {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		iifname "lan" fib daddr type unicast socket transparent 1 counter meta mark set 0x6564 accept comment "answers"
		iifname "lan" meta nfproto ipv4 fib daddr type unicast tcp dport 1720 tproxy ip to 192.0.2.1:1720 counter meta mark set 0x6564 accept comment "h323"
		iifname "lan" meta nfproto ipv4 fib daddr type unicast ip daddr 198.51.100.7 udp dport 1719 tproxy ip to 192.0.2.1:1719 counter meta mark set 0x6564 accept comment "h323_ras"
		iifname "a-name-of-15-ch" meta nfproto ipv6 fib daddr type unicast tcp dport 389 tproxy ip6 to [2001:db8::1]:389 counter meta mark set 0x6564 accept comment "ils"
		iifname "lan" meta nfproto ipv6 fib daddr type unicast ip6 daddr 2001:db8::2 udp dport 5060 tproxy ip6 to [2001:db8::1]:5060 counter meta mark set 0x6564 accept comment "sip"
	}
}
# ip -4 rule add priority 25956 fwmark 0x6564 lookup 25956
# ip -4 route add local 0.0.0.0/0 dev lo table 25956
# ip -6 rule add priority 25956 fwmark 0x6564 lookup 25956
# ip -6 route add local ::/0 dev lo table 25956
`
	if got := someRules().String(); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestValidate(t *testing.T) {
	for want, change := range map[string]func(*Rules){
		"mark: 0 is":           func(r *Rules) { r.Config.Mark = 0 },
		"routing_table: 254":   func(r *Rules) { r.Config.RoutingTable = 254 },
		`redirects[0]: "a\"b"`: func(r *Rules) { r.Redirects[0].Interface = `a"b` },
		`redirects[0]: "sctp"`: func(r *Rules) { r.Redirects[0].Proto = "sctp" },
		`redirects[1]: ""`:     func(r *Rules) { r.Redirects[1].Interface = "" },
		"redirects[2]: [2001":  func(r *Rules) { r.Redirects[2].To = netip.MustParseAddrPort("[2001:db8::1]:0") },
		`redirects[0]: "a b"`:  func(r *Rules) { r.Redirects[0].Name = "a b" },
		"redirects[0]: 2001":   func(r *Rules) { r.Redirects[0].For = netip.MustParseAddr("2001:db8::7") },
		`answers[0]: ""`:       func(r *Rules) { r.Answers[0] = "" },
		"redirects[2]: inv":    func(r *Rules) { r.Redirects[2].To = netip.AddrPort{} },
	} {
		r := someRules()
		change(&r)
		if err := r.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := someRules().Validate(); err != nil {
		t.Error(err)
	}
}

// namespace brings the test into a network namespace of its own.
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
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, stdin string, argv ...string) string {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
	return string(out)
}

// state is all that there is: tables, rules, routes.
func state(t *testing.T) string {
	t.Helper()
	text := run(t, "", "nft", "list", "ruleset")
	for _, f := range []string{"-4", "-6"} {
		text += run(t, "", "ip", f, "rule") + run(t, "", "ip", f, "route", "show", "table", "all")
	}
	return text
}

// TestApplyIsWhatStringSays: netlink and nft make the same of the rules; applying again changes nothing, and removing
// leaves what there was before, of others too.
func TestApplyIsWhatStringSays(t *testing.T) {
	t.Run("redirects", func(t *testing.T) { applyIsWhatStringSays(t, someRules()) })
	r := someRules()
	r.Guard = true
	t.Run("guard, nothing listens", func(t *testing.T) { applyIsWhatStringSays(t, r) })
	r.Listeners = []Port{{"udp", netip.MustParseAddrPort("192.0.2.1:5060")}, {"tcp", netip.MustParseAddrPort("[2001:db8::1]:5060")}}
	t.Run("guard", func(t *testing.T) { applyIsWhatStringSays(t, r) })
}

func applyIsWhatStringSays(t *testing.T, r Rules) {
	namespace(t)
	run(t, "table inet site { chain input { type filter hook input priority filter; policy drop; iif lo accept; }\n}\n", "nft", "-f", "-")
	before := state(t)
	var applied string
	for i := range 3 {
		if err := Apply(r); err != nil {
			t.Fatal(err)
		}
		if now := state(t); i > 0 && now != applied {
			t.Errorf("applied again it is\n%s\nnot\n%s", now, applied)
		} else {
			applied = now
		}
	}
	if applied == before {
		t.Error("nothing was applied")
	}
	for i := range 2 {
		if err := Remove(r.Config); err != nil {
			t.Fatal(err)
		}
		if now := state(t); now != before {
			t.Errorf("removed %d times there is\n%s\nnot\n%s", i+1, now, before)
		}
	}
	run(t, r.String(), "nft", "-f", "-")
	for line := range strings.Lines(r.String()) {
		if command, ok := strings.CutPrefix(line, "# "); ok {
			run(t, "", strings.Fields(command)...)
		}
	}
	if byHand := state(t); byHand != applied {
		t.Errorf("by nft and ip it is\n%s\nby netlink\n%s", byHand, applied)
	}
}

// TestApplyReplaces: what is not asked for any more is gone, what is still asked for is there once.
func TestApplyReplaces(t *testing.T) {
	namespace(t)
	r := someRules()
	if err := Apply(r); err != nil {
		t.Fatal(err)
	}
	r.Redirects = r.Redirects[:1]
	if err := Apply(r); err != nil {
		t.Fatal(err)
	}
	table := run(t, "", "nft", "list", "table", "inet", TableName)
	if n := strings.Count(table, "tproxy"); n != 1 {
		t.Errorf("%d rules, want 1:\n%s", n, table)
	}
	if rules := run(t, "", "ip", "-4", "rule"); strings.Count(rules, "0x6564") != 1 {
		t.Errorf("the rule of IPv4 is there more or less than once:\n%s", rules)
	}
}
