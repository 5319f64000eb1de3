// The second entry point: the same as the classifier of tc.bpf.c, before the kernel makes a buffer of the frame.
// The classifier stays the second stage, so that XDP needs to carry only what is simple. What goes up is not even
// counted here: the second stage does.
#pragma once

#include "channel.h"
#include "relay.h"

// for_this_host tells whether the frame was sent to the device and not only overheard.
static __always_inline int for_this_host(const struct ethhdr *eth, const struct flow *f)
{
	const __u16 *to = (const __u16 *)eth->h_dest;

	return to[0] == f->mac[0] && to[1] == f->mac[1] && to[2] == f->mac[2];
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

// xdp_count is a function of its own to spare registers: with too few the compiler puts numbers where it had
// kept pointers, which needs CAP_PERFMON.
static __noinline int xdp_count(struct flow *f, __u32 udp_len, __u64 now, const __be32 *rtp)
{
	rtp_count(f, 1, udp_len, now, rtp);
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
	write_udp(udp, p);
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
	write_udp(udp, p);
	return xdp_leave(p, h);
}

// xdp_channel_way returns the hop if XDP can carry the packet of a channel all the way, else 0.
static __always_inline struct hop *xdp_channel_way(const struct packet *p, const struct ethhdr *eth, const struct channel_key *k,
						   const struct channel_header *ch, int *grow)
{
	struct hop *h;

	if (!for_this_host(eth, p->flow))
		return 0;
	h = channel_way(p, k, ch, grow);
	if (!h || (h->flags & (HOP_MAC | HOP_XDP)) != (HOP_MAC | HOP_XDP))
		return 0;
	return h;
}

// xdp_channel_v4 carries a packet of a channel that came at the time now: the frame begins later, or earlier.
static __noinline int xdp_channel_v4(struct xdp_md *ctx, __u64 now)
{
	struct packet p = xdp_packet(ctx);
	struct channel_key k = {};
	struct {
		__u8 align[2];
		struct ethhdr eth;
		struct iphdr ip;
		struct udphdr udp;
		struct channel_header ch;
	} b;
	struct hop *h;
	int grow, cut;

	if (bpf_xdp_load_bytes(ctx, 0, &b.eth, sizeof(b) - sizeof(b.align)) || !read_channel_v4(&p, &k, &b.ip, &b.udp, &b.ch, now))
		return XDP_PASS;
	h = xdp_channel_way(&p, &b.eth, &k, &b.ch, &grow);
	if (!h || (b.udp.check && unfinished(&p, &b.udp, sum_v4(&b.ip))) || bpf_xdp_adjust_head(ctx, -grow))
		return XDP_PASS;
	cut = grow < 0;
	b.ip.tot_len = bpf_htons(p.ip_len + grow);
	write_v4(&b.ip, &p);
	channel_udp(&p, cut, &b.udp, &b.ch, grow);
	write_eth(&b.eth, h, bpf_htons(ETH_P_IP));
	if (cut ? bpf_xdp_store_bytes(ctx, 0, &b.eth, sizeof(b) - sizeof(b.align) - sizeof(b.ch))
		: bpf_xdp_store_bytes(ctx, 0, &b.eth, sizeof(b) - sizeof(b.align)))
		return XDP_ABORTED;
	channel_account(&p, cut);
	return bpf_redirect(h->device, 0);
}

// xdp_channel_v6 is as xdp_channel_v4.
static __noinline int xdp_channel_v6(struct xdp_md *ctx, __u64 now)
{
	struct packet p = xdp_packet(ctx);
	struct channel_key k = {};
	struct {
		__u8 align[2];
		struct ethhdr eth;
		struct ipv6hdr ip;
		struct udphdr udp;
		struct channel_header ch;
	} b;
	struct hop *h;
	int grow, cut;

	if (bpf_xdp_load_bytes(ctx, 0, &b.eth, sizeof(b) - sizeof(b.align)) || !read_channel_v6(&p, &k, &b.ip, &b.udp, &b.ch, now))
		return XDP_PASS;
	h = xdp_channel_way(&p, &b.eth, &k, &b.ch, &grow);
	if (!h || unfinished(&p, &b.udp, sum_v6(&b.ip)) || bpf_xdp_adjust_head(ctx, -grow))
		return XDP_PASS;
	cut = grow < 0;
	b.ip.payload_len = bpf_htons(p.udp_len + grow);
	write_v6(&b.ip, &p);
	channel_udp(&p, cut, &b.udp, &b.ch, grow);
	write_eth(&b.eth, h, bpf_htons(ETH_P_IPV6));
	if (cut ? bpf_xdp_store_bytes(ctx, 0, &b.eth, sizeof(b) - sizeof(b.align) - sizeof(b.ch))
		: bpf_xdp_store_bytes(ctx, 0, &b.eth, sizeof(b) - sizeof(b.align)))
		return XDP_ABORTED;
	channel_account(&p, cut);
	return bpf_redirect(h->device, 0);
}

static __always_inline int xdp_v4(struct xdp_md *ctx)
{
	struct packet p = xdp_packet(ctx);
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct hop *h;

	if (!read_v4(&p, eth, (void *)(long)ctx->data_end))
		return p.now ? xdp_channel_v4(ctx, p.now) : XDP_PASS;
	h = xdp_way(&p, eth);
	if (!h || unfinished(&p, udp, sum_v4(ip)))
		return XDP_PASS;
	if (p.flow->flags & FLOW_V6_OUT)
		return xdp_to_v6(ctx, &p, h);
	write_v4(ip, &p);
	write_udp(udp, &p);
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
		return p.now ? xdp_channel_v6(ctx, p.now) : XDP_PASS;
	h = xdp_way(&p, eth);
	if (!h || unfinished(&p, udp, sum_v6(ip)))
		return XDP_PASS;
	if (!(p.flow->flags & FLOW_V6_OUT))
		return xdp_to_v4(ctx, &p, h);
	write_v6(ip, &p);
	write_udp(udp, &p);
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	return xdp_leave(&p, h);
}
