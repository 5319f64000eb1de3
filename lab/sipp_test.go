//go:build lab

package lab

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// size returns the load of a sipp case: small in every run, that of the acceptance with EDGED_LAB_FULL=1.
func size() (calls, perSecond int) {
	if os.Getenv("EDGED_LAB_FULL") != "" {
		return 1000, 50
	}
	return 100, 20
}

// TestSippCalls: sipp against sipp with RTP echo, each way, over UDP, TCP and TLS, and with IPv6 on
// one side: no call fails, each has its audio back, and nothing is left.
func TestSippCalls(t *testing.T) {
	for _, c := range []struct {
		name            string
		proto           string
		inFam, outFam   int
		outgoing, quick bool
	}{
		{"udp-out", "udp", 4, 4, true, true},
		{"udp-in", "udp", 4, 4, false, true},
		{"tcp-out", "tcp", 4, 4, true, false},
		{"tcp-in", "tcp", 4, 4, false, false},
		{"tls-out", "tls", 4, 4, true, false},
		{"tls-in", "tls", 4, 4, false, false},
		{"inside6-out", "udp", 6, 4, true, false},
		{"outside6-in", "udp", 4, 6, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.proto == "tls" || c.inFam+c.outFam != 8 || c.proto == "tcp" {
				onlyEdged(t, "its configuration here is UDP over IPv4")
			}
			r := lab(t)
			sippCase(t, r, c.proto, [2]int{c.inFam, c.outFam}, c.outgoing)
		})
	}
}

func sippCase(t *testing.T, r *Rig, proto string, fam [2]int, outgoing bool) {
	t.Helper()
	in, out := r.Inside("in1"), r.Outside("out1")
	l := Load{Talk: time.Second, Proto: proto, From: in, To: out, FromFam: fam[0], ToFam: fam[1], Domain: "example.org"}
	from, network := inside, "outside"
	if !outgoing {
		l.From, l.To, l.FromFam, l.ToFam, l.Domain = out, in, fam[1], fam[0], "inside.example.org"
		from, network = outside, "inside"
	}
	l.Calls, l.PerSecond = size()
	l.Next = netip.AddrPortFrom(r.GW.IPOn(from, l.FromFam), sipPort(proto))
	c := EdgeConfig{Pinholes: "{udp: 40000-59999, per_owner: 1000}", Domains: fmt.Sprintf("%s: {network: %s, server: \"%s:%v\"}", l.Domain, network, proto, l.callee())}
	if proto == "tls" {
		a := newAuthority(t, r.Dir)
		gw := r.GW
		c.TLS = a.issue(t, "edge", []string{"edge.example.org"}, gw.IPOn(inside, 4), gw.IPOn(outside, 4))
		l.Certs[0] = a.issue(t, "caller", []string{"caller.example.org"}, l.From.IP, l.From.IP6)
		l.Certs[1] = a.issue(t, "callee", []string{l.Domain}, l.To.IP, l.To.IP6)
	}
	e := r.Edge(t, c)
	lan, wan := r.Capture("lan"), r.Capture("wan")
	if err := l.Run(t); err != nil {
		t.Fatal(err)
	}
	e.Clean(t)
	ps := map[side][]Packet{inside: lan.Stop(t), outside: wan.Stop(t)}
	wantEcho(t, r, ps[from], l)
	if !e.isRef && proto != "tls" {
		wantNoLeaks(t, r, ps[inside], ps[outside])
	}
}

// wantEcho checks that the caller got RTP back in every call: at least a quarter of what it sent in it,
// as sipp on a busy machine sends in bursts, and three quarters of what it sent in all of them: what comes in a burst
// sipp's echo loses itself. A call is known by the relay's port; after the quarantine (5 s) another call may have the same.
func wantEcho(t *testing.T, r *Rig, ps []Packet, l Load) {
	t.Helper()
	gw := r.GW.IPOn(l.From.Side, l.FromFam)
	type call struct {
		sent, got int
		last      time.Duration
	}
	var ended []*call
	live := map[uint16]*call{}
	at := func(p Packet, relay uint16) *call {
		c := live[relay]
		if c != nil && p.Time-c.last > 3*time.Second {
			ended, c = append(ended, c), nil
		}
		if c == nil {
			c = &call{}
			live[relay] = c
		}
		c.last = p.Time
		return c
	}
	for _, p := range ps {
		switch {
		case p.TCP || len(p.Payload) != 172 || p.Payload[0]>>6 != 2:
		case p.Src.Addr() == gw:
			at(p, p.Src.Port()).got++
		case p.Dst.Addr() == gw:
			at(p, p.Dst.Port()).sent++
		}
	}
	ended = slices.AppendSeq(ended, maps.Values(live))
	good, sent, got, worst := 0, 0, 0, 1.0
	for _, c := range ended {
		share := float64(c.got) / float64(max(1, c.sent))
		worst, sent, got = min(worst, share), sent+c.sent, got+c.got
		if c.sent >= 5 && share >= 0.25 {
			good++
		}
	}
	t.Logf("%d calls at %d/s: %d had their audio back (%.1f%% of all packets, at least %.0f%% in each call)",
		l.Calls, l.PerSecond, good, 100*float64(got)/float64(max(1, sent)), 100*worst)
	if good != l.Calls || got*4 < sent*3 {
		t.Errorf("%d of %d calls had their audio back, %d of %d packets; the capture shows %d calls", good, l.Calls, got, sent, len(ended))
	}
}

// TestSippControl: the same load with nothing on the gateway: no call succeeds.
func TestSippControl(t *testing.T) {
	r := lab(t)
	in, out := r.Inside("in1"), r.Outside("out1")
	l := Load{Calls: 2, PerSecond: 20, Talk: 100 * time.Millisecond, Proto: "udp", From: in, To: out, FromFam: 4, ToFam: 4,
		Domain: "example.org", Next: netip.AddrPortFrom(out.IP, 5060), Limit: 3 * time.Second}
	if err := l.Run(t); err == nil {
		t.Error("calls succeed through a closed gateway: the control is broken")
	}
}
