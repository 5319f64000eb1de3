package h323

import (
	"net/netip"
	"testing"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
	"edged.dev/edged/pkg/pinhole"
)

// TestDiscover: a GRQ to the group is answered at the port that it names of its own host; nothing else is answered there.
func TestDiscover(t *testing.T) {
	from := at(aliceAt, 41000)
	grq := func(named netip.AddrPort) []byte {
		return rasOf(t, ras.GRQ, per.F("protocolIdentifier", per.Identifier("0.0.8.2250.0.4")), per.F("rasAddress", h245.CallAddress(named)), per.F("endpointType", kindOfEndpoint()))
	}
	for _, tt := range []struct {
		name    string
		network string
		b       []byte
		to      netip.AddrPort // not valid: no answer
		kind    ras.Kind
	}{
		{"its own port", "inside", grq(at(aliceAt, 1719)), at(aliceAt, 1719), ras.GCF},
		{"of another host", "inside", grq(at(carolAt, 1719)), from, ras.GCF},
		{"no port", "inside", grq(at(aliceAt, 0)), from, ras.GCF},
		{"may not register", "outside", grq(at(aliceAt, 1719)), at(aliceAt, 1719), ras.GRJ},
		{"another request", "inside", rasOf(t, ras.DRQ, per.F("endpointIdentifier", per.Text("x")), per.F("conferenceID", per.Octet(make([]byte, 16))),
			per.F("callReferenceValue", per.Number(1)), per.F("disengageReason", per.Alternative("normalDrop", per.Nothing())), per.F("answeredCall", per.Truth(false))), netip.AddrPort{}, ""},
		{"no message", "inside", []byte{0xff, 0xff}, netip.AddrPort{}, ""},
		{"nothing", "inside", nil, netip.AddrPort{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, func(c *Config, _ *Deps) { c.RAS = []pinhole.Listen{{Proto: "udp", Network: "inside", Port: rasPort}} })
			d, ok := b.core.Discover(b.now, tt.network, from, tt.b)
			if ok != tt.to.IsValid() || ok && d.To != tt.to {
				t.Fatalf("%v, to %v", ok, d.To)
			}
			if !ok {
				return
			}
			if m, err := ras.NewCodec().Decode(d.Data); err != nil || m.Kind != tt.kind {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
}

func rasOf(t *testing.T, k ras.Kind, f ...per.Field) []byte {
	t.Helper()
	b, err := ras.Append(nil, k, append(f, per.F("requestSeqNum", per.Number(7)))...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
