package pinhole

import (
	"errors"
	"net/netip"
	"testing"
)

// TestServicePorts: a host inside opens none of its own system services to the outside.
func TestServicePorts(t *testing.T) {
	p := Policy{Networks: Networks{"in": {Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Trusted: true}}}
	src := netip.MustParseAddr("10.0.0.5")
	for _, tt := range []struct {
		port, rtcp uint16
		trusted    bool
		ok         bool
	}{
		{port: 445}, {port: 22}, {port: 1}, {port: 1023}, {port: 4000, rtcp: 161},
		{port: 445, trusted: true, ok: true},
		{port: 0, ok: true}, {port: 9, ok: true}, {port: 1024, ok: true}, {port: 4000, rtcp: 4001, ok: true},
	} {
		r := Remote{Addr: netip.AddrPortFrom(src, tt.port), Source: src, Trusted: tt.trusted}
		if tt.rtcp != 0 {
			r.RTCP = netip.AddrPortFrom(src, tt.rtcp)
		}
		_, err := p.Check("in", r)
		if tt.ok != (err == nil) || err != nil && !errors.Is(err, ErrTarget) {
			t.Errorf("port %d, RTCP %d: %v", tt.port, tt.rtcp, err)
		}
	}
}
