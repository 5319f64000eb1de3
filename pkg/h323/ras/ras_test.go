package ras_test

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

type datagram struct {
	name string
	data []byte
}

func datagrams(tb testing.TB) []datagram {
	tb.Helper()
	var out []datagram
	for _, dir := range []string{"h323", "h323-lab"} {
		files, _ := filepath.Glob(filepath.Join(tpkttest.Corpora(tb, "../../..", dir), "*.pcap*"))
		for _, f := range files {
			c, err := tpkttest.Read(f)
			if err != nil {
				continue
			}
			for _, d := range c.UDP {
				for _, port := range []uint16{d.Src.Port(), d.Dst.Port()} {
					if port == 1718 || port == 1719 {
						out = append(out, datagram{filepath.Base(f), d.Payload})
						break
					}
				}
			}
		}
	}
	if len(out) == 0 {
		tb.Fatal("no RAS in the corpora")
	}
	return out
}

// TestCorpora: every datagram decodes and is itself without edits; every address is found,
// and when all are replaced nothing else changes.
func TestCorpora(t *testing.T) {
	codec, again := ras.NewCodec(), ras.NewCodec()
	counts, fields := map[string]int{}, map[string]int{}
	to := netip.MustParseAddrPort("198.51.100.9:29999")
	for _, d := range datagrams(t) {
		m, err := codec.Decode(d.data)
		if err != nil {
			t.Fatalf("%s: %x: %v", d.name, d.data, err)
		}
		if m.SeqNum() == 0 {
			t.Errorf("%s: %s without requestSeqNum", d.name, m.Kind)
		}
		counts[string(m.Kind)]++
		if same, err := codec.Apply(nil); err != nil || !bytes.Equal(same, d.data) {
			t.Fatalf("%s: without edits: %x, %v", d.name, same, err)
		}
		want := bytes.Clone(d.data)
		found := map[int]bool{}
		addrs := m.Addresses(nil)
		for _, a := range addrs {
			fields[string(m.Kind)+" "+string(a.Field)]++
			if err := a.Set(codec.Editor(), m.Tree, to); err != nil {
				t.Fatal(err)
			}
			_, end := m.Tree.Span(a.Ref)
			found[end-6] = true
			copy(want[end-6:end], []byte{198, 51, 100, 9, 29999 >> 8, 29999 & 0xff})
		}
		for i := 0; i+4 <= len(d.data); i++ {
			if d.data[i] == 10 && d.data[i+1] == 77 && d.data[i+2] <= 9 && !found[i] && !inGeneric(m, i) {
				t.Errorf("%s: %s: an address at octet %d is not found: %x", d.name, m.Kind, i, d.data[i:i+4])
			}
		}
		out, err := codec.Apply(nil)
		if err != nil || !bytes.Equal(out, want) {
			t.Fatalf("%s: %s: %v\n got %x\nwant %x", d.name, m.Kind, err, out, want)
		}
		got, err := again.Decode(out)
		if err != nil || len(got.Addresses(nil)) != len(addrs) {
			t.Fatalf("%s: %s: rewritten: %v", d.name, m.Kind, err)
		}
	}
	for _, m := range []map[string]int{counts, fields} {
		var keys []string
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			t.Logf("%-52s %5d", k, m[k])
		}
	}
}

// inGeneric tells whether an octet is in the generic data of H.460, which hold types
// of their own.
func inGeneric(m *ras.Message, octet int) bool {
	return slices.ContainsFunc(m.Features(nil), func(f h225.Feature) bool {
		from, to := m.Tree.Span(f.Ref)
		return from <= octet && octet < to
	})
}

// TestCut: a message cut anywhere is refused or understood, and does not panic.
func TestCut(t *testing.T) {
	codec := ras.NewCodec()
	seen := map[int]bool{}
	for _, d := range datagrams(t) {
		if key := int(d.data[0])<<16 | len(d.data); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		for n := range d.data {
			m, err := codec.Decode(d.data[:n:n])
			if err != nil {
				if _, err := codec.Apply(nil); err == nil {
					t.Fatal("wrote a message that was refused")
				}
				continue
			}
			m.Addresses(nil)
			m.Aliases(nil)
			m.Features(nil)
		}
	}
}

// TestIncomingCall: the H.460.18 call of the lab: a gatekeeper's SCI says where to connect.
func TestIncomingCall(t *testing.T) {
	codec := ras.NewCodec()
	dec := per.NewDecoder(schema.Tables())
	seen := 0
	for _, d := range datagrams(t) {
		m, err := codec.Decode(d.data)
		if err != nil || m.Kind != ras.SCI {
			continue
		}
		for _, f := range m.Features(nil) {
			kind, r := f.Parameter(m.Tree, 1)
			if f.ID != 18 || kind != "raw" {
				continue
			}
			in, err := dec.Decode(schema.H460IncomingCallIndication, m.Tree.Octets(r))
			if err != nil {
				t.Fatalf("%s: %x: %v", d.name, m.Tree.Octets(r), err)
			}
			a := h245.Addresses(nil, in, in.Root())
			if len(a) != 1 || a[0].Field != h245.SignallingAddress || a[0].AddrPort.Port() == 0 {
				t.Errorf("%s: %+v", d.name, a)
			}
			if id := in.Find(in.Root(), "callID", "guid"); len(in.Octets(id)) != 16 {
				t.Errorf("%s: no call id", d.name)
			}
			seen++
		}
	}
	if seen == 0 {
		t.Error("no SCI with an incoming call")
	}
}

