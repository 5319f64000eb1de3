// The figures of an RTP stream, as package media makes them of what comes to a socket (RFC 3550 appendix A).
#pragma once

#include "flow.h"

#define MAX_DROPOUT 3000 // RFC 3550 A.1
#define MAX_MISORDER 100
#define SECOND 1000000000ULL

static __always_inline __u32 rate_of_type(__u8 pt)
{
	if (pt == 6)
		return 16000;
	if (pt == 10 || pt == 11)
		return 44100;
	if (pt == 16)
		return 11025;
	if (pt == 17)
		return 22050;
	if (pt == 14 || (pt >= 24 && pt <= 34))
		return 90000;
	return pt < 24 ? 8000 : 0;
}

// nearest_rate takes timestamp units per second, measured, to the usual rate with the smallest ratio
// to it: the limits are the geometric means of neighbours.
static __always_inline __u32 nearest_rate(__u64 measured)
{
	if (measured < 11314)
		return 8000;
	if (measured < 19596)
		return 16000;
	if (measured < 27713)
		return 24000;
	if (measured < 37566)
		return 32000;
	if (measured < 46008)
		return 44100;
	return measured < 65727 ? 48000 : 90000;
}

static __always_inline void rtp_resync(struct rtp_state *r, __u16 seq)
{
	r->expected++;
	r->max = seq;
	r->known = 0;
}

static __always_inline void rtp_rate(struct rtp_state *r, struct rtp_clock *c, __u32 rate)
{
	c->rate = rate;
	r->scale = rate * 1099511627776ULL / SECOND;
}

// rtp_measure follows the jitter (RFC 3550 A.8).
static __always_inline void rtp_measure(struct rtp_state *r, struct rtp_clock *c, __u64 now, __u32 timestamp)
{
	__u64 took = now - r->arrived;
	__s64 d;

	if (!r->scale) {
		__u64 ms = (now - c->guess_from) / 1000000;
		if (ms >= 1000) {
			rtp_rate(r, c, nearest_rate((__u64)(timestamp - c->guess_timestamp) * 1000 / ms));
			r->timed = 0;
		}
	}
	if (r->scale && r->timed && took < 4 * SECOND) {
		d = (__s64)(took * r->scale >> 40) - (__s32)(timestamp - r->timestamp);
		if (d < 0)
			d = -d;
		if (d > 0x0fffffff)
			d = 0x0fffffff;
		r->jitter += (__u32)d - ((r->jitter + 8) >> 4);
	}
	r->timed = r->scale != 0;
	r->arrived = now;
	r->timestamp = timestamp;
}

// rtp_count counts a packet, or segments of them with consecutive numbers (GRO, GSO).
static __always_inline void rtp_count(struct flow *f, __u32 segments, __u32 udp_len, __u64 now, const __be32 *w)
{
	struct rtp_state *r = &f->rtp;
	__u32 first = bpf_ntohl(w[0]), timestamp = bpf_ntohl(w[1]), ssrc = bpf_ntohl(w[2]);
	__u8 pt = first >> 16 & 0x7f;
	__u16 seq = first, delta;

	if (!r->started || r->ssrc != ssrc) {
		rtp_resync(r, seq);
		r->started = 1;
		r->ssrc = ssrc;
	} else {
		delta = seq - r->max;
		if (delta < MAX_DROPOUT) {
			r->expected += delta;
			r->max = seq;
		} else if (delta <= 0xffff - MAX_MISORDER) {
			// A big jump: two in a row mean that the sender restarted.
			if (seq != r->bad_seq) {
				r->bad_seq = seq + segments;
				return;
			}
			rtp_resync(r, seq);
		}
	}
	r->received += segments;
	r->expected += segments - 1;
	r->max += segments - 1;
	r->bad_seq = r->max;
	// Comfort noise and telephone events say nothing about jitter, see package media.
	if (pt == 13 || (pt == 101 && udp_len == 24))
		return;
	if (!r->known || pt != r->pt) {
		r->known = 1;
		r->timed = 0;
		r->pt = pt;
		f->clock.guess_from = now;
		f->clock.guess_timestamp = timestamp;
		rtp_rate(r, &f->clock, rate_of_type(pt));
	}
	rtp_measure(r, &f->clock, now, timestamp);
}
