package h323

import (
	"net/netip"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/pinhole"
)

// book is a directory.
type book map[string]netip.AddrPort

func (b book) Route(called string, _, _ netip.Addr) (netip.AddrPort, bool) {
	to, ok := b[called]
	return to, ok
}

// TestRoute: every rule, and which goes before which.
func TestRoute(t *testing.T) {
	ap := netip.MustParseAddrPort
	plain := func(b *bench) {}
	for _, tt := range []struct {
		name    string
		from    netip.AddrPort
		called  string
		more    []per.Field
		change  func(*Config, *Deps)
		before  func(*bench)
		network string
		want    string // the target, or the reason of the refusal
	}{
		{"by alias", aliceAt, "bob", nil, nil, plain, "outside", bobAt.String()},
		{"by alias in other letters", aliceAt, "BOB", nil, nil, plain, "outside", bobAt.String()},
		{"by alias from outside", bobAt, "alice", nil, nil, plain, "inside", aliceAt.String()},
		{"an unknown name", aliceAt, "nobody", nil, nil, plain, "", refusedUnknown},
		{"by prefix, the longest", aliceAt, "004930123", nil, func(c *Config, _ *Deps) {
			c.Aliases = map[string]Target{"00*": Target(davidAt), "0049*": Target(bobAt), "*": Target(davidAt)}
		}, plain, "outside", bobAt.String()},
		{"by the prefix of all", aliceAt, "whoever", nil, func(c *Config, _ *Deps) { c.Aliases = map[string]Target{"*": Target(davidAt)} }, plain, "outside", davidAt.String()},
		{"by address from inside", aliceAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(davidAt))}, nil, plain, "outside", davidAt.String()},
		{"the alias goes before the address", aliceAt, "bob", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(davidAt))}, nil, plain, "outside", bobAt.String()},
		{"by address from outside: not an open proxy", bobAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(carolAt))}, nil, plain, "", refusedUnknown},
		{"by the edge's own address", bobAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(netip.AddrPortFrom(outEdge, 1720)))}, nil, plain, "", refusedUnknown},
		{"to loopback", aliceAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(ap("127.0.0.1:1720")))}, nil, plain, "", refusedLoop},
		{"to multicast", aliceAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(ap("224.0.1.41:1720")))}, nil, plain, "", refusedLoop},
		{"to everybody", aliceAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(ap("255.255.255.255:1720")))}, nil, plain, "", refusedLoop},
		{"to nowhere", aliceAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(ap("0.0.0.0:0")))}, nil, plain, "", refusedLoop},
		{"an alias that is the edge: a loop", aliceAt, "loop", nil, func(c *Config, _ *Deps) { c.Aliases["loop"] = Target(netip.AddrPortFrom(outEdge, 1720)) }, plain, "", refusedLoop},
		{"to a family that the edge lacks", aliceAt, "", []per.Field{per.F("destCallSignalAddress", h245.CallAddress(ap("[2001:db8::9]:1720")))}, nil, plain, "", refusedUnreachable},
		{"by the directory", bobAt, "eve", nil, func(_ *Config, d *Deps) { d.Directory = book{"eve": carolAt} }, plain, "inside", carolAt.String()},
		{"by the directory without a name", bobAt, "", nil, func(_ *Config, d *Deps) { d.Directory = book{"": carolAt} }, plain, "inside", carolAt.String()},
		{"by default", aliceAt, "whoever", nil, func(c *Config, _ *Deps) { c.Default = map[string]Target{"inside": Target(davidAt)} }, plain, "outside", davidAt.String()},
		{"the default of another network", bobAt, "whoever", nil, func(c *Config, _ *Deps) { c.Default = map[string]Target{"inside": Target(davidAt)} }, plain, "", refusedUnknown},
		{"by forwarding, once", aliceAt, "bob", nil, nil, func(b *bench) { b.core.remember(b.now, aliceAt.Addr(), forward{to: davidAt, called: []string{"Bob"}}) }, "outside", davidAt.String()},
		{"another call than the forwarded one", aliceAt, "bob", nil, nil, func(b *bench) {
			b.core.remember(b.now, aliceAt.Addr(), forward{to: davidAt, called: []string{"carol"}})
		}, "outside", bobAt.String()},
		{"by forwarding, too late", aliceAt, "bob", nil, nil, func(b *bench) {
			b.core.remember(b.now, aliceAt.Addr(), forward{to: davidAt, called: []string{"bob"}})
			b.now = b.now.Add(forwardTime + time.Second)
		}, "outside", bobAt.String()},
		{"no network for it", aliceAt, "far", nil, func(c *Config, d *Deps) {
			c.Aliases["far"] = Target(ap("192.0.2.200:1720"))
			d.Networks["dmz"] = pinhole.Network{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
		}, plain, "", refusedUnreachable},
		{"by the routing table", aliceAt, "far", nil, func(c *Config, d *Deps) {
			c.Aliases["far"] = Target(ap("192.0.2.200:1720"))
			d.Networks["dmz"] = pinhole.Network{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
			d.RouteTo = func(netip.Addr) string { return "dmz" }
		}, plain, "dmz", "192.0.2.200:1720"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, tt.change)
			tt.before(b)
			id := b.connect(tt.from)
			actions := b.say(id, setup(t, 1, tt.from, tt.called, tt.more...))
			if tt.network == "" {
				if m := one(t, actions, id); m.Type != q931.ReleaseComplete || b.core.counts.refused[tt.want] != 1 {
					t.Errorf("%v, refused %v", m.Type, b.core.counts.refused)
				}
				b.empty()
				return
			}
			if len(actions) == 0 || actions[0].Kind != Dial || actions[0].Network != tt.network || actions[0].Target.String() != tt.want {
				t.Fatalf("%+v, refused %v", actions, b.core.counts.refused)
			}
		})
	}
}

