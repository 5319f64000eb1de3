//go:build lab

package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"edged.dev/edged/internal/h323phone"
)

// h323Modes are the ways in which a call can be set up.
var h323Modes = []struct {
	name           string
	caller, callee h323phone.Mode
}{
	{"slow", h323phone.Mode{}, h323phone.Mode{}},
	{"slow-tunnelled", h323phone.Mode{Tunnelling: true}, h323phone.Mode{Tunnelling: true}},
	{"tunnelling-refused", h323phone.Mode{Tunnelling: true}, h323phone.Mode{}},
	{"fast", h323phone.Mode{FastStart: true}, h323phone.Mode{FastStart: true}},
	{"fast-tunnelled", h323phone.Mode{FastStart: true, Tunnelling: true}, h323phone.Mode{FastStart: true, Tunnelling: true}},
	{"fast-refused", h323phone.Mode{FastStart: true}, h323phone.Mode{}},
	{"h245-in-setup", h323phone.Mode{H245InSetup: true}, h323phone.Mode{}},
	{"late-h245", h323phone.Mode{FastStart: true}, h323phone.Mode{FastStart: true, Late: true}},
	{"t120", h323phone.Mode{T120: true}, h323phone.Mode{}},
	{"t120-in-ack", h323phone.Mode{T120InAck: true, Tunnelling: true}, h323phone.Mode{Tunnelling: true}},
}

const h323RAS = `["udp://inside:1719", "udp://outside:1719"]`

const h323Listen = `["tcp://inside:1720", "tcp://outside:1720"]`

// h323Call makes a call and checks that each hears the other, over T.120 too, and that nothing is left.
func h323Call(t *testing.T, e *Edge, from, to *Host, gate netip.AddrPort, caller, callee h323phone.Mode) {
	t.Helper()
	bob := to.H323Phone(t, h323Spec{Name: "bob", At: netip.AddrPortFrom(to.IP, 1720), Mode: callee})
	alice := from.H323Phone(t, h323Spec{Name: "alice", At: netip.AddrPortFrom(from.IP, 1720), Mode: caller, To: gate, Called: "bob"})
	data := caller.T120 || caller.T120InAck
	h323Talk(t, e, alice, bob, data)
	if n := e.Metric("edged_t120_connections_total"); data && n != 1 {
		t.Errorf("the front of %v data conferences was checked", n)
	}
}

// h323Between checks that both hear each other, and that no call is left when one has hung up; their doors stay.
func h323Between(t *testing.T, e *Edge, pairs ...*Proc) {
	t.Helper()
	for pair := range slices.Chunk(pairs, 2) {
		alice, bob := pair[0], pair[1]
		h323Heard(t, alice, bob, false)
		fmt.Fprintln(bob.stdin, "hangup")
		eventually(t, h323Time, "the call ends at alice", func() bool { return logged(alice, "ended") })
	}
	eventually(t, 10*time.Second, "no call is left", func() bool { return e.Count("h323_calls") == 0 })
}

// h323Talk checks that both hear each other, and that nothing is left when one has hung up.
func h323Talk(t *testing.T, e *Edge, alice, bob *Proc, data bool) {
	t.Helper()
	h323Heard(t, alice, bob, data)
	fmt.Fprintln(bob.stdin, "hangup")
	eventually(t, h323Time, "the call ends at alice", func() bool { return logged(alice, "ended") })
	eventually(t, 10*time.Second, "no call and no pinhole is left", func() bool { return e.Count("h323_calls") == 0 && e.Count("pinholes") == 0 })
}

// h323Heard checks that both hear each other.
func h323Heard(t *testing.T, alice, bob *Proc, data bool) {
	t.Helper()
	for _, p := range []*Proc{alice, bob} {
		eventually(t, h323Time, p.Name+" is in a call", func() bool { return logged(p, "open") || !p.Alive() })
		if !p.Alive() {
			t.Fatalf("%s: %s", p.Name, tail(p.Log, 2000))
		}
	}
	for _, p := range []*Proc{alice, bob} {
		eventually(t, h323Time, p.Name+" hears", func() bool { n, _ := heard(p); return n >= 25 })
		if n, wrong := heard(p); wrong != 0 {
			t.Errorf("%s heard %d packets and %d of others", p.Name, n, wrong)
		}
		if data {
			eventually(t, h323Time, p.Name+" has T.120", func() bool { return logged(p, "data") })
		}
	}
}

