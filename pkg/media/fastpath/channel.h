// Channels of TURN (RFC 8656 §12): between a client and the edge each packet begins with the channel's number and
// the length of what follows, between the edge and a peer with nothing.
//
//   client ─► 4 bytes are cut ─► peer        key: where it arrives, whence it comes, the number
//   client ◄─ 4 bytes are put ◄─ peer        key: where it arrives, whence it comes, 0
//
// What is odd goes up: padding, several packets in one buffer, another family on the other side, a checksum that a device
// is to finish, what would be longer than the MTU.
#pragma once

#include "relay.h"

struct channel_key {
	struct address local, peer;
	__be16 port, peer_port;
	__be16 number;
	__u16 zero;
};

// channel_header goes before the data.
struct channel_header {
	__be16 number, length;
};

#define CHANNEL_LEN ((int)sizeof(struct channel_header))

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct channel_key);
	__type(value, struct flow);
} channels SEC(".maps");

// find_channel finds what is to be done with the packet; then k->number is not 0 if the header is to be cut.
static __always_inline int find_channel(struct packet *p, struct channel_key *k, const struct channel_header *ch)
{
	p->flow = 0;
	if ((ch->number & bpf_htons(0xc000)) == bpf_htons(0x4000)) {
		k->number = ch->number;
		p->flow = bpf_map_lookup_elem(&channels, k);
	}
	if (!p->flow) {
		k->number = 0;
		p->flow = bpf_map_lookup_elem(&channels, k);
	}
	if (!p->flow)
		return 0;
	return p->flow->device == p->device && p->now <= lease_until;
}

// read_channel_v4 reads the headers of a packet that came at the time now, and finds its channel; it returns 0 if the packet is
// nothing to us.
static __always_inline int read_channel_v4(struct packet *p, struct channel_key *k, const struct iphdr *ip, const struct udphdr *udp,
					   const struct channel_header *ch, __u64 now)
{
	if (*(const __u8 *)ip != 0x45 || ip->protocol != IPPROTO_UDP || ip->frag_off & bpf_htons(0x3fff))
		return 0;
	k->local.word[2] = k->peer.word[2] = bpf_htonl(0xffff);
	k->local.word[3] = ip->daddr;
	k->peer.word[3] = ip->saddr;
	k->port = udp->dest;
	k->peer_port = udp->source;
	p->now = now;
	if (!find_channel(p, k, ch))
		return 0;
	p->ip_len = bpf_ntohs(ip->tot_len);
	p->udp_len = bpf_ntohs(udp->len);
	p->ttl = ip->ttl;
	p->ecn = ip->tos & 3;
	p->odd = p->ip_len != p->udp_len + sizeof(*ip) || p->ip_len + ETH_HLEN > p->length || oversized(p);
	return 1;
}

// read_channel_v6 is as read_channel_v4.
static __always_inline int read_channel_v6(struct packet *p, struct channel_key *k, const struct ipv6hdr *ip, const struct udphdr *udp,
					   const struct channel_header *ch, __u64 now)
{
	if (ip->nexthdr != IPPROTO_UDP || !udp->check || mapped(&ip->daddr))
		return 0;
	__builtin_memcpy(&k->local, &ip->daddr, sizeof(k->local));
	__builtin_memcpy(&k->peer, &ip->saddr, sizeof(k->peer));
	k->port = udp->dest;
	k->peer_port = udp->source;
	p->now = now;
	if (!find_channel(p, k, ch))
		return 0;
	p->udp_len = bpf_ntohs(udp->len);
	p->ip_len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	p->ttl = ip->hop_limit;
	p->ecn = ip->flow_lbl[0] >> 4 & 3;
	p->odd = p->ip_len != p->udp_len + sizeof(*ip) || p->ip_len + ETH_HLEN > p->length || oversized(p);
	return 1;
}

// channel_way returns the hop, or 0 if the packet must go up, and by how much the packet grows.
static __always_inline struct hop *channel_way(const struct packet *p, const struct channel_key *k,
					       const struct channel_header *ch, int *grow)
{
	struct hop *h;

	if (p->odd || p->ttl <= 1 || p->gso_size || p->udp_len < sizeof(struct udphdr) + sizeof(*ch))
		return 0;
	*grow = k->number ? -CHANNEL_LEN : CHANNEL_LEN;
	if (k->number && bpf_ntohs(ch->length) != p->udp_len - sizeof(struct udphdr) - sizeof(*ch))
		return 0;
	h = bpf_map_lookup_elem(&hops, &p->flow->hop);
	if (!h || !h->device || (int)p->ip_len + *grow > (int)h->mtu)
		return 0;
	return h;
}

// channel_udp writes the new UDP header, and what follows it if that is put. The checksum changes by the rule of RFC 1624;
// the length is in it twice.
static __always_inline void channel_udp(const struct packet *p, int cut, struct udphdr *udp, struct channel_header *ch, int grow)
{
	const struct flow *f = p->flow;
	__u32 sum = (__u16)~udp->check + f->sum_addr + port_sum(udp, f);
	__be16 length = bpf_htons(p->udp_len + grow);

	sum += 2 * ((__u16)~udp->len + (__u32)length);
	if (cut) {
		sum += (__u16)~ch->number + (__u16)~ch->length;
	} else {
		ch->number = f->number;
		ch->length = bpf_htons(p->udp_len - sizeof(*udp));
		sum += (__u32)ch->number + ch->length;
	}
	udp->source = f->new_sport;
	udp->dest = f->new_dport;
	udp->len = length;
	if (!udp->check)
		return;
	sum = ~folded(sum) & 0xffff;
	udp->check = sum ? sum : 0xffff;
}

// channel_account counts the application's data.
static __always_inline void channel_account(const struct packet *p, int cut)
{
	struct flow *f = p->flow;

	__sync_fetch_and_add(&f->packets, 1);
	__sync_fetch_and_add(&f->bytes, p->udp_len - sizeof(struct udphdr) - (cut ? sizeof(struct channel_header) : 0));
	f->last = p->now;
}
