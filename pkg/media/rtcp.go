package media

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Round-trip times from the RTCP reports that pass (RFC 3550 §6.4). A sender report of one peer
// bears an NTP time; the other's report block repeats its middle 32 bits (LSR) and says how long ago
// it came (DLSR). The time between the two passings, less DLSR, is the round trip from here to
// the second peer.
//
//	peer A ── SR(ntp) ──► edge, t1 ──► peer B
//	peer A ◄───────────── edge, t2 ◄── RR(LSR=ntp, DLSR)      RTT of B = t2 - t1 - DLSR
//
// Encrypted reports (SRTCP) bear no LSR that was seen in the clear, so they give no time.
type rtcpTimes struct {
	// sent holds the last sender reports of this peer: NTP middle bits above, time of passing below,
	// both in 1/65536 s. Zero is none.
	sent [4]atomic.Uint64
	next atomic.Uint32
	// rtt is the last round-trip time to this peer, in ns.
	rtt atomic.Int64
	// other is the opposite peer's.
	other *rtcpTimes
}

const (
	typeSR = 200
	typeRR = 201
	// maxRTT: what is longer is not a network but a wrong clock.
	maxRTT = 30 * time.Second
)

// receive reads a compound packet that came from this peer at ns since the epoch.
func (t *rtcpTimes) receive(at int64, b []byte) {
	now := uint32(at/int64(time.Second))<<16 | uint32((at%int64(time.Second))<<16/int64(time.Second))
	for len(b) >= 8 && b[0]>>6 == 2 {
		size := 4 * (int(binary.BigEndian.Uint16(b[2:])) + 1)
		if size > len(b) {
			return
		}
		t.report(now, b[:size])
		b = b[size:]
	}
}

func (t *rtcpTimes) report(now uint32, b []byte) {
	blocks := 8
	switch b[1] {
	case typeSR:
		if blocks = 28; len(b) < blocks {
			return
		}
		ntp := binary.BigEndian.Uint32(b[10:])
		t.sent[t.next.Add(1)%uint32(len(t.sent))].Store(uint64(ntp)<<32 | uint64(now))
	case typeRR:
	default:
		return
	}
	for n := b[0] & 0x1f; n > 0 && len(b) >= blocks+24; n-- {
		t.measure(now, binary.BigEndian.Uint32(b[blocks+16:]), binary.BigEndian.Uint32(b[blocks+20:]))
		blocks += 24
	}
}

func (t *rtcpTimes) measure(now, lsr, dlsr uint32) {
	if lsr == 0 || t.other == nil {
		return
	}
	for i := range t.other.sent {
		sr := t.other.sent[i].Load()
		if uint32(sr>>32) != lsr {
			continue
		}
		rtt := time.Duration(int32(now-uint32(sr)-dlsr)) * time.Second >> 16
		if rtt >= 0 && rtt < maxRTT {
			t.rtt.Store(int64(max(rtt, time.Nanosecond)))
		}
		return
	}
}