// TestH323Calls: every mode, from the inside and from the outside; the capture shows no address of the inside.
func TestH323Calls(t *testing.T) {
	for _, m := range h323Modes {
		for _, dir := range []string{"out", "in"} {
			t.Run(m.name+"-"+dir, func(t *testing.T) {
				r := lab(t)
				onlyEdged(t, "the reference has no H.323")
				in, out := r.Inside("in1"), r.Outside("out1")
				from, to := in, out
				if dir == "in" {
					from, to = out, in
				}
				e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, aliases: {bob: %q}}\n", h323Listen, to.IP)})
				wan := r.Capture("wan")
				h323Call(t, e, from, to, netip.AddrPortFrom(r.GW.IPOn(from.Side, 4), 1720), m.caller, m.callee)
				wantNoBinaryLeaks(t, wan.Stop(t), r.GW, in.IP)
			})
		}
	}
}

// TestH323Again: a second call at once, between the same ports of the same phones.
func TestH323Again(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	in, out := r.Inside("in1"), r.Outside("out1")
	e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, aliases: {bob: %q}}\n", h323Listen, out.IP)})
	for range 3 {
		h323Call(t, e, in, out, netip.AddrPortFrom(r.GW.IPOn(inside, 4), 1720), h323phone.Mode{FastStart: true}, h323phone.Mode{FastStart: true})
	}
}

// TestH323Control: with the ALG off, and call signalling forwarded as it is, the parties do not meet.
func TestH323Control(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	in, out := r.Inside("in1"), r.Outside("out1")
	r.Edge(t, EdgeConfig{More: fmt.Sprintf(
		"forwards: [{name: h323, listen: \"tcp://inside:1720\", to: \"%s:1720\", allow: [0.0.0.0/0], via: user}]\n", out.IP)})
	bob := out.H323Phone(t, h323Spec{Name: "bob", At: netip.AddrPortFrom(out.IP, 1720)})
	alice := in.H323Phone(t, h323Spec{Name: "alice", At: netip.AddrPortFrom(in.IP, 1720), To: netip.AddrPortFrom(r.GW.IPOn(inside, 4), 1720), Called: "bob"})
	eventually(t, 2*h323Time, "alice gives up", func() bool { return !alice.Alive() || logged(alice, "open") })
	if logged(alice, "open") || logged(bob, "open") {
		t.Error("the call was set up without the ALG")
	}
}

// TestH323Gatekeeper: two phones register with the built-in gatekeeper, an inside and an outside one; each calls the
// other by name, and a third one that has not registered calls in.
func TestH323Gatekeeper(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	in, out, guest := r.Inside("in1"), r.Outside("out1"), r.Outside("guest")
	e := r.Edge(t, EdgeConfig{More: fmt.Sprintf(
		"h323: {listen: %s, ras: [\"udp://inside:1719\", \"udp://outside:1719\"], register: [inside, outside]}\n", h323Listen)})
	at := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(h.IP, 1720) }
	gk := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(r.GW.IPOn(h.Side, 4), 1719) }
	for _, pair := range [][2]*Host{{in, out}, {out, in}} {
		bob := pair[1].H323Phone(t, h323Spec{Name: "bob", At: at(pair[1]), Gatekeeper: gk(pair[1])})
		alice := pair[0].H323Phone(t, h323Spec{Name: "alice", At: at(pair[0]), Gatekeeper: gk(pair[0]), Called: "bob"})
		h323Talk(t, e, alice, bob, false)
		alice.Stop(syscall.SIGTERM)
		bob.Stop(syscall.SIGTERM)
	}
	bob := in.H323Phone(t, h323Spec{Name: "bob", At: at(in), Gatekeeper: gk(in)})
	alice := guest.H323Phone(t, h323Spec{Name: "alice", At: at(guest), To: netip.AddrPortFrom(r.GW.IPOn(outside, 4), 1720), Called: "bob"})
	h323Talk(t, e, alice, bob, false)
	if n := e.Metric("edged_h323_endpoints"); n < 1 {
		t.Errorf("%v endpoints", n)
	}
}

// TestH323Discovery: phones find the gatekeeper by multicast, the built-in one and one outside, and call by its means;
// where the edge does not listen to the group they do not.
func TestH323Discovery(t *testing.T) {
	for _, name := range []string{"builtin", "outside", "off"} {
		t.Run(name, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, beside, third := r.Inside("in1"), r.Inside("in2"), r.Outside("gk")
			more := "discovery: [inside]"
			switch name {
			case "outside":
				more = fmt.Sprintf("discovery: [inside], gatekeeper: %q", third.H323Gatekeeper(t))
			case "off":
				more = "discovery: []"
			}
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: %s, %s}\n", h323Listen, h323RAS, more)})
			bob := in.H323Phone(t, h323Spec{Name: "bob", At: netip.AddrPortFrom(in.IP, 1720), Discover: true})
			if name == "off" {
				eventually(t, 2*h323Time, "bob finds no gatekeeper", func() bool { return !bob.Alive() })
				if logged(bob, "found") {
					t.Error("bob has found a gatekeeper")
				}
				return
			}
			if found := fmt.Sprintf("found %s:1719", r.GW.IPOn(inside, 4)); !logged(bob, found) {
				t.Fatalf("not %s: %s", found, tail(bob.Log, 2000))
			}
			alice := beside.H323Phone(t, h323Spec{Name: "alice", At: netip.AddrPortFrom(beside.IP, 1720), Discover: true, Called: "bob"})
			h323Between(t, e, alice, bob)
		})
	}
}

