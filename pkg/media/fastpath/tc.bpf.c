//go:build ignore

// The kernel half of the media path: a classifier at the ingress of the gateway's devices.
//
//   packet ─► ours? UDP, for this host ─► flow of (local address, port) ─► source locked?
//     ─► RTP figures ─► anything odd? up to the socket ─► rewrite, count, redirect
//
// Packets of TURN's channels, which no flow of an address and port carries, have a way of their own (channel.h).
//
// There are two entry points: relay, for tc, and relay_xdp, which on request comes before it.
// Whatever is not redirected goes up unchanged: to the daemon's socket, which relays it as if this
// program did not exist. Offsets are constant, so that CAP_PERFMON is not needed.
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "relay.h"
#include "xdp.h"

// The kernel gives some helpers only to programs that say that they may be used under the GPL too.
char __license[] SEC("license") = "Dual MIT/GPL";

#define UP TC_ACT_UNSPEC // the next program, or the stack

static __always_inline int redirect(struct hop *h)
{
	struct bpf_redir_neigh next;

	if (h->flags & HOP_MAC)
		return bpf_redirect(h->device, 0);
	if (!h->family)
		return bpf_redirect_neigh(h->device, 0, 0, 0); // by the routes of this device
	__builtin_memset(&next, 0, sizeof(next));
	next.nh_family = h->family;
	next.ipv6_nh[0] = h->next[0];
	next.ipv6_nh[1] = h->next[1];
	next.ipv6_nh[2] = h->next[2];
	next.ipv6_nh[3] = h->next[3];
	return bpf_redirect_neigh(h->device, &next, sizeof(next), 0);
}

#include "icmp.h"

static __always_inline int leave(const struct packet *p, struct hop *h)
{
	account(p);
	return redirect(h);
}

// fix_udp repairs the checksum, which then stands at off; a packet without one keeps none.
static __always_inline void fix_udp(struct __sk_buff *skb, const struct packet *p, __u32 off, int has)
{
	if (!has)
		return;
	bpf_l4_csum_replace(skb, off, 0, p->flow->sum_addr, BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0);
	bpf_l4_csum_replace(skb, off, 0, p->sum_port, BPF_F_MARK_MANGLED_0);
}

// minus_head takes from a sum what write_v6 will change of an IPv6 header, but for the addresses; plus_head adds what it
// has written.
static __always_inline __u32 minus_head(const struct ipv6hdr *ip)
{
	const __u16 *half = (const __u16 *)ip;

	return (__u16)~half[0] + (__u16)~half[3];
}

static __always_inline __u32 plus_head(const struct ipv6hdr *ip)
{
	const __u16 *half = (const __u16 *)ip;

	return half[0] + half[3];
}

// from_v4_to_v6 makes room for the longer header. What fails before that goes up unchanged.
static __always_inline int from_v4_to_v6(struct __sk_buff *skb, const struct packet *p, struct hop *h)
{
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
	new_v6(&to.ip, p);
	to.ports[0] = p->flow->new_sport;
	to.ports[1] = p->flow->new_dport;
	if (bpf_skb_store_bytes(skb, 0, &to.eth, sizeof(to) - sizeof(to.align), 0))
		return TC_ACT_SHOT;
	fix_udp(skb, p, L4_V6 + CHECK, 1);
	return leave(p, h);
}

static __always_inline int from_v6_to_v4(struct __sk_buff *skb, const struct packet *p, struct hop *h)
{
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
	new_v4(&to.ip, p);
	to.ports[0] = p->flow->new_sport;
	to.ports[1] = p->flow->new_dport;
	if (bpf_skb_store_bytes(skb, 0, &to.eth, sizeof(to) - sizeof(to.align), 0))
		return TC_ACT_SHOT;
	fix_udp(skb, p, L4_V4 + CHECK, 1);
	return leave(p, h);
}

// judge counts an RTP packet and returns the hop, or 0 if the packet must go up.
static __always_inline struct hop *judge(struct __sk_buff *skb, struct packet *p)
{
	int rtp = p->flow->flags & FLOW_RTP;

	if (rtp && !p->has_rtp &&
	    !bpf_skb_load_bytes(skb, p->l4 + sizeof(struct udphdr), p->rtp, sizeof(p->rtp)))
		p->has_rtp = 1;
	if (!is_media(p))
		return 0;
	if (rtp)
		rtp_count(p->flow, p->segments, p->udp_len, p->now, p->rtp);
	return way_out(p);
}

