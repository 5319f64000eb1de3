//go:build ignore

// The kernel half of the media path: a classifier at the ingress of the gateway's devices.
//
//   packet ─► ours? UDP, for this host ─► flow of (local address, port) ─► source locked?
//     ─► RTP figures ─► anything odd? up to the socket ─► rewrite, count, redirect
//
// Whatever is not redirected goes up unchanged: to the daemon's socket, which relays it as if this
// program did not exist. Offsets are constant, so that CAP_PERFMON is not needed. Values in flow and
// hop are in network byte order where the packet has them so. See flow.go for the other half.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// The kernel gives some helpers only to programs that say that they may be used under the GPL too.
char __license[] SEC("license") = "Dual MIT/GPL";

#define UP TC_ACT_UNSPEC // the next program, or the stack

#define AF_INET_ 2
#define AF_INET6_ 10

#define FLOW_V6_OUT 1 // leaves as IPv6
#define FLOW_RTP 2    // RTP: other packets than RTP go up
#define HOP_MAC 1     // the addresses of the Ethernet header are known

#define MAX_DROPOUT 3000 // RFC 3550 A.1
#define MAX_MISORDER 100
#define NO_SEQ ((1 << 16) + 1)
#define SECOND 1000000000ULL

struct address {
	__u32 word[4]; // IPv4 as ::ffff:a.b.c.d
};

struct key {
	struct address local;
	__be16 port;
	__u8 proto;
	__u8 zero;
};

// rtp_state is what RFC 3550 appendix A needs; the same algorithm as in package media.
struct rtp_state {
	__s64 base, max, received, count, lost_once;
	__u64 arrived, guess_from;
	__u32 ssrc, bad_seq, timestamp, guess_timestamp;
	__u32 rate;   // Hz, 0 as long as it is not known
	__u32 jitter; // in 1/16 of a timestamp unit
	__u8 pt, started, known, timed;
	__u32 scale; // rate / 10^9, as a fraction of 2^40: no division per packet
};

struct flow {
	struct address src; // the locked source
	struct address new_src, new_dst;
	__be16 sport, new_sport, new_dport;
	__u8 tos, flags;
	__u32 device; // the only device that packets of this source may come by
	__u32 hop;
	__u32 sum_addr, sum_port; // what the UDP checksum changes by
	// From here on the program writes.
	__u64 packets, bytes, last;
	struct rtp_state rtp;
};

// hop is the way to one destination; many flows may share it.
struct hop {
	__u32 device; // 0: not usable
	__u32 mtu;
	__u32 flags, family;
	__u32 next[4]; // the neighbour's address, as bpf_redirect_neigh wants it
	__u8 dmac[6], smac[6];
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct hop);
} hops SEC(".maps");

// lease_until is when the daemon's promise to look after the flows ends, on the monotonic clock.
volatile __u64 lease_until;

// frag is the extension header of a fragment (RFC 8200 §4.5).
struct frag {
	__u8 next, reserved;
	__be16 offset; // and flags
	__be32 id;
};

// packet is what the two families have in common.
struct packet {
	struct flow *flow;
	__u64 now;
	__u32 ip_len;  // the length of the IP packet
	__u32 udp_len; // as in the header
	__u32 segments;
	__u32 l4; // where the UDP header begins; constant in each caller
	__u8 ttl;
	__u8 odd; // goes up, but is counted
};

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
	if (r->started) {
		r->lost_once += r->max - r->base + 1 - r->received;
		r->count += r->received;
	}
	r->base = r->max = seq;
	r->received = 0;
	r->known = 0;
	r->bad_seq = NO_SEQ;
}

static __always_inline void rtp_clock(struct rtp_state *r, __u32 rate)
{
	r->rate = rate;
	r->scale = rate * 1099511627776ULL / SECOND;
}

// rtp_measure follows the jitter (RFC 3550 A.8).
static __always_inline void rtp_measure(struct rtp_state *r, __u64 now, __u32 timestamp)
{
	__u64 took = now - r->arrived;
	__s64 d;

	if (!r->rate) {
		__u64 ms = (now - r->guess_from) / 1000000;
		if (ms >= 1000) {
			rtp_clock(r, nearest_rate((__u64)(timestamp - r->guess_timestamp) * 1000 / ms));
			r->timed = 0;
		}
	}
	if (r->rate && r->timed && took < 4 * SECOND) {
		d = (__s64)(took * r->scale >> 40) - (__s32)(timestamp - r->timestamp);
		if (d < 0)
			d = -d;
		if (d > 0x0fffffff)
			d = 0x0fffffff;
		r->jitter += (__u32)d - ((r->jitter + 8) >> 4);
	}
	r->timed = r->rate != 0;
	r->arrived = now;
	r->timestamp = timestamp;
}

