//go:build lab

package lab

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"edged.dev/edged/internal/h323phone"
)

// handOver has the gateway hand TCP connections from the inside to a port of others over to the edge, as a site's
// own rules would.
func (r *Rig) handOver(ports ...int) {
	r.t.Helper()
	var rules strings.Builder
	for _, port := range ports {
		fmt.Fprintf(&rules, "iifname \"lan\" ip daddr != %[1]s tcp dport %[2]d tproxy ip to %[1]s:%[2]d meta mark set 1 accept\n", r.GW.IPOn(inside, 4), port)
		fmt.Fprintf(&rules, "iifname \"lan\" ip6 daddr != %[1]s tcp dport %[2]d tproxy ip6 to [%[1]s]:%[2]d meta mark set 1 accept\n", r.GW.IPOn(inside, 6), port)
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table inet handover { chain pre { type filter hook prerouting priority mangle; policy accept;\n" + rules.String() + "}\n}\n")
	must(r.t, "nft", r.GW.Do(func() error {
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	}))
	for _, family := range []string{"-4", "-6"} {
		r.ip("-n %s %s rule add fwmark 1 lookup 100", r.GW.ns, family)
		r.ip("-n %s %s route add local default dev lo table 100", r.GW.ns, family)
	}
}

// TestH323Transparent: a phone inside that has nothing but a default route calls one outside by its address, over IPv4
// and IPv6; the gateway forwards nothing, and hands the call to the edge.
func TestH323Transparent(t *testing.T) {
	for _, family := range []int{4, 6} {
		for name, m := range map[string]h323phone.Mode{"slow": {}, "fast": {FastStart: true}, "t120": {T120: true}} {
			t.Run(fmt.Sprintf("ipv%d-%s", family, name), func(t *testing.T) {
				r := lab(t)
				onlyEdged(t, "the reference has no H.323")
				in, out := r.Inside("in1"), r.Outside("out1")
				e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, transparent: true}\n", h323Listen)})
				r.handOver(1720)
				wan := r.Capture("wan")
				bob := out.H323Phone(t, h323Spec{Name: "bob", At: out.Addr(family, 1720), Mode: m})
				alice := in.H323Phone(t, h323Spec{Name: "alice", At: in.Addr(family, 1720), Mode: m, To: out.Addr(family, 1720), Called: "bob"})
				h323Talk(t, e, alice, bob, m.T120)
				wantNoBinaryLeaks(t, wan.Stop(t), r.GW, in.Addr(family, 0).Addr())
			})
		}
	}
}

// TestH323TransparentControl: if the gateway hands nothing over, or the edge does not take it, there is no call.
func TestH323TransparentControl(t *testing.T) {
	for name, on := range map[string][2]bool{"not-handed-over": {false, true}, "not-taken": {true, false}} {
		t.Run(name, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, out := r.Inside("in1"), r.Outside("out1")
			r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, transparent: %v}\n", h323Listen, on[1])})
			if on[0] {
				r.handOver(1720)
			}
			bob := out.H323Phone(t, h323Spec{Name: "bob", At: out.Addr(4, 1720)})
			alice := in.H323Phone(t, h323Spec{Name: "alice", At: in.Addr(4, 1720), To: out.Addr(4, 1720), Called: "bob"})
			eventually(t, 2*h323Time, "alice gives up", func() bool { return !alice.Alive() || logged(alice, "open") })
			if logged(alice, "open") || logged(bob, "open") {
				t.Error("the call was set up")
			}
		})
	}
}

// TestILSTransparent: a client inside speaks to a directory outside by its own address, the edge takes that on its
// way: the entry says the edge's address, and what the client reads back its own.
func TestILSTransparent(t *testing.T) {
	r := ilsLab(t)
	in, out := r.Inside("in1"), r.Outside("ils")
	server := out.slapd(t)
	r.Edge(t, EdgeConfig{More: "ils: {listen: [\"tcp://inside:389\"], server: \"192.0.2.99:389\", transparent: true}\n"})
	r.handOver(389)
	in.enlist(t, server, "alice@example.org")
	if got := out.address(t, server, "alice@example.org"); got != littleEndian(r.GW.IPOn(outside, 4)) {
		t.Errorf("the world reads %s", got)
	}
	if got := in.address(t, server, "alice@example.org"); got != littleEndian(in.IP) {
		t.Errorf("alice reads %s", got)
	}
}
