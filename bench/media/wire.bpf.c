//go:build ignore

// The two ends of the wire: what sends the measured packets, and what receives them.
//
//   generate (BPF_PROG_TEST_RUN, live frames) ─► gateway ─► sink, or discard in the gateway itself
//
// Neither may cost the gateway anything, and both must be faster than what they measure. Live frames are
// recycled with whatever became of them on their way, so generate writes every byte that anybody may have
// changed. See wire.go for the other half.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// bpf_ktime_get_ns is only for programs that say that they may be used under the GPL too.
char __license[] SEC("license") = "Dual MIT/GPL";

#define MAX_STREAMS 16384
#define HISTOGRAM 32768 // of 1.024 µs each; the last one holds what is later
#define MAX_WORDS 376	// of 4 bytes, of a UDP datagram: 1,504 bytes
#define LATE 1000000	// ns behind its timetable after which generate gives the lost time up
#define VERIFY 64	// one of so many is verified

// plan is what generate sends.
struct plan {
	__u8 head[34]; // Ethernet and IP header
	__u16 udp_len; // network byte order
	__u32 device;  // to send from
	__u32 streams;
	__u32 burst;	// packets in a row of one stream
	__u32 run;	// tells the packets of one trial from those of others
	__be32 channel; // what goes before the data, if it is not 0 (ChannelData of TURN)
	__u64 interval; // between packets, in 1/256 ns; 0: as fast as possible
	__u64 length;	// of the trial, ns
};

// made is what generate did.
struct made {
	__u64 began, ended; // ns
	__u64 due;	    // of the next packet, in 1/256 ns after began
	__u64 packets;
	__u32 stream, in_burst;
};

struct stream {
	__be16 sport, dport;
	__be32 ssrc;
	__u32 sum; // of what does not change, as for the UDP checksum
	__u32 timestamp;
	__u16 seq;
	__u16 zero;
};

// tally is what sink or discard received of the current run.
struct tally {
	__u64 packets, bytes;
	__u64 verified;	  // checksums of IP and UDP
	__u64 bad;	  // of these
	__u64 unfinished; // left to a network card that completes them: only the pseudo header is summed
	__u64 strange;	  // of no run, or of another one
};

struct rtp {
	__u8 first, type;
	__be16 seq;
	__be32 timestamp, ssrc;
	__u32 run;
	__u32 time[2]; // when it was sent, ns of the monotonic clock
};

struct packet {
	__u8 head[34];
	struct udphdr udp;
	struct rtp rtp;
} __attribute__((packed, aligned(2)));

volatile struct plan current;
volatile struct made progress;
volatile struct tally sunk, discarded;
volatile __u32 run;
// skip is how many bytes sink finds before the data.
volatile __u32 skip;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_STREAMS);
	__type(key, __u32);
	__type(value, struct stream);
} streams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HISTOGRAM);
	__type(key, __u32);
	__type(value, __u64);
} delays SEC(".maps");

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline __u16 complete(__u64 sum)
{
	__u16 check = ~fold(sum);

	return check ? check : 0xffff;
}

// due tells whether the next packet must leave now. Time that was lost is not made up for by a flood.
static __always_inline int due(__u64 now)
{
	__u64 passed = now - progress.began;

	if (!current.interval || progress.in_burst)
		return 1;
	if (passed < progress.due >> 8)
		return 0;
	if (passed > (progress.due >> 8) + LATE)
		progress.due = passed << 8;
	return 1;
}

static __always_inline void next_stream(void)
{
	progress.packets++;
	progress.due += current.interval;
	if (++progress.in_burst < current.burst)
		return;
	progress.in_burst = 0;
	if (++progress.stream >= current.streams)
		progress.stream = 0;
}

