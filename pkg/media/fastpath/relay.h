// What both programs do with a packet: find its flow, check its source, judge it, write the new headers.
//
//   read_v4, read_v6 ─► is_media ─► rtp_count ─► way_out ─► write_eth, write_v4 or write_v6 ─► account
#pragma once

#include "flow.h"
#include "rtp.h"

#define L4_V4 (ETH_HLEN + sizeof(struct iphdr))
#define L4_V6 (ETH_HLEN + sizeof(struct ipv6hdr))
#define CHECK offsetof(struct udphdr, check)

// frag is the extension header of a fragment (RFC 8200 §4.5).
struct frag {
	__u8 next, reserved;
	__be16 offset; // and flags
	__be32 id;
};

// packet is what the two families, and the two programs, have in common.
struct packet {
	__u32 device;   // where it came in
	__u32 length;   // of the frame
	__u32 segments; // that one buffer holds (GRO, GSO), 1 or more
	__u32 gso_size; // the payload of each, 0 if there is one
	// From here on read_v4 and read_v6 write.
	struct flow *flow;
	__u64 now;
	__u32 ip_len;  // the length of the IP packet
	__u32 udp_len; // as in the header
	__u32 sum_port; // what the UDP checksum changes by with the ports
	__u32 l4; // where the UDP header begins; constant in each caller
	__u8 ttl;
	__u8 ecn; // the two bits of ECN are not ours
	__u8 odd; // goes up, but its RTP is counted
	__u8 has_rtp; // rtp holds what follows the UDP header
	__be32 rtp[3];
};

// oversized tells whether the frame is longer than what is in it and Ethernet's padding. The rest is cut off on
// the way up, but not on the way out, where it might exceed the MTU.
static __always_inline int oversized(const struct packet *p)
{
	return p->length > p->ip_len + ETH_HLEN && p->length > ETH_ZLEN;
}

// find returns the flow of the packet if its source may use it, and the lease lasts.
static __always_inline struct flow *find(const struct packet *p, const struct key *k,
					 const struct address *src, __be16 sport)
{
	struct flow *f = bpf_map_lookup_elem(&flows, k);

	if (!f)
		return 0;
	// Asked for at once, the last of the three lines comes with the others and not after them.
	asm volatile("" : : "r"(f->last));
	if (f->sport != sport || f->src.word[3] != src->word[3] || f->src.word[2] != src->word[2] ||
	    f->src.word[1] != src->word[1] || f->src.word[0] != src->word[0])
		return 0;
	if (f->device != p->device || p->now > lease_until)
		return 0;
	return f;
}

// read_rtp takes the bytes that an RTP header would have, if they are within reach.
static __always_inline void read_rtp(struct packet *p, const __be32 *body, const void *end)
{
	if ((const void *)(body + 3) > end)
		return;
	p->rtp[0] = body[0];
	p->rtp[1] = body[1];
	p->rtp[2] = body[2];
	p->has_rtp = 1;
}

// port_sum is the change of both ports (RFC 1624), not folded.
static __always_inline __u32 port_sum(const struct udphdr *udp, const struct flow *f)
{
	return (__u16)~udp->source + (__u16)~udp->dest + f->new_sport + f->new_dport;
}

