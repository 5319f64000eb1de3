//go:build lab

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// msturnSection serves both transports outside; hosts inside may be reached.
func msturnSection(r *Rig) string {
	return fmt.Sprintf("msturn:\n  listen: [\"udp://outside:3478\", \"tcp://outside:443\"]\n  realm: example.org\n"+
		"  users: {alice: secret}\n  peers: {allow: [%s0/24]}\n", nets4[inside])
}

// TestMSTURN: a user outside, who may only reach the edge, has media with a host inside by a relay port of the edge: over UDP, over
// framed TCP and behind pseudo-TLS. A hundred packets cross each way; then everything is closed.
func TestMSTURN(t *testing.T) {
	r := niceLab(t)
	e := r.Edge(t, EdgeConfig{More: msturnSection(r)})
	for _, tt := range []struct {
		transport string
		port      uint16
		peer      string // how the host inside speaks
	}{{"udp", 3478, "udp"}, {"tcp", 443, "tcp"}, {"tls", 443, "tcp"}} {
		t.Run(tt.transport, func(t *testing.T) {
			user, host := r.Outside("user-"+tt.transport), r.Inside("host-"+tt.transport)
			a := user.NiceRelayed(t, "user-"+tt.transport, tt.transport, r.GW.IPOn(outside, 4), tt.port, "alice", "secret").gathered(t)
			if len(a.relayed()) == 0 {
				t.Fatalf("no relayed candidate: %q", a.lines("cand "))
			}
			before := e.Metric("edged_msturn_relayed_packets_total")
			b := host.Nice(t, "host-"+tt.transport, tt.peer).gathered(t)
			meet(a, b)
			a.exchange(t, b)
			if n := e.Metric("edged_msturn_relayed_packets_total") - before; n < 200 {
				t.Errorf("edged has relayed %v packets, not 200", n)
			}
			a.proc.Stop(9)
		})
	}
	eventually(t, 10*time.Second, "the ports of the TCP clients are closed", func() bool { return e.Metric("edged_msturn_allocations") <= 1 })
}

// exchange has each of two agents that have met send a hundred packets to the other.
func (a *iceAgent) exchange(t *testing.T, b *iceAgent) {
	t.Helper()
	eventually(t, 30*time.Second, "the agents have chosen a pair", func() bool { return len(a.lines("pair 3 ")) > 0 && len(b.lines("pair ")) > 0 })
	a.do("send 100")
	b.do("send 100")
	for _, x := range []*iceAgent{a, b} {
		eventually(t, 60*time.Second, "a hundred packets arrive", func() bool { return x.packets() >= 100 })
	}
}

// packets counts what has arrived. Of another length is a check of ICE that came before the agent knew its peer.
func (a *iceAgent) packets() int {
	return len(slices.DeleteFunc(a.lines("rx "), func(line string) bool { return !strings.HasSuffix(line, " 160") }))
}

// TestMSTURNBesideTURN: on one UDP port each gets what is for it.
func TestMSTURNBesideTURN(t *testing.T) {
	r := niceLab(t)
	e := r.Edge(t, EdgeConfig{More: msturnSection(r) + "turn: {listen: [\"udp://outside:3478\"], realm: example.org, users: {alice: secret}}\n"})
	user, host := r.Outside("user"), r.Inside("host")
	a := user.NiceRelayed(t, "user", "udp", r.GW.IPOn(outside, 4), 3478, "alice", "secret").gathered(t)
	b := host.Nice(t, "host", "udp").gathered(t)
	meet(a, b)
	a.exchange(t, b)
	binding := append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, "transaction!"...)
	var answer [128]byte
	must(t, "ask STUN", user.Do(func() error {
		c, err := net.Dial("udp4", netip.AddrPortFrom(r.GW.IPOn(outside, 4), 3478).String())
		if err != nil {
			return err
		}
		defer c.Close()
		must(t, "deadline", c.SetDeadline(time.Now().Add(20*time.Second)))
		if _, err = c.Write(binding); err == nil {
			_, err = c.Read(answer[:])
		}
		return err
	}))
	if string(answer[:2]) != "\x01\x01" || string(answer[8:20]) != "transaction!" {
		t.Errorf("answer to a Binding: %x", answer)
	}
	if n := e.Metric("edged_stun_bindings_total"); n != 1 {
		t.Errorf("%v Bindings", n)
	}
}

// TestMSTURNControl: if edged does not serve MS-TURN there is no relayed candidate.
func TestMSTURNControl(t *testing.T) {
	r := niceLab(t)
	user := r.Outside("user")
	r.Edge(t, EdgeConfig{})
	var agents []*iceAgent
	for transport, port := range map[string]uint16{"udp": 3478, "tcp": 443, "tls": 443} {
		agents = append(agents, user.NiceRelayed(t, transport, transport, r.GW.IPOn(outside, 4), port, "alice", "secret"))
	}
	pass(5 * time.Second) // some never finish where the port is closed
	for _, a := range agents {
		if got := a.relayed(); len(got) != 0 {
			t.Errorf("without a server: %q", got)
		}
	}
}

// TestMSTURNPassword: with a wrong password there is none either.
func TestMSTURNPassword(t *testing.T) {
	r := niceLab(t)
	e := r.Edge(t, EdgeConfig{More: msturnSection(r)})
	user := r.Outside("user")
	for transport, port := range map[string]uint16{"udp": 3478, "tcp": 443, "tls": 443} {
		a := user.NiceRelayed(t, transport, transport, r.GW.IPOn(outside, 4), port, "alice", "wrong").gathered(t)
		if got := a.relayed(); len(got) != 0 {
			t.Errorf("%s: %q", transport, got)
		}
	}
	if n := e.Metric("edged_msturn_drops_total", `reason="unauthorized"`); n != 3 {
		t.Errorf("%v refusals, not 3", n)
	}
}
