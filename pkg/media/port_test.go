package media

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

func portRequest() pinhole.PortRequest {
	return pinhole.PortRequest{Owner: "alice", Label: "turn", Network: "outside", Client: nearPhone}
}

func mustOpenPort(t *testing.T, r *Relay, req pinhole.PortRequest) pinhole.Port {
	t.Helper()
	p, err := r.OpenPort(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPortPair: of a pair of ports the first is even and the second is held, for whoever asks first, until the first
// one is closed.
func TestPortPair(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.UDP, c.Quarantine = PortRange{50000, 50003}, 0 })
	req := portRequest()
	req.Even, req.Pair = true, true
	a, b := mustOpenPort(t, r, req), mustOpenPort(t, r, req)
	if _, err := r.OpenPort(context.Background(), portRequest()); !errors.Is(err, pinhole.ErrExhausted) {
		t.Errorf("a port that is held was given away: %v", err)
	}
	number := a.Local().Addr.Port()
	next, err := a.Next(context.Background())
	if err != nil || number%2 != 0 || next.Local().Addr.Port() != number+1 {
		t.Fatalf("%d and %v, %v", number, next, err)
	}
	if again, err := a.Next(context.Background()); !errors.Is(err, pinhole.ErrExhausted) {
		t.Errorf("a second neighbour: %v, %v", again, err)
	}
	if n := gather(t, r)["edged_media_leases{kind=port}"]; n != 3 {
		t.Errorf("%v ports are counted", n)
	}
	for _, p := range []pinhole.Port{a, b, next} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if a.Close() == nil {
		t.Error("closed twice")
	}
	if n := r.pools[poolKey{addr: netip.MustParseAddr("127.0.4.1")}].n; n != 0 || len(r.owners) != 0 {
		t.Errorf("%d ports are left, owners %v", n, r.owners)
	}
}

// TestPortOfRange: a port may be of a range of its own, and is given back to it.
func TestPortOfRange(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.UDP, c.Quarantine = PortRange{50000, 50003}, 0 })
	req := portRequest()
	req.Ports = [2]uint16{50010, 50011}
	for range 2 {
		a, b := mustOpenPort(t, r, req), mustOpenPort(t, r, req)
		if got := [2]uint16{a.Local().Addr.Port(), b.Local().Addr.Port()}; got != req.Ports && got != [2]uint16{50011, 50010} {
			t.Errorf("ports %v of %v", got, req.Ports)
		}
		if _, err := r.OpenPort(context.Background(), req); !errors.Is(err, pinhole.ErrExhausted) {
			t.Errorf("a third of two: %v", err)
		}
		for _, p := range []pinhole.Port{a, b} {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestPortEven: an even port alone holds no other.
func TestPortEven(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.UDP, c.Quarantine = PortRange{50000, 50003}, 0 })
	req := portRequest()
	req.Even = true
	for range 2 {
		if p := mustOpenPort(t, r, req); p.Local().Addr.Port()%2 != 0 {
			t.Errorf("got %v", p.Local())
		}
	}
	if _, err := r.OpenPort(context.Background(), req); !errors.Is(err, pinhole.ErrExhausted) {
		t.Errorf("a third even port: %v", err)
	}
	mustOpenPort(t, r, portRequest())
	mustOpenPort(t, r, portRequest())
}

// TestPortRefused: the limit of an owner counts ports, pairs of them when they are taken.
func TestPortRefused(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.PerOwner = 1 })
	req := portRequest()
	req.Pair = true
	p := mustOpenPort(t, r, req)
	if _, err := p.Next(context.Background()); !errors.Is(err, pinhole.ErrLimit) {
		t.Errorf("the second of a pair: %v", err)
	}
	if _, err := r.OpenPort(context.Background(), portRequest()); !errors.Is(err, pinhole.ErrLimit) {
		t.Errorf("a second port: %v", err)
	}
	req.Owner, req.Family = "bob", pinhole.IPv6
	if _, err := r.OpenPort(context.Background(), req); !errors.Is(err, pinhole.ErrNetwork) {
		t.Errorf("a family that the network has not: %v", err)
	}
	r.closeAll()
	if _, err := r.OpenPort(context.Background(), portRequest()); !errors.Is(err, pinhole.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if _, _, err := p.ReadFrom(make([]byte, 1)); err == nil {
		t.Error("a port outlives the relay")
	}
}
