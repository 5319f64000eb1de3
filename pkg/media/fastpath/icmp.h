// ICMP errors about packets of the connections of tcp.h: "fragmentation needed" or "packet too big" above all, without
// which a path with a small MTU beyond our link stays a black hole. They go to who sent the packet, with what they
// quote turned back into what that host has sent (RFC 5508 §4.2, the same for both families here). The router's address is
// replaced by the one that the host talks to.
#pragma once

#include "tcp.h"

#define ICMP_UNREACHABLE 3   // RFC 792
#define ICMPV6_UNREACHABLE 1 // RFC 4443 §3
#define ICMPV6_TOO_BIG 2

// icmp is the header of both families.
struct icmp {
	__u8 type, code;
	__sum16 check;
	__be32 more;
};

// quoted is as much of a segment as every router quotes.
struct quoted {
	__be16 sport, dport;
	__be32 seq;
};

// icmp_way returns the way to the sender of the packet that left as to, and the direction that leads there in conn.
static __always_inline struct hop *icmp_way(struct __sk_buff *skb, const struct tuple *to, struct conn **conn)
{
	struct tuple key;
	struct conn *c;
	struct hop *h;
	__u64 now = bpf_ktime_get_ns();

	tcp_reverse(&key, to);
	c = now > lease_until ? 0 : bpf_map_lookup_elem(&tcp_conns, &key);
	if (!c || c->device != skb->ifindex)
		return 0;
	h = tcp_route(now, c);
	if (!h || skb->len - ETH_HLEN > h->mtu)
		return 0;
	*conn = c;
	return h;
}

static __noinline int icmp_v4(struct __sk_buff *skb)
{
	const __u32 at = L4_V4, want = at + sizeof(struct icmp) + sizeof(struct iphdr) + sizeof(struct quoted);
	struct tuple to = {};
	struct ethhdr *eth;
	struct iphdr *ip, *inner;
	struct icmp *icmp;
	struct quoted *q;
	struct conn *c = 0;
	struct hop *h;
	__be32 was[2];
	__be16 ports[2];
	__u32 sum;

	if ((void *)(long)skb->data + want > (void *)(long)skb->data_end && bpf_skb_pull_data(skb, want))
		return UP;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	inner = (void *)(icmp + 1);
	q = (void *)(inner + 1);
	if ((void *)(q + 1) > (void *)(long)skb->data_end)
		return UP;
	if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1 || icmp->type != ICMP_UNREACHABLE ||
	    *(__u8 *)inner != 0x45 || inner->protocol != IPPROTO_TCP || inner->frag_off & bpf_htons(0x1fff) ||
	    inner->saddr != ip->daddr)
		return UP;
	to.src.word[2] = to.dst.word[2] = bpf_htonl(0xffff);
	to.src.word[3] = was[0] = inner->saddr;
	to.dst.word[3] = was[1] = inner->daddr;
	to.sport = ports[0] = q->sport;
	to.dport = ports[1] = q->dport;
	h = icmp_way(skb, &to, &c);
	if (!h || !c)
		return UP;
	inner->saddr = ip->daddr = c->to.dst.word[3];
	inner->daddr = ip->saddr = c->to.src.word[3];
	q->sport = c->to.dport;
	q->dport = c->to.sport;
	// The quoted header still adds up to the same, so that to the outer sum only the ports matter.
	sum = bpf_csum_diff(was, sizeof(was), &inner->saddr, sizeof(was), (__u16)~inner->check);
	sum = (sum & 0xffff) + (sum >> 16);
	inner->check = ~((sum & 0xffff) + (sum >> 16));
	ip->ttl = lower(ip->ttl);
	ip->check = 0;
	ip->check = ip_sum(ip);
	write_eth(eth, h, bpf_htons(ETH_P_IP));
	sum = bpf_csum_diff((__be32 *)ports, sizeof(ports), (__be32 *)q, sizeof(ports), 0);
	bpf_l4_csum_replace(skb, at + offsetof(struct icmp, check), 0, sum, 0);
	return redirect(h);
}

static __noinline int icmp_v6(struct __sk_buff *skb)
{
	const __u32 at = L4_V6, want = at + sizeof(struct icmp) + sizeof(struct ipv6hdr) + sizeof(struct quoted);
	struct tuple to = {}, outer = {};
	struct ethhdr *eth;
	struct ipv6hdr *ip, *inner;
	struct icmp *icmp;
	struct quoted *q;
	struct conn *c = 0;
	struct hop *h;
	__u32 pseudo, quote;

	if ((void *)(long)skb->data + want > (void *)(long)skb->data_end && bpf_skb_pull_data(skb, want))
		return UP;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	inner = (void *)(icmp + 1);
	q = (void *)(inner + 1);
	if ((void *)(q + 1) > (void *)(long)skb->data_end)
		return UP;
	if (ip->hop_limit <= 1 || inner->nexthdr != IPPROTO_TCP ||
	    (icmp->type != ICMPV6_UNREACHABLE && icmp->type != ICMPV6_TOO_BIG))
		return UP;
	__builtin_memcpy(&to.src, &inner->saddr, sizeof(to.src));
	__builtin_memcpy(&to.dst, &inner->daddr, sizeof(to.dst));
	__builtin_memcpy(&outer.src, &ip->saddr, sizeof(outer.src));
	__builtin_memcpy(&outer.dst, &ip->daddr, sizeof(outer.dst));
	if (outer.dst.word[0] != to.src.word[0] || outer.dst.word[1] != to.src.word[1] ||
	    outer.dst.word[2] != to.src.word[2] || outer.dst.word[3] != to.src.word[3] || !to.src.word[0] || !to.dst.word[0])
		return UP;
	to.sport = q->sport;
	to.dport = q->dport;
	h = icmp_way(skb, &to, &c);
	if (!h || !c)
		return UP;
	__builtin_memcpy(&ip->saddr, &c->to.src, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &c->to.dst, sizeof(ip->daddr));
	__builtin_memcpy(&inner->saddr, &c->to.dst, sizeof(inner->saddr));
	__builtin_memcpy(&inner->daddr, &c->to.src, sizeof(inner->daddr));
	q->sport = c->to.dport;
	q->dport = c->to.sport;
	ip->hop_limit = lower(ip->hop_limit);
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	// The same addresses and ports, but for their order, of which a sum knows nothing.
	pseudo = bpf_csum_diff((__be32 *)&outer, 32, (__be32 *)&c->to, 32, 0);
	quote = bpf_csum_diff((__be32 *)&to, sizeof(to), (__be32 *)&c->to, sizeof(to), 0);
	bpf_l4_csum_replace(skb, at + offsetof(struct icmp, check), 0, pseudo, BPF_F_PSEUDO_HDR);
	bpf_l4_csum_replace(skb, at + offsetof(struct icmp, check), 0, quote, 0);
	return redirect(h);
}
