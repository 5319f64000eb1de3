package media

import (
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

// TestAsymmetric: a peer that sends from another port than it receives on gets its packets where it receives;
// only where it turns out to be behind a NAT they go back to where it sends from.
func TestAsymmetric(t *testing.T) {
	sends := netip.AddrPortFrom(farPhone.Addr(), farPhone.Port()+100)
	nat := netip.MustParseAddrPort("127.0.4.99:40000")
	for _, c := range []struct {
		name       string
		asymmetric bool
		source     netip.AddrPort
		want       netip.AddrPort
	}{
		{"symmetric", false, sends, sends},
		{"asymmetric", true, sends, farPhone},
		{"behind a NAT", true, nat, nat},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, path := newTestRelay(t, nil)
			l := mustOpen(t, r, testRequest(pinhole.RTP))
			defer l.Close()
			declareBoth(t, l)
			far := pinhole.Remote{Addr: farPhone, Source: c.source.Addr(), Asymmetric: c.asymmetric}
			if err := l.Declare(pinhole.Far, far); err != nil {
				t.Fatal(err)
			}
			if to := path.packet(l.Local(pinhole.Far).Addr, c.source, make([]byte, 172)); to != nearPhone {
				t.Fatalf("the far peer's packet went to %v", to)
			}
			if to := path.packet(l.Local(pinhole.Near).Addr, nearPhone, make([]byte, 172)); to != c.want {
				t.Errorf("the near peer's packet went to %v, not %v", to, c.want)
			}
		})
	}
}

// TestAsymmetricNewPort: where an asymmetric peer receives may change without its source being doubted.
func TestAsymmetricNewPort(t *testing.T) {
	r, path := newTestRelay(t, nil)
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	defer l.Close()
	declareBoth(t, l)
	far, sends := l.Local(pinhole.Far).Addr, netip.AddrPortFrom(farPhone.Addr(), 7000)
	for _, receives := range []netip.AddrPort{farPhone, netip.AddrPortFrom(farPhone.Addr(), 4100)} {
		if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: receives, Source: farPhone.Addr(), Asymmetric: true}); err != nil {
			t.Fatal(err)
		}
		if to := path.packet(far, sends, make([]byte, 172)); to != nearPhone {
			t.Errorf("a packet went to %v while the peer receives at %v", to, receives)
		}
		if to := path.packet(l.Local(pinhole.Near).Addr, nearPhone, make([]byte, 172)); to != receives {
			t.Errorf("a packet went to %v, not %v", to, receives)
		}
	}
}
