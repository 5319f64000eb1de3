//go:build lab && asterisk

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// asteriskVariable names the root of a Debian 11 with asterisk-ooh323; docs/protocols/h323.md says how to make one.
const asteriskVariable = "EDGED_LAB_ASTERISK"

// asterisk is one that speaks H.323 (chan_ooh323), on a host.
type asterisk struct {
	*Proc
	root, dir string // dir is below root
}

// asteriskSpec is how one is set up.
type asteriskSpec struct {
	name, number string
	fast, tunnel bool
	peer         netip.Addr // where it calls
	gatekeeper   bool       // it registers there
}

// asterisk starts one that echoes who calls its number.
func (h *Host) asterisk(t *testing.T, root string, s asteriskSpec) *asterisk {
	t.Helper()
	name := s.name
	at, err := os.MkdirTemp(filepath.Join(root, "tmp"), "lab-")
	must(t, name, err)
	t.Cleanup(func() { _ = os.RemoveAll(at) })
	dir := strings.TrimPrefix(at, strings.TrimRight(root, "/"))
	yes := map[bool]string{false: "no", true: "yes"}
	gatekeeper := "DISABLE"
	if s.gatekeeper {
		gatekeeper = s.peer.String()
	}
	for file, text := range map[string]string{
		"asterisk.conf": fmt.Sprintf(`[directories]
astetcdir => %[1]s
astmoddir => /usr/lib/asterisk/modules
astvarlibdir => /var/lib/asterisk
astdbdir => %[1]s
astkeydir => %[1]s
astdatadir => /usr/share/asterisk
astspooldir => %[1]s
astrundir => %[1]s
astlogdir => %[1]s
`, dir),
		"modules.conf": `[modules]
autoload=no
load => res_timing_timerfd.so
load => res_sorcery_config.so
load => res_sorcery_memory.so
load => res_pjproject.so
load => res_rtp_asterisk.so
load => codec_ulaw.so
load => pbx_config.so
load => res_clioriginate.so
load => app_echo.so
load => app_milliwatt.so
load => bridge_simple.so
load => chan_ooh323.so
`,
		"pjproject.conf":  "[startup]\ntype=startup\n",
		"logger.conf":     "[general]\n[logfiles]\nconsole => notice,warning,error,verbose\n",
		"extensions.conf": "[default]\nexten => " + s.number + ",1,Answer()\nsame => n,Echo()\n",
		"ooh323.conf": fmt.Sprintf(`[general]
bindaddr=%s
port=1720
h323id=%s
e164=%s
gatekeeper=%s
context=default
disallow=all
allow=ulaw
faststart=%[5]s
h245tunneling=%[6]s
[edge]
type=friend
ip=%[7]s
port=1720
faststart=%[5]s
h245tunneling=%[6]s
disallow=all
allow=ulaw
`, h.IP, name, s.number, gatekeeper, yes[s.fast], yes[s.tunnel], s.peer),
	} {
		must(t, file, os.WriteFile(filepath.Join(at, file), []byte(text), 0o600))
	}
	a := &asterisk{root: root, dir: dir}
	a.Proc = h.Start(t, name, "chroot", root, "/usr/sbin/asterisk", "-f", "-v", "-C", dir+"/asterisk.conf")
	eventually(t, 2*h323Time, name+" takes calls", func() bool { return h.listens(t, callPort) || !a.Alive() })
	return a
}

// do runs a command of its console.
func (a *asterisk) do(t *testing.T, h *Host, command string) {
	t.Helper()
	p := h.Start(t, a.Name+"-console", "chroot", a.root, "/usr/sbin/asterisk", "-C", a.dir+"/asterisk.conf", "-rx", command)
	must(t, command, p.Wait(h323Time))
}

// asteriskRoot returns where Asterisk is installed, or skips.
func asteriskRoot(t *testing.T) string {
	t.Helper()
	root := os.Getenv(asteriskVariable)
	if root == "" {
		t.Skipf("SKIPPED: no real H.323 peer (set %s; docs/protocols/h323.md)", asteriskVariable)
	}
	return root
}

