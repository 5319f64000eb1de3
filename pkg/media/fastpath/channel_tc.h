// Channels of TURN at the ingress of a device: the header is put and cut between those of IP and UDP.
#pragma once

#include "channel.h"

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
	if (!read_channel_v4(&p, &k, &b.ip, &b.udp, &b.ch, now))
		return UP;
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
	channel_account(&p, cut);
	return redirect(h);
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
	if (!read_channel_v6(&p, &k, &b.ip, &b.udp, &b.ch, now))
		return UP;
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
	channel_account(&p, cut);
	return redirect(h);
}