static __always_inline void write(struct packet *p, struct rtp *rtp, struct stream *s, __u64 now)
{
	__be16 seq = bpf_htons(s->seq);
	__be32 timestamp = bpf_htonl(s->timestamp);
	__u32 low = now, high = now >> 32;

#pragma unroll
	for (int i = 0; i < 34; i += 2)
		*(__u16 *)(p->head + i) = *(volatile __u16 *)(current.head + i);
	p->udp.source = s->sport;
	p->udp.dest = s->dport;
	p->udp.len = current.udp_len;
	p->udp.check = complete((__u64)s->sum + seq + timestamp + current.run + low + high);
	if (current.channel)
		*(__be32 *)(&p->udp + 1) = current.channel;
	rtp->first = 0x80;
	rtp->type = 0;
	rtp->seq = seq;
	rtp->timestamp = timestamp;
	rtp->ssrc = s->ssrc;
	rtp->run = current.run;
	rtp->time[0] = low;
	rtp->time[1] = high;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	struct packet *p = (void *)(long)ctx->data;
	struct rtp *rtp = (void *)(&p->udp + 1);
	__u64 now = bpf_ktime_get_ns();
	__u32 i = progress.stream;
	struct stream *s;

	if (current.channel)
		rtp = (void *)rtp + sizeof(current.channel);
	if ((void *)(rtp + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	if (!progress.began)
		progress.began = now;
	if (progress.ended)
		return XDP_DROP;
	if (now - progress.began >= current.length) {
		progress.ended = now;
		return XDP_DROP;
	}
	if (!due(now))
		return XDP_DROP;
	s = bpf_map_lookup_elem(&streams, &i);
	if (!s)
		return XDP_ABORTED;
	write(p, rtp, s, now);
	s->seq++;
	s->timestamp += 160;
	next_stream();
	return bpf_redirect(current.device, 0);
}

// sum_of sums n words, or returns -1 where they exceed the packet.
static __always_inline __s64 sum_of(void *at, void *end, __u32 n)
{
	__u64 sum = 0;

	for (__u32 i = 0; i < MAX_WORDS; i++, at += 4) {
		if (i >= n)
			return sum;
		if (at + 4 > end)
			return -1;
		sum += *(__u32 *)at;
	}
	return -1;
}

// verify looks at the checksums of a packet. IP options do not occur, and lengths are multiples of 4.
static __always_inline void verify(volatile struct tally *t, struct iphdr *ip, struct udphdr *udp, void *end)
{
	__u32 len = bpf_ntohs(udp->len);
	__u64 pseudo = (__u64)ip->saddr + ip->daddr + bpf_htons(IPPROTO_UDP) + udp->len;
	__s64 body = sum_of(udp, end, len / 4), head = sum_of(ip, end, 5);

	if (body >= 0 && udp->check == fold(pseudo)) {
		t->unfinished++;
		return;
	}
	t->verified++;
	if (body < 0 || head < 0 || len % 4 || !udp->check || fold(head) != 0xffff || fold(pseudo + body) != 0xffff)
		t->bad++;
}

static __always_inline int receive(struct xdp_md *ctx, volatile struct tally *t, int measure)
{
	struct packet *p = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct rtp *rtp = (void *)(&p->udp + 1);
	struct iphdr *ip;

	if (skip)
		rtp = (void *)rtp + 4;
	if ((void *)(rtp + 1) > end || !run)
		return XDP_PASS;
	ip = (void *)p->head + ETH_HLEN;
	if (*(__be16 *)(p->head + 12) != bpf_htons(ETH_P_IP) || *(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	if (rtp->run != run) {
		// Nobody listens for it; an answer of the stack would only disturb.
		t->strange++;
		return XDP_DROP;
	}
	t->packets++;
	t->bytes += end - (void *)p;
	if (measure) {
		__u64 late = (bpf_ktime_get_ns() - (rtp->time[0] | (__u64)rtp->time[1] << 32)) >> 10;
		__u32 slot = late < HISTOGRAM ? late : HISTOGRAM - 1;
		__u64 *n = bpf_map_lookup_elem(&delays, &slot);

		if (n)
			(*n)++;
	}
	if (t->packets % VERIFY == 1)
		verify(t, ip, &p->udp, end);
	return XDP_DROP;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	return receive(ctx, &sunk, 1);
}

SEC("xdp")
int discard(struct xdp_md *ctx)
{
	return receive(ctx, &discarded, 0);
}
