package gatekeeper

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

func client() per.Field {
	return per.F("featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)), per.F("supportedFeatures", per.Elements(h225.GenericData(18)))))
}

func offers(m *ras.Message) bool {
	for _, f := range m.Features(nil) {
		if f.ID == 18 && f.Field == "supportedFeatures" {
			return true
		}
	}
	return false
}

// TestTraversal: an endpoint behind a NAT is known by where it asks from, lives shortly, and is found where its NAT
// has moved it to.
func TestTraversal(t *testing.T) {
	g := newGatekeeper()
	private := netip.MustParseAddrPort("203.0.113.77:1720") // no address of its own as it is seen
	if _, m := ask(t, g, begin, "inside", alice, ras.GRQ, protocol(), per.F("rasAddress", h245.CallAddress(alice)), per.F("endpointType", terminal()), client()); !offers(m) {
		t.Error("GCF without the feature")
	}
	k, m := ask(t, g, begin, "inside", alice, ras.RRQ, rrq(private, aliases("terminalAlias", "alice"), client())...)
	if k != ras.RCF || !offers(m) {
		t.Fatalf("%s %s", k, m.RejectReason())
	}
	if life, _ := m.TimeToLive(); life != traversalLife {
		t.Errorf("lifetime %v", life)
	}
	at, ok := g.Lookup(begin, "alice")
	if !ok || at != alice || !g.Traverses(alice.Addr()) {
		t.Fatalf("alice is at %v", at)
	}
	moved := netip.AddrPortFrom(alice.Addr(), 40000)
	keep := rrq(private, per.F("endpointIdentifier", per.Text(m.EndpointID())), client())
	for i := range keep {
		if keep[i].Name == "keepAlive" {
			keep[i].Value = per.Truth(true)
		}
	}
	if k, _ := ask(t, g, begin.Add(10*time.Second), "inside", moved, ras.RRQ, keep...); k != ras.RCF {
		t.Fatalf("keep-alive: %s", k)
	}
	if network, ras, ok := g.Behind(at); !ok || network != "inside" || ras != moved {
		t.Errorf("it is told of calls at %v on %q", ras, network)
	}
	if _, _, ok := g.Behind(bob); ok {
		t.Error("somebody else is behind a NAT")
	}
	g.table.sweep(begin.Add(time.Minute))
	if g.Traverses(alice.Addr()) || len(g.table.traversal) != 0 {
		t.Error("it is remembered for ever")
	}
}

// TestIncoming: the message is that of the recorded server (H.460.18 §7).
func TestIncoming(t *testing.T) {
	id := h225.ID(bytes.Repeat([]byte{7}, 16))
	b, err := Incoming(0, bob, id)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ras.NewCodec().Decode(b)
	if err != nil || m.Kind != ras.SCI || m.SeqNum() != 1 {
		t.Fatalf("%v %s", err, m.Kind)
	}
	f := m.Features(nil)
	if len(f) != 1 || f[0].ID != 18 || f[0].Field != "genericData" {
		t.Fatalf("%+v", f)
	}
	kind, content := f[0].Parameter(m.Tree, 1)
	if kind != "raw" {
		t.Fatalf("a parameter that is %q", kind)
	}
	in, err := per.NewDecoder(schema.Tables()).Decode(schema.H460IncomingCallIndication, m.Tree.Octets(content))
	if err != nil {
		t.Fatal(err)
	}
	if a := h245.Addresses(nil, in, in.Root()); len(a) != 1 || a[0].AddrPort != bob {
		t.Errorf("addresses %+v", a)
	}
	if got := in.Octets(in.Find(in.Root(), "callID", "guid")); !bytes.Equal(got, id[:]) {
		t.Errorf("call %x", got)
	}
}

// TestNeeds: who cannot do without a feature that the gatekeeper has not is refused; who only could do more is not.
func TestNeeds(t *testing.T) {
	for _, tt := range []struct {
		list string
		id   int64
		ok   bool
	}{
		{"supportedFeatures", 17, true}, {"desiredFeatures", 24, true}, {"supportedFeatures", 26, true},
		{"neededFeatures", 18, true}, {"neededFeatures", 19, true},
		{"neededFeatures", 17, false}, {"neededFeatures", 23, false}, {"neededFeatures", 26, false},
	} {
		g := newGatekeeper()
		set := per.F("featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)), per.F(tt.list, per.Elements(h225.GenericData(tt.id)))))
		grq := []per.Field{protocol(), per.F("rasAddress", h245.CallAddress(alice)), per.F("endpointType", terminal()), set}
		k, m := ask(t, g, begin, "inside", alice, ras.GRQ, grq...)
		if ok := k == ras.GCF; ok != tt.ok || !ok && m.RejectReason() != "neededFeatureNotSupported" {
			t.Errorf("GRQ with %s %d: %s %s", tt.list, tt.id, k, m.RejectReason())
		}
		k, m = ask(t, g, begin, "inside", alice, ras.RRQ, rrq(signalling(alice), aliases("terminalAlias", "alice"), set)...)
		if ok := k == ras.RCF; ok != tt.ok || !ok && m.RejectReason() != "neededFeatureNotSupported" {
			t.Errorf("RRQ with %s %d: %s %s", tt.list, tt.id, k, m.RejectReason())
		}
		for _, f := range h225.Features(nil, m.Tree) {
			if f.ID != signallingTraversal || tt.id != signallingTraversal {
				t.Errorf("the answer offers %d", f.ID)
			}
		}
	}
}
