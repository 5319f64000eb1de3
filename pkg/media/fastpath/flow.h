// What the programs know: flows, the ways that they take, the daemon's lease. See flow.go for the other half.
// Values in flow and hop are in network byte order where the packet has them so.
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FLOW_V6_OUT 1 // leaves as IPv6
#define FLOW_RTP 2    // RTP: other packets than RTP go up
#define HOP_MAC 1     // the addresses of the Ethernet header are known
#define HOP_XDP 2     // the device takes frames that XDP redirects to it

struct address {
	__u32 word[4]; // IPv4 as ::ffff:a.b.c.d
};

struct key {
	struct address local;
	__be16 port;
	__u8 proto;
	__u8 zero;
};

// rtp_state is what RFC 3550 appendix A needs of every packet; the same algorithm as in package media. The daemon looks
// often enough that what is counted may wrap.
struct rtp_state {
	__u64 arrived;
	__u32 expected, received; // packets, over all restarts of the sender
	__u32 ssrc, timestamp;
	__u32 jitter; // in 1/16 of a timestamp unit
	__u32 scale;  // the clock's rate / 10^9, as a fraction of 2^40: no division per packet; 0: not known
	__u16 max;    // the highest sequence number
	__u16 bad_seq; // what would confirm a jump; max, which cannot be one, if there was none
	__u8 pt, started, known, timed;
};

// rtp_clock is what is needed until the rate is known.
struct rtp_clock {
	__u64 guess_from;
	__u32 guess_timestamp;
	__u32 rate; // Hz, 0 as long as it is not known
};

// flow is in the order of use. In the kernel's hash table (6.1 and later) a value begins 80 bytes into a block of 256: what
// all packets need ends with rtp, at 112, so that with the head of the entry it fills three cache lines of 64.
struct flow {
	struct address src; // the locked source
	__be16 sport, new_sport, new_dport;
	__u8 tos, flags;
	__u32 device; // the only device that packets of this source may come by
	__u32 hop;
	__be32 new_src, new_dst; // IPv4, or the last words of IPv6
	__u16 mac[3];   // the device's own address: frames for others are only overheard
	__u16 sum_addr; // what the UDP checksum changes by
	// From here on the program writes.
	__u64 packets, bytes, last;
	struct rtp_state rtp;
	struct rtp_clock clock;
	__be32 new_src_head[3], new_dst_head[3]; // the daemon writes it: the other words
	__be16 number; // of the channel that it leaves by, see channel.h
	__u16 zero[3];
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
