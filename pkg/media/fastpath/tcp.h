// TCP connections that nobody has to read: full NAT between a client and one target.
//
//   segment ─► a connection of ours? ─► rewrite, count, redirect; what cannot be carried is dropped
//      └─► SYN to a forward's address? ─► allowed, below the limits, a port free? ─► a new connection
//             └─► else up unchanged, to the daemon's listener
//
// Nothing of a live connection goes up: the stack knows no such connection and would reset it. The daemon
// (tcp.go) gives rules and ports, looks once a second at every connection, and ends those that are over.
// A map is written by the program or by the daemon, never by both, but for the connections themselves.
// Included by tc.bpf.c, after its redirect.
#pragma once

#include <linux/tcp.h>

#define TCP_CONNS 131072 // two for each connection
#define TCP_RULES 256
#define TCP_PORTS 65536

// The flags of a connection's direction, for the daemon too.
#define CONN_ANSWER 1   // from the target
#define CONN_SYN 2      // has sent SYN, or SYN with ACK
#define CONN_OPEN 4     // has acknowledged the other's SYN
#define CONN_FIN 8      // has sent FIN
#define CONN_RST 16     // has sent a credible RST, and nothing else since
#define CONN_COUNTED 32 // stands in the count of completed handshakes

// Why a SYN goes up, and why a segment of a live connection is dropped. NONE: neither.
enum {
	UP_DENIED, UP_LIMIT, UP_HALF_OPEN, UP_NO_PORT, UP_NO_WAY, UP_ODD, UP_TTL, UP_MTU, UP_DEVICE, UP_TAKEN, UP_FULL,
	DROP_DEVICE, DROP_ODD, DROP_TTL, DROP_MTU, DROP_NO_WAY,
	REASONS, NONE = REASONS
};

#define TH_FIN 1
#define TH_SYN 2
#define TH_RST 4
#define TH_ACK 16

#define TCP_OPT_END 0
#define TCP_OPT_NOP 1
#define TCP_OPT_MSS 2

// How far from what its receiver has acknowledged a RST may be: as much as may be under way.
#define RST_WINDOW (1 << 24)

struct tuple {
	struct address src, dst;
	__be16 sport, dport;
};

// conn is one direction of a connection, found by what arrives.
struct conn {
	struct tuple to; // what leaves; its reverse is the key of the other direction
	__u32 rule;
	__u32 device;    // the only device that this direction's packets may come by
	__u32 hop;       // the place in hops of the way to the receiver, and 1; 0: by the device of learned
	__u32 back;      // the same of the way to the sender
	__u32 sum_addr, sum_port;
	__u32 mss;       // the largest that the MTUs of both sides allow
	__u32 flags;
	__u32 ack;       // the last acknowledgement
	struct hop learned; // the device that the client's SYN came by; the kernel finds the way
	__u64 packets, bytes, last, checked, since;
};

// rule is one forward; the daemon writes it.
struct rule {
	struct address from, to;
	__be16 to_port, zero;
	__u32 index;
	__u32 device, mtu; // of the address that it listens at
	__u32 hop;         // as in conn: the way to the target
	__u32 limit, half_limit;
	__u32 first, mask; // its ports in tcp_ports: a ring
	__u32 zero2;
	__u64 given;           // ports put into the ring so far
	__u64 ended, lapsed;   // connections ended, and those of them whose handshake never was
};

// counts of a forward; the program writes them.
struct counts {
	__u64 taken;     // ports taken out of the ring: connections
	__u64 completed; // handshakes
	__u64 reopened;  // connections that began anew with the tuple of one that was over
};

struct allow_key {
	__u32 bits;
	__u32 rule;
	struct address source;
};

struct client {
	struct address client, local;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TCP_CONNS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tuple);
	__type(value, struct conn);
} tcp_conns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TCP_RULES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct rule);
} tcp_rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_RULES);
	__type(key, __u32);
	__type(value, struct counts);
} tcp_counts SEC(".maps");