// TestH323OtherGatekeeper: phones on both sides are registered with one gatekeeper that is no edge, the inside ones by
// way of the edge: they call out and in, and two of them each other, by slow and by fast start.
func TestH323OtherGatekeeper(t *testing.T) {
	for name, at := range map[string]side{"outside": outside, "inside": inside} {
		t.Run(name, func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			here, there, other := r.Outside, r.Inside, "inside"
			if at == inside {
				here, there, other = r.Inside, r.Outside, "outside"
			}
			near, beside, far, third := there("near"), there("beside"), here("far"), here("gk")
			gk := third.H323Gatekeeper(t)
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: %s, register: [%s], gatekeeper: %q}\n", h323Listen, h323RAS, other, gk)})
			wan := r.Capture("wan")
			calls := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(h.IP, 1720) }
			// Who is on the gatekeeper's side registers there, the others at the edge.
			ask := func(h *Host) netip.AddrPort {
				if h == far {
					return gk
				}
				return netip.AddrPortFrom(r.GW.IPOn(h.Side, 4), 1719)
			}
			for i, pair := range [][2]*Host{{near, far}, {far, near}, {near, beside}} {
				// A name belongs to one host until its registration ends.
				m, caller, called := h323phone.Mode{FastStart: i > 0}, fmt.Sprint("alice", i), fmt.Sprint("bob", i)
				bob := pair[1].H323Phone(t, h323Spec{Name: called, At: calls(pair[1]), Mode: m, Gatekeeper: ask(pair[1])})
				alice := pair[0].H323Phone(t, h323Spec{Name: caller, At: calls(pair[0]), Mode: m, Gatekeeper: ask(pair[0]), Called: called})
				h323Between(t, e, alice, bob)
				alice.Stop(syscall.SIGTERM)
				bob.Stop(syscall.SIGTERM)
			}
			if n := e.Metric("edged_h323_endpoints"); n != 2 {
				t.Errorf("%v endpoints", n)
			}
			capture := wan.Stop(t)
			if at == outside {
				wantNoBinaryLeaks(t, capture, r.GW, near.IP)
				wantNoBinaryLeaks(t, capture, r.GW, beside.IP)
			}
		})
	}
}

// TestH323OtherGatekeeperControl: when the edge does not pass RAS on, the outside phone cannot be called by name.
func TestH323OtherGatekeeperControl(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	near, far, third := r.Inside("near"), r.Outside("far"), r.Outside("gk")
	gk := third.H323Gatekeeper(t)
	r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: %s}\n", h323Listen, h323RAS)})
	bob := far.H323Phone(t, h323Spec{Name: "bob", At: netip.AddrPortFrom(far.IP, 1720), Gatekeeper: gk})
	alice := near.H323Phone(t, h323Spec{
		Name: "alice", At: netip.AddrPortFrom(near.IP, 1720), Gatekeeper: netip.AddrPortFrom(r.GW.IPOn(inside, 4), 1719), Called: "bob",
	})
	eventually(t, 2*h323Time, "alice gives up", func() bool { return !alice.Alive() || logged(alice, "open") })
	if logged(alice, "open") || logged(bob, "open") {
		t.Error("the call was set up without the gatekeeper")
	}
}

// TestH323BehindNAT: a phone behind a NAT of its own, outside, registers with the built-in gatekeeper as a client of
// H.460.18: it is called from the inside, and calls in, whatever carries H.245.
func TestH323BehindNAT(t *testing.T) {
	for _, tunnelling := range []bool{false, true} {
		t.Run(fmt.Sprintf("tunnelling-%v", tunnelling), func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in := r.Inside("in1")
			home, _ := r.BehindNAT("home")
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: %s, register: [inside, outside]}\n", h323Listen, h323RAS)})
			wan := r.Capture("wan")
			gk := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(r.GW.IPOn(h.Side, 4), 1719) }
			calls := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(h.IP, 1720) }
			mode := h323phone.Mode{Tunnelling: tunnelling}
			behind := mode
			behind.Traversal = true
			bob := home.H323Phone(t, h323Spec{Name: "bob", At: calls(home), Mode: behind, Gatekeeper: gk(home)})
			alice := in.H323Phone(t, h323Spec{Name: "alice", At: calls(in), Mode: mode, Gatekeeper: gk(in), Called: "bob"})
			h323Talk(t, e, alice, bob, false)
			alice.Stop(syscall.SIGTERM)
			bob.Stop(syscall.SIGTERM)
			carol := in.H323Phone(t, h323Spec{Name: "carol", At: calls(in), Mode: mode, Gatekeeper: gk(in)})
			david := home.H323Phone(t, h323Spec{Name: "david", At: calls(home), Mode: behind, Gatekeeper: gk(home), Called: "carol"})
			h323Talk(t, e, david, carol, false)
			wantNoBinaryLeaks(t, wan.Stop(t), r.GW, in.IP)
		})
	}
}

