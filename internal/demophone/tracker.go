package demophone

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/pion/rtp"
)

// tracker compares a received RTP stream with the pattern that it should be.
type tracker struct {
	pattern         Pattern
	received        int
	verified, wrong int
	// places is the number of frames up to the last one heard; seen marks those heard.
	places uint32
	seen   []bool
	unique int
	// jitter is in RTP timestamp units; transit is the previous packet's.
	jitter, transit float64
	started         bool
	delays          []time.Duration
}

// packet takes one datagram. Anything but the frame that belongs to its timestamp counts as wrong.
func (k *tracker) packet(b []byte, now time.Time) {
	k.received++
	var p rtp.Packet
	if err := p.Unmarshal(b); err != nil || p.PayloadType != 0 || p.SSRC != k.pattern.SSRC() {
		k.wrong++
		return
	}
	offset := p.Timestamp - k.pattern.Timestamp()
	i := offset / frameSamples
	symbol, ok := detect(p.Payload)
	if !ok || offset%frameSamples != 0 || i >= maxFrames || symbol != k.pattern.Symbol(i) ||
		p.SequenceNumber != k.pattern.Sequence()+uint16(i) {
		k.wrong++
		return
	}
	k.verified++
	k.place(i)
	k.timing(i, p.GetExtension(ntp64ID), now)
}

// place notes that frame i was heard.
func (k *tracker) place(i uint32) {
	if i >= k.places {
		k.places = i + 1
		k.seen = append(k.seen, make([]bool, int(k.places)-len(k.seen))...)
	}
	if !k.seen[i] {
		k.seen[i] = true
		k.unique++
	}
}

// timing updates the jitter (RFC 3550 §6.4.1, appendix A.8) and the one-way delay.
func (k *tracker) timing(frame uint32, stamp []byte, now time.Time) {
	transit := float64(now.UnixNano())*8000/1e9 - float64(frame)*frameSamples
	if k.started {
		d := transit - k.transit
		k.jitter += (max(d, -d) - k.jitter) / 16
	}
	k.started, k.transit = true, transit
	sent, ok := fromNTP(stamp, now)
	if ok && len(k.delays) < maxDelays {
		k.delays = append(k.delays, now.Sub(sent))
	}
}

// fill writes the results into st.
func (k *tracker) fill(st *StreamStats) {
	st.Received, st.Verified, st.Wrong = k.received, k.verified, k.wrong
	st.Lost = int(k.places) - k.unique
	st.Jitter = time.Duration(k.jitter / 8000 * 1e9)
	d := slices.Clone(k.delays)
	slices.Sort(d)
	st.DelayP50, st.DelayP99 = Percentile(d, 50), Percentile(d, 99)
}

// Percentile returns the p-th percentile (0-100) of sorted durations, 0 if there are none.
func Percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*p/100]
}

// ntpEpoch is 1970-01-01 in seconds of NTP (RFC 5905 §6).
const ntpEpoch = 2208988800

// ntpTime returns t as a 64-bit NTP timestamp.
func ntpTime(t time.Time) []byte {
	ns := t.UnixNano()
	sec, frac := uint64(ns/1e9)+ntpEpoch, uint64(ns%1e9)<<32/1e9
	return binary.BigEndian.AppendUint64(nil, sec<<32|frac)
}

// fromNTP reads a 64-bit NTP timestamp; ok is false if b is none, or is not of the minute around now.
func fromNTP(b []byte, now time.Time) (t time.Time, ok bool) {
	if len(b) != 8 {
		return t, false
	}
	v := binary.BigEndian.Uint64(b)
	t = time.Unix(int64(v>>32)-ntpEpoch, int64((v&0xffffffff)*1e9>>32))
	return t, t.Sub(now).Abs() < time.Minute
}