// tcp_reasons counts them: REASONS for each rule.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_RULES * REASONS);
	__type(key, __u32);
	__type(value, __u64);
} tcp_reasons SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allow_key);
	__type(value, __u32);
} tcp_allow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TCP_PORTS);
	__type(key, __u32);
	__type(value, __u32);
} tcp_ports SEC(".maps");

// tcp_clients has the ways to clients that the daemon has looked up, as in conn.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct client);
	__type(value, __u32);
} tcp_clients SEC(".maps");

// scratch is too large for the stack.
struct scratch {
	struct conn c, b;
	struct tuple answer;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} tcp_scratch SEC(".maps");

// tcp_on is 0 as long as there are no forwards.
volatile __u32 tcp_on;

// segment is what the two families have in common.
struct segment {
	struct tuple key;
	__u64 now;
	__u32 len;     // the length of the IP packet
	__u32 payload; // of that
	__u32 seq, ack;
	__u32 segments;
	__u32 l4; // where the TCP header begins, and its length
	__u32 l4_len;
	__u8 flags, ttl, odd;
};

// tcp_protocol returns the protocol, at that place of the frame; 0 if there are no forwards.
static __always_inline __u8 tcp_protocol(struct __sk_buff *skb, __u32 at)
{
	void *data, *end;
	__u8 protocol = 0;

	if (!tcp_on)
		return 0;
	// The barriers keep the compiler from moving these loads, as the verifier knows pointers only where they are read.
	asm volatile("" ::: "memory");
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + at + 1 > end) {
		if (bpf_skb_pull_data(skb, at + 1))
			return 0;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (data + at + 1 <= end)
		protocol = *(__u8 *)(data + at);
	asm volatile("" ::: "memory");
	return protocol;
}

static __always_inline void tcp_reverse(struct tuple *to, const struct tuple *of)
{
	to->src = of->dst;
	to->dst = of->src;
	to->sport = of->dport;
	to->dport = of->sport;
}

// tcp_header fills in what the TCP header says.
static __always_inline void tcp_header(struct __sk_buff *skb, struct segment *s, const struct tcphdr *tcp)
{
	const __u8 *b = (const __u8 *)tcp;
	__u32 head;

	s->key.sport = tcp->source;
	s->key.dport = tcp->dest;
	s->seq = bpf_ntohl(tcp->seq);
	s->ack = bpf_ntohl(tcp->ack_seq);
	s->flags = b[13] & (TH_FIN | TH_SYN | TH_RST | TH_ACK);
	s->l4_len = b[12] >> 4 << 2;
	s->segments = skb->gso_segs ? skb->gso_segs : 1;
	s->now = bpf_ktime_get_ns();
	head = s->l4 - ETH_HLEN + s->l4_len;
	if (s->l4_len < sizeof(*tcp) || s->len < head || s->len + ETH_HLEN > skb->len) {
		s->odd = 1;
		return;
	}
	s->payload = s->len - head;
	// RFC 9293 §3.10.7: what no TCP sends.
	if (!(s->flags & (TH_SYN | TH_RST | TH_ACK)) || (s->flags & TH_SYN && s->flags & (TH_FIN | TH_RST)))
		s->odd = 1;
}

// tcp_size is the length of the longest packet that leaves.
static __always_inline __u32 tcp_size(struct __sk_buff *skb, const struct segment *s)
{
	return skb->gso_size ? skb->gso_size + s->len - s->payload : s->len;
}