// rtp_count counts a packet, or segments of them with consecutive numbers (GRO, GSO).
static __always_inline void rtp_count(struct rtp_state *r, const struct packet *p, const __u8 *b)
{
	__u8 pt = b[1] & 0x7f;
	__u16 seq = (__u16)b[2] << 8 | b[3], delta;
	__u32 timestamp = (__u32)b[4] << 24 | (__u32)b[5] << 16 | (__u32)b[6] << 8 | b[7];
	__u32 ssrc = (__u32)b[8] << 24 | (__u32)b[9] << 16 | (__u32)b[10] << 8 | b[11];
	__u32 n = p->segments;

	if (!r->started || r->ssrc != ssrc) {
		rtp_resync(r, seq);
		r->started = 1;
		r->ssrc = ssrc;
	} else {
		delta = seq - (__u16)r->max;
		if (delta < MAX_DROPOUT) {
			r->max += delta;
		} else if (delta <= 0xffff - MAX_MISORDER) {
			// A big jump: two in a row mean that the sender restarted.
			if (seq != r->bad_seq) {
				r->bad_seq = (__u16)(seq + n);
				return;
			}
			rtp_resync(r, seq);
		}
		r->bad_seq = NO_SEQ;
	}
	r->received += n;
	if (n > 1)
		r->max += n - 1;
	// Comfort noise and telephone events say nothing about jitter, see package media.
	if (pt == 13 || (pt == 101 && p->udp_len == 24))
		return;
	if (!r->known || pt != r->pt) {
		r->known = 1;
		r->timed = 0;
		r->pt = pt;
		r->guess_from = p->now;
		r->guess_timestamp = timestamp;
		rtp_clock(r, rate_of_type(pt));
	}
	rtp_measure(r, p->now, timestamp);
}

// find returns the flow of the packet if its source may use it, and the lease lasts.
static __always_inline struct flow *find(struct __sk_buff *skb, const struct key *k,
					 const struct address *src, __be16 sport, __u64 now)
{
	struct flow *f = bpf_map_lookup_elem(&flows, k);

	if (!f || f->sport != sport || f->src.word[3] != src->word[3] || f->src.word[2] != src->word[2] ||
	    f->src.word[1] != src->word[1] || f->src.word[0] != src->word[0])
		return 0;
	if (f->device != skb->ifindex || now > lease_until)
		return 0;
	return f;
}

// judge counts an RTP packet and returns the hop, or 0 if the packet must go up. body is what follows the
// UDP header if 12 bytes of it are within reach, else 0.
static __always_inline struct hop *judge(struct __sk_buff *skb, struct packet *p, const __u8 *body)
{
	struct flow *f = p->flow;
	struct hop *h;
	__u32 payload, len = p->ip_len;
	__u8 copy[12];

	if (p->udp_len < sizeof(struct udphdr))
		return 0;
	payload = p->udp_len - sizeof(struct udphdr);
	if (f->flags & FLOW_RTP) {
		if (payload < sizeof(copy))
			return 0;
		if (!body) {
			if (bpf_skb_load_bytes(skb, p->l4 + sizeof(struct udphdr), copy, sizeof(copy)))
				return 0;
			body = copy;
		}
		// STUN, DTLS and others share the port (RFC 7983), RTCP too (RFC 5761 §4).
		if (body[0] >> 6 != 2 || (body[1] >= 192 && body[1] <= 223))
			return 0;
		rtp_count(&f->rtp, p, body);
	}
	if (p->odd || p->ttl <= 1)
		return 0;
	h = bpf_map_lookup_elem(&hops, &f->hop);
	if (!h || !h->device)
		return 0;
	if (skb->gso_size)
		len = skb->gso_size + len - payload;
	if ((f->flags & FLOW_V6_OUT) && p->l4 == ETH_HLEN + sizeof(struct iphdr))
		len += sizeof(struct ipv6hdr) - sizeof(struct iphdr);
	return len <= h->mtu ? h : 0;
}

static __always_inline int redirect(struct hop *h)
{
	struct bpf_redir_neigh next;

	if (h->flags & HOP_MAC)
		return bpf_redirect(h->device, 0);
	__builtin_memset(&next, 0, sizeof(next));
	next.nh_family = h->family;
	next.ipv6_nh[0] = h->next[0];
	next.ipv6_nh[1] = h->next[1];
	next.ipv6_nh[2] = h->next[2];
	next.ipv6_nh[3] = h->next[3];
	return bpf_redirect_neigh(h->device, &next, sizeof(next), 0);
}

static __always_inline int leave(const struct packet *p, struct hop *h)
{
	struct flow *f = p->flow;

	__sync_fetch_and_add(&f->packets, p->segments);
	__sync_fetch_and_add(&f->bytes, p->udp_len - sizeof(struct udphdr));
	f->last = p->now;
	return redirect(h);
}

