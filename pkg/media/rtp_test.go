package media

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

func rtpPacket(pt uint8, seq uint16, ts, ssrc uint32) []byte {
	b := make([]byte, 172)
	b[0], b[1] = 0x80, pt
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[4:], ts)
	binary.BigEndian.PutUint32(b[8:], ssrc)
	return b
}

func TestRTPLoss(t *testing.T) {
	run := func(from, to int) (s []uint16) {
		for i := from; i < to; i++ {
			s = append(s, uint16(i))
		}
		return s
	}
	cat := func(parts ...[]uint16) (s []uint16) {
		for _, p := range parts {
			s = append(s, p...)
		}
		return s
	}
	for _, tt := range []struct {
		name string
		seqs []uint16
		lost int64
	}{
		{"nothing", nil, 0},
		{"whole", run(0, 100), 0},
		{"gap", cat(run(0, 50), run(53, 100)), 3},
		{"wrap", run(65500, 65600), 0},
		{"gap over the wrap", cat(run(65500, 65530), run(65540, 65600)), 10},
		{"late", []uint16{1, 2, 4, 3, 5}, 0},
		{"twice", []uint16{1, 2, 2, 3}, -1},
		{"restart", cat(run(0, 10), run(30000, 30010)), 1}, // the first of the new run only announces it
		{"one stray", cat(run(0, 10), []uint16{40000}, run(10, 20)), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s rtpStats
			for i, seq := range tt.seqs {
				s.receive(int64(i)*int64(20*time.Millisecond), rtpPacket(0, seq, uint32(i*160), 7))
			}
			got := s.lost()
			if tt.name == "restart" {
				// RFC 3550 A.1 discards the announcing packet, so it is not counted as lost either.
				got++
			}
			if got != tt.lost {
				t.Errorf("lost %d, want %d", got, tt.lost)
			}
		})
	}
}

func TestRTPNewSource(t *testing.T) {
	var s rtpStats
	for i, p := range [][]byte{
		rtpPacket(0, 10, 0, 1), rtpPacket(0, 12, 320, 1), rtpPacket(0, 60000, 0, 2), rtpPacket(0, 60003, 480, 2),
	} {
		s.receive(int64(i), p)
	}
	if s.lost() != 3 || s.total() != 4 {
		t.Errorf("lost %d of %d, want 3 of 4", s.lost(), s.total())
	}
}

// TestJitter: packets that come alternately 5 ms early and late have a jitter that tends to 10 ms.
func TestJitter(t *testing.T) {
	for _, tt := range []struct {
		name string
		pt   uint8
		rate int
	}{{"static", 0, 8000}, {"guessed 48 kHz", 111, 48000}, {"guessed 90 kHz", 96, 90000}} {
		t.Run(tt.name, func(t *testing.T) {
			var s rtpStats
			for i := range 2000 {
				at := time.Duration(i)*20*time.Millisecond + time.Duration(i%2)*10*time.Millisecond
				s.receive(int64(at), rtpPacket(tt.pt, uint16(i), uint32(i*tt.rate/50), 7))
			}
			if int(s.rate.Load()) != tt.rate {
				t.Fatalf("rate %d, want %d", s.rate.Load(), tt.rate)
			}
			if j := s.jitterTime(); math.Abs(j.Seconds()-0.010) > 0.0005 {
				t.Errorf("jitter %v, want 10ms", j)
			}
		})
	}
}

