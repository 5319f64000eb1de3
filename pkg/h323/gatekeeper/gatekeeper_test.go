package gatekeeper

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

var (
	begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	edge  = netip.MustParseAddr("192.0.2.1")
	alice = netip.MustParseAddrPort("192.0.2.7:1719")
	// neighbour is a gatekeeper that may ask where endpoints are.
	neighbour = netip.MustParseAddrPort("198.51.100.9:1719")
	bob       = netip.MustParseAddrPort("192.0.2.8:1719")
)

func newGatekeeper() *Gatekeeper {
	own := func(port uint16) func(string, netip.Addr) netip.AddrPort {
		return func(string, netip.Addr) netip.AddrPort { return netip.AddrPortFrom(edge, port) }
	}
	return New(Config{
		ID: "edged", Lifetime: 5 * time.Minute, MaxEndpoints: 3, PerHost: 2,
		MayRegister: func(network string) bool { return network == "inside" },
		MayLocate:   func(_ string, host netip.Addr) bool { return host == neighbour.Addr() },
		Reachable:   func(_, alias string) bool { return alias == "operator" },
		Signalling:  own(1720), RAS: own(1719),
	})
}

// ask sends a request and returns the kind of the reply, and the reply.
func ask(t *testing.T, g *Gatekeeper, now time.Time, network string, from netip.AddrPort, k ras.Kind, f ...per.Field) (ras.Kind, *ras.Message) {
	t.Helper()
	b, err := ras.Append(nil, k, append([]per.Field{per.F("requestSeqNum", per.Number(77))}, f...)...)
	if err != nil {
		t.Fatal(err)
	}
	reply := g.Handle(now, network, from, b)
	if reply == nil {
		return "", nil
	}
	m, err := ras.NewCodec().Decode(reply)
	if err != nil {
		t.Fatalf("reply %x: %v", reply, err)
	}
	if m.SeqNum() != 77 {
		t.Errorf("requestSeqNum %d", m.SeqNum())
	}
	return m.Kind, m
}

func aliases(field string, names ...string) per.Field {
	var v []per.Value
	for _, n := range names {
		if strings.Trim(n, "0123456789") == "" {
			v = append(v, per.Alternative("dialledDigits", per.Text(n)))
		} else {
			v = append(v, h225.H323ID(n))
		}
	}
	return per.F(field, per.Elements(v...))
}

func terminal() per.Value {
	return per.Fields(per.F("terminal", per.Fields()), per.F("mc", per.Truth(false)), per.F("undefinedNode", per.Truth(false)))
}

func rrq(at netip.AddrPort, more ...per.Field) []per.Field {
	return append([]per.Field{
		protocol(), per.F("discoveryComplete", per.Truth(true)),
		per.F("callSignalAddress", per.Elements(h245.CallAddress(at))),
		per.F("rasAddress", per.Elements(h245.CallAddress(alice))),
		per.F("terminalType", terminal()),
		per.F("endpointVendor", per.Fields(per.F("vendor", per.Fields(
			per.F("t35CountryCode", per.Number(181)), per.F("t35Extension", per.Number(0)), per.F("manufacturerCode", per.Number(21324)))))),
		per.F("keepAlive", per.Truth(false)), per.F("willSupplyUUIEs", per.Truth(false)),
	}, more...)
}

func arq(id string, dest ...string) []per.Field {
	return []per.Field{
		per.F("callType", per.Alternative("pointToPoint", per.Nothing())), per.F("endpointIdentifier", per.Text(id)),
		aliases("destinationInfo", dest...), per.F("srcInfo", per.Elements(h225.H323ID("me"))),
		per.F("bandWidth", per.Number(640)), per.F("callReferenceValue", per.Number(1)),
		per.F("conferenceID", per.Octet(make([]byte, 16))), per.F("activeMC", per.Truth(false)), per.F("answerCall", per.Truth(false)),
		per.F("canMapAlias", per.Truth(true)), per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(make([]byte, 16))))),
		per.F("willSupplyUUIEs", per.Truth(false)),
	}
}

func signalling(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 1720) }

