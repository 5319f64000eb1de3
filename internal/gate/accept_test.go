package gate

import (
	"net/netip"
	"testing"
	"time"
)

func TestSaid(t *testing.T) {
	var s Said
	a, b, now := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), time.Now()
	for _, tc := range []struct {
		source netip.Addr
		at     time.Duration
		want   bool
	}{
		{a, 0, true}, {a, sayEvery - 1, false}, {b, sayEvery - 1, true}, {a, sayEvery, true}, {a, sayEvery + 1, false},
	} {
		if got := s.Again(tc.source, now.Add(tc.at)); got != tc.want {
			t.Errorf("%v after %v: %v", tc.source, tc.at, got)
		}
	}
	for i := range 2 * maxSaid {
		s.Again(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), now)
	}
	if len(s.last) > maxSaid {
		t.Errorf("%d sources are remembered", len(s.last))
	}
}