static __always_inline struct packet packet_of(struct __sk_buff *skb)
{
	struct packet p = {
		.device = skb->ifindex, .length = skb->len, .segments = skb->gso_segs, .gso_size = skb->gso_size,
	};

	if (!p.segments)
		p.segments = 1;
	return p;
}

// count_behind counts the RTP of a packet that goes up, whose UDP header is at an odd place.
static __always_inline int count_behind(struct __sk_buff *skb, struct packet *p, struct key *k, struct address *src)
{
	struct {
		struct udphdr udp;
		__be32 rtp[3];
	} b;

	if (bpf_skb_load_bytes(skb, p->l4, &b, sizeof(b)))
		return 0;
	k->proto = IPPROTO_UDP;
	k->port = b.udp.dest;
	p->now = bpf_ktime_get_ns();
	p->flow = find(p, k, src, b.udp.source);
	if (!p->flow || !(p->flow->flags & FLOW_RTP))
		return 0;
	p->udp_len = bpf_ntohs(b.udp.len);
	p->has_rtp = 1;
	__builtin_memcpy(p->rtp, b.rtp, sizeof(p->rtp));
	if (is_media(p))
		rtp_count(p->flow, p->segments, p->udp_len, p->now, p->rtp);
	return 0;
}

// options_v4 counts what bears IPv4 options; nobody else would, and the next packet would say that it was lost.
static __noinline int options_v4(struct __sk_buff *skb)
{
	struct packet p = packet_of(skb);
	struct key k = {};
	struct address src = {};
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.ihl <= 5 || ip.protocol != IPPROTO_UDP ||
	    ip.frag_off & bpf_htons(0x1fff))
		return 0;
	p.l4 = ETH_HLEN + ip.ihl * 4;
	k.local.word[2] = src.word[2] = bpf_htonl(0xffff);
	k.local.word[3] = ip.daddr;
	src.word[3] = ip.saddr;
	return count_behind(skb, &p, &k, &src);
}

// options_v6 does so with one extension header.
static __noinline int options_v6(struct __sk_buff *skb)
{
	struct packet p = packet_of(skb);
	struct key k = {};
	struct address src = {};
	struct {
		struct ipv6hdr ip;
		__u8 next, length;
	} b;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &b, sizeof(b.ip) + 2) || b.next != IPPROTO_UDP || mapped(&b.ip.daddr))
		return 0;
	p.l4 = L4_V6 + (b.length + 1) * 8;
	__builtin_memcpy(&k.local, &b.ip.daddr, sizeof(k.local));
	__builtin_memcpy(&src, &b.ip.saddr, sizeof(src));
	return count_behind(skb, &p, &k, &src);
}

#include "channel_tc.h"

static __noinline int relay_v4(struct __sk_buff *skb)
{
	struct packet p = packet_of(skb);
	struct ethhdr *eth;
	struct udphdr *udp;
	struct hop *h;
	int has, whole;

	if ((void *)(long)skb->data + L4_V4 + sizeof(*udp) > (void *)(long)skb->data_end &&
	    bpf_skb_pull_data(skb, L4_V4 + sizeof(*udp)))
		return UP;
	eth = (void *)(long)skb->data;
	if (!read_v4(&p, eth, (void *)(long)skb->data_end)) {
		if ((void *)eth + L4_V4 <= (void *)(long)skb->data_end && *(__u8 *)(eth + 1) > 0x45) {
			options_v4(skb);
			return UP;
		}
		return p.now ? channel_v4(skb, p.now) : UP; // not UDP
	}
	udp = (void *)eth + L4_V4;
	h = judge(skb, &p);
	if (!h)
		return UP;
	if (p.flow->flags & FLOW_V6_OUT)
		return from_v4_to_v6(skb, &p, h);
	has = udp->check != 0;
	whole = has && !p.gso_size && !unfinished(&p, udp, sum_v4((void *)(eth + 1)));
	write_v4((void *)(eth + 1), &p);
	write_eth(eth, h, bpf_htons(ETH_P_IP));
	if (whole) {
		write_udp(udp, &p);
		// The device may have told the sum of the packet (CHECKSUM_COMPLETE). To it the IPv4 header adds nothing, and UDP
		// with its checksum what its pseudo header takes away, of which only the addresses change.
		bpf_csum_update(skb, ~(__u32)p.flow->sum_addr);
		return leave(&p, h);
	}
	udp->source = p.flow->new_sport;
	udp->dest = p.flow->new_dport;
	fix_udp(skb, &p, L4_V4 + CHECK, has);
	return leave(&p, h);
}