// read_v4 reads the headers, and finds the flow; it returns 0 if the packet is nothing to us, else there is a
// UDP header at l4. It returns no pointer, as comparing one with 0 needs CAP_PERFMON.
static __always_inline int read_v4(struct packet *p, void *data, void *end)
{
	struct iphdr *ip = data + ETH_HLEN;
	struct udphdr *udp = data + L4_V4;
	struct key k = {.proto = IPPROTO_UDP};
	struct address src = {};

	if ((void *)(udp + 1) > end)
		return 0;
	// Options, other protocols, and fragments but the first: there is no UDP header at this place.
	if (*(__u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(0x1fff))
		return 0;
	k.local.word[2] = src.word[2] = bpf_htonl(0xffff);
	k.local.word[3] = ip->daddr;
	k.port = udp->dest;
	src.word[3] = ip->saddr;
	p->now = bpf_ktime_get_ns();
	p->flow = find(p, &k, &src, udp->source);
	if (!p->flow)
		return 0;
	p->l4 = L4_V4;
	p->ip_len = bpf_ntohs(ip->tot_len);
	p->udp_len = bpf_ntohs(udp->len);
	p->sum_port = port_sum(udp, p->flow);
	p->ttl = ip->ttl;
	p->ecn = ip->tos & 3;
	p->odd = ip->frag_off & bpf_htons(0x2000) || p->ip_len != p->udp_len + sizeof(*ip) ||
		 p->ip_len + ETH_HLEN > p->length || oversized(p);
	// IPv6 knows no UDP without a checksum (RFC 8200 §8.1).
	if (p->flow->flags & FLOW_V6_OUT && !udp->check)
		p->odd = 1;
	read_rtp(p, (void *)(udp + 1), end);
	return 1;
}

// mapped tells IPv4 addresses in IPv6 (RFC 4291 §2.5.5.2). They stand for IPv4 in our keys, and for nobody on the wire.
static __always_inline int mapped(const struct in6_addr *a)
{
	const __u32 *w = (const __u32 *)a;

	return !(w[0] | w[1]) && w[2] == bpf_htonl(0xffff);
}

// read_v6 is as read_v4.
static __always_inline int read_v6(struct packet *p, void *data, void *end)
{
	struct ipv6hdr *ip = data + ETH_HLEN;
	struct udphdr *udp = data + L4_V6;
	struct key k = {.proto = IPPROTO_UDP};
	struct address src;

	p->l4 = L4_V6;
	if ((void *)(udp + 1) > end)
		return 0;
	// Extension headers go up; the first fragment of an RTP packet is counted.
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		struct frag *frag = (void *)(ip + 1);

		p->l4 += sizeof(*frag);
		udp = (void *)(frag + 1);
		if ((void *)(udp + 1) > end)
			return 0;
		if (frag->next != IPPROTO_UDP || frag->offset & bpf_htons(0xfff8))
			return 0;
	} else if (ip->nexthdr != IPPROTO_UDP) {
		return 0;
	}
	if (mapped(&ip->daddr))
		return 0;
	__builtin_memcpy(&k.local, &ip->daddr, sizeof(k.local));
	__builtin_memcpy(&src, &ip->saddr, sizeof(src));
	k.port = udp->dest;
	p->now = bpf_ktime_get_ns();
	p->flow = find(p, &k, &src, udp->source);
	if (!p->flow)
		return 0;
	p->udp_len = bpf_ntohs(udp->len);
	p->sum_port = port_sum(udp, p->flow);
	p->ip_len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	p->ttl = ip->hop_limit;
	p->ecn = ip->flow_lbl[0] >> 4 & 3;
	p->odd = p->l4 != L4_V6 || p->ip_len != p->udp_len + sizeof(*ip) || p->ip_len + ETH_HLEN > p->length ||
		 oversized(p) || !udp->check;
	read_rtp(p, (void *)(udp + 1), end);
	return 1;
}

// is_media tells whether the packet is what the flow carries.
static __always_inline int is_media(const struct packet *p)
{
	__u32 first = bpf_ntohl(p->rtp[0]);

	if (p->udp_len < sizeof(struct udphdr))
		return 0;
	if (!(p->flow->flags & FLOW_RTP))
		return 1;
	if (p->udp_len < sizeof(struct udphdr) + sizeof(p->rtp) || !p->has_rtp)
		return 0;
	// STUN, DTLS and others share the port (RFC 7983), RTCP too (RFC 5761 §4).
	return first >> 30 == 2 && ((first >> 16 & 0xff) < 192 || (first >> 16 & 0xff) > 223);
}

// way_out returns the hop, or 0 if the packet must go up.
static __always_inline struct hop *way_out(const struct packet *p)
{
	struct flow *f = p->flow;
	struct hop *h;
	__u32 len = p->ip_len;

	if (p->odd || p->ttl <= 1)
		return 0;
	h = bpf_map_lookup_elem(&hops, &f->hop);
	if (!h || !h->device)
		return 0;
	if (p->gso_size)
		len = p->gso_size + len - (p->udp_len - sizeof(struct udphdr));
	if ((f->flags & FLOW_V6_OUT) && p->l4 == L4_V4)
		len += sizeof(struct ipv6hdr) - sizeof(struct iphdr);
	return len <= h->mtu ? h : 0;
}

