package h225_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/tpkt/tpkttest"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
)

// payload is one Q.931 message of the corpora.
type payload struct {
	name string
	data []byte
}

// payloads returns every Q.931 message in the captures.
func payloads(tb testing.TB) []payload {
	tb.Helper()
	var out []payload
	for _, dir := range []string{"h323", "h323-lab"} {
		root := tpkttest.Corpora(tb, "../../..", dir)
		files, _ := filepath.Glob(filepath.Join(root, "*.*"))
		for _, f := range files {
			c, err := tpkttest.Read(f)
			if err != nil {
				continue // no capture
			}
			for _, s := range c.TCP {
				out = append(out, split(filepath.Base(f), s)...)
			}
		}
		if dir == "h323" {
			b, err := os.ReadFile(filepath.Join(root, "intel-iphone-setup.bin"))
			if err != nil {
				tb.Fatal(err)
			}
			out = append(out, payload{"intel-iphone-setup.bin", b})
		}
	}
	if len(out) == 0 {
		tb.Fatal("no Q.931 message in the corpora")
	}
	return out
}

// split returns the messages of a stream that speaks Q.931.
func split(name string, s *tpkttest.Stream) []payload {
	var out []payload
	for _, b := range s.Packets() {
		if len(b) > 4 && b[0] == 8 && b[1] == 2 {
			out = append(out, payload{name, b})
		}
	}
	return out
}

// TestCorpora: every message decodes, an identity edit changes nothing, every
// address that occurs in the octets is found, and when all are replaced the rest of
// the message is as it was.
func TestCorpora(t *testing.T) {
	counts := map[h225.Body]int{}
	fields := map[h245.Field]int{}
	codec, again := h225.NewCodec(), h225.NewCodec()
	for _, p := range payloads(t) {
		m, err := codec.Decode(p.data)
		if err != nil {
			t.Fatalf("%s: %x: %v", p.name, p.data, err)
		}
		counts[m.Body]++
		same, err := codec.Apply(nil)
		if err != nil || !bytes.Equal(same, p.data) {
			t.Fatalf("%s: without edits: %v\n%x\n%x", p.name, err, p.data, same)
		}
		addrs := m.Addresses(nil)
		for _, a := range addrs {
			fields[a.Field]++
		}
		checkItems(t, p, m)
		checkLeaks(t, p, m, addrs)
		rewrite(t, p, codec, again, m, addrs)
	}
	for _, body := range slices.Sorted(keys(counts)) {
		t.Logf("%-18s %5d", body, counts[body])
	}
	for _, f := range slices.Sorted(keys(fields)) {
		t.Logf("%-26s %5d", f, fields[f])
	}
}

func keys[K comparable](m map[K]int) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// checkItems: each item of fastStart and of tunnelled H.245 is understood.
func checkItems(t *testing.T, p payload, m *h225.Message) {
	t.Helper()
	for _, r := range m.FastStart(nil) {
		if c, ok := h245.ChannelAt(m.Tree, r); !ok || c.Number == 0 {
			t.Errorf("%s: fastStart item %x", p.name, m.Tree.Octets(r))
		}
	}
	for _, r := range append(m.Tunnelled(nil), m.Parallel(nil)...) {
		if h := h245.At(m.Tree, r); h.Kind == "" {
			t.Errorf("%s: tunnelled item %x", p.name, m.Tree.Octets(r))
		}
	}
}

// checkLeaks searches the octets for each address and port that was found, and for the
// inside network of the lab, and expects nothing beside what Addresses returned.
func checkLeaks(t *testing.T, p payload, m *h225.Message, addrs []h245.Address) {
	t.Helper()
	if m.Tree == nil {
		return
	}
	src := m.Tree.Source()
	places := map[int]bool{}
	for _, a := range addrs {
		from, to := m.Tree.Span(a.Ref)
		for i := from; i < to; i++ {
			places[i] = true
		}
	}
	for _, r := range m.Tunnelled(nil) { // H.460.19 has addresses in octets of its own
		if g := h245.TraversalAt(m.Tree, r); g != per.None {
			v, err := h245.DecodeTraversal(m.Tree.Octets(g))
			if back, _ := v.Append(nil); err != nil || !bytes.Equal(back, m.Tree.Octets(g)) {
				t.Errorf("%s: traversal parameters %x: %+v %v", p.name, m.Tree.Octets(g), v, err)
			}
			from, to := m.Tree.Span(g)
			for i := from; i < to; i++ {
				places[i] = true
			}
		}
	}
	for i := 0; i+6 <= len(src); i++ {
		if src[i] == 10 && src[i+1] == 77 && src[i+2] <= 9 && !places[i] {
			t.Errorf("%s: %s: an address at octet %d is not found: %x", p.name, m.Body, i, src[i:i+6])
		}
	}
	for _, a := range addrs {
		if !a.AddrPort.Addr().Is4() || a.AddrPort.Addr().IsUnspecified() {
			continue
		}
		b := a.AddrPort.Addr().As4()
		key := binary.BigEndian.AppendUint16(b[:], a.AddrPort.Port())
		for i := 0; i+6 <= len(src); i++ {
			if bytes.Equal(src[i:i+6], key) && !places[i] {
				t.Errorf("%s: %s: %s at octet %d is not found", p.name, m.Body, a.AddrPort, i)
			}
		}
	}
}