// TestTransparent: a connection that was meant for somebody else goes there, whatever the Setup calls; not from
// a network that is not trusted, whose callers could reach any host inside.
func TestTransparent(t *testing.T) {
	b := newBench(t, nil)
	b.core.Accept(b.now, 5, "inside", davidAt, at(aliceAt, 30000))
	if a := b.say(5, setup(t, 1, aliceAt, "bob")); len(a) == 0 || a[0].Target != davidAt {
		t.Errorf("%+v", a)
	}
	b.core.Accept(b.now, 6, "outside", carolAt, at(davidAt, 30000))
	if a := b.say(6, setup(t, 2, davidAt, "alice")); len(a) == 0 || a[0].Target != aliceAt {
		t.Errorf("from outside: %+v", a)
	}
}

// TestCalledNumber: the called party number of Q.931 routes as an alias does.
func TestCalledNumber(t *testing.T) {
	b := newBench(t, func(c *Config, _ *Deps) { c.Aliases = map[string]Target{"4711": Target(bobAt)} })
	id := b.connect(aliceAt)
	whole := setup(t, 1, aliceAt, "")
	element := append([]byte{0x70, 5, 0x81}, "4711"...)
	with := append(append(append([]byte{}, whole[:5]...), element...), whole[5:]...)
	if a := b.say(id, with); len(a) == 0 || a[0].Target != bobAt {
		t.Errorf("%+v, refused %v", a, b.core.counts.refused)
	}
}

// TestForwarding: a Facility that sends the caller elsewhere names the edge, which knows whom it means; it never leads
// into another network.
func TestForwarding(t *testing.T) {
	b := newBench(t, nil)
	near, far := b.talk(1, aliceAt)
	b.say(far, connect(t, 1))
	m := one(t, b.say(far, facility(t, 1, true, "callForwarded", per.F("alternativeAddress", h245.CallAddress(davidAt)))), near)
	if got := addressIn(m, h245.AlternativeAddress); got != netip.AddrPortFrom(inEdge, 1720) {
		t.Errorf("alice was sent to %v", got)
	}
	again := b.connect(aliceAt)
	if a := b.say(again, setup(t, 2, aliceAt, "bob")); len(a) == 0 || a[0].Target != davidAt {
		t.Errorf("the next call went to %+v", a)
	}
	// A caller sends nobody anywhere.
	b.say(near, facility(t, 1, false, "callForwarded", per.F("alternativeAddress", h245.CallAddress(aliceAt))))
	if len(b.core.forwards) != 0 {
		t.Error("the caller says where the called party's calls go")
	}
	// An address of the edge's own becomes that of the other side.
	m = one(t, b.say(far, facility(t, 1, true, "callForwarded", per.F("alternativeAddress", h245.CallAddress(netip.AddrPortFrom(outEdge, 1720))))), near)
	if got := addressIn(m, h245.AlternativeAddress); got != netip.AddrPortFrom(inEdge, 1720) {
		t.Errorf("alice was sent to %v", got)
	}
	for _, bad := range []string{"10.0.0.8:1720", "127.0.0.1:1720", "224.0.0.1:1720", "169.254.1.1:1720"} {
		b := newBench(t, nil)
		near, far := b.talk(1, aliceAt)
		for _, m := range sent(t, b.say(far, facility(t, 1, true, "callForwarded", per.F("alternativeAddress", h245.CallAddress(netip.MustParseAddrPort(bad))))), near) {
			if m.Type != q931.ReleaseComplete {
				t.Errorf("%s passed", bad)
			}
		}
		if len(b.core.forwards) != 0 {
			t.Errorf("%s is remembered", bad)
		}
	}
	for i := range maxForwards + 10 {
		b.core.remember(b.now, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), forward{to: davidAt})
	}
	if len(b.core.forwards) > maxForwards {
		t.Errorf("%d forwards", len(b.core.forwards))
	}
}

func addressIn(m *h225.Message, f h245.Field) netip.AddrPort {
	for _, a := range m.Addresses(nil) {
		if a.Field == f {
			return a.AddrPort
		}
	}
	return netip.AddrPort{}
}