// TestLife follows an endpoint from discovery to its end.
func TestLife(t *testing.T) {
	g := newGatekeeper()
	grq := []per.Field{protocol(), per.F("rasAddress", h245.CallAddress(alice)), per.F("endpointType", terminal())}
	if k, m := ask(t, g, begin, "inside", alice, ras.GRQ, grq...); k != ras.GCF || m.GatekeeperID() != "edged" {
		t.Fatalf("GRQ: %s", k)
	}
	if k, _ := ask(t, g, begin, "outside", alice, ras.GRQ, grq...); k != ras.GRJ {
		t.Errorf("GRQ of a network that may not register: %s", k)
	}
	if k, _ := ask(t, g, begin, "inside", alice, ras.GRQ, append(grq, per.F("gatekeeperIdentifier", per.Text("another")))...); k != "" {
		t.Errorf("GRQ for another gatekeeper: %s", k)
	}
	k, m := ask(t, g, begin, "inside", alice, ras.RRQ, rrq(signalling(alice), aliases("terminalAlias", "Alice", "101"), per.F("timeToLive", per.Number(60)))...)
	if k != ras.RCF {
		t.Fatalf("RRQ: %s %s", k, m.RejectReason())
	}
	id := m.EndpointID()
	if ttl, _ := m.TimeToLive(); ttl != time.Minute {
		t.Errorf("lifetime %v", ttl)
	}
	for _, name := range []string{"alice", "ALICE", "101"} {
		if to, ok := g.Lookup(begin, name); !ok || to != signalling(alice) {
			t.Errorf("%s is at %v", name, to)
		}
	}
	keep := rrq(signalling(alice), per.F("endpointIdentifier", per.Text(id)), per.F("timeToLive", per.Number(60)))
	for i := range keep {
		if keep[i].Name == "keepAlive" {
			keep[i].Value = per.Truth(true)
		}
	}
	if k, m := ask(t, g, begin.Add(50*time.Second), "inside", alice, ras.RRQ, keep...); k != ras.RCF || m.EndpointID() != id {
		t.Fatalf("keep-alive: %s", k)
	}
	if k, _ := ask(t, g, begin.Add(50*time.Second), "inside", bob, ras.RRQ, keep...); k != ras.RRJ {
		t.Errorf("keep-alive by another host: %s", k)
	}
	if _, ok := g.Lookup(begin.Add(100*time.Second), "alice"); !ok {
		t.Error("gone although it was kept alive")
	}
	if _, ok := g.Lookup(begin.Add(111*time.Second), "alice"); ok {
		t.Error("still there although its lifetime has ended")
	}
	if k, _ := ask(t, g, begin.Add(120*time.Second), "inside", alice, ras.ARQ, arq(id, "alice")...); k != ras.ARJ || len(g.Registrations()) != 0 {
		t.Errorf("admission after the end: %s, %d registered", k, len(g.Registrations()))
	}
}

func register(t *testing.T, g *Gatekeeper, from netip.AddrPort, at netip.AddrPort, names ...string) (string, string) {
	t.Helper()
	k, m := ask(t, g, begin, "inside", from, ras.RRQ, rrq(at, aliases("terminalAlias", names...))...)
	if k != ras.RCF {
		return "", m.RejectReason()
	}
	return m.EndpointID(), ""
}

// TestRefused: who claims another's alias or address, or too much.
func TestRefused(t *testing.T) {
	g := newGatekeeper()
	id, _ := register(t, g, alice, signalling(alice), "alice")
	if _, why := register(t, g, bob, signalling(bob), "bob", "alice"); why != "duplicateAlias" {
		t.Errorf("another's alias: %q", why)
	}
	if to, _ := g.Lookup(begin, "alice"); to != signalling(alice) {
		t.Errorf("alice is at %v now", to)
	}
	public := netip.MustParseAddrPort("198.51.100.9:1720")
	if _, why := register(t, g, bob, public, "bob"); why != "invalidCallSignalAddress" {
		t.Errorf("another's address: %q", why)
	}
	if again, _ := register(t, g, alice, signalling(alice), "alice", "al"); again != id {
		t.Error("the same endpoint got another identifier")
	}
	register(t, g, alice, netip.AddrPortFrom(alice.Addr(), 1721), "second")
	if _, why := register(t, g, alice, netip.AddrPortFrom(alice.Addr(), 1722), "third"); why != "resourceUnavailable" {
		t.Errorf("more than a host may have: %q", why)
	}
	// A second NAT in between: a private address that the datagram does not come from.
	behind := netip.MustParseAddrPort("198.51.100.20:40000")
	if _, why := register(t, g, behind, netip.MustParseAddrPort("10.9.9.9:1720"), "hidden"); why != "" {
		t.Errorf("behind a NAT: %q", why)
	}
	if to, _ := g.Lookup(begin, "hidden"); to != netip.MustParseAddrPort("198.51.100.20:1720") {
		t.Errorf("hidden is at %v", to)
	}
}

