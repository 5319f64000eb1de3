package demophone

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/rtp"
)

// eventually polls until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("did not come about in time: %s", what)
		case <-tick.C:
		}
	}
}

func openPair(t *testing.T, a, b string) (x, y *Stream) {
	t.Helper()
	var err error
	if x, err = openStream(netip.MustParseAddr(a)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.close)
	if y, err = openStream(netip.MustParseAddr(b)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(y.close)
	return x, y
}

func TestStreamsVerifyEachOther(t *testing.T) {
	a, b := openPair(t, "127.30.0.1", "127.30.0.2")
	caller, callee := NewPattern("call-1", Caller), NewPattern("call-1", Callee)
	a.start(b.Addr().Addr(), caller, callee)
	b.start(a.Addr().Addr(), callee, caller)
	a.talk(b.Addr())
	b.talk(a.Addr())
	eventually(t, "60 verified frames and a report each way", func() bool {
		x, y := a.Stats(), b.Stats()
		return x.Verified >= 60 && y.Verified >= 60 && x.Reports > 0 && y.Reports > 0
	})
	for _, st := range []StreamStats{a.Stats(), b.Stats()} {
		if st.Wrong != 0 || st.Lost != 0 || st.Refused != 0 || st.DelayP50 <= 0 {
			t.Errorf("stats: %+v", st)
		}
	}
}

func TestStreamHearsNobodyElse(t *testing.T) {
	a, b := openPair(t, "127.30.0.1", "127.30.0.2")
	pattern := NewPattern("call-1", Caller)
	a.start(netip.MustParseAddr("127.30.0.2"), NewPattern("call-1", Callee), pattern)
	b.send = pattern

	// The right audio of another call is wrong here, and the right audio from another host is refused.
	b.send = NewPattern("call-2", Caller)
	b.talk(a.Addr())
	eventually(t, "wrong frames", func() bool { return a.Stats().Wrong >= 5 })
	if st := a.Stats(); st.Verified != 0 {
		t.Errorf("another call's audio was verified: %+v", st)
	}
	stranger, err := net.ListenPacket("udp", "127.30.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	p := rtp.Packet{Header: rtp.Header{
		Version: 2, SequenceNumber: pattern.Sequence(), Timestamp: pattern.Timestamp(), SSRC: pattern.SSRC(),
	}, Payload: pattern.Frame(0)}
	raw, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a refused packet", func() bool {
		if _, err := stranger.WriteTo(raw, net.UDPAddrFromAddrPort(a.Addr())); err != nil {
			t.Fatal(err)
		}
		return a.Stats().Refused > 0
	})
	if st := a.Stats(); st.Verified != 0 {
		t.Errorf("a stranger's audio was verified: %+v", st)
	}
}

func TestTrackerCounts(t *testing.T) {
	p := NewPattern("call-1", Caller)
	k := tracker{pattern: p}
	now := time.Unix(1_800_000_000, 0)
	frame := func(i uint32, change func(*rtp.Packet)) {
		pkt := rtp.Packet{Header: rtp.Header{
			Version: 2, SequenceNumber: p.Sequence() + uint16(i), Timestamp: p.Timestamp() + i*frameSamples, SSRC: p.SSRC(),
		}, Payload: p.Frame(i)}
		if err := pkt.SetExtension(ntp64ID, ntpTime(now.Add(-3*time.Millisecond))); err != nil {
			t.Fatal(err)
		}
		change(&pkt)
		raw, err := pkt.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		k.packet(raw, now)
		now = now.Add(frameTime)
	}
	as := func(*rtp.Packet) {}
	frame(2, as) // 0 and 1 were lost
	frame(4, as) // 3 is late
	frame(3, as)
	frame(3, as) // a duplicate
	frame(5, func(r *rtp.Packet) { r.Payload = p.Frame(6 + firstOther(p, 5)) })
	frame(6, func(r *rtp.Packet) { r.SSRC++ })
	frame(7, func(r *rtp.Packet) { r.Timestamp++ })
	frame(8, func(r *rtp.Packet) { r.PayloadType = 8 })
	frame(9, as)
	k.packet([]byte("garbage"), now)

	var st StreamStats
	k.fill(&st)
	// Lost: 0, 1, and 5-8, which were wrong.
	if st.Received != 10 || st.Verified != 5 || st.Wrong != 5 || st.Lost != 6 {
		t.Errorf("stats: %+v", st)
	}
	if d := st.DelayP50 - 3*time.Millisecond; d.Abs() > time.Microsecond {
		t.Errorf("delay %v, want 3ms", st.DelayP50)
	}
	if st.Jitter == 0 {
		t.Error("reordering made no jitter")
	}
}

// firstOther returns the first j for which frame 6+j differs from frame i.
func firstOther(p Pattern, i uint32) uint32 {
	j := uint32(0)
	for p.Symbol(6+j) == p.Symbol(i) {
		j++
	}
	return j
}
