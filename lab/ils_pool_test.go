//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"testing"

	"edged.dev/edged/internal/h323phone"
)

// TestILSPool: two users inside, each with a public address of his own: directories tell it, and whoever calls it,
// without a name and without having looked anybody up, reaches that user by T.120 and by H.323; nobody else does.
func TestILSPool(t *testing.T) {
	r := ilsLab(t)
	in1, in2, out, stranger := r.Inside("in1"), r.Inside("in2"), r.Outside("out1"), r.Outside("out2")
	pool := []netip.Addr{netip.MustParseAddr(nets4[outside] + "201"), netip.MustParseAddr(nets4[outside] + "202"), netip.MustParseAddr(nets4[outside] + "203")}
	for _, a := range pool {
		r.ip("-n %s addr add %s/24 dev wan", r.GW.ns, a)
	}
	e := r.Edge(t, EdgeConfig{Outside: pool, More: fmt.Sprintf(
		"ils: {listen: [\"tcp://inside:389\", \"tcp://outside:389\"], server: builtin, pool: [%q, %q, %q]}\n"+
			"t120: {listen: [\"tcp://outside:1503\"]}\nh323: {listen: %s}\n", pool[0], pool[1], pool[2], h323Listen)})
	fromIn, fromOut := netip.AddrPortFrom(r.GW.IPOn(inside, 4), 389), netip.AddrPortFrom(r.GW.IPOn(outside, 4), 389)
	told := map[netip.Addr]*Host{}
	for i, h := range []*Host{in1, in2} {
		name := fmt.Sprintf("user%d@example.org", i+1)
		h.answerer(t, 1503, byte(i+1))
		h.enlist(t, fromIn, name)
		got := out.address(t, fromOut, name)
		for _, a := range pool {
			if littleEndian(a) == got {
				told[a] = h
				stranger.reaches(t, a, byte(i+1))
			}
		}
	}
	if len(told) != 2 {
		t.Fatalf("two users have %d addresses of the pool", len(told))
	}
	for _, a := range pool {
		to := netip.AddrPortFrom(a, 1720)
		if h := told[a]; h != nil {
			bob := h.H323Phone(t, h323Spec{Name: "bob-" + h.Name, At: h.Addr(4, 1720)})
			alice := stranger.H323Phone(t, h323Spec{Name: "alice-" + h.Name, At: stranger.Addr(4, 0), Mode: h323phone.Mode{}, To: to, Called: "whoever"})
			h323Between(t, e, alice, bob)
			continue
		}
		alice := stranger.H323Phone(t, h323Spec{Name: "alice-nobody", At: stranger.Addr(4, 0), To: to, Called: "whoever"})
		eventually(t, 2*h323Time, "alice gives up", func() bool { return !alice.Alive() || logged(alice, "open") })
		if logged(alice, "open") {
			t.Errorf("%v, which nobody has, was answered", a)
		}
	}
}
