//go:build lab

package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/internal/h323phone"
)

// managed has the daemon apply the rules itself.
const managed = "firewall: {manage: true}\n"

// TestTransparentTFTP: clients inside that have nothing but a default route get and put files at servers outside, by the
// servers' own addresses; nothing is forwarded. With the table taken off, no file comes.
func TestTransparentTFTP(t *testing.T) {
	r := tftpLab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	dir := out.tftpd(t)
	e := r.Edge(t, EdgeConfig{More: "tftp: {trivial: {listen: [\"udp://inside:69\"], transparent: true, write: true}}\n" + managed})
	want, got := noise(t, filepath.Join(dir, "file"), 30000), filepath.Join(r.Dir, "got")
	for _, block := range []int{0, 1428} {
		text, err := in.tftpGet(tftpTime, out.IP, "file", got, block)
		must(t, "get: "+text, err)
		same(t, got, want)
		text, err = in.tftpPut(tftpTime, out.IP, got, fmt.Sprintf("put-%d", block), block)
		must(t, "put: "+text, err)
		same(t, filepath.Join(dir, fmt.Sprintf("put-%d", block)), want)
	}
	if n := e.Metric("edged_firewall_packets_total", `for="tftp"`); n < 4 {
		t.Errorf("%v requests were handed over", n)
	}
	if n := e.Metric("edged_firewall_packets_total", `for="answers"`); n < 80 {
		t.Errorf("%v packets came to the server's other ports", n)
	}
	e.Firewall(t, "remove")
	if text, err := in.tftpGet(3*time.Second, out.IP, "file", filepath.Join(r.Dir, "none"), 1428); err == nil {
		t.Errorf("without the table the file came: %s", text)
	}
}

// TestTransparentRAS: phones inside that are told of a gatekeeper outside register with it through an edge that they do not know,
// which passes RAS on to that one, or is a gatekeeper in its place; they hear it from the address that they have asked. With
// the table taken off nobody answers.
func TestTransparentRAS(t *testing.T) {
	for _, c := range []struct {
		name   string
		family int
		outer  bool
	}{{"passed-on", 4, true}, {"in-its-place-ipv6", 6, false}} {
		t.Run(c.name, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, out, other := r.Inside("in1"), r.Outside("gk"), r.Inside("in2")
			ras, gate := "ras: [\"udp://inside:1719\"]", out.Addr(c.family, 1719)
			if c.outer {
				out.H323Gatekeeper(t)
				ras = fmt.Sprintf("ras: [\"udp://inside:1719\", \"udp://outside:1719\"], gatekeeper: %q", gate)
			}
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, %s, transparent: true}\n", h323Listen, ras) + managed})
			bob := other.H323Phone(t, h323Spec{Name: "bob", At: other.Addr(c.family, 1720), Gatekeeper: gate})
			alice := in.H323Phone(t, h323Spec{Name: "alice", At: in.Addr(c.family, 1720), Gatekeeper: gate, Called: "bob"})
			h323Between(t, e, alice, bob)
			if n := e.Metric("edged_firewall_packets_total", `for="h323_ras"`); n < 2 {
				t.Errorf("%v messages of RAS were handed over", n)
			}
			e.Firewall(t, "remove")
			carol := in.h323PhoneStarts(t, h323Spec{Name: "carol", At: in.Addr(c.family, 1730), Gatekeeper: gate})
			if until(3*time.Second, func() bool { return logged(carol, "ready") }) {
				t.Error("without the table carol has registered")
			}
		})
	}
}

var _ = strings.Contains
var _ = h323phone.Mode{}
