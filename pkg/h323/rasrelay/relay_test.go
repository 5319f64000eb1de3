package rasrelay

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/gatekeeper"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

var (
	begin      = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	insideRAS  = netip.MustParseAddrPort("192.0.2.1:1719")
	outsideRAS = netip.MustParseAddrPort("198.51.100.1:1719")
	remoteGK   = netip.MustParseAddrPort("203.0.113.40:1719")
	routedCall = netip.MustParseAddrPort("203.0.113.40:1720")
	alice      = netip.MustParseAddrPort("192.0.2.7:1719")
	bob        = netip.MustParseAddrPort("192.0.2.8:1719")
)

// testDoor is a door in memory.
type testDoor struct {
	at     netip.AddrPort
	closed *int
}

func (d testDoor) Addr() netip.AddrPort { return d.at }
func (d testDoor) Close()               { *d.closed++ }

// world is a relay between endpoints and a real gatekeeper: the built-in one.
type world struct {
	t      *testing.T
	relay  *Relay
	gk     *gatekeeper.Gatekeeper
	now    time.Time
	signed bool
	opened int
	closed int
	// toGK and toEndpoint are what was sent last.
	toGK, toEndpoint Datagram
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: begin}
	own := func(port uint16) func(string, netip.Addr) netip.AddrPort {
		return func(network string, _ netip.Addr) netip.AddrPort {
			if network == "inside" {
				return netip.AddrPortFrom(insideRAS.Addr(), port)
			}
			return netip.AddrPortFrom(outsideRAS.Addr(), port)
		}
	}
	w.relay = New(Config{
		Gatekeeper: remoteGK, Network: "outside", MaxEndpoints: 3, PerHost: 2,
		RefuseSigned: func() bool { return w.signed },
		MayRegister:  func(network string) bool { return network == "inside" },
		MayLocate:    func(network string, _ netip.Addr) bool { return network == "inside" },
		Signalling:   own(1720), RAS: own(1719),
		Own: func(a netip.Addr) bool { return a == insideRAS.Addr() || a == outsideRAS.Addr() },
		Open: func(_ string, _ netip.Addr, at netip.AddrPort) (Door, error) {
			if at.Port() < 1024 {
				return nil, errors.New("a service port")
			}
			w.opened++
			return testDoor{netip.AddrPortFrom(outsideRAS.Addr(), uint16(40000+w.opened)), &w.closed}, nil
		},
	})
	w.gk = gatekeeper.New(gatekeeper.Config{
		ID: "real", Lifetime: time.Minute, MaxEndpoints: 100, PerHost: 100,
		MayRegister: func(string) bool { return true }, Reachable: func(_, alias string) bool { return alias == "carol" },
		MayLocate:  func(string, netip.Addr) bool { return true },
		Signalling: func(string, netip.Addr) netip.AddrPort { return routedCall },
		RAS:        func(string, netip.Addr) netip.AddrPort { return remoteGK },
	})
	return w
}

