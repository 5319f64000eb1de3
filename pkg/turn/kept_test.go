package turn

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// keptPort is a relay port that notes what it is to carry; nobody sends to it.
type keptPort struct {
	pinhole.Port
	unbound []uint16
	closed  int
}

func (p *keptPort) Unbind(n uint16)                   { p.unbound = append(p.unbound, n) }
func (p *keptPort) Stats() (s [2]pinhole.StreamStats) { return s }
func (p *keptPort) Close() error                      { p.closed++; return nil }

// kept returns an allocation as it is after it was opened.
func kept(t *testing.T) (*allocation, *keptPort) {
	t.Helper()
	s, err := New(Config{Realm: "example.org", Quota: Quota{PerUser: 1, Allocations: 1, Permissions: 1}}, Deps{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	p := &keptPort{}
	a := &allocation{s: s, port: p, user: "alice"}
	a.from.tuple.client, a.from.ep = netip.MustParseAddrPort("192.0.2.1:1024"), s.endpoint("near", "udp")
	if err := s.enter(a); err != nil {
		t.Fatal(err)
	}
	return a, p
}

// pass lets time go by, and what is due happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestPermissionsAndChannelsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := kept(t)
		peer, other := netip.MustParseAddrPort("198.51.100.1:5000"), netip.MustParseAddrPort("198.51.100.2:5000")
		if !a.bindChannel(0x4000, peer) || !a.permitted(peer.Addr()) {
			t.Fatal("the channel is not bound, or its peer not permitted")
		}
		if a.bindChannel(0x4000, other) || a.bindChannel(0x4001, peer) || a.permitted(other.Addr()) {
			t.Error("bound a second time, or otherwise")
		}
		pass(4 * time.Minute)
		a.permit(peer.Addr())
		pass(4 * time.Minute) // 8 minutes
		if !a.permitted(peer.Addr()) || len(p.unbound) != 0 {
			t.Error("a permission that was extended has ended")
		}
		if !a.bindChannel(0x4000, peer) {
			t.Error("a channel is not extended")
		}
		pass(permissionLife + time.Second) // 13 minutes
		if a.permitted(peer.Addr()) || len(p.unbound) != 1 {
			t.Errorf("the permission has not ended; %d unbound", len(p.unbound))
		}
		if a.channelOf(0x4000) == nil {
			t.Error("a channel that was extended has ended")
		}
		pass(channelLife - permissionLife) // 18 minutes
		if a.channelOf(0x4000) != nil || a.channelTo(peer) != nil || len(p.unbound) != 2 {
			t.Errorf("the channel has not ended; %d unbound", len(p.unbound))
		}
		if !a.bindChannel(0x4001, peer) {
			t.Error("a peer without a channel cannot be bound")
		}
		a.close()
	})
}

func TestAllocationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, p := kept(t)
		a.extend(600)
		pass(599 * time.Second)
		a.extend(600)
		pass(599 * time.Second)
		if p.closed != 0 || a.s.Open() != 1 {
			t.Fatal("an allocation that was refreshed has ended")
		}
		pass(2 * time.Second)
		if p.closed != 1 || a.s.Open() != 0 {
			t.Errorf("closed %d times, %d open", p.closed, a.s.Open())
		}
	})
}

func TestNoAllocationAfterTheEndpoint(t *testing.T) {
	a, _ := kept(t)
	a.s.closeAll(a.from.ep)
	if a.hold(600) || a.live.Load() {
		t.Error("an allocation begins at an endpoint that has ended")
	}
}