static __always_inline void tcp_reason(__u32 rule, __u32 reason)
{
	__u32 place = rule * REASONS + reason;
	__u64 *n = bpf_map_lookup_elem(&tcp_reasons, &place);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline struct hop *tcp_hop(__u32 place)
{
	place--;
	struct hop *h = bpf_map_lookup_elem(&hops, &place);

	return h && h->device ? h : 0;
}

// tcp_martian tells addresses that no client has; those of a link are not worth a way.
static __always_inline int tcp_martian(const struct address *a)
{
	__u32 first = bpf_ntohl(a->word[0]), last = bpf_ntohl(a->word[3]);

	if (!a->word[0])
		return last >> 24 == 0 || last >> 24 == 127 || last >= 0xe0000000;
	return first >> 29 != 1 && first >> 25 != 0x7e; // 2000::/3, fc00::/7
}

// tcp_taken tells whether user space has the connection already.
static __always_inline int tcp_taken(struct __sk_buff *skb, const struct segment *s)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 state;

	if (s->l4 == L4_V4) {
		t.ipv4.saddr = s->key.src.word[3];
		t.ipv4.daddr = s->key.dst.word[3];
		t.ipv4.sport = s->key.sport;
		t.ipv4.dport = s->key.dport;
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(t.ipv6.saddr, &s->key.src, sizeof(s->key.src));
		__builtin_memcpy(t.ipv6.daddr, &s->key.dst, sizeof(s->key.dst));
		t.ipv6.sport = s->key.sport;
		t.ipv6.dport = s->key.dport;
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	state = sk->state;
	bpf_sk_release(sk);
	return state != BPF_TCP_LISTEN;
}

// tcp_refuse returns why a SYN must go up.
static __always_inline __u32 tcp_refuse(struct __sk_buff *skb, const struct segment *s, const struct rule *r,
				      const struct counts *n)
{
	struct allow_key allow = {.bits = 8 * (sizeof(allow.rule) + sizeof(allow.source)), .rule = r->index};
	struct hop *h;

	if (skb->ifindex != r->device)
		return UP_DEVICE;
	allow.source = s->key.src;
	if (!bpf_map_lookup_elem(&tcp_allow, &allow))
		return UP_DENIED;
	if (s->odd || s->flags != TH_SYN || s->payload || tcp_martian(&s->key.src))
		return UP_ODD;
	if (s->ttl <= 1)
		return UP_TTL;
	h = tcp_hop(r->hop);
	if (!h)
		return UP_NO_WAY;
	if (s->len > h->mtu || h->mtu < 256 || r->mtu < 256)
		return UP_MTU;
	if (n->taken - r->ended >= r->limit)
		return UP_LIMIT;
	if ((__s64)(n->taken - n->completed - r->lapsed) >= r->half_limit)
		return UP_HALF_OPEN;
	return tcp_taken(skb, s) ? UP_TAKEN : NONE;
}

// tcp_port takes a port out of the ring, 0 if there is none.
static __always_inline __u32 tcp_port(const struct rule *r, struct counts *n)
{
	for (int i = 0; i < 4; i++) {
		__u64 at = n->taken;
		__u32 place = r->first + ((__u32)at & r->mask), *port;

		if (at >= r->given)
			return 0;
		port = bpf_map_lookup_elem(&tcp_ports, &place);
		if (!port)
			return 0;
		// Read before it is taken: afterwards the daemon may write there.
		__u32 value = *port;
		if (__sync_val_compare_and_swap(&n->taken, at, at + 1) == at)
			return value;
	}
	return 0;
}

static __always_inline void tcp_sums(struct conn *c, const struct tuple *in)
{
	c->sum_addr = bpf_csum_diff((__be32 *)in, 32, (__be32 *)&c->to, 32, 0);
	c->sum_port = bpf_csum_diff((__be32 *)&in->sport, 4, (__be32 *)&c->to.sport, 4, 0);
}

// tcp_enter makes both directions of a connection. A port that it took in vain the daemon finds again.
static __always_inline struct conn *tcp_enter(const struct segment *s, const struct rule *r, __u32 port)
{
	__u32 zero = 0, *known, mtu, heads = s->l4 - ETH_HLEN + sizeof(struct tcphdr);
	struct scratch *all = bpf_map_lookup_elem(&tcp_scratch, &zero);
	struct conn *c, *b;
	struct hop *h = tcp_hop(r->hop), *back;

	if (!all || !h)
		return 0;
	c = &all->c;
	b = &all->b;
	// Source and destination, of which a client's way is made.
	known = bpf_map_lookup_elem(&tcp_clients, &s->key);
	back = known ? tcp_hop(*known) : 0;
	mtu = back ? back->mtu : r->mtu;
	if (mtu > h->mtu)
		mtu = h->mtu;
	__builtin_memset(c, 0, sizeof(*c));
	__builtin_memset(b, 0, sizeof(*b));
	c->to.src = r->from;
	c->to.dst = r->to;
	c->to.sport = port;
	c->to.dport = r->to_port;
	tcp_reverse(&b->to, &s->key);
	c->rule = b->rule = r->index;
	c->mss = b->mss = mtu - heads;
	c->since = b->since = c->last = b->last = b->checked = s->now;
	c->device = r->device;
	b->device = h->device;
	c->hop = b->back = r->hop;
	b->hop = c->back = back ? *known : 0;
	b->flags = CONN_ANSWER;
	// Not back to who sent the SYN: a neighbour could use the address of somebody who may connect, and hear the target.
	b->learned.device = r->device;
	b->learned.mtu = r->mtu;
	tcp_reverse(&all->answer, &c->to);
	tcp_sums(c, &s->key);
	tcp_sums(b, &all->answer);
	if (bpf_map_update_elem(&tcp_conns, &all->answer, b, BPF_NOEXIST) ||
	    bpf_map_update_elem(&tcp_conns, &s->key, c, BPF_NOEXIST))
		return 0;
	return bpf_map_lookup_elem(&tcp_conns, &s->key);
}

// tcp_open begins a connection, if a forward has the address and may. Not inlined: it is rare.
static __noinline struct conn *tcp_open(struct __sk_buff *skb, const struct segment *s)
{
	struct key k = {.proto = IPPROTO_TCP};
	struct rule *r;
	struct counts *n;
	struct conn *c = 0;
	__u32 reason, port;

	k.local = s->key.dst;
	k.port = s->key.dport;
	r = bpf_map_lookup_elem(&tcp_rules, &k);
	if (!r)
		return 0;
	n = bpf_map_lookup_elem(&tcp_counts, &r->index);
	if (!n)
		return 0;
	reason = tcp_refuse(skb, s, r, n);
	if (reason == NONE) {
		reason = UP_NO_PORT;
		port = tcp_port(r, n);
		if (port) {
			reason = UP_FULL;
			c = tcp_enter(s, r, port);
		}
	}
	if (!c)
		tcp_reason(r->index, reason);
	return c;
}

// tcp_follow keeps the state of a connection.
static __noinline void tcp_follow(const struct segment *s, struct conn *c)
{
	struct tuple other;
	struct counts *n;
	struct conn *peer;
	__u32 was = c->flags;

	tcp_reverse(&other, &c->to);
	peer = bpf_map_lookup_elem(&tcp_conns, &other);
	n = bpf_map_lookup_elem(&tcp_counts, &c->rule);
	if (!peer || !n)
		return;
	if (s->flags & TH_RST) {
		if (!(peer->flags & CONN_OPEN) || s->seq - peer->ack < RST_WINDOW)
			c->flags = was | CONN_RST;
		return;
	}
	was &= ~CONN_RST;
	if (s->flags == TH_SYN && !(was & CONN_ANSWER) && was & CONN_SYN &&
	    ((c->flags | peer->flags) & CONN_RST || (was & peer->flags & CONN_FIN))) {
		// The client uses its port again; its peer knows whether it may.
		was &= CONN_COUNTED;
		peer->flags = CONN_ANSWER;
		c->since = peer->since = s->now;
		__sync_fetch_and_add(&n->reopened, 1);
	}
	if (s->flags & TH_SYN)
		was |= CONN_SYN;
	if (s->flags & TH_FIN)
		was |= CONN_FIN;
	if (s->flags & TH_ACK && peer->flags & CONN_SYN)
		was |= CONN_OPEN;
	if (was & CONN_OPEN && !(was & (CONN_ANSWER | CONN_COUNTED))) {
		was |= CONN_COUNTED;
		__sync_fetch_and_add(&n->completed, 1);
	}
	c->flags = was;
}

// tcp_route returns the way to the receiver, 0 if there is none.
static __always_inline struct hop *tcp_route(__u64 now, struct conn *c)
{
	if (!c->hop && now - c->checked > SECOND / 4) {
		struct client who = {.client = c->to.dst, .local = c->to.src};
		__u32 *known = bpf_map_lookup_elem(&tcp_clients, &who);

		c->checked = now;
		if (known)
			c->hop = *known;
	}
	return c->hop ? tcp_hop(c->hop) : &c->learned;
}

// tcp_came tells whether the sender's packets may come by this device: the one of the way to it.
static __always_inline int tcp_came(struct __sk_buff *skb, struct conn *c, const struct segment *s)
{
	struct hop *h;

	if (c->device == skb->ifindex)
		return 1;
	if (!c->back) {
		__u32 *known = bpf_map_lookup_elem(&tcp_clients, &s->key);

		if (!known)
			return 0;
		c->back = *known;
	}
	h = tcp_hop(c->back);
	if (!h || h->device != skb->ifindex)
		return 0;
	c->device = h->device;
	return 1;
}

// tcp_judge returns why a segment of a connection must be dropped, or NONE and in hop the way to leave by.
static __always_inline __u32 tcp_judge(struct __sk_buff *skb, const struct segment *s, struct conn *c, struct hop **hop)
{
	if (!tcp_came(skb, c, s))
		return DROP_DEVICE;
	if (s->odd)
		return DROP_ODD;
	if (s->ttl <= 1)
		return DROP_TTL;
	*hop = tcp_route(s->now, c);
	if (!*hop)
		return DROP_NO_WAY;
	return tcp_size(skb, s) > (*hop)->mtu ? DROP_MTU : NONE;
}

// tcp_find returns the connection of the segment, a new one perhaps.
static __always_inline struct conn *tcp_find(struct __sk_buff *skb, const struct segment *s)
{
	struct conn *c;

	if (s->now > lease_until)
		return 0;
	c = bpf_map_lookup_elem(&tcp_conns, &s->key);
	if (!c && (s->flags & (TH_SYN | TH_ACK)) == TH_SYN)
		c = tcp_open(skb, s);
	return c;
}

// tcp_clamp lowers the largest segment that a SYN offers (RFC 9293 §3.7.1) to what passes on both sides.
static __noinline int tcp_clamp(struct __sk_buff *skb, const struct segment *s, __u32 mss)
{
	__u32 off = s->l4 + sizeof(struct tcphdr), end = s->l4 + s->l4_len;
	__u8 opt[4];
	__be16 old, new;

	for (int i = 0; i < 40; i++) {
		if (off + 2 > end || bpf_skb_load_bytes(skb, off, opt, 2) || opt[0] == TCP_OPT_END)
			return 0;
		if (opt[0] == TCP_OPT_NOP) {
			off++;
			continue;
		}
		if (opt[0] == TCP_OPT_MSS)
			break;
		if (opt[1] < 2)
			return 0;
		off += opt[1];
	}
	if (opt[1] != 4 || off + 4 > end || bpf_skb_load_bytes(skb, off, opt, 4) || opt[0] != TCP_OPT_MSS)
		return 0;
	if (((__u32)opt[2] << 8 | opt[3]) <= mss)
		return 0;
	old = bpf_htons((__u32)opt[2] << 8 | opt[3]);
	new = bpf_htons(mss);
	if (bpf_skb_store_bytes(skb, off + 2, &new, sizeof(new), 0))
		return -1;
	// At an odd place the halves belong to two words of the sum.
	if ((off - s->l4) & 1) {
		old = __builtin_bswap16(old);
		new = __builtin_bswap16(new);
	}
	return bpf_l4_csum_replace(skb, s->l4 + offsetof(struct tcphdr, check), old, new, sizeof(new));
}

// tcp_pass does everything but for the writing of headers: it returns the connection, and the way in hop;
// or none, and verdict says what becomes of the packet.
static __always_inline struct conn *tcp_pass(struct __sk_buff *skb, const struct segment *s, struct hop **hop, int *verdict)
{
	struct conn *c = tcp_find(skb, s);
	__u32 reason;

	*verdict = UP;
	if (!c)
		return 0;
	*verdict = TC_ACT_SHOT;
	reason = tcp_judge(skb, s, c, hop);
	if (reason != NONE) {
		tcp_reason(c->rule, reason);
		return 0;
	}
	if (s->flags != TH_ACK || (c->flags & (CONN_OPEN | CONN_RST)) != CONN_OPEN)
		tcp_follow(s, c);
	if (s->flags & TH_SYN && tcp_clamp(skb, s, c->mss))
		return 0;
	if (s->flags & TH_ACK)
		c->ack = s->ack;
	__sync_fetch_and_add(&c->packets, s->segments);
	__sync_fetch_and_add(&c->bytes, s->payload);
	c->last = s->now;
	return c;
}

static __always_inline int tcp_leave(struct __sk_buff *skb, const struct conn *c, struct hop *h, __u32 l4)
{
	bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), 0, c->sum_addr, BPF_F_PSEUDO_HDR);
	bpf_l4_csum_replace(skb, l4 + offsetof(struct tcphdr, check), 0, c->sum_port, 0);
	return redirect(h);
}

