package h323

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
	"edged.dev/edged/pkg/pinhole"
)

var (
	outerGK   = netip.MustParseAddrPort("203.0.113.40:1719")
	innerGK   = netip.MustParseAddrPort("10.0.0.40:1719")
	insideRAS = netip.AddrPortFrom(inEdge, 1719)
)

func withRAS(gk netip.AddrPort, register ...string) func(*Config, *Deps) {
	return func(c *Config, _ *Deps) {
		c.RAS = []pinhole.Listen{{Proto: "udp", Network: "inside", Port: 1719}, {Proto: "udp", Network: "outside", Port: 1719}}
		c.Gatekeeper, c.Register, c.Aliases = Gatekeeper{gk}, register, nil
	}
}

func rasMessage(t *testing.T, k ras.Kind, seq int64, f ...per.Field) []byte {
	t.Helper()
	b, err := ras.Append(nil, k, append([]per.Field{per.F("requestSeqNum", per.Number(seq))}, f...)...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func registration(t *testing.T, from netip.AddrPort, name string, more ...per.Field) []byte {
	return rasMessage(t, ras.RRQ, 1, append([]per.Field{
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("discoveryComplete", per.Truth(true)),
		per.F("callSignalAddress", per.Elements(h245.CallAddress(from))), per.F("rasAddress", per.Elements(h245.CallAddress(from))),
		per.F("terminalType", kindOfEndpoint()), per.F("terminalAlias", per.Elements(h225.H323ID(name))),
		per.F("endpointVendor", per.Fields(per.F("vendor", per.Fields(
			per.F("t35CountryCode", per.Number(181)), per.F("t35Extension", per.Number(0)), per.F("manufacturerCode", per.Number(1)))))),
		per.F("keepAlive", per.Truth(false)), per.F("willSupplyUUIEs", per.Truth(false)),
	}, more...)...)
}

// register registers alice with the outside gatekeeper, and returns her door.
func (b *bench) register(gk netip.AddrPort) *pinholeLease {
	b.t.Helper()
	t := b.t.(*testing.T)
	d, ok := b.core.Datagram(b.now, "inside", insideRAS, at(aliceAt, 1719), registration(t, aliceAt, "alice"))
	if !ok || d.To != gk {
		t.Fatalf("RRQ went to %v", d.To)
	}
	m, err := ras.NewCodec().Decode(d.Data)
	if err != nil {
		t.Fatal(err)
	}
	rcf := rasMessage(t, ras.RCF, int64(m.SeqNum()), per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")),
		per.F("callSignalAddress", per.Elements(h245.CallAddress(netip.AddrPortFrom(gk.Addr(), 1720)))), per.F("endpointIdentifier", per.Text("7")),
		per.F("willRespondToIRR", per.Truth(false)), per.F("maintainConnection", per.Truth(false)))
	if d, ok := b.core.Datagram(b.now, "outside", netip.AddrPortFrom(outEdge, 1719), gk, rcf); !ok || d.To != at(aliceAt, 1719) {
		t.Fatalf("RCF went to %v", d.To)
	}
	lease := b.open(pinhole.TCP)[0]
	return &pinholeLease{lease.Local(pinhole.Far).Addr, lease.Remote(pinhole.Near), lease.Remote(pinhole.Far)}
}

// pinholeLease is what is of interest of a door.
type pinholeLease struct {
	at        netip.AddrPort
	near, far pinhole.Remote
}

// TestDoor: the gatekeeper's calls for an endpoint come through its door on two connections that exist already; only
// the gatekeeper's host may come.
func TestDoor(t *testing.T) {
	b := newBench(t, withRAS(outerGK))
	door := b.register(outerGK)
	if door.near.Addr != aliceAt || door.far.Addr.Addr() != outerGK.Addr() {
		t.Errorf("the door leads from %v to %v", door.far, door.near)
	}
	ids := [2]ConnID{101, 102}
	b.core.Entered(b.now, ids, [2]string{"inside", "outside"}, [2]netip.AddrPort{netip.AddrPortFrom(inEdge, 40000), door.at}, [2]netip.AddrPort{aliceAt, at(outerGK, 30000)})
	actions := b.say(102, setup(t, 1, bobAt, "alice"))
	for _, a := range actions {
		if a.Kind == Dial {
			t.Errorf("another connection was made: %+v", a)
		}
	}
	if m := one(t, actions, 101); m.Type != q931.Setup {
		t.Fatalf("alice got %v", m.Type)
	}
	for k := range b.core.calls {
		if k.owner != aliceAt.Addr() || k.dialer[pinhole.Near] != bobAt.Addr() {
			t.Errorf("%v pays, %v connects", k.owner, k.dialer[pinhole.Near])
		}
	}
	b.say(101, release(t, 1, true))
	b.tick(lingerTime)
	for _, id := range ids {
		if l := b.core.legs[id]; l == nil || !l.closing {
			t.Errorf("connection %d stays", id)
		}
	}
	// A connection that ends before its first Setup takes the other along.
	b.core.Entered(b.now, [2]ConnID{103, 104}, [2]string{"inside", "outside"}, [2]netip.AddrPort{netip.AddrPortFrom(inEdge, 40000), door.at}, [2]netip.AddrPort{aliceAt, at(outerGK, 30001)})
	if a := b.closed(104); len(a) != 1 || a[0].Kind != Close || a[0].Conn != 103 {
		t.Errorf("%+v", a)
	}
	// Nobody else's call counts as alice's, but by her name.
	if a := b.say(b.connect(at(bobAt, 1720)), setup(t, 2, bobAt, "alice")); len(a) == 0 || a[0].Target != aliceAt {
		t.Errorf("by name: %+v", a)
	}
	// Without an admission her own call goes to the gatekeeper, and names her door.
	near := b.connect(aliceAt)
	b.dialled(b.say(near, setup(t, 3, aliceAt, "carol")))
	if l := b.core.legs[b.core.last]; l == nil || l.remote != netip.AddrPortFrom(outerGK.Addr(), 1720) {
		t.Errorf("alice's call went to %+v", l)
	}
	if m := one(t, b.out.Actions, b.core.last); addressIn(m, h245.SourceCallSignalAddress) != door.at {
		t.Errorf("she can be called back at %v", addressIn(m, h245.SourceCallSignalAddress))
	}
	b.tick(time.Hour)
	if len(b.open(pinhole.TCP)) != 0 {
		t.Error("the door stays open for ever")
	}
}

// TestServiceDoor: nobody registers a service port.
func TestServiceDoor(t *testing.T) {
	b := newBench(t, withRAS(outerGK))
	d, ok := b.core.Datagram(b.now, "inside", insideRAS, at(aliceAt, 1719), registration(t, at(aliceAt, 445), "alice"))
	if m, err := ras.NewCodec().Decode(d.Data); !ok || err != nil || m.Kind != ras.RRJ || b.opener.Count() != 0 {
		t.Errorf("%v %v, %d pinholes", ok, err, b.opener.Count())
	}
}

// TestInnerGatekeeper: a gatekeeper inside speaks for the endpoints there, but not for the edge, loopback or services.
func TestInnerGatekeeper(t *testing.T) {
	for named, good := range map[string]bool{"10.0.0.8:4000": true, "10.0.0.1:4000": false, "127.0.0.1:4000": false, "10.0.0.8:22": false} {
		b := newBench(t, withRAS(innerGK, "outside"))
		near := b.connect(at(innerGK, 1720))
		actions := b.say(near, setup(t, 1, carolAt, "", per.F("destCallSignalAddress", h245.CallAddress(bobAt)),
			per.F("h245Address", h245.CallAddress(netip.MustParseAddrPort(named)))))
		if refused := len(sent(t, actions, near)) > 0; refused == good {
			t.Errorf("%s: refused %v", named, refused)
		}
	}
}

// TestTraversal: an endpoint behind a NAT is told of a call until it connects; then it gets the Setup on its own
// connection, connects for H.245 too, and learns where to keep the way open.
func TestTraversal(t *testing.T) {
	private := netip.MustParseAddrPort("192.168.7.7:1720")
	seen := netip.MustParseAddrPort("203.0.113.77:2000") // the NAT
	feature := per.F("featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)), per.F("supportedFeatures", per.Elements(h225.GenericData(18)))))
	start := func(t *testing.T) (*bench, ConnID, []Action) {
		b := newBench(t, withRAS(netip.AddrPort{}, "inside", "outside"))
		if _, ok := b.core.Datagram(b.now, "outside", netip.AddrPortFrom(outEdge, 1719), seen, registration(t, private, "dave", feature)); !ok {
			t.Fatal("no answer")
		}
		near := b.connect(aliceAt)
		return b, near, b.say(near, setup(t, 1, aliceAt, "dave"))
	}
	t.Run("it connects", func(t *testing.T) {
		b, near, actions := start(t)
		if len(actions) != 1 || actions[0].Kind != Ring || actions[0].Target != seen || actions[0].Network != "outside" {
			t.Fatalf("%+v", actions)
		}
		if again := b.tick(ringEvery); len(again) != 1 || !bytes.Equal(again[0].Data, actions[0].Data) {
			t.Errorf("it is told again: %+v", again)
		}
		// Somebody else who knows the call does not get it.
		thief := b.connect(bobAt)
		b.say(thief, facility(t, 1, false, "undefinedReason"))
		if len(b.core.rings) != 1 {
			t.Fatal("another host took the call")
		}
		far := b.connect(seen)
		m := one(t, b.say(far, facility(t, 1, false, "undefinedReason")), far)
		if m.Type != q931.Setup {
			t.Fatalf("dave got %v", m.Type)
		}
		if f := h225.Features(nil, m.Tree); len(f) != 1 || f[0].ID != mediaTraversal {
			t.Errorf("features %+v", f)
		}
		out := b.say(far, connect(t, 1, per.F("h245Address", h245.CallAddress(at(private, 5000)))))
		lease := b.open(pinhole.TCP)[0]
		if m := one(t, out, near); addressIn(m, h245.H245Address) != lease.Local(pinhole.Near).Addr {
			t.Errorf("alice is told %v", addressIn(m, h245.H245Address))
		}
		if m := one(t, out, far); m.Reason() != "startH245" || m.FromDest || addressIn(m, h245.H245Address) != lease.Local(pinhole.Far).Addr {
			t.Errorf("dave is told %v %s", m.Type, m.Reason())
		}
		if r := lease.Remote(pinhole.Far); r.Addr != netip.AddrPortFrom(seen.Addr(), 9) {
			t.Errorf("the edge would connect to %v", r.Addr)
		}
		indication := h245Of(t, "indication", "genericIndication", per.F("messageIdentifier", per.Alternative("standard", per.Identifier(controlTraversal))),
			per.F("messageContent", per.Elements(per.Fields(per.F("parameterIdentifier", per.Alternative("standard", per.Number(1))),
				per.F("parameterValue", per.Alternative("octetString", per.Octet(make([]byte, 16))))))))
		if got, err := b.core.Control(b.now, b.served, pinhole.Far, indication); err != nil || len(got) != 0 {
			t.Errorf("alice hears %x, %v", got, err)
		}
		got, err := b.core.Control(b.now, b.served, pinhole.Near, olc(t, 1, 1, at(aliceAt, 4001)))
		if err != nil {
			t.Fatal(err)
		}
		h, _, err := h245.Decode(h245.NewDecoder(), got)
		if err != nil {
			t.Fatal(err)
		}
		v, err := h245.DecodeTraversal(h.Tree.Octets(h245.TraversalAt(h.Tree, h.Body)))
		if media := b.open(pinhole.RTP)[0].Local(pinhole.Far).Addr; err != nil || v.KeepAliveChannel != media || v.KeepAliveInterval != keepAliveInterval {
			t.Errorf("%+v, %v", v, err)
		}
		b.closed(far)
		b.empty()
	})
	t.Run("it does not", func(t *testing.T) {
		b, near, _ := start(t)
		told := 0
		for range int(ringTime / time.Second) {
			for _, a := range b.tick(time.Second) {
				if a.Kind == Ring {
					told++
				}
			}
		}
		if m := one(t, b.out.Actions, near); m.Type != q931.ReleaseComplete || told < 5 {
			t.Errorf("%v after it was told %d times", m.Type, told)
		}
		b.tick(lingerTime)
		b.empty()
		if len(b.core.rings) != 0 || len(b.core.legs) != 1 {
			t.Errorf("%d rings and %d connections are left", len(b.core.rings), len(b.core.legs))
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		b, near, _ := start(t)
		b.closed(near)
		b.empty()
		if len(b.core.rings) != 0 || len(b.core.legs) != 0 {
			t.Errorf("%d rings and %d connections are left", len(b.core.rings), len(b.core.legs))
		}
	})
}