// pull_v6 brings the headers within reach that read_v6 looks at.
static __always_inline int pull_v6(struct __sk_buff *skb)
{
	const __u32 want = L4_V6 + sizeof(struct udphdr), more = want + sizeof(struct frag);
	struct ipv6hdr *ip = (void *)(long)skb->data + ETH_HLEN;

	if ((void *)(long)skb->data + want > (void *)(long)skb->data_end) {
		if (bpf_skb_pull_data(skb, want))
			return -1;
		ip = (void *)(long)skb->data + ETH_HLEN;
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return -1;
	}
	if (ip->nexthdr == IPPROTO_FRAGMENT && (void *)(long)skb->data + more > (void *)(long)skb->data_end)
		return bpf_skb_pull_data(skb, more);
	return 0;
}

static __noinline int relay_v6(struct __sk_buff *skb)
{
	struct packet p = packet_of(skb);
	struct ethhdr *eth;
	struct udphdr *udp;
	struct hop *h;
	__u32 head;
	int whole;

	if (pull_v6(skb))
		return UP;
	eth = (void *)(long)skb->data;
	if (!read_v6(&p, eth, (void *)(long)skb->data_end)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) <= (void *)(long)skb->data_end &&
		    (ip->nexthdr == IPPROTO_DSTOPTS || ip->nexthdr == IPPROTO_HOPOPTS || ip->nexthdr == IPPROTO_ROUTING)) {
			options_v6(skb);
			return UP;
		}
		return p.now ? channel_v6(skb, p.now) : UP;
	}
	udp = (void *)eth + L4_V6;
	h = judge(skb, &p);
	if (!h)
		return UP;
	if (!(p.flow->flags & FLOW_V6_OUT))
		return from_v6_to_v4(skb, &p, h);
	whole = !p.gso_size && !unfinished(&p, udp, sum_v6((void *)(eth + 1)));
	head = minus_head((void *)(eth + 1));
	write_v6((void *)(eth + 1), &p);
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	if (whole) {
		write_udp(udp, &p);
		// As in relay_v4; but here the header adds the addresses, and they cancel out.
		bpf_csum_update(skb, head + plus_head((void *)(eth + 1)));
		return leave(&p, h);
	}
	udp->source = p.flow->new_sport;
	udp->dest = p.flow->new_dport;
	fix_udp(skb, &p, L4_V6 + CHECK, 1);
	return leave(&p, h);
}

// The functions are not inlined, as all that is on the stack at once is 512 bytes at most.
SEC("tc")
int relay(struct __sk_buff *skb)
{
	__u8 protocol;

	// A tag means a device of its own; what is for other hosts was only overheard.
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return UP;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		protocol = tcp_protocol(skb, ETH_HLEN + offsetof(struct iphdr, protocol));
		if (protocol == IPPROTO_TCP)
			return tcp_v4(skb);
		return protocol == IPPROTO_ICMP ? icmp_v4(skb) : relay_v4(skb);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		protocol = tcp_protocol(skb, ETH_HLEN + offsetof(struct ipv6hdr, nexthdr));
		if (protocol == IPPROTO_TCP)
			return tcp_v6(skb);
		return protocol == IPPROTO_ICMPV6 ? icmp_v6(skb) : relay_v6(skb);
	}
	return UP;
}

SEC("xdp")
int relay_xdp(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	// A VLAN tag (IEEE 802.1Q) is a protocol of its own here, and goes up: it means a device of its own.
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return xdp_v4(ctx);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return xdp_v6(ctx);
	return XDP_PASS;
}