static __noinline int tcp_v4(struct __sk_buff *skb)
{
	struct segment s = {.l4 = L4_V4};
	struct ethhdr *eth;
	struct iphdr *ip;
	struct tcphdr *tcp;
	struct hop *h = 0;
	struct conn *c;
	int verdict;

	if ((void *)(long)skb->data + L4_V4 + sizeof(*tcp) > (void *)(long)skb->data_end &&
	    bpf_skb_pull_data(skb, L4_V4 + sizeof(*tcp)))
		return UP;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return UP;
	if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x1fff))
		return UP;
	s.key.src.word[2] = s.key.dst.word[2] = bpf_htonl(0xffff);
	s.key.src.word[3] = ip->saddr;
	s.key.dst.word[3] = ip->daddr;
	s.ttl = ip->ttl;
	// Without its first piece the rest of a packet harms nobody.
	s.odd = (ip->frag_off & bpf_htons(0x2000)) != 0;
	s.len = bpf_ntohs(ip->tot_len);
	tcp_header(skb, &s, tcp);
	c = tcp_pass(skb, &s, &h, &verdict);
	if (!c || !h)
		return verdict;
	if (bpf_skb_pull_data(skb, L4_V4 + sizeof(*tcp)))
		return TC_ACT_SHOT;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	ip->saddr = c->to.src.word[3];
	ip->daddr = c->to.dst.word[3];
	ip->ttl = lower(s.ttl);
	ip->check = 0;
	ip->check = ip_sum(ip);
	tcp->source = c->to.sport;
	tcp->dest = c->to.dport;
	write_eth(eth, h, bpf_htons(ETH_P_IP));
	return tcp_leave(skb, c, h, L4_V4);
}

