package h225_test

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

func addr(s string) per.Value { return h245.CallAddress(netip.MustParseAddrPort(s)) }

// fastStartItem is an OpenLogicalChannel for audio towards us.
func fastStartItem(number int64, rtp string) per.Value {
	ap := netip.MustParseAddrPort(rtp)
	rtcp := netip.AddrPortFrom(ap.Addr(), ap.Port()+1)
	return per.Encoded(per.Fields(
		per.F("forwardLogicalChannelNumber", per.Number(number)),
		per.F("forwardLogicalChannelParameters", per.Fields(
			per.F("dataType", per.Alternative("nullData", per.Nothing())),
			per.F("multiplexParameters", per.Alternative("none", per.Nothing())))),
		per.F("reverseLogicalChannelParameters", per.Fields(
			per.F("dataType", per.Alternative("audioData", per.Alternative("g711Alaw64k", per.Number(20)))),
			per.F("multiplexParameters", per.Alternative("h2250LogicalChannelParameters", per.Fields(
				per.F("sessionID", per.Number(1)),
				per.F("mediaChannel", h245.MediaAddress(ap)),
				per.F("mediaControlChannel", h245.MediaAddress(rtcp)))))))))
}

// setup is a Setup of our own with an address in every place that it has.
func setup(tb testing.TB) []byte {
	tb.Helper()
	terminal := per.Fields(per.F("mc", per.Truth(false)), per.F("undefinedNode", per.Truth(false)),
		per.F("terminal", per.Fields()))
	tunnelled, err := h245.Append(nil, "request", h245.MasterSlaveDetermination, per.Fields(
		per.F("terminalType", per.Number(50)), per.F("statusDeterminationNumber", per.Number(123456))))
	if err != nil {
		tb.Fatal(err)
	}
	mc, err := h245.Append(nil, "indication", h245.MCLocationIndication,
		per.Fields(per.F("signalAddress", h245.MediaAddress(netip.MustParseAddrPort("192.0.2.1:1111")))))
	if err != nil {
		tb.Fatal(err)
	}
	body := per.Fields(
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")),
		per.F("h245Address", addr("192.0.2.1:40000")),
		per.F("sourceAddress", per.Elements(h225.H323ID("alice"), per.Alternative("transportID", addr("192.0.2.1:1720")))),
		per.F("sourceInfo", terminal),
		per.F("destinationAddress", per.Elements(per.Alternative("dialledDigits", per.Text("4711")), per.Alternative("url-ID", per.Text("h323:bob@example.org")))),
		per.F("destCallSignalAddress", addr("[2001:db8::2]:1720")),
		per.F("activeMC", per.Truth(false)),
		per.F("conferenceID", per.Octet(bytes.Repeat([]byte{1}, 16))),
		per.F("conferenceGoal", per.Alternative("create", per.Nothing())),
		per.F("callType", per.Alternative("pointToPoint", per.Nothing())),
		per.F("sourceCallSignalAddress", addr("192.0.2.1:1721")),
		per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(bytes.Repeat([]byte{2}, 16))))),
		per.F("fastStart", per.Elements(fastStartItem(1, "192.0.2.1:5000"), fastStartItem(2, "192.0.2.1:5000"))),
		per.F("mediaWaitForConnect", per.Truth(false)),
		per.F("canOverlapSend", per.Truth(false)),
		per.F("multipleCalls", per.Truth(false)),
		per.F("maintainConnection", per.Truth(true)),
		per.F("supportedFeatures", per.Elements(h225.GenericData(18), h225.GenericData(19))),
		per.F("parallelH245Control", per.Elements(per.Octet(mc))))
	b, err := h225.Build(nil, q931.Setup, 4660, false, []q931.Element{{ID: q931.BearerCap, Contents: []byte{0x88, 0x90, 0xa5}}},
		h225.Info(h225.Setup, body, per.F("h245Tunnelling", per.Truth(true)), per.F("h245Control", per.Elements(per.Octet(tunnelled), per.Octet(mc)))))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestOwnSetup: what is built is read back, field by field.
