package ils

import "testing"

// BenchmarkAdd edits a registration, as it is and beside an entry of another directory that passes.
func BenchmarkAdd(b *testing.B) {
	for name, msg := range map[string][]byte{
		"registration": entry(2, opAdd, aliceDN, attr{"cn", "alice@example.org"}, attr{"objectClass", "RTPerson"}, attr{"sipaddress", in2},
			attr{"sport", "1503"}, attr{"sprotid", "h323"}, attr{"comment", "nobody's business"}),
		"other": entry(2, opAdd, "cn=printer,dc=example,dc=org", attr{"cn", "printer"}, attr{"objectClass", "device"}, attr{"serialNumber", "10.77.1.2"}),
	} {
		b.Run(name, func(b *testing.B) {
			s := newEdge().session(insideHost, false)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.request(msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
