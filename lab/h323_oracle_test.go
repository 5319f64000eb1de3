//go:build lab

package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"edged.dev/edged/internal/h323phone"
	"edged.dev/edged/internal/tpkt/tpkttest"
)

// oracleTable lists the differences that are meant.
const oracleTable = "testdata/h323_oracle.tsv"

// TestH323Oracle: what real stacks and our phones have said is said again through the kernel's helper and through edged, from
// the inside and from the outside. Where they treat an address differently the table says why; a row that nothing shows
// any more fails too.
func TestH323Oracle(t *testing.T) {
	o := newOracle(t)
	calls, registrations := o.corpora(t)
	calls = append(calls, o.phones(t)...)
	for _, from := range []side{inside, outside} {
		o.compare(t, calls, func(r *Rig, edge bool) *h323Stage { return callStage(t, r, from, edge) })
	}
	o.compare(t, registrations, func(r *Rig, edge bool) *h323Stage { return rasStage(t, r, edge) })
	o.check(t)
}

// TestH323OracleControl: the same said through a NAT without an ALG leaves the inside addresses as they are, which the
// comparison would show.
func TestH323OracleControl(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	alice, bob := r.Inside("alice"), r.Inside("bob")
	d := recordCall(t, alice, bob, "slow", h323phone.Mode{Tunnelling: true}, h323phone.Mode{Tunnelling: true})
	r.PlainNAT()
	out := r.Outside("out1")
	s := &h323Stage{gw: r.GW, host: [2]*Host{alice, out}, target: netip.AddrPortFrom(out.IP, callPort)}
	port := uint16(20000)
	fates, lost := s.play(d.place([2]netip.Addr{alice.IP, out.IP}, &port))
	kept := 0
	for _, f := range fates {
		if f.outward && f.whose == "sender" && f.became == "kept" {
			kept++
		}
	}
	if len(lost) > 0 || kept < 3 {
		t.Errorf("%d inside addresses kept, lost %v", kept, lost)
	}
}

// oracle collects what became of addresses.
type oracle struct {
	rig [2]*Rig // the kernel's, edged's
	// port is the next that no dialogue has used yet.
	port uint16
	// ways counts by fate of the address and what both made of it.
	ways map[string]int
	// lost are messages that the helper dropped, of all.
	dialogues, messages, lost int
	skipped                   bool // a source of dialogues is missing
}

func newOracle(t *testing.T) *oracle {
	o := &oracle{rig: [2]*Rig{lab(t)}, ways: map[string]int{}, port: 20000}
	onlyEdged(t, "the reference has no H.323")
	o.rig[1] = newRig(t)
	return o
}

// corpora reads the captures of real stacks.
func (o *oracle) corpora(t *testing.T) (calls, registrations []*dialogue) {
	dir, ok := tpkttest.Find("..", "h323-lab")
	if !ok {
		t.Logf("no corpora at %s (set EDGED_CORPORA): only our phones", dir)
		o.skipped = true
		return nil, nil
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.pcap"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, "capture", err)
		ps, err := readPcap(asEthernet(b))
		must(t, f, err)
		if d := record(filepath.Base(f), ps, false); d != nil {
			calls = append(calls, d)
		}
		if d := record(filepath.Base(f), ps, true); d != nil {
			registrations = append(registrations, d)
		}
	}
	return calls, registrations
}

// phones records our own phones in every mode.
func (o *oracle) phones(t *testing.T) (calls []*dialogue) {
	alice, bob := o.rig[0].Inside("alice"), o.rig[0].Inside("bob")
	for _, m := range h323Modes {
		calls = append(calls, recordCall(t, alice, bob, m.name, m.caller, m.callee))
	}
	video := h323phone.Mode{Video: true}
	return append(calls, recordCall(t, alice, bob, "video", video, video))
}

// recordCall has two phones call each other with nothing between them.
func recordCall(t *testing.T, alice, bob *Host, name string, caller, callee h323phone.Mode) *dialogue {
	t.Helper()
	c := alice.record(t, name)
	called := bob.H323Phone(t, h323Spec{Name: "bob-" + name, At: netip.AddrPortFrom(bob.IP, callPort), Mode: callee})
	calling := alice.H323Phone(t, h323Spec{
		Name: "alice-" + name, At: netip.AddrPortFrom(alice.IP, callPort), Mode: caller, To: netip.AddrPortFrom(bob.IP, callPort), Called: "bob",
	})
	h323Heard(t, calling, called, caller.T120 || caller.T120InAck)
	if caller.Video {
		eventually(t, h323Time, "the presentation is seen", func() bool { _, n := watched(calling); return n > 0 })
	}
	fmt.Fprintln(called.stdin, "hangup")
	eventually(t, h323Time, "the call ends at alice", func() bool { return logged(calling, "ended") })
	calling.Stop(syscall.SIGTERM)
	called.Stop(syscall.SIGTERM)
	d := record("phones "+name, c.Stop(t), false)
	if d == nil {
		t.Fatalf("%s: no call was recorded", name)
	}
	return d
}

// record starts tcpdump on the host.
func (h *Host) record(t testing.TB, name string) *Capture {
	t.Helper()
	c := &Capture{file: filepath.Join(h.dir, name+".pcap")}
	c.proc = h.Start(t, "tcpdump-"+name, "tcpdump", "-i", "eth0", "-n", "-U", "-s", "65535", "-B", "16384", "-Z", "root", "--immediate-mode", "-w", c.file, "tcp")
	c.proc.Logged(t, h323Time, "listening on")
	return c
}

