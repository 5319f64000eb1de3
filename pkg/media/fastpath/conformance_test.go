package fastpath

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"go.uber.org/zap/zaptest"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/media/userpath"
)

// driver makes kernel paths for the suite of all paths.
type driver struct {
	name   string
	clsact bool
}

func (d driver) Path(t *testing.T, s pathtest.Setup) media.Path {
	t.Helper()
	needKernel(t)
	user, err := userpath.New(1)
	must(t, err)
	c := Config{Networks: s.Networks, DSCP: s.DSCP, XDP: d.name == "xdp"}
	p, err := newPath(user, c, zaptest.NewLogger(t), options{loopback: s.Loopback, clsact: d.clsact})
	must(t, err)
	return p
}

func (d driver) Name() string { return d.name }

func (driver) Carried(t *testing.T, p media.Path, local netip.AddrPort) uint64 {
	t.Helper()
	k, v := keyOf(local), tcFlow{}
	if err := p.(*Path).kern.objs.Flows.Lookup(&k, &v); !errors.Is(err, ebpf.ErrKeyNotExist) {
		must(t, err)
	}
	return v.Packets
}

func TestLoopback(t *testing.T) { pathtest.Loopback(t, driver{name: "tc"}) }

// The suite is one test for each way to attach a program, so that they run in gateways of their own.

func TestWireTCX(t *testing.T) { pathtest.Wire(t, driver{name: "tc"}) }

func TestWireClsact(t *testing.T) { pathtest.Wire(t, driver{name: "tc", clsact: true}) }

func TestWireXDP(t *testing.T) { pathtest.Wire(t, driver{name: "xdp"}) }