func message(t *testing.T, k ras.Kind, seq int64, f ...per.Field) []byte {
	t.Helper()
	b, err := ras.Append(nil, k, append([]per.Field{per.F("requestSeqNum", per.Number(seq))}, f...)...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// request has an endpoint send a request, and returns what the gatekeeper gets; nil if that is nothing.
func (w *world) request(from netip.AddrPort, b []byte) *ras.Message {
	w.t.Helper()
	d, ok := w.relay.Handle(w.now, "inside", insideRAS, from, b)
	if !ok {
		return nil
	}
	w.toGK = d
	m, err := ras.NewCodec().Decode(d.Data)
	if err != nil {
		w.t.Fatal(err)
	}
	if host := from.Addr().As4(); d.To == remoteGK && bytes.Contains(d.Data, host[:]) {
		w.t.Errorf("%v leaks to the gatekeeper: %x", from.Addr(), d.Data)
	}
	return m
}

// fromGK has the gatekeeper send something, and returns what the endpoint gets; nil if that is nothing.
func (w *world) fromGK(b []byte) *ras.Message {
	w.t.Helper()
	d, ok := w.relay.Handle(w.now, "outside", outsideRAS, remoteGK, b)
	if !ok {
		return nil
	}
	w.toEndpoint = d
	m, err := ras.NewCodec().Decode(d.Data)
	if err != nil {
		w.t.Fatal(err)
	}
	if host := remoteGK.Addr().As4(); bytes.Contains(d.Data, host[:]) {
		w.t.Errorf("the gatekeeper's address is in %x", d.Data)
	}
	return m
}

// exchange sends a request all the way and back.
func (w *world) exchange(from netip.AddrPort, k ras.Kind, seq int64, f ...per.Field) *ras.Message {
	w.t.Helper()
	if w.request(from, message(w.t, k, seq, f...)) == nil {
		w.t.Fatalf("%s does not reach the gatekeeper: %v", k, w.relay.Outcomes)
	}
	if w.toGK.To != remoteGK || w.toGK.Network != "outside" {
		w.t.Fatalf("%s went to %v", k, w.toGK.To)
	}
	reply := w.gk.Handle(w.now, "outside", outsideRAS, w.toGK.Data)
	if reply == nil {
		w.t.Fatalf("%s is not answered", k)
	}
	m := w.fromGK(reply)
	if m == nil {
		w.t.Fatalf("the answer to %s does not come back: %v", k, w.relay.Outcomes)
	}
	if w.toEndpoint.To != from || w.toEndpoint.Local != insideRAS || int64(m.SeqNum()) != seq {
		w.t.Errorf("the answer to %s %d went to %v as %d", k, seq, w.toEndpoint.To, m.SeqNum())
	}
	return m
}

func protocol() per.Field { return per.F("protocolIdentifier", per.Identifier(protocolID)) }

func terminal() per.Value {
	return per.Fields(per.F("terminal", per.Fields()), per.F("mc", per.Truth(false)), per.F("undefinedNode", per.Truth(false)))
}

func call(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 1720) }

func rrq(from netip.AddrPort, name string, keepAlive bool, more ...per.Field) []per.Field {
	other := netip.AddrPortFrom(from.Addr(), 1721)
	return append([]per.Field{
		protocol(), per.F("discoveryComplete", per.Truth(true)),
		per.F("callSignalAddress", per.Elements(h245.CallAddress(call(from)), h245.CallAddress(other))),
		per.F("rasAddress", per.Elements(h245.CallAddress(from), h245.CallAddress(other))),
		per.F("terminalType", terminal()), per.F("terminalAlias", per.Elements(h225.H323ID(name))),
		per.F("endpointVendor", per.Fields(per.F("vendor", per.Fields(
			per.F("t35CountryCode", per.Number(181)), per.F("t35Extension", per.Number(0)), per.F("manufacturerCode", per.Number(21324)))))),
		per.F("keepAlive", per.Truth(keepAlive)), per.F("willSupplyUUIEs", per.Truth(false)),
	}, more...)
}

// register registers a name and returns the endpointIdentifier.
func (w *world) register(from netip.AddrPort, name string) string {
	w.t.Helper()
	m := w.exchange(from, ras.RRQ, 5, rrq(from, name, false)...)
	if m.Kind != ras.RCF {
		w.t.Fatalf("%s %s", m.Kind, m.RejectReason())
	}
	return m.EndpointID()
}

func guid(n byte) per.Value { return per.Octet(bytes.Repeat([]byte{n}, 16)) }

func arq(id, dest string, n byte, answer bool, more ...per.Field) []per.Field {
	return append([]per.Field{
		per.F("callType", per.Alternative("pointToPoint", per.Nothing())), per.F("endpointIdentifier", per.Text(id)),
		per.F("destinationInfo", per.Elements(h225.H323ID(dest))), per.F("srcInfo", per.Elements(h225.H323ID("me"))),
		per.F("bandWidth", per.Number(640)), per.F("callReferenceValue", per.Number(1)),
		per.F("conferenceID", guid(n+100)), per.F("activeMC", per.Truth(false)), per.F("answerCall", per.Truth(answer)),
		per.F("canMapAlias", per.Truth(true)), per.F("callIdentifier", per.Fields(per.F("guid", guid(n)))),
		per.F("willSupplyUUIEs", per.Truth(false)),
	}, more...)
}

func only(t *testing.T, m *ras.Message, f h245.Field, want netip.AddrPort) {
	t.Helper()
	n := 0
	for _, a := range m.Addresses(nil) {
		if a.Field != f {
			continue
		}
		if n++; a.AddrPort != want {
			t.Errorf("%s: %s %d is %v, want %v", m.Kind, f, n, a.AddrPort, want)
		}
	}
	if n == 0 {
		t.Errorf("%s has no %s", m.Kind, f)
	}
}

// TestLife follows two endpoints with the same numbers from discovery to their end.
func TestLife(t *testing.T) {
	w := newWorld(t)
	m := w.exchange(alice, ras.GRQ, 1, protocol(), per.F("rasAddress", h245.CallAddress(alice)), per.F("endpointType", terminal()))
	only(t, m, h245.RasAddress, insideRAS)
	asked, err := ras.NewCodec().Decode(w.toGK.Data)
	if err != nil {
		t.Fatal(err)
	}
	only(t, asked, h245.RasAddress, outsideRAS)

	first, second := w.register(alice, "alice"), w.register(bob, "bob")
	if first == second || w.opened != 2 {
		t.Fatalf("endpoints %q and %q, %d doors", first, second, w.opened)
	}
	registered, _ := ras.NewCodec().Decode(w.toGK.Data)
	only(t, registered, h245.CallSignalAddress, netip.MustParseAddrPort("198.51.100.1:40002"))
	only(t, registered, h245.RasAddress, outsideRAS)
	for name, at := range map[string]netip.AddrPort{"Alice": call(alice), "bob": call(bob)} {
		if to, ok := w.relay.Lookup(w.now, name); !ok || to != at {
			t.Errorf("%s is at %v", name, to)
		}
	}
	if at, ok := w.gk.Lookup(w.now, "alice"); !ok || at != netip.MustParseAddrPort("198.51.100.1:40001") {
		t.Errorf("the gatekeeper calls alice at %v", at)
	}
	if home, ok := w.relay.Home(bob.Addr()); !ok || home != routedCall {
		t.Errorf("the gatekeeper takes bob's calls at %v", home)
	}

	w.now = begin.Add(55 * time.Second)
	keep := rrq(alice, "alice", true, per.F("endpointIdentifier", per.Text(first)))
	if m := w.exchange(alice, ras.RRQ, 6, keep...); m.Kind != ras.RCF || w.opened != 2 {
		t.Fatalf("keep-alive: %s, %d doors", m.Kind, w.opened)
	}
	w.now = begin.Add(71 * time.Second)
	w.relay.Sweep(w.now)
	if _, ok := w.relay.Lookup(w.now, "bob"); ok || w.closed != 1 {
		t.Errorf("bob is still there, %d doors closed", w.closed)
	}
	if m := w.exchange(alice, ras.URQ, 7, per.F("callSignalAddress", per.Elements(h245.CallAddress(call(alice)))), per.F("endpointIdentifier", per.Text(first))); m.Kind != ras.UCF {
		t.Fatalf("URQ: %s", m.Kind)
	}
	if w.closed != 2 || len(w.relay.Registrations()) != 0 || len(w.relay.pending) != 0 || len(w.relay.table.hosts) != 0 {
		t.Errorf("%d doors closed, %d registered, %d pending", w.closed, len(w.relay.Registrations()), len(w.relay.pending))
	}
}

// TestAdmission: a call goes where the gatekeeper says, by its callIdentifier or conferenceID, for the one who asked.
func TestAdmission(t *testing.T) {
	w := newWorld(t)
	id := w.register(alice, "alice")
	m := w.exchange(alice, ras.ARQ, 9, arq(id, "carol", 3, false, per.F("srcCallSignalAddress", h245.CallAddress(call(alice))))...)
	if m.Kind != ras.ACF {
		t.Fatalf("%s %s", m.Kind, m.RejectReason())
	}
	only(t, m, h245.DestCallSignalAddress, call(insideRAS))
	for _, n := range []byte{3, 103} {
		key := h225.ID(bytes.Repeat([]byte{n}, 16))
		if to, ok := w.relay.Admitted(w.now, alice.Addr(), key); !ok || to != routedCall {
			t.Errorf("the call goes to %v", to)
		}
		if to, ok := w.relay.Admitted(w.now, bob.Addr(), key); ok {
			t.Errorf("another host's call goes to %v", to)
		}
		if _, ok := w.relay.Admitted(w.now.Add(routeTime+time.Second), alice.Addr(), key); ok {
			t.Error("the admission lasts for ever")
		}
	}
	if m := w.exchange(alice, ras.ARQ, 10, arq(id, "nobody", 4, false)...); m.Kind != ras.ARJ {
		t.Errorf("nobody: %s", m.Kind)
	}
	// The called party asks too, and names itself; that routes nothing.
	w.exchange(alice, ras.ARQ, 11, arq(id, "carol", 5, true, per.F("destCallSignalAddress", h245.CallAddress(call(alice))))...)
	asked, _ := ras.NewCodec().Decode(w.toGK.Data)
	only(t, asked, h245.DestCallSignalAddress, netip.MustParseAddrPort("198.51.100.1:40001"))
	if _, ok := w.relay.Admitted(w.now, alice.Addr(), h225.ID(bytes.Repeat([]byte{5}, 16))); ok {
		t.Error("an answering ARQ routes a call")
	}
}

// TestDirect: the gatekeeper sends one inside endpoint straight to another's door, which leads back inside.
func TestDirect(t *testing.T) {
	w := newWorld(t)
	id := w.register(alice, "alice")
	w.register(bob, "bob")
	sent := w.request(alice, message(t, ras.ARQ, 9, arq(id, "bob", 3, false)...))
	acf := message(t, ras.ACF, int64(sent.SeqNum()), per.F("bandWidth", per.Number(640)), per.F("callModel", per.Alternative("direct", per.Nothing())),
		per.F("destCallSignalAddress", h245.CallAddress(netip.MustParseAddrPort("198.51.100.1:40002"))),
		per.F("willRespondToIRR", per.Truth(false)), per.F("uuiesRequested", uuies()))
	m := w.fromGK(acf)
	if m == nil {
		t.Fatal(w.relay.Outcomes)
	}
	only(t, m, h245.DestCallSignalAddress, call(insideRAS))
	if to, ok := w.relay.Admitted(w.now, alice.Addr(), h225.ID(bytes.Repeat([]byte{3}, 16))); !ok || to != call(bob) {
		t.Errorf("the call goes to %v", to)
	}
}

func uuies() per.Value {
	var f []per.Field
	for _, n := range []string{
		"setup", "callProceeding", "connect", "alerting", "information", "releaseComplete", "facility", "progress", "empty", "status",
		"statusInquiry", "setupAcknowledge", "notify",
	} {
		f = append(f, per.F(n, per.Truth(false)))
	}
	return per.Fields(f...)
}

// TestAsked: what the gatekeeper asks reaches the right endpoint, and its answer the gatekeeper.
func TestAsked(t *testing.T) {
	w := newWorld(t)
	w.register(alice, "alice")
	w.now = w.now.Add(time.Second)
	id := w.register(bob, "bob")
	w.exchange(bob, ras.ARQ, 9, arq(id, "carol", 3, false)...)
	for _, tt := range []struct {
		name  string
		kind  ras.Kind
		to    netip.AddrPort
		reply ras.Kind
		ask   []per.Field
	}{
		{"IRQ of a call", ras.IRQ, bob, ras.IRR, []per.Field{
			per.F("callReferenceValue", per.Number(1)), per.F("replyAddress", h245.CallAddress(remoteGK)), per.F("callIdentifier", per.Fields(per.F("guid", guid(3)))),
		}},
		{"IRQ of nothing: the quietest", ras.IRQ, alice, ras.IRR, []per.Field{
			per.F("callReferenceValue", per.Number(0)), per.F("replyAddress", h245.CallAddress(remoteGK)),
		}},
		{"SCI", ras.SCI, bob, ras.SCR, []per.Field{per.F("serviceControl", per.Elements()), per.F("endpointIdentifier", per.Text(id))}},
		{"URQ", ras.URQ, bob, ras.UCF, []per.Field{
			per.F("callSignalAddress", per.Elements(h245.CallAddress(netip.MustParseAddrPort("198.51.100.1:40002")))), per.F("endpointIdentifier", per.Text(id)),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			m := w.fromGK(message(t, tt.kind, 4000, tt.ask...))
			if m == nil || w.toEndpoint.To != tt.to || m.SeqNum() != 4000 {
				t.Fatalf("went to %v: %v", w.toEndpoint.To, w.relay.Outcomes)
			}
			var f []per.Field
			if tt.reply == ras.IRR {
				f = []per.Field{
					per.F("endpointType", terminal()), per.F("endpointIdentifier", per.Text("x")), per.F("rasAddress", h245.CallAddress(tt.to)),
					per.F("callSignalAddress", per.Elements(h245.CallAddress(call(tt.to)))), per.F("needResponse", per.Truth(false)),
				}
			}
			back := w.request(tt.to, message(t, tt.reply, 4000, f...))
			if back == nil || w.toGK.To != remoteGK || back.SeqNum() != 4000 {
				t.Fatalf("the answer went to %v: %v", w.toGK.To, w.relay.Outcomes)
			}
			if w.request(tt.to, message(t, ras.UCF, 4000)) != nil {
				t.Error("a second answer passes")
			}
		})
	}
	if len(w.relay.Registrations()) != 1 || w.closed != 1 {
		t.Errorf("after URQ %d are registered", len(w.relay.Registrations()))
	}
}

// TestRemoved: what leads around the edge, and the traversal that the edge does itself, is taken out.
func TestRemoved(t *testing.T) {
	w := newWorld(t)
	m := w.request(alice, message(t, ras.RRQ, 5, rrq(alice, "alice", false, per.F("featureSet", per.Fields(
		per.F("replacementFeatureSet", per.Truth(false)),
		per.F("supportedFeatures", per.Elements(h225.GenericData(18), h225.GenericData(9), h225.GenericData(19))))))...))
	if m == nil {
		t.Fatal(w.relay.Outcomes)
	}
	if f := m.Features(nil); len(f) != 1 || f[0].ID != 9 {
		t.Errorf("features %+v", f)
	}
	other := per.Fields(per.F("rasAddress", h245.CallAddress(netip.MustParseAddrPort("203.0.113.41:1719"))), per.F("needToRegister", per.Truth(false)), per.F("priority", per.Number(1)))
	got := w.fromGK(message(t, ras.RCF, int64(m.SeqNum()), protocol(), per.F("callSignalAddress", per.Elements(h245.CallAddress(routedCall))),
		per.F("endpointIdentifier", per.Text("77")), per.F("alternateGatekeeper", per.Elements(other)), per.F("willRespondToIRR", per.Truth(false)),
		per.F("maintainConnection", per.Truth(false))))
	if got == nil {
		t.Fatal(w.relay.Outcomes)
	}
	if r := got.Tree.Child(got.Body, "alternateGatekeeper"); r != per.None {
		t.Error("alternateGatekeeper is still there")
	}
	only(t, got, h245.CallSignalAddress, call(insideRAS))
	if life, ok := got.TimeToLive(); !ok || life != defaultLife {
		t.Errorf("lifetime %v", life)
	}
	w.relay.Sweep(begin.Add(defaultLife))
	if len(w.relay.Registrations()) != 1 {
		t.Error("gone before its time")
	}
	w.relay.Sweep(begin.Add(defaultLife + grace + time.Second))
	if len(w.relay.Registrations()) != 0 || w.closed != 1 {
		t.Error("still there")
	}
}

// TestRefused: who may not, and what nobody has asked for.
func TestRefused(t *testing.T) {
	stranger := netip.MustParseAddrPort("203.0.113.66:1719")
	tests := []struct {
		name string
		do   func(w *world) (Datagram, bool)
		why  string
		// reply is what the sender gets.
		reply ras.Kind
	}{
		{"garbage", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "inside", insideRAS, alice, []byte{0xff, 1, 2})
		}, Malformed, ""},
		{"another network", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "outside", outsideRAS, stranger, message(w.t, ras.RRQ, 1, rrq(stranger, "x", false)...))
		}, NotAllowed, ""},
		{"a reply of a stranger", func(w *world) (Datagram, bool) {
			m := w.request(alice, message(w.t, ras.RRQ, 1, rrq(alice, "alice", false)...))
			return w.relay.Handle(w.now, "outside", outsideRAS, stranger, message(w.t, ras.UCF, int64(m.SeqNum())))
		}, NotAllowed, ""},
		{"a reply to nothing", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "outside", outsideRAS, remoteGK, message(w.t, ras.UCF, 7))
		}, Unmatched, ""},
		{"a reply too late", func(w *world) (Datagram, bool) {
			m := w.request(alice, message(w.t, ras.RRQ, 1, rrq(alice, "alice", false)...))
			w.now = w.now.Add(replyTime + sweepEvery + time.Second)
			return w.relay.Handle(w.now, "outside", outsideRAS, remoteGK, message(w.t, ras.UCF, int64(m.SeqNum())))
		}, Unmatched, ""},
		{"an endpoint's reply to nothing", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "inside", insideRAS, alice, message(w.t, ras.UCF, 7))
		}, Unmatched, ""},
		{"a request to nobody", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "outside", outsideRAS, remoteGK, message(w.t, ras.URQ, 7, per.F("callSignalAddress", per.Elements())))
		}, NotRegistered, ""},
		{"an admission without registration", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "inside", insideRAS, alice, message(w.t, ras.ARQ, 7, arq("9", "carol", 1, false)...))
		}, NotRegistered, ras.ARJ},
		{"another host's identifier", func(w *world) (Datagram, bool) {
			id := w.register(alice, "alice")
			return w.relay.Handle(w.now, "inside", insideRAS, bob, message(w.t, ras.ARQ, 7, arq(id, "carol", 1, false)...))
		}, NotRegistered, ras.ARJ},
		{"a keep-alive after a restart", func(w *world) (Datagram, bool) {
			return w.relay.Handle(w.now, "inside", insideRAS, alice, message(w.t, ras.RRQ, 7, rrq(alice, "alice", true, per.F("endpointIdentifier", per.Text("9")))...))
		}, NotRegistered, ras.RRJ},
		{"another host's address", func(w *world) (Datagram, bool) {
			f := rrq(alice, "alice", false)
			return w.relay.Handle(w.now, "inside", insideRAS, stranger, message(w.t, ras.RRQ, 7, append(f[:2:2], append([]per.Field{
				per.F("callSignalAddress", per.Elements(h245.CallAddress(netip.MustParseAddrPort("203.0.113.99:1720")))),
			}, f[3:]...)...)...))
		}, Address, ras.RRJ},
		{"too many of one host", func(w *world) (Datagram, bool) {
			for port := uint16(2000); ; port++ {
				f := rrq(alice, "alice", false)
				f[2] = per.F("callSignalAddress", per.Elements(h245.CallAddress(netip.AddrPortFrom(alice.Addr(), port))))
				d, ok := w.relay.Handle(w.now, "inside", insideRAS, alice, message(w.t, ras.RRQ, int64(port), f...))
				if d.To != remoteGK || port > 2010 {
					return d, ok
				}
			}
		}, Limit, ras.RRJ},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			d, ok := tt.do(w)
			if w.relay.Outcomes[tt.why] == 0 {
				t.Errorf("outcomes %v", w.relay.Outcomes)
			}
			if ok != (tt.reply != "") {
				t.Fatalf("sent %v", d)
			}
			if !ok {
				return
			}
			if m, err := ras.NewCodec().Decode(d.Data); err != nil || m.Kind != tt.reply || d.To == remoteGK {
				t.Errorf("%v %s to %v", err, m.Kind, d.To)
			}
		})
	}
}

