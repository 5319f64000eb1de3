//go:build lab

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/internal/h323phone"
)

// Firewall runs "edged firewall VERB" on the gateway, with the configuration of the edge.
func (e *Edge) Firewall(t testing.TB, verb string) string {
	t.Helper()
	bin, err := edgedBinary()
	must(t, "build edged", err)
	cmd := exec.Command(bin, "firewall", verb, "--config", e.file)
	var out []byte
	must(t, "edged firewall "+verb, e.rig.GW.Do(func() error {
		out, err = cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	}))
	return string(out)
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
				e.Firewall(t, "apply")
				wan := r.Capture("wan")
				bob := out.H323Phone(t, h323Spec{Name: "bob", At: out.Addr(family, 1720), Mode: m})
				alice := in.H323Phone(t, h323Spec{Name: "alice", At: in.Addr(family, 1720), Mode: m, To: out.Addr(family, 1720), Called: "bob"})
				h323Talk(t, e, alice, bob, m.T120)
				wantNoBinaryLeaks(t, wan.Stop(t), r.GW, in.Addr(family, 0).Addr())
			})
		}
	}
}

// TestH323TransparentControl: if the gateway hands nothing over, not any more, or the edge does not take it, there is no call.
func TestH323TransparentControl(t *testing.T) {
	for name, c := range map[string]struct {
		verbs []string
		taken bool
	}{"not-handed-over": {nil, true}, "removed": {[]string{"apply", "remove"}, true}, "not-taken": {[]string{"apply"}, false}} {
		t.Run(name, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, out := r.Inside("in1"), r.Outside("out1")
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, transparent: %v}\n", h323Listen, c.taken)})
			// The rules are those of an edge that takes them, whether this one does or not.
			e.config.More = fmt.Sprintf("h323: {listen: %s, transparent: true}\n", h323Listen)
			must(t, "configuration", os.WriteFile(e.file, []byte(e.config.yaml(r)), 0o600))
			for _, verb := range c.verbs {
				e.Firewall(t, verb)
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
	e := r.Edge(t, EdgeConfig{More: "ils: {listen: [\"tcp://inside:389\"], server: \"192.0.2.99:389\", transparent: true}\n"})
	e.Firewall(t, "apply")
	in.enlist(t, server, "alice@example.org")
	if got := out.address(t, server, "alice@example.org"); got != littleEndian(r.GW.IPOn(outside, 4)) {
		t.Errorf("the world reads %s", got)
	}
	if got := in.address(t, server, "alice@example.org"); got != littleEndian(in.IP) {
		t.Errorf("alice reads %s", got)
	}
}

// transparentPair are a phone inside, which knows of no edge, and one outside, both at a registrar outside. The gateway routes,
// but nobody outside knows the way back to the inside.
func transparentPair(t *testing.T, family int, transport, pinholes string) (r *Rig, e *Edge, alice, bob *Phone) {
	r = lab(t)
	onlyEdged(t, "the reference does not take what is for others")
	r.setForward(true)
	registrar, in, out := r.Outside("registrar"), r.Inside("in1"), r.Outside("out1")
	registrar.Registrar(t, RegistrarConfig{})
	e = r.Edge(t, EdgeConfig{SIP: "transparent: true", More: "firewall: {manage: true}\n", Pinholes: pinholes})
	c := PhoneConfig{User: "alice", Hz: 440, Register: true, V6: family == 6, Transport: transport, Proxy: registrar.Addr(family, 5060).String()}
	alice = in.Phone(t, c)
	c.User, c.Hz = "bob", 1000
	return r, e, alice, out.Phone(t, c)
}

// TestTransparentSIP: an unmodified phone inside registers with its server outside, calls and is called. It hears SIP from its
// server's address. With the edge's table removed the same call fails.
func TestTransparentSIP(t *testing.T) {
	for _, family := range []int{4, 6} {
		for _, transport := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("ipv%d-%s", family, transport), func(t *testing.T) {
				r, e, alice, bob := transparentPair(t, family, transport, "")
				lan, wan := r.Capture("lan"), r.Capture("wan")
				talk(t, alice, bob, 2*time.Second)
				talk(t, bob, alice, 2*time.Second)
				wantNoLeaks(t, r, lan.Stop(t), wan.Stop(t))
				e.Clean(t)
				e.Firewall(t, "remove")
				alice.Forget()
				bob.Forget()
				alice.Dial(t, bob.AOR())
				if until(2*time.Second, func() bool { return alice.Saw("CALL_ESTABLISHED") }) {
					t.Error("without the edge's table the call was set up")
				}
			})
		}
	}
}

// closed gives the gateway a firewall that drops what nobody inside it has asked for, but for what bears the edge's mark.
func (r *Rig) closed() {
	r.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table inet site {\n chain input {\n  type filter hook input priority filter; policy drop;\n" +
		"  iif lo accept\n  meta l4proto ipv6-icmp accept\n  ct state established,related accept\n  meta mark 0x6564 accept\n }\n}\n")
	must(r.t, "nft", r.GW.Do(func() error {
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	}))
}

// TestTransparentClosed: a host firewall that drops by default lets the edge's open ports pass if the edge tells of them, and
// no others; without that no media passes.
func TestTransparentClosed(t *testing.T) {
	for name, c := range map[string]struct {
		family int
		guard  string
	}{"ipv4": {4, "nftables"}, "ipv6": {6, "nftables"}, "control": {4, "none"}} {
		t.Run(name, func(t *testing.T) {
			r, e, alice, bob := transparentPair(t, c.family, "udp", "{udp: 50000-51999, firewall: "+c.guard+"}")
			r.closed()
			if c.guard == "none" {
				alice.Dial(t, bob.AOR())
				eventually(t, 20*time.Second, "the call is set up", func() bool { return alice.Saw("CALL_ESTABLISHED") })
				pass(2 * time.Second)
				if a, b := alice.Heard(t), bob.Heard(t); a.Voiced+b.Voiced > 0 {
					t.Errorf("alice heard %v, bob %v", a, b)
				}
				return
			}
			talk(t, alice, bob, 2*time.Second)
			talk(t, bob, alice, 2*time.Second)
			e.Clean(t)
			eventually(t, 10*time.Second, "no pinhole is left in the table", func() bool {
				var out []byte
				must(t, "nft", r.GW.Do(func() (err error) {
					out, err = exec.Command("nft", "list", "table", "inet", "edged").CombinedOutput()
					return err
				}))
				return !strings.Contains(string(out), "expires")
			})
		})
	}
}