// rewrite replaces every address, in place, and looks at the result.
func rewrite(t *testing.T, p payload, codec, again *h225.Codec, m *h225.Message, addrs []h245.Address) {
	t.Helper()
	if len(addrs) == 0 {
		return
	}
	want := bytes.Clone(p.data)
	for i, a := range addrs {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), uint16(20000+i))
		if err := a.Set(codec.Editor(), m.Tree, to); err != nil {
			t.Fatalf("%s: %s: %v", p.name, a.Field, err)
		}
	}
	out, err := codec.Apply(nil)
	if err != nil || len(out) != len(want) {
		t.Fatalf("%s: %v: %d octets of %d", p.name, err, len(out), len(want))
	}
	got, err := again.Decode(out)
	if err != nil {
		t.Fatalf("%s: rewritten: %v", p.name, err)
	}
	back := got.Addresses(nil)
	if len(back) != len(addrs) {
		t.Fatalf("%s: %d addresses of %d", p.name, len(back), len(addrs))
	}
	base := bytes.Index(p.data, m.Tree.Source())
	for i, a := range back {
		if a.AddrPort.Port() != uint16(20000+i) || a.AddrPort.Addr().As4() != [4]byte{198, 51, 100, byte(i)} || a.Field != addrs[i].Field {
			t.Fatalf("%s: %s is %s", p.name, a.Field, a.AddrPort)
		}
		_, end := m.Tree.Span(a.Ref) // of ip and port; a route or extensions come after them in none of these
		copy(want[base+end-6:], out[base+end-6:base+end])
	}
	if !bytes.Equal(out, want) {
		t.Fatalf("%s: more than the addresses changed\n%x\n%x", p.name, want, out)
	}
}

