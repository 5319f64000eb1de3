package pinhole

import (
	"net/netip"
	"testing"
)

func TestListen(t *testing.T) {
	for text, want := range map[string]Listen{
		"tcp://inside:1720":  {"tcp", "inside", 1720},
		"udp://outside:1719": {"udp", "outside", 1719},
	} {
		var l Listen
		if err := l.UnmarshalText([]byte(text)); err != nil || l != want {
			t.Errorf("%s: %+v, %v", text, l, err)
		}
		if back, err := l.MarshalText(); err != nil || string(back) != text {
			t.Errorf("%s written as %s, %v", text, back, err)
		}
	}
	for _, text := range []string{"", "inside:1720", "tcp://:1720", "tcp://inside", "tcp://inside:0", "tcp://inside:65536", "tls://inside:1", "tcp://inside:x"} {
		var l Listen
		if err := l.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q taken as %+v", text, l)
		}
	}
}

func TestListenCheck(t *testing.T) {
	nets := Networks{"inside": {}}
	if err := (Listen{"tcp", "inside", 1}).Check(nets, "tcp"); err != nil {
		t.Error(err)
	}
	if err := (Listen{"udp", "inside", 1}).Check(nets, "tcp"); err == nil {
		t.Error("udp taken where only tcp is served")
	}
	if err := (Listen{"tcp", "mars", 1}).Check(nets, "tcp"); err == nil {
		t.Error("a network that does not exist is taken")
	}
}

// TestOwnOfNothing: an address that is not set is nobody's, and not the one that no network advertises.
func TestOwnOfNothing(t *testing.T) {
	if (Networks{"inside": {}}).Own(netip.Addr{}) {
		t.Error("no address at all is the edge's own")
	}
}
