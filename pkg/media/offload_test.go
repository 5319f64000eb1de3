package media

import (
	"encoding/binary"
	"testing"
	"time"
)

// TestHandOver: what a carrier counted adds to what the relay's own goroutines saw, and the gap that it
// leaves in the sequence numbers is no loss.
func TestHandOver(t *testing.T) {
	epoch := time.Now()
	c := &Counters{epoch: epoch, kind: rtpStream, rtp: &rtpStats{}, rtcp: &rtcpTimes{}}
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