// TestCalls: admission, disengagement, location, bandwidth and the end.
func TestCalls(t *testing.T) {
	g := newGatekeeper()
	id, _ := register(t, g, alice, signalling(alice), "alice")
	register(t, g, bob, signalling(bob), "bob", "102")
	for dest, want := range map[string]ras.Kind{"bob": ras.ACF, "102": ras.ACF, "operator": ras.ACF, "nobody": ras.ARJ} {
		k, m := ask(t, g, begin, "inside", alice, ras.ARQ, arq(id, dest)...)
		if k != want {
			t.Errorf("%s: %s", dest, k)
		}
		if k == ras.ACF {
			if a := m.Addresses(nil); len(a) != 1 || a[0].AddrPort != netip.AddrPortFrom(edge, 1720) {
				t.Errorf("%s: %v", dest, a)
			}
		}
	}
	if k, _ := ask(t, g, begin, "inside", bob, ras.ARQ, arq(id, "bob")...); k != ras.ARJ {
		t.Errorf("with another's identifier: %s", k)
	}
	endpoint := per.F("endpointIdentifier", per.Text(id))
	conference := per.F("conferenceID", per.Octet(make([]byte, 16)))
	ref := per.F("callReferenceValue", per.Number(1))
	if k, _ := ask(t, g, begin, "inside", alice, ras.BRQ, endpoint, conference, ref, per.F("bandWidth", per.Number(7)), per.F("answeredCall", per.Truth(false))); k != ras.BCF {
		t.Errorf("BRQ: %s", k)
	}
	if k, _ := ask(t, g, begin, "inside", alice, ras.DRQ, endpoint, conference, ref, per.F("disengageReason", per.Alternative("normalDrop", per.Nothing())), per.F("answeredCall", per.Truth(false))); k != ras.DCF {
		t.Errorf("DRQ: %s", k)
	}
	for dest, want := range map[string]ras.Kind{"bob": ras.LCF, "nobody": ras.LRJ} {
		for from, want := range map[netip.AddrPort]ras.Kind{neighbour: want, netip.MustParseAddrPort("198.51.100.10:1719"): ""} {
			if k, _ := ask(t, g, begin, "outside", from, ras.LRQ, aliases("destinationInfo", dest),
				per.F("replyAddress", h245.CallAddress(alice)), per.F("canMapAlias", per.Truth(true))); k != want {
				t.Errorf("LRQ of %s by %v: %s", dest, from, k)
			}
		}
	}
	urq := []per.Field{per.F("callSignalAddress", per.Elements(h245.CallAddress(signalling(alice)))), endpoint}
	if k, _ := ask(t, g, begin, "inside", bob, ras.URQ, urq...); k != ras.URJ {
		t.Errorf("URQ by another host: %s", k)
	}
	if k, _ := ask(t, g, begin, "inside", alice, ras.URQ, urq...); k != ras.UCF {
		t.Errorf("URQ: %s", k)
	}
	if _, ok := g.Lookup(begin, "alice"); ok {
		t.Error("alice is still there")
	}
}

