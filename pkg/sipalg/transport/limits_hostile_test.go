package transport

import (
	"net/netip"
	"testing"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// TestReserve: strangers with ever new addresses leave room for the inside, whose hosts may all be in one /64.
func TestReserve(t *testing.T) {
	nets := pinhole.Networks{"in": {Trusted: true}, "out": {}}
	tr := New(Config{MaxConns: 400, PerSource: 2}, nets, nil, nil, zap.NewNop())
	admitted := func(network string, addr func(i int) netip.Addr) (n int) {
		for i := range 1000 {
			if tr.admit(network, addr(i)) == none {
				n++
			}
		}
		return n
	}
	v6 := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	if n := admitted("out", v6); n != 2 {
		t.Errorf("%d of one outside /64", n)
	}
	if n := admitted("out", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}) }); n != 298 {
		t.Errorf("%d strangers", n)
	}
	if n := admitted("in", v6); n != 100 {
		t.Errorf("%d of the inside", n)
	}
	for i := range 100 {
		tr.release("in", v6(i))
	}
	if tr.in != 300 {
		t.Errorf("%d after the release", tr.in)
	}
}