// asteriskModes are the ways in which chan_ooh323 sets up calls.
var asteriskModes = []struct {
	name string
	asteriskSpec
}{
	{"slow", asteriskSpec{}}, {"slow-tunnelled", asteriskSpec{tunnel: true}},
	{"fast", asteriskSpec{fast: true}}, {"fast-tunnelled", asteriskSpec{fast: true, tunnel: true}},
	{"gatekeeper", asteriskSpec{fast: true, gatekeeper: true}},
}

// TestH323Asterisk: two Asterisks, a strict stack of version 4 (ooh323c), call each other through edged; who calls hears
// its own tone, which the other has sent back. By slow and by fast start, tunnelled or not, registered with the built-in
// gatekeeper, both directions.
func TestH323Asterisk(t *testing.T) {
	root := asteriskRoot(t)
	for _, m := range asteriskModes {
		for _, from := range []side{inside, outside} {
			t.Run(m.name+[...]string{inside: "-out", outside: "-in"}[from], func(t *testing.T) {
				r := lab(t)
				onlyEdged(t, "the reference has no H.323")
				host := [2]*Host{r.Inside("in1"), r.Outside("out1")}
				if from == outside {
					host[0], host[1] = host[1], host[0]
				}
				conf := fmt.Sprintf("h323: {listen: %s, aliases: {\"100\": %q}}\n", h323Listen, host[callee].IP)
				if m.gatekeeper {
					conf = fmt.Sprintf("h323: {listen: %s, ras: %s, register: [inside, outside]}\n", h323Listen, h323RAS)
				}
				e := r.Edge(t, EdgeConfig{More: conf})
				bob, alice := m.asteriskSpec, m.asteriskSpec
				bob.name, bob.number, bob.peer = "bob", "100", r.GW.IPOn(host[callee].Side, 4)
				alice.name, alice.number, alice.peer = "alice", "101", r.GW.IPOn(from, 4)
				host[callee].asterisk(t, root, bob)
				calling := host[caller].asterisk(t, root, alice)
				if m.gatekeeper {
					eventually(t, 2*h323Time, "both are registered", func() bool { return e.Metric("edged_h323_endpoints") == 2 })
				}
				outer, s := calling.tone(t, r, host[caller], func() bool { return e.Metric("edged_h323_connected_total") > 0 })
				eventually(t, h323Time, "no call and no pinhole is left", func() bool { return e.Count("h323_calls") == 0 && e.Count("pinholes") == 0 })
				wantNoBinaryLeaks(t, outer, r.GW, insideOf(host).IP)
				if s.Voiced < 2*time.Second || s.Hz < 980 || s.Hz > 1020 {
					t.Errorf("the caller hears %v", s)
				}
			})
		}
	}
}

// tone calls 100, plays a tone for some seconds once the call is up, and returns what left on the outside and what came
// to the caller.
func (a *asterisk) tone(t *testing.T, r *Rig, h *Host, up func() bool) ([]Packet, Sound) {
	t.Helper()
	wan, lan := r.Capture("wan"), r.Capture("lan")
	a.do(t, h, "channel originate OOH323/100@edge application Milliwatt")
	until(h323Time, up)
	pass(4 * time.Second)
	a.do(t, h, "channel request hangup all")
	outer, inner := wan.Stop(t), lan.Stop(t)
	heard := inner
	if h.Side == outside {
		heard = outer
	}
	var rtp []Packet // also that which only passes through a NAT
	for _, p := range heard {
		if p.Dst.Addr() == h.IP && !p.TCP && len(p.Payload) == 172 {
			rtp = append(rtp, p)
		}
	}
	return outer, heardOnWire(rtp)
}

// TestH323AsteriskControl: through a NAT without an ALG, the caller hears nothing.
func TestH323AsteriskControl(t *testing.T) {
	root := asteriskRoot(t)
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	r.PlainNAT()
	in, out := r.Inside("in1"), r.Outside("out1")
	out.asterisk(t, root, asteriskSpec{name: "bob", number: "100", peer: r.GW.IPOn(outside, 4)})
	alice := in.asterisk(t, root, asteriskSpec{name: "alice", number: "101", peer: out.IP})
	if _, s := alice.tone(t, r, in, func() bool { return false }); s.Voiced > 0 {
		t.Errorf("the caller hears %v without the ALG", s)
	}
}

// insideOf returns the host that is inside.
func insideOf(host [2]*Host) *Host {
	if host[0].Side == inside {
		return host[0]
	}
	return host[1]
}
