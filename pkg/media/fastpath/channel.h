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

// channel_leave counts the application's data.
static __always_inline int channel_leave(const struct packet *p, struct hop *h, int cut)
{
	struct flow *f = p->flow;

	__sync_fetch_and_add(&f->packets, 1);
	__sync_fetch_and_add(&f->bytes, p->udp_len - sizeof(struct udphdr) - (cut ? sizeof(struct channel_header) : 0));
	f->last = p->now;
	return redirect(h);
}

// channel_room makes or takes the room behind the IP header. It returns 0 on success, and leaves the packet as it was else.
static __always_inline int channel_room(struct __sk_buff *skb, int grow)
{
	return bpf_skb_adjust_room(skb, grow, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET);
}

// channel_eth writes the new Ethernet header.
static __always_inline int channel_eth(struct __sk_buff *skb, const struct hop *h, __be16 proto)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -1;
	write_eth(eth, h, proto);
	return 0;
}

// channel_v4 carries a packet that came at the time now.
static __noinline int channel_v4(struct __sk_buff *skb, __u64 now)
{
	struct packet p = packet_of(skb);
	struct channel_key k = {};
	struct {
		struct iphdr ip;
		struct udphdr udp;
		struct channel_header ch;
	} b;
	struct hop *h;
	int grow, cut;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &b, sizeof(b)))
		return UP;
	if (*(__u8 *)&b != 0x45 || b.ip.protocol != IPPROTO_UDP || b.ip.frag_off & bpf_htons(0x3fff))
		return UP;
	k.local.word[2] = k.peer.word[2] = bpf_htonl(0xffff);
	k.local.word[3] = b.ip.daddr;
	k.peer.word[3] = b.ip.saddr;
	k.port = b.udp.dest;
	k.peer_port = b.udp.source;
	p.now = now;
	if (!find_channel(&p, &k, &b.ch))
		return UP;
	p.ip_len = bpf_ntohs(b.ip.tot_len);
	p.udp_len = bpf_ntohs(b.udp.len);
	p.ttl = b.ip.ttl;
	p.ecn = b.ip.tos & 3;
	p.odd = p.ip_len != p.udp_len + sizeof(b.ip) || p.ip_len + ETH_HLEN > p.length || oversized(&p);
	h = channel_way(&p, &k, &b.ch, &grow);
	if (!h || (b.udp.check && unfinished(&p, &b.udp, sum_v4(&b.ip))) || channel_room(skb, grow))
		return UP;
	cut = grow < 0;
	b.ip.tot_len = bpf_htons(p.ip_len + grow);
	write_v4(&b.ip, &p);
	channel_udp(&p, cut, &b.udp, &b.ch, grow);
	if (channel_eth(skb, h, bpf_htons(ETH_P_IP)))
		return TC_ACT_SHOT;
	if (cut ? bpf_skb_store_bytes(skb, ETH_HLEN, &b, sizeof(b) - sizeof(b.ch), BPF_F_RECOMPUTE_CSUM)
		: bpf_skb_store_bytes(skb, ETH_HLEN, &b, sizeof(b), BPF_F_RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	return channel_leave(&p, h, cut);
}

static __noinline int channel_v6(struct __sk_buff *skb, __u64 now)
{
	struct packet p = packet_of(skb);
	struct channel_key k = {};
	struct {
		struct ipv6hdr ip;
		struct udphdr udp;
		struct channel_header ch;
	} b;
	struct hop *h;
	int grow, cut;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &b, sizeof(b)))
		return UP;
	if (b.ip.nexthdr != IPPROTO_UDP || !b.udp.check || mapped(&b.ip.daddr))
		return UP;
	__builtin_memcpy(&k.local, &b.ip.daddr, sizeof(k.local));
	__builtin_memcpy(&k.peer, &b.ip.saddr, sizeof(k.peer));
	k.port = b.udp.dest;
	k.peer_port = b.udp.source;
	p.now = now;
	if (!find_channel(&p, &k, &b.ch))
		return UP;
	p.udp_len = bpf_ntohs(b.udp.len);
	p.ip_len = bpf_ntohs(b.ip.payload_len) + sizeof(b.ip);
	p.ttl = b.ip.hop_limit;
	p.ecn = b.ip.flow_lbl[0] >> 4 & 3;
	p.odd = p.ip_len != p.udp_len + sizeof(b.ip) || p.ip_len + ETH_HLEN > p.length || oversized(&p);
	h = channel_way(&p, &k, &b.ch, &grow);
	if (!h || unfinished(&p, &b.udp, sum_v6(&b.ip)) || channel_room(skb, grow))
		return UP;
	cut = grow < 0;
	b.ip.payload_len = bpf_htons(p.udp_len + grow);
	write_v6(&b.ip, &p);
	channel_udp(&p, cut, &b.udp, &b.ch, grow);
	if (channel_eth(skb, h, bpf_htons(ETH_P_IPV6)))
		return TC_ACT_SHOT;
	if (cut ? bpf_skb_store_bytes(skb, ETH_HLEN, &b, sizeof(b) - sizeof(b.ch), BPF_F_RECOMPUTE_CSUM)
		: bpf_skb_store_bytes(skb, ETH_HLEN, &b, sizeof(b), BPF_F_RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	return channel_leave(&p, h, cut);
}
