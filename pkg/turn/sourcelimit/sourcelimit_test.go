package sourcelimit

import (
	"net/netip"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	l := New(10, 3)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	count := func(source netip.Addr, now time.Duration, tries int) (n int) {
		for range tries {
			if l.allow(source, now) {
				n++
			}
		}
		return n
	}
	if n := count(a, 0, 100); n != 3 {
		t.Errorf("%d at once, want 3", n)
	}
	if n := count(b, 0, 100); n != 3 {
		t.Errorf("%d of another source, want 3", n)
	}
	if n := count(a, 100*time.Millisecond, 100); n != 1 {
		t.Errorf("%d after a tenth of a second, want 1", n)
	}
	if n := count(a, time.Hour, 100); n != 3 {
		t.Errorf("%d after an hour, want 3", n)
	}
}

func TestPrefixes(t *testing.T) {
	addr := netip.MustParseAddr
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.2", false}, {"192.0.2.1", "::ffff:192.0.2.1", true},
		{"2001:db8::1", "2001:db8:0:ff::9", true}, {"2001:db8::1", "2001:db8:0:100::1", false},
	} {
		if got := prefixOf(addr(tt.a)) == prefixOf(addr(tt.b)); got != tt.same {
			t.Errorf("%s and %s: same %v", tt.a, tt.b, got)
		}
	}
}

func TestNoLimit(t *testing.T) {
	l := New(0, 0)
	for range 1000 {
		if !l.Allow(netip.MustParseAddr("192.0.2.1")) {
			t.Fatal("refused without a limit")
		}
	}
}
