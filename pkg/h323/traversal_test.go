package h323

import (
	"net/netip"
	"path/filepath"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

// recordedClient is what a real client of H.460.18 and H.460.19 with multiplexed media said to a real gatekeeper, and heard
// of it.
type recordedClient struct {
	client, server netip.AddrPort
	ras            [][]byte // GRQ, RRQ
	says, hears    [][]byte // call signalling
}

func multiplexedClient(t *testing.T) recordedClient {
	t.Helper()
	root := tpkttest.Corpora(t, "../..", "h323-lab")
	c, err := tpkttest.Read(filepath.Join(root, "gk_h46019m-cap.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	r := recordedClient{client: netip.MustParseAddrPort("203.0.113.2:1720"), server: netip.MustParseAddrPort("203.0.113.1:1720")}
	for _, d := range c.UDP {
		if d.Dst.Port() == rasPort && len(r.ras) < 2 {
			r.ras = append(r.ras, d.Payload)
			r.client = d.Src
		}
	}
	for _, s := range c.TCP {
		for _, p := range payloads(s) {
			if s.Dst == r.server {
				r.says = append(r.says, p.Payload)
			} else if s.Src == r.server {
				r.hears = append(r.hears, p.Payload)
			}
		}
	}
	return r
}

// with returns the first message of a list that tunnels H.245 of a kind, and that.
func with(t *testing.T, list [][]byte, kind h245.Kind) (payload []byte, v h245.Traversal) {
	t.Helper()
	for _, b := range list {
		m, err := h225.NewCodec().Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if c, ok := tunnelledKind(m, kind); ok {
			return b, traversalOf(t, m, c)
		}
	}
	t.Fatalf("there is no %s", kind)
	return nil, v
}

func tunnelledKind(m *h225.Message, kind h245.Kind) (h245.Message, bool) {
	for _, r := range m.Tunnelled(nil) {
		if c := h245.At(m.Tree, r); c.Kind == kind {
			return c, true
		}
	}
	return h245.Message{}, false
}

func traversalOf(t *testing.T, m *h225.Message, c h245.Message) (v h245.Traversal) {
	t.Helper()
	if at := h245.TraversalAt(m.Tree, c.Body); at != per.None {
		var err error
		if v, err = h245.DecodeTraversal(m.Tree.Octets(at)); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// multiplexing returns a bench in the place of the gatekeeper of the recording, with its client registered, and called
// by alice; the client's connection is there.
func (r *recordedClient) multiplexing(t *testing.T, port uint16) (b *bench, alice, client ConnID) {
	t.Helper()
	nets := trustedNetworks()
	nets["outside"] = pinhole.Network{Addresses: []netip.Addr{r.server.Addr()}}
	b = newBench(t, func(c *Config, d *Deps) {
		d.Networks = nets
		c.RAS = []pinhole.Listen{{Proto: "udp", Network: "inside", Port: rasPort}, {Proto: "udp", Network: "outside", Port: rasPort}}
		c.Register, c.MultiplexPort, c.GatekeeperID, c.Aliases = []string{"inside", "outside"}, port, "GnuGk", nil
	})
	b.opener = pinholetest.New(nets, 20000)
	b.core.opener = b.opener
	name := ""
	for _, d := range r.ras {
		answer, ok := b.core.Datagram(b.now, "outside", netip.AddrPortFrom(r.server.Addr(), rasPort), r.client, d)
		m, err := ras.NewCodec().Decode(d)
		if err != nil || !ok {
			t.Fatalf("not answered: %v", err)
		}
		for _, a := range m.Aliases(nil) {
			if a.Field == "terminalAlias" && name == "" {
				name = a.Text
			}
		}
		if got, err := ras.NewCodec().Decode(answer.Data); err != nil || got.Kind != ras.GCF && got.Kind != ras.RCF {
			t.Fatalf("%s was answered by %v, %v", m.Kind, got, err)
		}
	}
	first, err := h225.NewCodec().Decode(r.says[0])
	if err != nil {
		t.Fatal(err)
	}
	id, _ := first.CallID()
	proceeding, err := h225.NewCodec().Decode(r.says[1])
	if err != nil {
		t.Fatal(err)
	}
	alice = b.connect(aliceAt)
	rings := b.say(alice, setupOf(t, proceeding.CallRef, id, aliceAt, name))
	if len(rings) != 1 || rings[0].Kind != Ring || rings[0].Target != r.client {
		t.Fatalf("the client is not told of the call: %v", rings)
	}
	b.last++
	client = b.last
	b.core.Accept(b.now, client, "outside", r.server, netip.AddrPortFrom(r.client.Addr(), 30000))
	got := one(t, b.say(client, r.says[0]), client)
	if got.Type != q931.Setup {
		t.Fatalf("the client got %v", got.Type)
	}
	for _, f := range h225.Features(nil, got.Tree) {
		if f.ID != mediaTraversal || !f.Has(got.Tree, traversalServer) || f.Has(got.Tree, transmitMultiplexed) != (port != 0) {
			t.Errorf("the Setup says %+v", f)
		}
	}
	for _, m := range r.says[1:] {
		if c, err := h225.NewCodec().Decode(m); err != nil || c.Type != q931.CallProceeding && c.Type != q931.Connect {
			break
		}
		b.say(client, m)
	}
	return b, alice, client
}

// TestMultiplexed: the edge in the place of a real traversal server says to its real client what that said, of its own
// port and number, and the party inside gets nothing of it.
func TestMultiplexed(t *testing.T) {
	r := multiplexedClient(t)
	b, alice, client := r.multiplexing(t, 3000)
	setup, err := h225.NewCodec().Decode(r.says[1])
	if err != nil {
		t.Fatal(err)
	}
	ref := setup.CallRef
	inTunnel := func(fromDest bool, h []byte) []byte {
		v, err := h225.Build(nil, q931.Facility, ref, fromDest, nil, h225.Info(h225.Empty, per.Nothing(), per.F("h245Tunnelling", per.Truth(true)),
			per.F("h245Control", per.Elements(per.Octet(h)))))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	plain := func(m *h225.Message, kind h245.Kind) {
		t.Helper()
		if c, ok := tunnelledKind(m, kind); !ok || h245.TraversalAt(m.Tree, c.Body) != per.None {
			t.Errorf("%s came inside with what was said to the edge", kind)
		}
	}
	said := func(m *h225.Message, kind h245.Kind, tag uint32) {
		t.Helper()
		c, ok := tunnelledKind(m, kind)
		if !ok {
			t.Fatalf("no %s", kind)
		}
		_, want := with(t, r.hears, kind)
		want.MultiplexID = tag
		if want.KeepAliveChannel.IsValid() {
			want.KeepAliveInterval, want.KeepAlivePayload, want.KeepAlive = keepAliveInterval, keepAlivePayload, true
		}
		if got := traversalOf(t, m, c); got != want {
			t.Errorf("%s says %+v, not %+v", kind, got, want)
		}
	}
	request, offered := with(t, r.says, h245.OpenLogicalChannel)
	plain(one(t, b.say(client, request), alice), h245.OpenLogicalChannel)
	lease := b.open(pinhole.RTP)[0]
	if lease.Request.Shared != [2]uint16{0, 3000} {
		t.Fatalf("shared at %v", lease.Request.Shared)
	}
	tag := lease.Local(pinhole.Far).Tag
	check := func() {
		t.Helper()
		far := lease.Remote(pinhole.Far)
		if far.Addr != offered.MediaChannel || far.RTCP != offered.MediaControlChannel || !far.Tagged || far.Tag != offered.MultiplexID {
			t.Errorf("of the client is known %+v", far)
		}
	}
	check()
	said(one(t, b.say(alice, inTunnel(false, olc(t, 101, 1, at(aliceAt, 5001)))), client), h245.OpenLogicalChannel, tag)
	answer, _ := with(t, r.says, h245.OpenLogicalChannelAck)
	plain(one(t, b.say(client, answer), alice), h245.OpenLogicalChannelAck)
	check()
	said(one(t, b.say(alice, inTunnel(false, ack(t, 101, 1, at(aliceAt, 5000), at(aliceAt, 5001)))), client), h245.OpenLogicalChannelAck, tag)
	if n := len(b.open(pinhole.RTP)); n != 1 {
		t.Errorf("%d pinholes for one session", n)
	}
}

// TestMultiplexedOff: without a port for it the same client gets pinholes of its own.
func TestMultiplexedOff(t *testing.T) {
	r := multiplexedClient(t)
	b, alice, client := r.multiplexing(t, 0)
	request, _ := with(t, r.says, h245.OpenLogicalChannel)
	if m := one(t, b.say(client, request), alice); m.Type != q931.Facility {
		t.Errorf("%v", m.Type)
	}
	lease := b.open(pinhole.RTP)[0]
	if lease.Request.Shared != [2]uint16{} || lease.Remote(pinhole.Far).Tagged {
		t.Errorf("%+v, %+v", lease.Request, lease.Remote(pinhole.Far))
	}
}

// TestBehind: an address that an endpoint behind a NAT names, and that resembles one of the edge's own networks, is
// taken for one at the NAT.
func TestBehind(t *testing.T) {
	b := newBench(t, nil)
	x := exchange{core: b.core, call: &call{nets: [2]string{"inside", "outside"}, host: [2]netip.Addr{aliceAt.Addr(), bobAt.Addr()}}}
	for named, want := range map[string]string{
		"10.0.0.9:5000": "203.0.113.9:5000", "10.0.0.1:5000": "203.0.113.9:5000",
		"192.168.1.4:5000": "192.168.1.4:5000", "203.0.113.9:5000": "203.0.113.9:5000",
	} {
		if got := x.behind(pinhole.Far, netip.MustParseAddrPort(named)); got.String() != want {
			t.Errorf("%s was taken for %v", named, got)
		}
	}
}