// TestStructure: edits that change sizes, on every message that has room for them.
func TestStructure(t *testing.T) {
	codec, again := h225.NewCodec(), h225.NewCodec()
	v6 := netip.MustParseAddrPort("[2001:db8::7]:1720")
	counts := map[string]int{}
	try := func(p payload, what string, edit func(*h225.Message, *per.Editor) error, check func(*h225.Message) bool) {
		t.Helper()
		m, err := codec.Decode(p.data)
		if err != nil || m.Tree == nil {
			return
		}
		if err := edit(m, codec.Editor()); err != nil {
			t.Fatalf("%s: %s: %v", p.name, what, err)
		}
		if !codec.Editor().Changed() {
			return
		}
		out, err := codec.Apply(nil)
		if err != nil {
			t.Fatalf("%s: %s: %v\n%x", p.name, what, err, p.data)
		}
		got, err := again.Decode(out)
		if err != nil || got.Body != m.Body || !check(got) {
			t.Fatalf("%s: %s: %v\n%x\n%x", p.name, what, err, p.data, out)
		}
		counts[what]++
	}
	for _, p := range payloads(t) {
		try(p, "IPv6 for IPv4", func(m *h225.Message, e *per.Editor) error {
			for _, a := range m.Addresses(nil) {
				if err := a.Set(e, m.Tree, v6); err != nil {
					return err
				}
			}
			return nil
		}, func(m *h225.Message) bool {
			return !slices.ContainsFunc(m.Addresses(nil), func(a h245.Address) bool { return a.AddrPort != v6 })
		})
		try(p, "drop h245Address", func(m *h225.Message, e *per.Editor) error {
			if r := m.Tree.Child(m.BodyRef(), "h245Address"); r != per.None {
				return e.Drop(r)
			}
			return nil
		}, func(m *h225.Message) bool { return m.Tree.Child(m.BodyRef(), "h245Address") == per.None })
		try(p, "first fastStart item longer", func(m *h225.Message, e *per.Editor) error {
			for _, r := range m.FastStart(nil) {
				return e.SetOctets(r, append(bytes.Clone(m.Tree.Octets(r)), make([]byte, 200)...))
			}
			return nil
		}, func(m *h225.Message) bool { return len(m.Tree.Octets(m.FastStart(nil)[0])) > 200 })
		try(p, "drop the last fastStart item", func(m *h225.Message, e *per.Editor) error {
			if items := m.FastStart(nil); len(items) > 0 {
				return e.Drop(items[len(items)-1])
			}
			return nil
		}, func(m *h225.Message) bool { return m.Tree != nil })
		try(p, "add generic data", func(m *h225.Message, e *per.Editor) error {
			if m.Tree.Child(m.PDU(), "genericData") != per.None {
				return nil
			}
			return e.Add(m.PDU(), "genericData", per.Elements(h225.GenericData(19, h225.RawParameter(1, []byte{1, 2, 3}))))
		}, func(m *h225.Message) bool {
			f := h225.Features(nil, m.Tree)
			return slices.ContainsFunc(f, func(f h225.Feature) bool { return f.ID == 19 && f.Field == "genericData" })
		})
		try(p, "longer alias", func(m *h225.Message, e *per.Editor) error {
			for _, a := range m.Aliases(nil) {
				if a.Kind == "h323-ID" {
					return e.Replace(a.Ref, h225.H323ID("somebody.else@example.org"))
				}
			}
			return nil
		}, func(m *h225.Message) bool {
			return slices.ContainsFunc(m.Aliases(nil), func(a h225.Alias) bool { return a.Text == "somebody.else@example.org" })
		})
		try(p, "traversal parameters in tunnelled channels", func(m *h225.Message, e *per.Editor) error {
			return addTraversal(m, e)
		}, func(m *h225.Message) bool {
			for _, r := range m.Tunnelled(nil) {
				if c, ok := h245.At(m.Tree, r).Channel(); ok && h245.At(m.Tree, r).Kind == h245.OpenLogicalChannel && !c.Generic {
					return false
				}
			}
			return true
		})
	}
	for _, what := range slices.Sorted(keys(counts)) {
		t.Logf("%-44s %5d", what, counts[what])
	}
}

// addTraversal adds the genericInformation of H.460.19 to each tunnelled
// OpenLogicalChannel that has none.
func addTraversal(m *h225.Message, e *per.Editor) error {
	params, err := h245.Traversal{KeepAliveChannel: netip.MustParseAddrPort("198.51.100.1:3000")}.Append(nil)
	if err != nil {
		return err
	}
	for _, r := range m.Tunnelled(nil) {
		h := h245.At(m.Tree, r)
		if h.Kind != h245.OpenLogicalChannel || m.Tree.Child(h.Body, "genericInformation") != per.None {
			continue
		}
		err := e.Add(h.Body, "genericInformation", per.Elements(h245.GenericInformation(h245.TraversalOID, 1, params)))
		if err != nil {
			return err
		}
	}
	return nil
}

// TestCut: a message cut anywhere is refused or understood, never a panic.
func TestCut(t *testing.T) {
	codec := h225.NewCodec()
	seen := map[string]bool{}
	for _, p := range payloads(t) {
		if key := p.name[:3] + string(p.data[4]); seen[key] {
			continue
		} else {
			seen[key] = true
		}
		for n := range p.data {
			if m, err := codec.Decode(p.data[:n:n]); err == nil {
				m.Addresses(nil)
			}
			// The same with lengths that fit what is left of the PER.
			if per := n - 40; per > 0 {
				cutUserUser(codec, p.data, per)
			}
		}
	}
}

// cutUserUser decodes the message with the first n octets of its PER.
func cutUserUser(codec *h225.Codec, data []byte, n int) {
	m, err := codec.Decode(data)
	if err != nil || m.UserUser() == nil || n > len(m.UserUser()) {
		return
	}
	short, err := m.AppendWith(nil, m.UserUser()[:n])
	if err != nil {
		return
	}
	if m, err := codec.Decode(short); err == nil {
		m.Addresses(nil)
		m.Aliases(nil)
	}
}