// TestAgain: a request that is sent again keeps its number, equal numbers of two endpoints become two.
func TestAgain(t *testing.T) {
	w := newWorld(t)
	one := message(t, ras.RRQ, 1, rrq(alice, "alice", false)...)
	a, b := w.request(alice, one), w.request(alice, one)
	c := w.request(bob, message(t, ras.RRQ, 1, rrq(bob, "bob", false)...))
	if a.SeqNum() != b.SeqNum() || a.SeqNum() == c.SeqNum() || w.opened != 2 {
		t.Errorf("numbers %d, %d and %d, %d doors", a.SeqNum(), b.SeqNum(), c.SeqNum(), w.opened)
	}
	rip := w.fromGK(message(t, ras.RIP, int64(a.SeqNum()), per.F("delay", per.Number(60000))))
	if rip == nil || rip.SeqNum() != 1 {
		t.Fatal("no RequestInProgress")
	}
	w.now = w.now.Add(time.Minute)
	if m := w.fromGK(message(t, ras.RRJ, int64(a.SeqNum()), protocol(), per.F("rejectReason", per.Alternative("undefinedReason", per.Nothing())))); m == nil {
		t.Error("the answer after a RequestInProgress is lost")
	}
	if w.closed != 2 { // alice's by the reject, bob's by its time
		t.Errorf("%d doors closed", w.closed)
	}
}