// TestTakeover: an alias belongs to one endpoint, also among those of one host, as long as that is there. An endpoint
// that was started again gets its own back.
func TestTakeover(t *testing.T) {
	other := netip.AddrPortFrom(alice.Addr(), 4444) // the RAS port of another program on alice's host
	for _, tt := range []struct {
		name string
		from netip.AddrPort
		at   netip.AddrPort
		// knows: it names the identifier of the endpoint that has the alias.
		knows bool
		want  ras.Kind
	}{
		{"started again, as it was", alice, signalling(alice), false, ras.RCF},
		{"started again, asks from another port", other, signalling(alice), false, ras.RCF},
		{"started again, takes calls at another port", alice, netip.AddrPortFrom(alice.Addr(), 5555), false, ras.RCF},
		{"on other ports, but knows the identifier", other, netip.AddrPortFrom(alice.Addr(), 5555), true, ras.RCF},
		{"another one of the host", other, netip.AddrPortFrom(alice.Addr(), 5555), false, ras.RRJ},
		{"another host", bob, signalling(bob), false, ras.RRJ},
		{"another host that knows the identifier", bob, signalling(bob), true, ras.RRJ},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGatekeeper()
			_, m := ask(t, g, begin, "inside", alice, ras.RRQ, rrq(signalling(alice), aliases("terminalAlias", "alice"))...)
			again := rrq(tt.at, aliases("terminalAlias", "alice"))
			if tt.knows {
				again = append(again, per.F("endpointIdentifier", per.Text(m.EndpointID())))
			}
			if k, m := ask(t, g, begin, "inside", tt.from, ras.RRQ, again...); k != tt.want {
				t.Errorf("%s %s", k, m.RejectReason())
			}
			want := signalling(alice)
			if tt.want == ras.RCF {
				want = tt.at
			}
			if to, _ := g.Lookup(begin, "alice"); to != want || len(g.table.byID) != 1 {
				t.Errorf("alice is at %v, %d endpoints", to, len(g.table.byID))
			}
		})
	}
}

// TestGone: an endpoint of which another one of its host wants the alias is asked whether it is there. If it is not, the
// other one has it.
func TestGone(t *testing.T) {
	for _, there := range []bool{true, false} {
		g := newGatekeeper()
		other := netip.AddrPortFrom(alice.Addr(), 4444)
		_, m := ask(t, g, begin, "inside", alice, ras.RRQ, rrq(signalling(alice), aliases("terminalAlias", "alice"))...)
		id, now, asked := m.EndpointID(), begin, 0
		wants := func() ras.Kind {
			k, _ := ask(t, g, now, "inside", other, ras.RRQ, rrq(netip.AddrPortFrom(alice.Addr(), 5555), aliases("terminalAlias", "alice"))...)
			return k
		}
		for range goneAsks {
			if k := wants(); k != ras.RRJ {
				t.Fatalf("%s at %v", k, now)
			}
			for _, p := range g.Probes() {
				asked++
				q, err := ras.NewCodec().Decode(p.Data)
				if err != nil || q.Kind != ras.IRQ || p.To != alice || p.Network != "inside" {
					t.Errorf("%v to %v: %v", q, p.To, err)
				}
			}
			now = now.Add(goneTime)
		}
		if asked != goneAsks {
			t.Errorf("asked %d times", asked)
		}
		want := ras.RCF
		if there {
			ask(t, g, now, "inside", alice, ras.IRR, per.F("endpointType", terminal()), per.F("endpointIdentifier", per.Text(id)),
				per.F("rasAddress", h245.CallAddress(alice)), per.F("callSignalAddress", per.Elements(h245.CallAddress(signalling(alice)))),
				per.F("needResponse", per.Truth(false)))
			want = ras.RRJ
		}
		if k := wants(); k != want {
			t.Errorf("there %v: %s", there, k)
		}
	}
}

func FuzzHandle(f *testing.F) {
	for _, k := range [][]per.Field{rrq(signalling(alice), aliases("terminalAlias", "alice")), arq("x", "bob")} {
		kind := ras.RRQ
		if k[0].Name == "callType" {
			kind = ras.ARQ
		}
		b, err := ras.Append(nil, kind, append(k, per.F("requestSeqNum", per.Number(1)))...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newGatekeeper()
		if reply := g.Handle(begin, "inside", alice, b); reply != nil {
			if _, err := ras.NewCodec().Decode(reply); err != nil {
				t.Errorf("reply %x: %v", reply, err)
			}
		}
		if len(g.table.byID) > 1 || len(g.table.byAlias) > maxAliases {
			t.Error("one request has registered too much")
		}
	})
}
