package h225_test

import (
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
)

// longest returns the Setup with the longest fastStart of the corpora.
func longest(tb testing.TB) (setup []byte, items int) {
	codec := h225.NewCodec()
	for _, p := range payloads(tb) {
		if m, err := codec.Decode(p.data); err == nil && m.Body == h225.Setup {
			if n := len(m.FastStart(nil)); n > items {
				items, setup = n, p.data
			}
		}
	}
	return setup, items
}

// editor returns what finds and replaces every address of a Setup: decode, edit, check, write.
func editor(tb testing.TB, codec *h225.Codec, setup []byte) (edit func() (found int)) {
	to := netip.MustParseAddrPort("198.51.100.1:20000")
	var addrs []h245.Address
	var out []byte
	return func() int {
		m, err := codec.Decode(setup)
		if err != nil {
			tb.Fatal(err)
		}
		addrs = m.Addresses(addrs[:0])
		for _, a := range addrs {
			if err := a.Set(codec.Editor(), m.Tree, to); err != nil {
				tb.Fatal(err)
			}
		}
		if out, err = codec.Apply(out[:0]); err != nil {
			tb.Fatal(err)
		}
		return len(addrs)
	}
}

// BenchmarkSetup edits the Setup with the longest fastStart of the corpora.
func BenchmarkSetup(b *testing.B) {
	codec := h225.NewCodec()
	setup, items := longest(b)
	edit := editor(b, codec, setup)
	found := 0
	b.ReportAllocs()
	for b.Loop() {
		found = edit()
	}
	m, _ := codec.Decode(setup)
	b.ReportMetric(float64(len(setup)), "octets")
	b.ReportMetric(float64(items), "items")
	b.ReportMetric(float64(found), "addresses")
	b.ReportMetric(float64(m.Tree.Len()), "values")
}

// TestSetupAllocates: editing keeps its memory from one message to the next.
func TestSetupAllocates(t *testing.T) {
	setup, _ := longest(t)
	edit := editor(t, h225.NewCodec(), setup)
	if found := edit(); found < 8 {
		t.Fatalf("%d addresses", found)
	}
	if n := testing.AllocsPerRun(100, func() { edit() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