// callStage has the caller on a side; edged or the kernel's helper with NAT between the hosts.
func callStage(t *testing.T, r *Rig, from side, edge bool) *h323Stage {
	in, out := r.Inside("in"+fmt.Sprint(from)), r.Outside("out"+fmt.Sprint(from))
	s := &h323Stage{gw: r.GW, host: [2]*Host{in, out}}
	if from == outside {
		s.host = [2]*Host{out, in}
	}
	s.target = netip.AddrPortFrom(r.GW.IPOn(from, 4), callPort)
	if edge {
		e := r.Edge(t, EdgeConfig{Pinholes: "{udp: 50000-64999, tcp: 40000-49999, per_owner: 10000}", More: fmt.Sprintf(
			"h323: {listen: %s, default: {inside: %q, outside: %q}}\n", h323Listen, s.host[callee].IP, s.host[callee].IP)})
		s.end = e.Kill
		return s
	}
	r.helper(t, in)
	if from == inside {
		s.target = netip.AddrPortFrom(out.IP, callPort)
	}
	return s
}

// rasStage has an endpoint inside and a gatekeeper outside.
func rasStage(t *testing.T, r *Rig, edge bool) *h323Stage {
	in, out := r.Inside("endpoint"), r.Outside("gk")
	s := &h323Stage{gw: r.GW, host: [2]*Host{in, out}, gatekeeper: netip.AddrPortFrom(out.IP, rasPort)}
	if edge {
		s.gatekeeper = netip.AddrPortFrom(r.GW.IPOn(inside, 4), rasPort)
		e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: %s, register: [inside], gatekeeper: %q}\n", h323Listen, h323RAS, out.IP)})
		s.end = e.Kill
		return s
	}
	r.helper(t, in)
	return s
}

// helper makes the gateway a router with NAT and the kernel's helper; calls from the outside go to a host inside.
func (r *Rig) helper(t *testing.T, in *Host) {
	t.Helper()
	_ = r.GW.Do(func() error { return exec.Command("nft", "delete", "table", "ip", "oracle").Run() })
	rules := fmt.Sprintf(`table ip oracle {
 ct helper q931 { type "Q.931" protocol tcp; }
 ct helper ras { type "RAS" protocol udp; }
 chain assign { type filter hook prerouting priority -150; tcp dport %d ct helper set "q931"; udp dport %d ct helper set "ras"; }
 chain pre { type nat hook prerouting priority -100; iifname "wan" tcp dport %d dnat to %s; }
 chain post { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
`, callPort, rasPort, callPort, in.IP)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	var out []byte
	if err := r.GW.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	}); err != nil {
		t.Skipf("SKIPPED: this kernel has no nf_conntrack_h323: %v: %s", err, out)
	}
	r.setForward(true)
}

// compare holds every dialogue on both stages.
func (o *oracle) compare(t *testing.T, dialogues []*dialogue, stage func(*Rig, bool) *h323Stage) {
	t.Helper()
	var on [2]*h323Stage
	for i, r := range o.rig {
		on[i] = stage(r, i == 1)
		if on[i].end != nil {
			defer on[i].end()
		}
	}
	for _, d := range dialogues {
		o.dialogues++
		o.messages += len(d.lines)
		var fates [2][]fate
		first := o.port
		for i, s := range on {
			o.port = first // each has its own addresses
			var lost []string
			fates[i], lost = s.play(d.place([2]netip.Addr{s.host[caller].IP, s.host[callee].IP}, &o.port))
			if i == 0 {
				o.lost += len(lost)
			} else if len(lost) > 0 {
				t.Errorf("%s: %d of %d messages do not get through edged: %s", d.name, len(lost), len(d.lines), lost)
			}
		}
		if len(fates[0]) != len(fates[1]) {
			t.Fatalf("%s: %d and %d addresses", d.name, len(fates[0]), len(fates[1]))
		}
		for i, k := range fates[0] {
			e := fates[1][i]
			if k.became != "lost" { // with the message: the helper drops what names an address that it expects already
				o.ways[k.key()+"\t"+k.became+"\t"+e.became]++
			}
			if e.became == "kept" && e.whose == "sender" && e.outward {
				t.Errorf("%s: edged lets %s out", d.name, e.where)
			}
		}
	}
}

// check compares what was seen with the table: where, way, whose, kernel, edged, why.
func (o *oracle) check(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(oracleTable)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	meant := map[string]bool{}
	for l := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimRight(l, "\n"), "\t")
		if strings.HasPrefix(l, "#") || len(f) < 6 {
			continue
		}
		meant[strings.Join(f[:5], "\t")] = true
	}
	alike, different := 0, 0
	for _, k := range slices.Sorted(maps.Keys(o.ways)) {
		f := strings.Split(k, "\t")
		if f[3] == f[4] {
			alike += o.ways[k]
			continue
		}
		different += o.ways[k]
		if !meant[k] {
			t.Errorf("not in %s, %d times: %s", oracleTable, o.ways[k], k)
		}
		delete(meant, k)
	}
	for k := range meant {
		if !o.skipped {
			t.Errorf("in %s, but not seen: %s", oracleTable, k)
		}
	}
	t.Logf("%d dialogues, %d messages, of which the helper lost %d; %d addresses alike, %d otherwise", o.dialogues, o.messages, o.lost, alike, different)
}