// TestSigned: what a signature covers passes byte for byte, or not at all.
func TestSigned(t *testing.T) {
	signed := message(t, ras.GRQ, 321, protocol(), per.F("rasAddress", h245.CallAddress(alice)), per.F("endpointType", terminal()),
		per.F("integrityCheckValue", per.Fields(per.F("algorithmOID", per.Identifier("0.0.8.235.0.1.1")), per.F("icv", per.Octet(make([]byte, 12))))))
	w := newWorld(t)
	d, ok := w.relay.Handle(w.now, "inside", insideRAS, alice, signed)
	if !ok || !bytes.Equal(d.Data, signed) || d.To != remoteGK {
		t.Fatalf("%v %x", ok, d.Data)
	}
	// The number is taken now: who has the same must wait.
	if _, ok := w.relay.Handle(w.now, "inside", insideRAS, bob, signed); ok || w.relay.Outcomes[Limit] != 1 {
		t.Error("two signed requests with one number")
	}
	w.signed = true
	if _, ok := w.relay.Handle(w.now, "inside", insideRAS, alice, signed); ok {
		t.Error("passed although policy refuses")
	}
}

// TestAnswersOfItsKind: what answers a request of another kind is no answer, though its number is right; and the numbers
// begin anywhere.
func TestAnswersOfItsKind(t *testing.T) {
	starts := map[uint16]bool{}
	for range 8 {
		w := newWorld(t)
		m := w.request(alice, message(t, ras.GRQ, 5, protocol(), per.F("rasAddress", h245.CallAddress(alice)), per.F("endpointType", terminal())))
		seq := int64(m.SeqNum())
		starts[m.SeqNum()] = true
		if got := w.fromGK(message(t, ras.UCF, seq)); got != nil {
			t.Errorf("an UCF answered a GRQ: %s", got.Kind)
		}
		if w.relay.Outcomes[Unmatched] != 1 {
			t.Errorf("%v", w.relay.Outcomes)
		}
		if got := w.fromGK(message(t, ras.GCF, seq, protocol(), per.F("rasAddress", h245.CallAddress(remoteGK)))); got == nil || got.SeqNum() != 5 {
			t.Errorf("the GCF did not come back: %v", w.relay.Outcomes)
		}
	}
	if len(starts) < 2 {
		t.Error("the numbers always begin the same")
	}
}

// TestLocate: who may not ask where endpoints are is not answered, and the gatekeeper is not asked.
func TestLocate(t *testing.T) {
	for network, passed := range map[string]bool{"inside": true, "elsewhere": false} {
		w := newWorld(t)
		b := message(t, ras.LRQ, 9, per.F("destinationInfo", per.Elements(h225.H323ID("bob"))), per.F("replyAddress", h245.CallAddress(alice)))
		if d, ok := w.relay.Handle(w.now, network, insideRAS, alice, b); ok != passed {
			t.Errorf("%s: %v, %v", network, d, w.relay.Outcomes)
		}
	}
}
