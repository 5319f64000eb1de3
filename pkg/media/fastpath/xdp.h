// The second entry point: the same as the classifier of tc.bpf.c, before the kernel makes a buffer of the frame.
// The classifier stays the second stage, so that XDP needs to carry only what is simple. What goes up is not even
// counted here: the second stage does.
#pragma once

#include "relay.h"

// for_this_host tells whether the frame was sent to the device and not only overheard.
static __always_inline int for_this_host(const struct ethhdr *eth, const struct flow *f)
{
	const __u16 *to = (const __u16 *)eth->h_dest;

	return to[0] == f->mac[0] && to[1] == f->mac[1] && to[2] == f->mac[2];
}

static __always_inline __u32 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

// unfinished tells whether the checksum is only that of the pseudo header (RFC 768): a sender on this machine leaves
// the rest to a device (CHECKSUM_PARTIAL), and XDP cannot tell it so. One complete checksum in 65536 looks the same,
// and does no harm. addresses is the sum of both addresses, by 32 bits.
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

static __always_inline struct packet xdp_packet(struct xdp_md *ctx)
{
	struct packet p = {.device = ctx->ingress_ifindex, .segments = 1, .length = bpf_xdp_get_buff_len(ctx)};

	return p;
}

// xdp_way returns the hop if XDP can carry the packet all the way, else 0.
static __always_inline struct hop *xdp_way(const struct packet *p, const struct ethhdr *eth)
{
	struct hop *h;

	if (!for_this_host(eth, p->flow) || !is_media(p))
		return 0;
	h = way_out(p);
	if (!h || (h->flags & (HOP_MAC | HOP_XDP)) != (HOP_MAC | HOP_XDP))
		return 0;
	return h;
}

// write_udp changes the ports, and repairs the checksum by the rule of RFC 1624; a packet without one keeps none.
static __always_inline void write_udp(struct udphdr *udp, const struct flow *f)
{
	__u32 sum;

	udp->source = f->new_sport;
	udp->dest = f->new_dport;
	if (!udp->check)
		return;
	sum = ~folded((__u16)~udp->check + f->sum_addr + f->sum_port) & 0xffff;
	udp->check = sum ? sum : 0xffff;
}

// xdp_count is a function of its own to spare registers: with too few the compiler puts numbers where it had
// kept pointers, which needs CAP_PERFMON.
static __noinline int xdp_count(struct flow *f, __u32 udp_len, __u64 now, const __be32 *rtp)
{
	rtp_count(&f->rtp, 1, udp_len, now, rtp);
	return 0;
}

static __always_inline int xdp_leave(struct packet *p, struct hop *h)
{
	if (p->flow->flags & FLOW_RTP)
		xdp_count(p->flow, p->udp_len, p->now, p->rtp);
	account(p);
	return bpf_redirect(h->device, 0);
}

// xdp_to_v6 has the longer header begin before the frame.
static __always_inline int xdp_to_v6(struct xdp_md *ctx, struct packet *p, struct hop *h)
{
	struct ethhdr *eth;
	struct ipv6hdr *ip;
	struct udphdr *udp;

	if (bpf_xdp_adjust_head(ctx, (int)sizeof(struct iphdr) - (int)sizeof(struct ipv6hdr)))
		return XDP_PASS;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memset(ip, 0, sizeof(*ip));
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	new_v6(ip, p);
	write_udp(udp, p->flow);
	return xdp_leave(p, h);
}

static __always_inline int xdp_to_v4(struct xdp_md *ctx, struct packet *p, struct hop *h)
{
	struct ethhdr *eth;
	struct iphdr *ip;
	struct udphdr *udp;

	if (bpf_xdp_adjust_head(ctx, (int)sizeof(struct ipv6hdr) - (int)sizeof(struct iphdr)))
		return XDP_PASS;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	udp = (void *)(ip + 1);
	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memset(ip, 0, sizeof(*ip));
	write_eth(eth, h, bpf_htons(ETH_P_IP));
	new_v4(ip, p);
	write_udp(udp, p->flow);
	return xdp_leave(p, h);
}

static __always_inline int xdp_v4(struct xdp_md *ctx)
{
	struct packet p = xdp_packet(ctx);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct hop *h;

	if (!read_v4(&p, eth, (void *)(long)ctx->data_end))
		return XDP_PASS;
	h = xdp_way(&p, eth);
	if (!h || unfinished(&p, udp, sum_v4(ip)))
		return XDP_PASS;
	if (p.flow->flags & FLOW_V6_OUT)
		return xdp_to_v6(ctx, &p, h);
	write_v4(ip, &p);
	write_udp(udp, p.flow);
	write_eth(eth, h, bpf_htons(ETH_P_IP));
	return xdp_leave(&p, h);
}

static __always_inline int xdp_v6(struct xdp_md *ctx)
{
	struct packet p = xdp_packet(ctx);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct ipv6hdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct hop *h;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end || ip->nexthdr != IPPROTO_UDP)
		return XDP_PASS;
	if (!read_v6(&p, eth, (void *)(long)ctx->data_end))
		return XDP_PASS;
	h = xdp_way(&p, eth);
	if (!h || unfinished(&p, udp, sum_v6(ip)))
		return XDP_PASS;
	if (!(p.flow->flags & FLOW_V6_OUT))
		return xdp_to_v4(ctx, &p, h);
	write_v6(ip, &p);
	write_udp(udp, p.flow);
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	return xdp_leave(&p, h);
}
