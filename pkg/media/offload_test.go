package media

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
)

// TestHandOver: what a carrier counted adds to what the relay's own goroutines saw, and the gap that it
// leaves in the sequence numbers is no loss.
func TestHandOver(t *testing.T) {
	epoch := time.Now()
	c := &Counters{epoch: &epoch, kind: rtpStream, rtp: &rtpStats{}, rtcp: &rtcpTimes{}}
	packets := func(first, n int) {
		for i := first; i < first+n; i++ {
			b := make([]byte, 172)
			b[0] = 0x80
			binary.BigEndian.PutUint16(b[2:], uint16(i))
			binary.BigEndian.PutUint32(b[4:], uint32(160*i))
			c.Receive(epoch.Add(time.Duration(i)*20*time.Millisecond), b)
		}
	}
	packets(0, 10)
	packets(11, 9) // one is lost
	c.HandOver(true)
	packets(30, 5) // left to us by the carrier, which counts them
	last := epoch.Add(9 * time.Second)
	c.Add(Carried{Packets: 75, Bytes: 75 * 172, Last: last, Received: 80, Lost: 3, Jitter: 2 * time.Millisecond})
	if _, _, j := c.quality(); j != 2*time.Millisecond {
		t.Errorf("jitter %v while carried", j)
	}
	c.Add(Carried{Last: epoch.Add(time.Second), Lost: -1})
	if got := epoch.Add(time.Duration(c.last.Load())); !got.Equal(last) {
		t.Errorf("last packet %v, want %v", got.Sub(epoch), last.Sub(epoch))
	}
	c.HandOver(false)
	packets(103, 10)
	c.HandOver(false) // a second time changes nothing
	packets(114, 10)  // one is lost
	received, lost, _ := c.quality()
	if received != 19+80+20 || lost != 1+2+1 {
		t.Errorf("received %d, lost %d", received, lost)
	}
	if p, b := c.packets.Load(), c.bytes.Load(); p != 19+5+75+20 || b != 172*p {
		t.Errorf("%d packets, %d bytes", p, b)
	}
}

// haunted is a path whose carrier still has a flow of an earlier run.
type haunted struct {
	*heldPath
	flow netip.AddrPort
}

func (h haunted) Occupied(local netip.AddrPort) bool { return local == h.flow }

// TestPortsOfEarlierRun: no pinhole gets a port that a flow of an earlier run uses, nor that of its RTCP.
func TestPortsOfEarlierRun(t *testing.T) {
	pin := DefaultPinholeConfig()
	pin.UDP = PortRange{56110, 56113}
	flow := netip.MustParseAddrPort("127.0.4.1:56112")
	r, err := New(pin, DefaultConfig(), testNetworks(), haunted{newHeldPath(), flow}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	if p := l.Local(pinhole.Far).Addr.Port(); p != 56110 {
		t.Errorf("got port %d, want 56110", p)
	}
	for _, k := range []pinhole.Kind{pinhole.RTP, pinhole.UDP} {
		if _, err := r.Open(context.Background(), testRequest(k)); !errors.Is(err, pinhole.ErrExhausted) {
			t.Errorf("%v: %v, want ErrExhausted", k, err)
		}
	}
	l.Close()
}