func TestOwnSetup(t *testing.T) {
	m, err := h225.NewCodec().Decode(setup(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range m.Addresses(nil) {
		got = append(got, strings.TrimPrefix(string(a.Carrier)+" "+string(a.Field)+" "+a.AddrPort.String(), " "))
	}
	want := []string{
		"h245Address 192.0.2.1:40000", "transportID 192.0.2.1:1720", "destCallSignalAddress [2001:db8::2]:1720",
		"sourceCallSignalAddress 192.0.2.1:1721",
		"fastStart mediaChannel 192.0.2.1:5000", "fastStart mediaControlChannel 192.0.2.1:5001",
		"fastStart mediaChannel 192.0.2.1:5000", "fastStart mediaControlChannel 192.0.2.1:5001",
		"parallelH245Control signalAddress 192.0.2.1:1111", "h245Control signalAddress 192.0.2.1:1111",
	}
	if !slices.Equal(got, want) {
		t.Errorf("addresses:\n got %q\nwant %q", got, want)
	}
	id, ok := m.CallID()
	conf, _ := m.ConferenceID()
	on, present := m.Tunnelling()
	if id[0] != 2 || !ok || conf[0] != 1 || !on || !present || m.CallRef != 4660 || m.Body != h225.Setup || m.Protection() != h225.Unprotected {
		t.Errorf("%x %x %t %t %d %s", id, conf, on, present, m.CallRef, m.Body)
	}
	var aliases []string
	for _, a := range m.Aliases(nil) {
		aliases = append(aliases, a.Field+" "+a.Kind+" "+a.Text)
	}
	if want := []string{"sourceAddress h323-ID alice", "sourceAddress transportID ", "destinationAddress dialledDigits 4711", "destinationAddress url-ID h323:bob@example.org"}; !slices.Equal(aliases, want) {
		t.Errorf("aliases %q", aliases)
	}
	f := h225.Features(nil, m.Tree)
	if len(f) != 2 || f[0].ID != 18 || f[1].ID != 19 || f[0].Field != "supportedFeatures" {
		t.Errorf("features %+v", f)
	}
	if len(m.FastStart(nil)) != 2 || len(m.Tunnelled(nil)) != 2 || len(m.Parallel(nil)) != 1 {
		t.Errorf("%d, %d, %d items", len(m.FastStart(nil)), len(m.Tunnelled(nil)), len(m.Parallel(nil)))
	}
	if h := h245.At(m.Tree, m.Tunnelled(nil)[0]); h.Kind != h245.MasterSlaveDetermination {
		t.Errorf("tunnelled %s", h.Kind)
	}
}

// TestEditsTogether: everything at once, in one message: addresses of both families, a
// component less, an item replaced, a feature less, one more.
func TestEditsTogether(t *testing.T) {
	codec := h225.NewCodec()
	m, err := codec.Decode(setup(t))
	if err != nil {
		t.Fatal(err)
	}
	e := codec.Editor()
	v4, v6 := netip.MustParseAddrPort("198.51.100.1:2000"), netip.MustParseAddrPort("[2001:db8::9]:2000")
	item, err := schema.Tables().Encode(nil, schema.H245MultimediaSystemControlMessage,
		per.Alternative("command", per.Alternative("endSessionCommand", per.Alternative("disconnect", per.Nothing()))))
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range m.Addresses(nil) {
		switch {
		case a.Field == h245.H245Address:
			err = e.Drop(a.Ref)
		case a.Carrier == h245.H245Control:
			err = e.SetOctets(a.Item, item)
		case i%2 == 0:
			err = a.Set(e, m.Tree, v6)
		default:
			err = a.Set(e, m.Tree, v4)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		e.Drop(h225.Features(nil, m.Tree)[0].Ref),
		e.Add(m.PDU(), "genericData", per.Elements(h225.GenericData(24))),
		e.Replace(m.Aliases(nil)[0].Ref, h225.H323ID("alice@example.org")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := codec.Apply(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := h225.NewCodec().Decode(out)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range got.Addresses(nil) {
		if a.Field == h245.H245Address || a.AddrPort != v4 && a.AddrPort != v6 {
			t.Errorf("%d: %s %s", i, a.Field, a.AddrPort)
		}
	}
	if h := h245.At(got.Tree, got.Tunnelled(nil)[1]); h.Kind != h245.EndSession || len(got.Addresses(nil)) != 8 {
		t.Errorf("%s, %d addresses", h.Kind, len(got.Addresses(nil)))
	}
	f := h225.Features(nil, got.Tree)
	if len(f) != 2 || f[0].ID != 19 || f[1].ID != 24 || f[1].Field != "genericData" {
		t.Errorf("features %+v", f)
	}
	if got.Aliases(nil)[0].Text != "alice@example.org" {
		t.Errorf("aliases %+v", got.Aliases(nil))
	}
}

// TestVersion4Bitmap: the extension bitmap of a Setup of version 4 (27 additions that end
// on a boundary of 32 bits in what ooh323c sends) is read as it is: Linux 6.18 misreads it.
func TestVersion4Bitmap(t *testing.T) {
	codec := h225.NewCodec()
	seen := 0
	for _, p := range payloads(t) {
		if !strings.HasPrefix(p.name, "oo") {
			continue
		}
		m, err := codec.Decode(p.data)
		if err != nil {
			t.Fatal(err)
		}
		if m.Body != h225.Setup || len(m.FastStart(nil)) == 0 {
			continue
		}
		seen++
		n := 0
		for _, a := range m.Addresses(nil) {
			if a.Carrier == h245.FastStart {
				n++
			}
		}
		if n < len(m.FastStart(nil)) {
			t.Errorf("%s: %d addresses in %d items of fastStart", p.name, n, len(m.FastStart(nil)))
		}
	}
	if seen == 0 {
		t.Error("no fast start of ooh323c in the corpora")
	}
}

// TestNetMeeting: the Setup of NetMeeting 3.0, an Alerting of version 2 and the Setup of
// Intel's phone; NetMeeting's cut everywhere.
func TestNetMeeting(t *testing.T) {
	root := tpkttest.Corpora(t, "../../..", "h323")
	for file, body := range map[string]h225.Body{"netmeeting3-setup-uupdu.bin": h225.Setup, "alerting-v2-uupdu.bin": h225.Alerting} {
		uu, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		wrap := func(per []byte) []byte {
			b, err := q931.Append(nil, q931.Setup, 1, false, nil, per)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		codec := h225.NewCodec()
		m, err := codec.Decode(wrap(uu))
		if err != nil || m.Body != body || len(m.Tree.Rest()) > 0 {
			t.Fatalf("%s: %v", file, err)
		}
		if file[0] == 'n' {
			id, ok := m.ConferenceID()
			if !ok || id == (h225.ID{}) || len(m.Aliases(nil)) != 3 || m.Aliases(nil)[0].Text != "Mgon" {
				t.Errorf("%s: conference %x, aliases %+v", file, id, m.Aliases(nil))
			}
		}
		for n := range uu {
			if m, err := codec.Decode(wrap(uu[:n])); err == nil && m.Tree != nil && n < len(uu)-1 {
				t.Errorf("%s: %d of %d octets are a message", file, n, len(uu))
			}
		}
	}
}

// TestHostile: messages that must be refused, or harmless.
func TestHostile(t *testing.T) {
	codec := h225.NewCodec()
	for name, in := range map[string][]byte{
		"no PER":            {8, 2, 0, 1, 5, 0x7e, 0, 3, 5, 0xff, 0xff},
		"cut":               setup(t)[:60],
		"elements overrun":  {8, 2, 0, 1, 5, 0x28, 9},
		"two user-user":     {8, 2, 0, 1, 5, 0x7e, 0, 1, 5, 0x7e, 0, 1, 5},
		"fragmented length": {8, 2, 0, 1, 0x62, 0x7e, 0, 5, 5, 0x28, 0x10, 0xc1, 0},
	} {
		if m, err := codec.Decode(in); err == nil {
			t.Errorf("%s: taken as %+v", name, m)
		}
		if out, err := codec.Apply(nil); err == nil && !bytes.Equal(out, in) {
			t.Errorf("%s: refused, and written otherwise: %x", name, out)
		}
	}
	m, err := codec.Decode([]byte{8, 2, 0, 1, 5, 0x7e, 0, 0})
	if err != nil || m.Tree != nil || len(m.Addresses(nil)) != 0 || m.Reason() != "" {
		t.Fatalf("user-user of length 0: %v", err)
	}
	if _, ok := m.CallID(); ok || m.Protection() != h225.Unprotected || len(m.Tunnelled(nil)) != 0 || len(m.FastStart(nil)) != 0 {
		t.Error("something in nothing")
	}
	if out, err := codec.Apply(nil); err != nil || len(out) != 8 {
		t.Errorf("%x, %v", out, err)
	}
	items := make([]per.Value, 500)
	for i := range items {
		items[i] = fastStartItem(int64(i+1), "192.0.2.1:5000")
	}
	many(t, codec, items)
}

// many: a fastStart of 500 items is edited whole.
func many(t *testing.T, codec *h225.Codec, items []per.Value) {
	t.Helper()
	list, err := h225.Build(nil, q931.Facility, 1, false, nil, h225.Info(h225.Facility, per.Fields(
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.7")),
		per.F("reason", per.Alternative("undefinedReason", per.Nothing())),
		per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(make([]byte, 16))))),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)),
		per.F("fastStart", per.Elements(items...)))))
	if err != nil && !errors.Is(err, per.ErrSize) {
		t.Fatal(err)
	}
	if errors.Is(err, per.ErrSize) { // more than an open type holds without fragments
		many(t, codec, items[:len(items)/2])
		return
	}
	m, err := codec.Decode(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range m.Addresses(nil) {
		if err := a.Set(codec.Editor(), m.Tree, netip.MustParseAddrPort("198.51.100.2:6000")); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := codec.Apply(nil); err != nil || len(out) != len(list) || len(m.FastStart(nil)) != len(items) {
		t.Fatalf("%d items: %v", len(items), err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(setup(f))
	if _, ok := tpkttest.Find("../../..", "h323-lab"); ok {
		seen := map[int]bool{}
		for _, p := range payloads(f) {
			if key := int(p.data[4])<<16 | len(p.data)/64; !seen[key] {
				seen[key] = true
				f.Add(p.data)
			}
		}
	}
	f.Add([]byte{8, 2, 0, 1, 0x62, 0x7e, 0, 6, 5, 0x28, 0x80, 0x01, 0x00, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		codec := h225.NewCodec()
		m, err := codec.Decode(data)
		if err != nil {
			return
		}
		m.Aliases(nil)
		m.Protection()
		if m.Tree != nil {
			h225.Features(nil, m.Tree)
		}
		for _, r := range append(m.Tunnelled(nil), m.Parallel(nil)...) {
			h245.At(m.Tree, r).Channel()
		}
		if same, err := codec.Apply(nil); err != nil || !bytes.Equal(same, data) {
			t.Fatalf("without edits: %x, %v", same, err)
		}
		to := []netip.AddrPort{netip.MustParseAddrPort("198.51.100.2:6000"), netip.MustParseAddrPort("[2001:db8::9]:6000")}[len(data)%2]
		addrs := m.Addresses(nil)
		for _, a := range addrs {
			if err := a.Set(codec.Editor(), m.Tree, to); err != nil {
				t.Fatal(err)
			}
		}
		out, err := codec.Apply(nil)
		if err != nil {
			if errors.Is(err, per.ErrCheck) && !errors.Is(err, per.ErrSize) && !errors.Is(err, per.ErrDepth) && !errors.Is(err, per.ErrNodes) {
				t.Fatal(err)
			}
			return
		}
		got, err := h225.NewCodec().Decode(out)
		if err != nil || got.Body != m.Body || len(got.Addresses(nil)) != len(addrs) {
			t.Fatalf("%x: %v", out, err)
		}
	})
}