// TestH323Multiplexed: phones behind two NATs of their own have their media at one pair of ports of the edge, called
// from the inside and calling in; without a port for that they have pinholes like all others.
func TestH323Multiplexed(t *testing.T) {
	for _, port := range []uint16{3000, 0} {
		t.Run(fmt.Sprintf("port-%d", port), func(t *testing.T) {
			r := lab(t)
			onlyEdged(t, "the reference has no H.323")
			in, beside := r.Inside("in1"), r.Inside("in2")
			home, router := r.BehindNAT("home")
			cabin, other := r.BehindNAT("cabin")
			e := r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, ras: %s, register: [inside, outside], multiplex_port: %d}\n", h323Listen, h323RAS, port)})
			wan := r.Capture("wan")
			gk := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(r.GW.IPOn(h.Side, 4), 1719) }
			calls := func(h *Host) netip.AddrPort { return netip.AddrPortFrom(h.IP, 1720) }
			behind := h323phone.Mode{Traversal: true, Multiplex: true, Tunnelling: true}
			bob := home.H323Phone(t, h323Spec{Name: "bob", At: calls(home), Mode: behind, Gatekeeper: gk(home)})
			alice := in.H323Phone(t, h323Spec{Name: "alice", At: calls(in), Mode: h323phone.Mode{Tunnelling: true}, Gatekeeper: gk(in), Called: "bob"})
			h323Heard(t, alice, bob, false)
			carol := beside.H323Phone(t, h323Spec{Name: "carol", At: calls(beside), Gatekeeper: gk(beside)})
			behind.Tunnelling = false
			david := cabin.H323Phone(t, h323Spec{Name: "david", At: calls(cabin), Mode: behind, Gatekeeper: gk(cabin), Called: "carol"})
			h323Heard(t, david, carol, false)
			for _, p := range []*Proc{bob, david} {
				if logged(p, "multiplexed") != (port != 0) {
					t.Errorf("%s multiplexes: %v", p.Name, port == 0)
				}
			}
			h323Between(t, e, david, carol, alice, bob)
			capture := wan.Stop(t)
			wantNoBinaryLeaks(t, capture, r.GW, in.IP)
			wantMedia(t, capture, r.GW, port, router.IP, other.IP)
		})
	}
}

// wantMedia checks that hosts exchange RTP with the gateway's port, and with no other; port 0: with one each.
func wantMedia(t *testing.T, packets []Packet, gw *Host, port uint16, hosts ...netip.Addr) {
	t.Helper()
	ports := map[uint16]int{}
	for _, p := range packets {
		if !p.TCP && gw.owns(outside, p.Src.Addr()) && len(p.Payload) > 100 && slices.Contains(hosts, p.Dst.Addr()) && p.Src.Port() != 1719 {
			ports[p.Src.Port()]++
		}
	}
	switch {
	case port != 0 && (len(ports) != 1 || ports[port] == 0):
		t.Errorf("media comes from %v, not all from %d", ports, port)
	case port == 0 && len(ports) != len(hosts):
		t.Errorf("media comes from %v", ports)
	}
}

// TestH323BehindNATControl: without H.460.18 nobody gets through to the phone behind the NAT.
func TestH323BehindNATControl(t *testing.T) {
	r := lab(t)
	onlyEdged(t, "the reference has no H.323")
	in := r.Inside("in1")
	home, router := r.BehindNAT("home")
	r.Edge(t, EdgeConfig{More: fmt.Sprintf("h323: {listen: %s, aliases: {bob: %q}}\n", h323Listen, router.IP)})
	home.H323Phone(t, h323Spec{Name: "bob", At: netip.AddrPortFrom(home.IP, 1720)})
	alice := in.H323Phone(t, h323Spec{Name: "alice", At: netip.AddrPortFrom(in.IP, 1720), To: netip.AddrPortFrom(r.GW.IPOn(inside, 4), 1720), Called: "bob"})
	eventually(t, 2*h323Time, "alice gives up", func() bool { return !alice.Alive() || logged(alice, "open") })
	if logged(alice, "open") {
		t.Error("the call was set up without traversal")
	}
}