static __noinline int tcp_v6(struct __sk_buff *skb)
{
	struct segment s = {.l4 = L4_V6};
	struct ethhdr *eth;
	struct ipv6hdr *ip;
	struct tcphdr *tcp;
	struct hop *h = 0;
	struct conn *c;
	int verdict;

	if ((void *)(long)skb->data + L4_V6 + sizeof(*tcp) > (void *)(long)skb->data_end &&
	    bpf_skb_pull_data(skb, L4_V6 + sizeof(*tcp)))
		return UP;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return UP;
	__builtin_memcpy(&s.key.src, &ip->saddr, sizeof(s.key.src));
	__builtin_memcpy(&s.key.dst, &ip->daddr, sizeof(s.key.dst));
	// Nobody sends from such, and they must not be taken for IPv4 addresses.
	if (!s.key.src.word[0] || !s.key.dst.word[0])
		return UP;
	s.ttl = ip->hop_limit;
	s.len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	tcp_header(skb, &s, tcp);
	c = tcp_pass(skb, &s, &h, &verdict);
	if (!c || !h)
		return verdict;
	if (bpf_skb_pull_data(skb, L4_V6 + sizeof(*tcp)))
		return TC_ACT_SHOT;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	tcp = (void *)(ip + 1);
	if ((void *)(tcp + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memcpy(&ip->saddr, &c->to.src, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &c->to.dst, sizeof(ip->daddr));
	ip->hop_limit = lower(s.ttl);
	tcp->source = c->to.sport;
	tcp->dest = c->to.dport;
	write_eth(eth, h, bpf_htons(ETH_P_IPV6));
	return tcp_leave(skb, c, h, L4_V6);
}