func TestMOS(t *testing.T) {
	for _, tt := range []struct {
		name           string
		received, lost int64
		jitter, rtt    time.Duration
		low, high      float64
	}{
		{"unknown", 5, 0, 0, 0, 0, 0},
		{"perfect", 1000, 0, 0, 0, 4.35, 4.45},
		{"duplicates", 1000, -5, 0, 0, 4.35, 4.45},
		{"far away", 1000, 0, 10 * time.Millisecond, 600 * time.Millisecond, 3.2, 3.9},
		{"2 % loss", 980, 20, 0, 0, 4.1, 4.3},
		{"20 % loss", 800, 200, 0, 0, 2.3, 3.1},
		{"dead", 10, 1000, time.Second, 10 * time.Second, 1, 1},
	} {
		if m := mos(tt.received, tt.lost, tt.jitter, tt.rtt); m < tt.low || m > tt.high {
			t.Errorf("%s: %.2f, want %.2f-%.2f", tt.name, m, tt.low, tt.high)
		}
	}
}

func senderReport(ntp uint32) []byte {
	b := make([]byte, 28)
	b[0], b[1], b[3] = 0x80, typeSR, 6
	binary.BigEndian.PutUint32(b[10:], ntp)
	return b
}

func receiverReport(lsr uint32, delay time.Duration) []byte {
	b := make([]byte, 32)
	b[0], b[1], b[3] = 0x81, typeRR, 7
	binary.BigEndian.PutUint32(b[24:], lsr)
	binary.BigEndian.PutUint32(b[28:], uint32(delay*65536/time.Second))
	return b
}

func TestRoundTrip(t *testing.T) {
	ms := int64(time.Millisecond)
	near, far := &rtcpTimes{}, &rtcpTimes{}
	near.other, far.other = far, near
	near.receive(1000*ms, senderReport(0x11112222))
	near.receive(3000*ms, senderReport(0x33334444))
	// The answer to the first report comes late; its compound begins with an SR of its own.
	far.receive(3100*ms, append(senderReport(9), receiverReport(0x11112222, 2*time.Second)...))
	if rtt := time.Duration(far.rtt.Load()).Round(time.Millisecond); rtt != 100*time.Millisecond {
		t.Errorf("rtt %v, want 100ms", rtt)
	}
	far.receive(3200*ms, receiverReport(0x55556666, 0))
	far.receive(3200*ms, receiverReport(0x33334444, time.Minute))
	if rtt := time.Duration(far.rtt.Load()).Round(time.Millisecond); rtt != 100*time.Millisecond {
		t.Errorf("rtt %v after reports that mean nothing", rtt)
	}
	if near.rtt.Load() != 0 {
		t.Errorf("the other side has an rtt of %d", near.rtt.Load())
	}
}

// FuzzReceive: what peers send is hostile. Counting must not panic, and counts each packet once.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{}, int64(0))
	f.Add(rtpPacket(0, 1, 160, 7), int64(20_000_000))
	f.Add(rtpPacket(111, 65535, math.MaxUint32, 7), int64(math.MaxInt64))
	f.Add(senderReport(1), int64(5))
	f.Add(append(senderReport(1), receiverReport(1, time.Second)...), int64(6))
	f.Add([]byte{0x9f, 200, 0xff, 0xff, 0, 0, 0, 0}, int64(7))
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		near, far := &rtcpTimes{}, &rtcpTimes{}
		near.other, far.other = far, near
		epoch := time.Unix(0, 0)
		c := &Counters{epoch: &epoch, kind: rtpStream, rtp: &rtpStats{}, rtcp: near}
		d := &Counters{epoch: &epoch, kind: rtcpStream, rtcp: far}
		for i := range int64(3) {
			now := epoch.Add(time.Duration(at + i*int64(time.Second)))
			c.Receive(now, b)
			d.Receive(now, b)
		}
		if c.packets.Load() != 3 || c.bytes.Load() != 3*uint64(len(b)) {
			t.Fatalf("%d packets, %d bytes", c.packets.Load(), c.bytes.Load())
		}
		if j := c.rtp.jitterTime(); j < 0 {
			t.Fatalf("jitter %v", j)
		}
		if m := mos(c.rtp.total(), c.rtp.lost(), c.rtp.jitterTime(), time.Duration(near.rtt.Load())); m < 0 || m > 4.5 {
			t.Fatalf("mos %v", m)
		}
	})
}
