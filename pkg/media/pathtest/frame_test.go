package pathtest

import (
	"net/netip"
	"testing"
)

// TestSound: the receiver that judges others is right itself.
func TestSound(t *testing.T) {
	for _, a := range [][2]string{{"192.0.2.2:4000", "192.0.2.1:50000"}, {"[2001:db8::2]:4000", "[2001:db8::1]:50000"}} {
		f := frame{from: netip.MustParseAddrPort(a[0]), to: netip.MustParseAddrPort(a[1]), ttl: 64, payload: rtpPacket(1, 1, 173)}
		good := f.wire()
		if ok, udp := Sound(good); !ok || !udp {
			t.Errorf("%s: good, but %v %v", a, ok, udp)
		}
		for at := len(good) - 180; at < len(good); at++ {
			bad := append([]byte(nil), good...)
			bad[at] ^= 4
			if ok, _ := Sound(bad); ok {
				t.Errorf("%s: byte %d is wrong, and nobody sees it", a, at)
			}
		}
		for n := range good {
			if ok, _ := Sound(good[:n]); ok {
				t.Errorf("%s: cut to %d bytes, and nobody sees it", a, n)
			}
		}
	}
}
