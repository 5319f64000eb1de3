package h225_test

import (
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
)

// BenchmarkSetup edits the Setup with the longest fastStart of the corpora: decode, find
// and replace every address, check, write.
func BenchmarkSetup(b *testing.B) {
	codec := h225.NewCodec()
	var setup []byte
	items := 0
	for _, p := range payloads(b) {
		if m, err := codec.Decode(p.data); err == nil && m.Body == h225.Setup {
			if n := len(m.FastStart(nil)); n > items {
				items, setup = n, p.data
			}
		}
	}
	to := netip.MustParseAddrPort("198.51.100.1:20000")
	var addrs []h245.Address
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		m, err := codec.Decode(setup)
		if err != nil {
			b.Fatal(err)
		}
		addrs = m.Addresses(addrs[:0])
		for _, a := range addrs {
			if err := a.Set(codec.Editor(), m.Tree, to); err != nil {
				b.Fatal(err)
			}
		}
		if out, err = codec.Apply(out[:0]); err != nil {
			b.Fatal(err)
		}
	}
	m, _ := codec.Decode(setup)
	b.ReportMetric(float64(len(setup)), "octets")
	b.ReportMetric(float64(items), "items")
	b.ReportMetric(float64(len(addrs)), "addresses")
	b.ReportMetric(float64(m.Tree.Len()), "values")
}
