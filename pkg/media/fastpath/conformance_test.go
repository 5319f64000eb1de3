package fastpath

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// TestConformance: the same packets and counters as any other path, on the loopback device, where the
// suite has all its hosts.
func TestConformance(t *testing.T) {
	needKernel(t)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	nets := pinhole.Networks{"all": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.1.1"), netip.MustParseAddr("::1")}}}
	pathtest.Run(t, func(t *testing.T) media.Path {
		user, err := userpath.New(0)
		must(t, err)
		p, err := newPath(user, Config{Networks: nets, DSCP: dscp}, zaptest.NewLogger(t), options{loopback: true})
		must(t, err)
		return p
	})
}