// rcf is a registration confirm of our own.
func rcf(tb testing.TB, ttl int64) []byte {
	tb.Helper()
	b, err := ras.Append(nil, ras.RCF,
		per.F("requestSeqNum", per.Number(77)),
		per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.7")),
		per.F("callSignalAddress", per.Elements(
			h245.CallAddress(netip.MustParseAddrPort("203.0.113.1:1720")),
			h245.CallAddress(netip.MustParseAddrPort("[2001:db8::5]:1720")))),
		per.F("terminalAlias", per.Elements(h225.H323ID("alice"), per.Alternative("dialledDigits", per.Text("4711")))),
		per.F("gatekeeperIdentifier", per.Text("edge")),
		per.F("endpointIdentifier", per.Text("ep1")),
		per.F("timeToLive", per.Number(ttl)),
		per.F("willRespondToIRR", per.Truth(false)),
		per.F("maintainConnection", per.Truth(true)),
		per.F("genericData", per.Elements(h225.GenericData(18))))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestOwn(t *testing.T) {
	codec := ras.NewCodec()
	m, err := codec.Decode(rcf(t, 300))
	if err != nil {
		t.Fatal(err)
	}
	ttl, ok := m.TimeToLive()
	aliases := m.Aliases(nil)
	addrs := m.Addresses(nil)
	if m.Kind != ras.RCF || m.SeqNum() != 77 || ttl != 5*time.Minute || !ok || m.EndpointID() != "ep1" || m.GatekeeperID() != "edge" {
		t.Errorf("%s %d %s %q %q", m.Kind, m.SeqNum(), ttl, m.EndpointID(), m.GatekeeperID())
	}
	if len(aliases) != 2 || aliases[0].Text != "alice" || aliases[1].Text != "4711" || aliases[1].Kind != "dialledDigits" || aliases[0].Field != "terminalAlias" {
		t.Errorf("%+v", aliases)
	}
	if len(addrs) != 2 || addrs[0].Field != h245.CallSignalAddress || addrs[1].AddrPort.String() != "[2001:db8::5]:1720" {
		t.Errorf("%+v", addrs)
	}
	if f := m.Features(nil); len(f) != 1 || f[0].ID != 18 || m.Protection() != h225.Unprotected || m.KeepAlive() {
		t.Errorf("%+v", f)
	}
	// A lifetime that takes more octets, an address less, a feature less.
	for _, err := range []error{
		codec.SetTimeToLive(100_000 * time.Second), codec.Editor().Drop(addrs[0].Ref),
		codec.Editor().Drop(m.Features(nil)[0].Ref),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	out, err := codec.Apply(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ras.NewCodec().Decode(out)
	if err != nil {
		t.Fatal(err)
	}
	if ttl, _ := got.TimeToLive(); ttl != 100_000*time.Second || len(got.Addresses(nil)) != 1 || len(got.Features(nil)) != 0 {
		t.Errorf("%s, %d addresses, %d features", ttl, len(got.Addresses(nil)), len(got.Features(nil)))
	}
}

func TestProtection(t *testing.T) {
	hashed := per.Fields(per.F("algorithmOID", per.Identifier("1.2.840.113549.2.5")), per.F("paramS", per.Fields()), per.F("hash", per.Octet(make([]byte, 16))))
	base := []per.Field{
		per.F("requestSeqNum", per.Number(1)), per.F("endpointIdentifier", per.Text("x")),
		per.F("conferenceID", per.Octet(make([]byte, 16))), per.F("callReferenceValue", per.Number(9)),
		per.F("disengageReason", per.Alternative("normalDrop", per.Nothing())),
	}
	for _, c := range []struct {
		name  string
		token per.Value
		want  h225.Protection
	}{
		{"password", per.Alternative("cryptoEPPwdHash", per.Fields(per.F("alias", h225.H323ID("a")), per.F("timeStamp", per.Number(1)), per.F("token", hashed))), h225.Password},
		{"whole message", per.Alternative("nestedcryptoToken", per.Alternative("cryptoHashedToken", per.Fields(
			per.F("tokenOID", per.Identifier("0.0.8.235.0.2.1")), per.F("hashedVals", per.Fields(per.F("tokenOID", per.Identifier("0.0.8.235.0.2.5")))), per.F("token", hashed)))), h225.Signed},
	} {
		b, err := ras.Append(nil, ras.DRQ, append(slices.Clone(base), per.F("cryptoTokens", per.Elements(c.token)))...)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ras.NewCodec().Decode(b)
		if err != nil || m.Protection() != c.want {
			t.Errorf("%s: %d, %v", c.name, m.Protection(), err)
		}
		if ref, ok := m.CallRef(); !ok || ref != 9 {
			t.Errorf("%s: call reference %d", c.name, ref)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(rcf(f, 300))
	f.Add([]byte{0x2a, 0x80, 0x00, 0x06}) // cut
	if _, ok := tpkttest.Find("../../..", "h323-lab"); ok {
		seen := map[int]bool{}
		for _, d := range datagrams(f) {
			if key := int(d.data[0])<<16 | len(d.data)/16; !seen[key] {
				seen[key] = true
				f.Add(d.data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		codec := ras.NewCodec()
		m, err := codec.Decode(data)
		if err != nil {
			return
		}
		m.Aliases(nil)
		m.Protection()
		for _, f := range m.Features(nil) {
			f.Parameter(m.Tree, 1)
		}
		if same, err := codec.Apply(nil); err != nil || !bytes.Equal(same, data) {
			t.Fatalf("without edits: %x, %v", same, err)
		}
		to := netip.MustParseAddrPort("[2001:db8::9]:29999")
		for _, a := range m.Addresses(nil) {
			if err := a.Set(codec.Editor(), m.Tree, to); err != nil {
				t.Fatal(err)
			}
		}
		out, err := codec.Apply(nil)
		if err != nil {
			return
		}
		if got, err := ras.NewCodec().Decode(out); err != nil || got.Kind != m.Kind {
			t.Fatalf("%x: %v", out, err)
		}
	})
}