static __always_inline void account(const struct packet *p)
{
	struct flow *f = p->flow;

	__sync_fetch_and_add(&f->packets, p->segments);
	__sync_fetch_and_add(&f->bytes, p->udp_len - sizeof(struct udphdr));
	f->last = p->now;
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

// write_v4 changes a header that is there; see new_v4.
static __always_inline void write_v4(struct iphdr *ip, const struct packet *p)
{
	const struct flow *f = p->flow;

	ip->saddr = f->new_src;
	ip->daddr = f->new_dst;
	ip->ttl = lower(p->ttl);
	ip->tos = f->tos | p->ecn;
	ip->check = 0;
	ip->check = ip_sum(ip);
}

// new_v4 writes a header into zeroed memory.
static __always_inline void new_v4(struct iphdr *ip, const struct packet *p)
{
	ip->version = 4;
	ip->ihl = 5;
	ip->protocol = IPPROTO_UDP;
	ip->tot_len = bpf_htons(p->udp_len + sizeof(struct iphdr));
	// The identification only matters to fragments; routers may make some, as DF is not set.
	ip->id = (__u16)bpf_get_prandom_u32();
	write_v4(ip, p);
}

// write_v6 changes a header that is there; see new_v6.
static __always_inline void write_v6(struct ipv6hdr *ip, const struct packet *p)
{
	const struct flow *f = p->flow;
	__u8 class = f->tos | p->ecn;

	ip->version = 6;
	ip->priority = class >> 4;
	ip->flow_lbl[0] = (ip->flow_lbl[0] & 0x0f) | (__u8)(class << 4);
	ip->hop_limit = lower(p->ttl);
	__builtin_memcpy(&ip->saddr, f->new_src_head, sizeof(f->new_src_head));
	ip->saddr.s6_addr32[3] = f->new_src;
	__builtin_memcpy(&ip->daddr, f->new_dst_head, sizeof(f->new_dst_head));
	ip->daddr.s6_addr32[3] = f->new_dst;
}

// new_v6 writes a header into zeroed memory.
static __always_inline void new_v6(struct ipv6hdr *ip, const struct packet *p)
{
	ip->payload_len = bpf_htons(p->udp_len);
	ip->nexthdr = IPPROTO_UDP;
	write_v6(ip, p);
}

static __always_inline __u32 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// unfinished tells whether the checksum is only that of the pseudo header (RFC 768): a sender on this machine leaves
// the rest to a device (CHECKSUM_PARTIAL), and no program can see that it does. One complete checksum in 65536 looks
// the same, and does no harm. addresses is the sum of both addresses, by 32 bits.
static __always_inline int unfinished(const struct packet *p, const struct udphdr *udp, __u64 addresses)
{
	__u64 sum = addresses + bpf_htons(IPPROTO_UDP) + bpf_htons(p->udp_len);

	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	return udp->check == folded(sum);
}

static __always_inline __u64 sum_v4(const struct iphdr *ip)
{
	return (__u64)ip->saddr + ip->daddr;
}

static __always_inline __u64 sum_v6(const struct ipv6hdr *ip)
{
	const __u32 *w = (const __u32 *)&ip->saddr;

	return (__u64)w[0] + w[1] + w[2] + w[3] + w[4] + w[5] + w[6] + w[7];
}

// write_udp changes the ports, and repairs the checksum by the rule of RFC 1624; a packet without one keeps none.
static __always_inline void write_udp(struct udphdr *udp, const struct packet *p)
{
	const struct flow *f = p->flow;
	__u32 sum;

	udp->source = f->new_sport;
	udp->dest = f->new_dport;
	if (!udp->check)
		return;
	sum = ~folded((__u16)~udp->check + f->sum_addr + p->sum_port) & 0xffff;
	udp->check = sum ? sum : 0xffff;
}
