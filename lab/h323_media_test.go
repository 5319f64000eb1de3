//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"edged.dev/edged/internal/h323phone"
)

// TestH323IPv6: calls over IPv6, and between a party that has only IPv6 and one that has only IPv4: signalling, H.245,
// T.120 and media each cross over.
func TestH323IPv6(t *testing.T) {
	for _, m := range h323Modes {
		if os.Getenv("EDGED_LAB_FULL") == "" && !slices.Contains([]string{"slow", "fast-tunnelled", "h245-in-setup", "t120"}, m.name) {
			continue
		}
		for _, f := range []struct {
			name    string
			in, out int
		}{{"both", 6, 6}, {"inside", 6, 4}, {"outside", 4, 6}} {
			for _, from := range []side{inside, outside} {
				t.Run(m.name+"-"+f.name+[...]string{inside: "-out", outside: "-in"}[from], func(t *testing.T) {
					r := lab(t)
					onlyEdged(t, "the reference has no H.323")
					in, out := r.Inside("in1"), r.Outside("out1")
					here, there := in.Addr(f.in, callPort), out.Addr(f.out, callPort)
					host := [2]*Host{in, out}
					if from == outside {
						here, there = there, here
						host[caller], host[callee] = out, in
					}
					e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, aliases: {bob: %q}}\n", h323Listen, there)})
					wan := r.Capture("wan")
					bob := host[callee].H323Phone(t, h323Spec{Name: "bob", At: there, Mode: m.callee})
					family := map[bool]int{true: 4, false: 6}[here.Addr().Is4()]
					gate := netip.AddrPortFrom(r.GW.IPOn(from, family), callPort)
					alice := host[caller].H323Phone(t, h323Spec{Name: "alice", At: here, Mode: m.caller, To: gate, Called: "bob"})
					h323Talk(t, e, alice, bob, m.caller.T120 || m.caller.T120InAck)
					capture := wan.Stop(t)
					wantNoBinaryLeaks(t, capture, r.GW, in.IP)
					wantNoBinaryLeaks(t, capture, r.GW, in.IP6)
				})
			}
		}
	}
}

// TestH323Video: audio, a camera each way, and a second video that one party presents (H.239), whose session the other
// chooses.
func TestH323Video(t *testing.T) {
	for _, tunnelling := range []bool{false, true} {
		for _, from := range []side{inside, outside} {
			t.Run(fmt.Sprintf("tunnelling-%v%s", tunnelling, [...]string{inside: "-out", outside: "-in"}[from]), func(t *testing.T) {
				r := lab(t)
				onlyEdged(t, "the reference has no H.323")
				in, out := r.Inside("in1"), r.Outside("out1")
				host := [2]*Host{in, out}
				if from == outside {
					host = [2]*Host{out, in}
				}
				mode := h323phone.Mode{Tunnelling: tunnelling, Video: true}
				e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, aliases: {bob: %q}}\n", h323Listen, host[callee].IP)})
				wan := r.Capture("wan")
				bob := host[callee].H323Phone(t, h323Spec{Name: "bob", At: host[callee].Addr(4, callPort), Mode: mode})
				alice := host[caller].H323Phone(t, h323Spec{
					Name: "alice", At: host[caller].Addr(4, callPort), Mode: mode, To: netip.AddrPortFrom(r.GW.IPOn(from, 4), callPort), Called: "bob",
				})
				h323Heard(t, alice, bob, false)
				eventually(t, h323Time, "alice sees the camera and the presentation", func() bool {
					camera, presentation := watched(alice)
					return camera >= 25 && presentation >= 25
				})
				eventually(t, h323Time, "bob sees the camera", func() bool { camera, _ := watched(bob); return camera >= 25 })
				fmt.Fprintln(bob.stdin, "hangup")
				eventually(t, h323Time, "no call and no pinhole is left", func() bool { return e.Count("h323_calls") == 0 && e.Count("pinholes") == 0 })
				wantNoBinaryLeaks(t, wan.Stop(t), r.GW, in.IP)
			})
		}
	}
}
