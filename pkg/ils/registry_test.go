package ils

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// TestExpiry: registrations, lookups and addresses of the pool last as long as they are told to.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := netip.MustParseAddr("198.51.100.49")
		e := newEdge(func(c *Config) { c.Lifetime, c.Memory, c.Pool = time.Hour, 10*time.Minute, []netip.Addr{pool} })
		e.reg.claimPublic("alice")
		e.reg.register(registration{names: []string{"alice", "alice@example.org"}, host: insideHost, ttl: 5 * time.Minute})
		e.reg.resolve(outsideHost, "alice")
		time.Sleep(4 * time.Minute)
		e.reg.refresh("alice@example.org", 20*time.Minute)
		time.Sleep(5 * time.Minute)
		if got, ok := e.reg.At(pool); !ok || got.Host != insideHost {
			t.Errorf("refreshed, but: %+v, %v", got, ok)
		}
		if _, ok := e.reg.Resolved(outsideHost); !ok {
			t.Error("forgotten after 9 of 10 minutes")
		}
		time.Sleep(2 * time.Minute)
		if _, ok := e.reg.Resolved(outsideHost); ok {
			t.Error("remembered after 11 of 10 minutes")
		}
		time.Sleep(14 * time.Minute)
		if got := e.reg.Entries(); len(got) != 0 {
			t.Errorf("after 25 of 24 minutes: %+v", got)
		}
		if a, ok := e.reg.claimPublic("bob"); !ok || a != pool {
			t.Errorf("the pool's address is not free again: %v, %v", a, ok)
		}
		time.Sleep(2 * pendingClaim)
		if a, ok := e.reg.claimPublic("carol"); !ok || a != pool {
			t.Errorf("claimed and never registered, but not free again: %v, %v", a, ok)
		}
	})
}

// TestBounds: neither one host nor many make the registry grow without end.
func TestBounds(t *testing.T) {
	e := newEdge()
	for i := range 2 * maxPerHost {
		e.reg.register(registration{names: []string{fmt.Sprint("user", i)}, host: insideHost})
	}
	if n := len(e.reg.Entries()); n != maxPerHost {
		t.Errorf("one host registered %d names", n)
	}
	for i := range maxEntries + 10 {
		e.reg.register(registration{names: []string{fmt.Sprint("name", i)}, host: netip.AddrFrom4([4]byte{10, 77, byte(i >> 8), byte(i)})})
		e.reg.resolve(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), "name1")
	}
	if n := len(e.reg.byName); n > maxEntries {
		t.Errorf("%d names", n)
	}
	if n := len(e.reg.byClient); n > maxResolved {
		t.Errorf("%d lookups", n)
	}
	e.reg.resolve(outsideHost, "user1")
	if got, ok := e.reg.Resolved(outsideHost); !ok || got.Name != "user1" {
		t.Errorf("after a flood a lookup is not remembered: %+v, %v", got, ok)
	}
	for i := range 2 * maxPerHost {
		e.reg.remove(fmt.Sprint("user", i))
	}
	if n := e.reg.perHost[insideHost]; n != 0 {
		t.Errorf("%d are still counted for the host", n)
	}
}