static __always_inline void write_eth(struct ethhdr *eth, const struct hop *h, __be16 proto)
{
	__builtin_memcpy(eth->h_dest, h->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, h->smac, ETH_ALEN);
	eth->h_proto = proto;
}

static __always_inline __u8 lower(__u8 ttl)
{
	return ttl > 65 ? 64 : ttl - 1;
}

static __always_inline __sum16 ip_sum(const struct iphdr *ip)
{
	const __u16 *w = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += w[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

// fix_udp repairs the checksum, which then stands at off; a packet without one keeps none.
static __always_inline void fix_udp(struct __sk_buff *skb, const struct flow *f, __u32 off, int has)
{
	if (!has)
		return;
	bpf_l4_csum_replace(skb, off, 0, f->sum_addr, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
	bpf_l4_csum_replace(skb, off, 0, f->sum_port, BPF_F_MARK_MANGLED_0);
}

#define L4_V4 (ETH_HLEN + sizeof(struct iphdr))
#define L4_V6 (ETH_HLEN + sizeof(struct ipv6hdr))
#define CHECK offsetof(struct udphdr, check)

static __always_inline void write_v4(struct iphdr *ip, const struct flow *f, __u8 ttl)
{
	ip->saddr = f->new_src.word[3];
	ip->daddr = f->new_dst.word[3];
	ip->ttl = ttl;
	ip->tos = f->tos | (ip->tos & 3); // the two bits of ECN are not ours
	ip->check = 0;
	ip->check = ip_sum(ip);
}

static __always_inline void write_v6(struct ipv6hdr *ip, const struct flow *f, __u8 hops_left, __u8 ecn)
{
	__u8 class = f->tos | ecn;

	ip->version = 6;
	ip->priority = class >> 4;
	ip->flow_lbl[0] = (ip->flow_lbl[0] & 0x0f) | (__u8)(class << 4);
	ip->hop_limit = hops_left;
	__builtin_memcpy(&ip->saddr, &f->new_src, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &f->new_dst, sizeof(ip->daddr));
}

// from_v4_to_v6 makes room for the longer header. What fails before that goes up unchanged.
static __always_inline int from_v4_to_v6(struct __sk_buff *skb, const struct packet *p, struct hop *h, __u8 tos)
{
	const struct flow *f = p->flow;
	struct {
		__u8 align[2];
		struct ethhdr eth;
		struct ipv6hdr ip;
		__be16 ports[2];
	} to;

	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
		return UP;
	__builtin_memset(&to, 0, sizeof(to));
	write_eth(&to.eth, h, bpf_htons(ETH_P_IPV6));
	write_v6(&to.ip, f, lower(p->ttl), tos & 3);
	to.ip.payload_len = bpf_htons(p->udp_len);
	to.ip.nexthdr = IPPROTO_UDP;
	to.ports[0] = f->new_sport;
	to.ports[1] = f->new_dport;
	if (bpf_skb_store_bytes(skb, 0, &to.eth, sizeof(to) - sizeof(to.align), 0))
		return TC_ACT_SHOT;
	fix_udp(skb, f, L4_V6 + CHECK, 1);
	return leave(p, h);
}

static __always_inline int from_v6_to_v4(struct __sk_buff *skb, const struct packet *p, struct hop *h, __u8 ecn)
{
	const struct flow *f = p->flow;
	struct {
		__u8 align[2];
		struct ethhdr eth;
		struct iphdr ip;
		__be16 ports[2];
	} to;

	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0))
		return UP;
	__builtin_memset(&to, 0, sizeof(to));
	write_eth(&to.eth, h, bpf_htons(ETH_P_IP));
	to.ip.version = 4;
	to.ip.ihl = 5;
	to.ip.tos = ecn;
	to.ip.protocol = IPPROTO_UDP;
	to.ip.tot_len = bpf_htons(p->udp_len + sizeof(struct iphdr));
	// The identification only matters to fragments; routers may make some, as DF is not set.
	to.ip.id = (__u16)bpf_get_prandom_u32();
	write_v4(&to.ip, f, lower(p->ttl));
	to.ports[0] = f->new_sport;
	to.ports[1] = f->new_dport;
	if (bpf_skb_store_bytes(skb, 0, &to.eth, sizeof(to) - sizeof(to.align), 0))
		return TC_ACT_SHOT;
	fix_udp(skb, f, L4_V4 + CHECK, 1);
	return leave(p, h);
}

static __always_inline __u32 segments(struct __sk_buff *skb)
{
	__u32 n = skb->gso_segs;

	return n ? n : 1;
}

static __always_inline int relay_v4(struct __sk_buff *skb)
{
	struct packet p = {.l4 = L4_V4};
	struct key k = {.proto = IPPROTO_UDP};
	struct address src = {};
	struct ethhdr *eth;
	struct iphdr *ip;
	struct udphdr *udp;
	struct hop *h;

	if ((void *)(long)skb->data + L4_V4 + sizeof(*udp) > (void *)(long)skb->data_end &&
	    bpf_skb_pull_data(skb, L4_V4 + sizeof(*udp)))
		return UP;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return UP;
	// Options, other protocols, and fragments but the first: there is no UDP header at this place.
	if (*(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(0x1fff))
		return UP;
	k.local.word[2] = src.word[2] = bpf_htonl(0xffff);
	k.local.word[3] = ip->daddr;
	k.port = udp->dest;
	src.word[3] = ip->saddr;
	p.now = bpf_ktime_get_ns();
	p.flow = find(skb, &k, &src, udp->source, p.now);
	if (!p.flow)
		return UP;
	p.ip_len = bpf_ntohs(ip->tot_len);
	p.udp_len = bpf_ntohs(udp->len);
	p.segments = segments(skb);
	p.ttl = ip->ttl;
	p.odd = ip->frag_off & bpf_htons(0x2000) || p.ip_len != p.udp_len + sizeof(*ip) ||
		p.ip_len + ETH_HLEN > skb->len;
	h = judge(skb, &p, (void *)(udp + 1) + 12 <= (void *)(long)skb->data_end ? (void *)(udp + 1) : 0);
	if (!h)
		return UP;
	if (p.flow->flags & FLOW_V6_OUT)
		// IPv6 knows no UDP without a checksum (RFC 8200 §8.1).
		return udp->check ? from_v4_to_v6(skb, &p, h, ip->tos) : UP;
	int has = udp->check != 0;
	write_v4(ip, p.flow, lower(p.ttl));
	udp->source = p.flow->new_sport;
	udp->dest = p.flow->new_dport;
	write_eth(eth, h, bpf_htons(ETH_P_IP));
	fix_udp(skb, p.flow, L4_V4 + CHECK, has);
	return leave(&p, h);
}

static __always_inline int relay_v6(struct __sk_buff *skb)
{
	struct packet p = {.l4 = L4_V6};
	struct key k = {.proto = IPPROTO_UDP};
	struct address src;
	struct ethhdr *eth;
	struct ipv6hdr *ip;
	struct udphdr *udp;
	struct hop *h;
	__u8 ecn;

	if ((void *)(long)skb->data + L4_V6 + sizeof(*udp) > (void *)(long)skb->data_end &&
	    bpf_skb_pull_data(skb, L4_V6 + sizeof(*udp)))
		return UP;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)skb->data_end)
		return UP;
	// Extension headers go up; the first fragment of an RTP packet is counted.
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		struct frag *frag = (void *)(ip + 1);

		p.l4 += sizeof(*frag);
		if (bpf_skb_pull_data(skb, L4_V6 + sizeof(*frag) + sizeof(*udp)))
			return UP;
		ip = (void *)(long)skb->data + ETH_HLEN;
		frag = (void *)(ip + 1);
		udp = (void *)(frag + 1);
		if ((void *)(udp + 1) > (void *)(long)skb->data_end)
			return UP;
		if (frag->next != IPPROTO_UDP || frag->offset & bpf_htons(0xfff8))
			return UP;
	} else if (ip->nexthdr != IPPROTO_UDP) {
		return UP;
	}
	__builtin_memcpy(&k.local, &ip->daddr, sizeof(k.local));
	__builtin_memcpy(&src, &ip->saddr, sizeof(src));
	k.port = udp->dest;
	p.now = bpf_ktime_get_ns();
	p.flow = find(skb, &k, &src, udp->source, p.now);
	if (!p.flow)
		return UP;
	p.udp_len = bpf_ntohs(udp->len);
	p.ip_len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	p.segments = segments(skb);
	p.ttl = ip->hop_limit;
	p.odd = p.l4 != L4_V6 || p.ip_len != p.udp_len + sizeof(*ip) || p.ip_len + ETH_HLEN > skb->len || !udp->check;
	h = judge(skb, &p, (void *)(udp + 1) + 12 <= (void *)(long)skb->data_end ? (void *)(udp + 1) : 0);
	if (!h)
		return UP;
	ecn = ip->flow_lbl[0] >> 4 & 3;
	if (!(p.flow->flags & FLOW_V6_OUT))
		return from_v6_to_v4(skb, &p, h, ecn);
	write_v6(ip, p.flow, lower(p.ttl), ecn);
	udp->source = p.flow->new_sport;
	udp->dest = p.flow->new_dport;
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	fix_udp(skb, p.flow, L4_V6 + CHECK, 1);
	return leave(&p, h);
}

SEC("tc")
int relay(struct __sk_buff *skb)
{
	// A tag means a device of its own; what is for other hosts was only overheard.
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return UP;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return relay_v4(skb);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return relay_v6(skb);
	return UP;
}
