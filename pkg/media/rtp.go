package media

import (
	"encoding/binary"
	"math"
	"sync/atomic"
	"time"
)

// RTP reception statistics, RFC 3550 appendix A. Only the header's first 12 bytes are read, which
// SRTP leaves in the clear:
//
//	|V=2|P|X|CC|M| PT | sequence number | timestamp | SSRC |
//
// One goroutine writes; others read the atomics, which may be a packet apart from one another.
type rtpStats struct {
	// First what every packet needs.
	received atomic.Int64 // of this SSRC
	max      atomic.Int64 // extended sequence number
	ssrc     atomic.Uint32
	// jitter is in 1/16 of a timestamp unit (RFC 3550 A.8); rate is in Hz, 0 if not known yet.
	jitter  atomic.Uint32
	rate    atomic.Uint32
	badSeq  uint32
	transit uint32
	started bool
	// known tells whether pt and the start of the guess are of this run, timed whether transit is.
	known, timed bool
	pt           uint8

	base     atomic.Int64 // extended sequence number of the first packet
	lostOnce atomic.Int64 // lost by earlier SSRCs
	count    atomic.Int64 // received by earlier SSRCs
	// firstAt, firstTS are where the guess of the clock rate starts.
	firstAt int64
	firstTS uint32
}

const (
	maxDropout  = 3000 // RFC 3550 A.1
	maxMisorder = 100
	noSeq       = 1<<16 + 1
	// guessTime is how long timestamps are compared with the clock to guess a dynamic type's rate.
	guessTime = int64(time.Second)
)

// receive counts an RTP packet of at least 12 bytes that came at ns since the epoch.
func (s *rtpStats) receive(at int64, b []byte) {
	pt, seq := b[1]&0x7f, binary.BigEndian.Uint16(b[2:])
	ts, ssrc := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if !s.started || ssrc != s.ssrc.Load() {
		s.restart(ssrc, seq)
	} else if !s.sequence(seq) {
		return
	}
	s.received.Add(1)
	// Telephone events (RFC 4733) repeat the timestamp of their start, comfort noise (RFC 3389) has
	// gaps: neither says anything about jitter, nor about the stream's clock.
	if pt == 13 || pt == 101 && len(b) == 16 {
		return
	}
	if !s.known || pt != s.pt {
		s.known, s.timed = true, false
		s.pt, s.firstAt, s.firstTS = pt, at, ts
		s.rate.Store(staticRate(pt))
	}
	s.measure(at, ts)
}

func (s *rtpStats) restart(ssrc uint32, seq uint16) {
	if s.started {
		s.lostOnce.Store(s.lost())
		s.count.Add(s.received.Load())
	}
	s.started, s.known, s.badSeq = true, false, noSeq
	s.ssrc.Store(ssrc)
	s.resync(seq)
}

// pause ends the run: the next packet is not compared with what came before.
func (s *rtpStats) pause() {
	if s.started {
		s.lostOnce.Store(s.lost())
		s.count.Add(s.received.Load())
		s.received.Store(0)
		s.started = false
	}
}

func (s *rtpStats) resync(seq uint16) {
	s.base.Store(int64(seq))
	s.max.Store(int64(seq))
	s.received.Store(0)
}

// sequence follows the sequence number (RFC 3550 A.1); false if the packet must not be counted.
func (s *rtpStats) sequence(seq uint16) bool {
	high := s.max.Load()
	delta := seq - uint16(high)
	switch {
	case delta < maxDropout:
		s.max.Store(high + int64(delta))
	case delta <= math.MaxUint16-maxMisorder:
		// A big jump: two in a row mean that the sender restarted.
		if uint32(seq) != s.badSeq {
			s.badSeq = uint32(seq+1) & 0xffff
			return false
		}
		s.lostOnce.Store(s.lost())
		s.count.Add(s.received.Load())
		s.resync(seq)
		s.known = false
	}
	s.badSeq = noSeq
	return true
}

// measure updates the jitter (RFC 3550 A.8).
func (s *rtpStats) measure(at int64, ts uint32) {
	rate := int64(s.rate.Load())
	if rate == 0 {
		s.guess(at, ts)
		return
	}
	sec, ns := at/int64(time.Second), at%int64(time.Second)
	transit := uint32(sec*rate+ns*rate/int64(time.Second)) - ts
	d := int64(int32(transit - s.transit))
	s.transit = transit
	if !s.timed {
		s.timed = true
		return
	}
	d = max(d, -d)
	j := int64(s.jitter.Load())
	s.jitter.Store(uint32(min(j+d-((j+8)>>4), math.MaxUint32)))
}

// guess finds the clock rate of a dynamic payload type: the usual rate that is nearest to how fast
// the timestamps have run for a second. The signalling that says it is not read here.
func (s *rtpStats) guess(at int64, ts uint32) {
	took := at - s.firstAt
	if took < guessTime {
		return
	}
	ran := float64(ts-s.firstTS) / (float64(took) / float64(time.Second))
	best, distance := uint32(8000), math.Inf(1)
	for _, r := range [...]uint32{8000, 16000, 24000, 32000, 44100, 48000, 90000} {
		if d := math.Abs(math.Log(ran / float64(r))); d < distance {
			best, distance = r, d
		}
	}
	s.rate.Store(best)
	s.timed = false
}

// staticRate returns the clock rate of a static payload type (RFC 3551 §6), 0 for a dynamic one.
func staticRate(pt uint8) uint32 {
	switch {
	case pt == 6:
		return 16000
	case pt == 10 || pt == 11:
		return 44100
	case pt == 16:
		return 11025
	case pt == 17:
		return 22050
	case pt == 14 || pt >= 24 && pt <= 34:
		return 90000
	case pt < 24:
		return 8000
	}
	return 0
}

// lost returns the cumulative number of packets lost (RFC 3550 A.3), negative with duplicates.
func (s *rtpStats) lost() int64 {
	if !s.startedNow() {
		return 0
	}
	return s.lostOnce.Load() + s.max.Load() - s.base.Load() + 1 - s.received.Load()
}

// total returns how many RTP packets were counted.
func (s *rtpStats) total() int64 { return s.count.Load() + s.received.Load() }

func (s *rtpStats) startedNow() bool { return s.received.Load() > 0 }

// jitterTime returns the jitter, 0 as long as the clock rate is not known.
func (s *rtpStats) jitterTime() time.Duration {
	rate := s.rate.Load()
	if rate == 0 {
		return 0
	}
	return time.Duration(float64(s.jitter.Load()) / 16 / float64(rate) * float64(time.Second))
}

// mos estimates the mean opinion score of a call with these figures, 1.0-4.5; 0 if fewer than ten
// packets came. It is ITU-T G.107 with all defaults: R = 93.2 - Id - Ie,eff. The delay is half of
// the round trip and a jitter buffer of twice the jitter and one packet of 20 ms; loss counts as for
// G.711 with concealment, spread at random (G.113: Ie 0, Bpl 25.1).
func mos(received, lost int64, jitter, rtt time.Duration) float64 {
	if received < 10 {
		return 0
	}
	delay := (rtt/2 + 2*jitter + 20*time.Millisecond).Seconds() * 1000
	id := 0.024 * delay
	if delay > 177.3 {
		id += 0.11 * (delay - 177.3)
	}
	loss := 100 * float64(max(lost, 0)) / float64(received+max(lost, 0))
	r := 93.2 - id - 95*loss/(loss+25.1)
	switch {
	case r <= 0:
		return 1
	case r >= 100:
		return 4.5
	}
	return max(1, 1+0.035*r+7e-6*r*(r-60)*(100-r))
}
