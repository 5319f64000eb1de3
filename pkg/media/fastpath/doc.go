// Package fastpath is a [media.Path] that lets the kernel carry what it can. It wraps
// package userpath, which stays the truth: it owns every socket, confirms sources and
// carries whatever the kernel leaves alone. [Path.Forward] adds TCP that nobody reads.
//
//	relay ── Set, Delete ──► Path ──► userpath (always)
//	                          └─► worker ─► way to the peer (netlink) ─► BPF maps
//	device (─► XDP, on request) ─► tc: known source, plain RTP ─► rewritten, out ;  else ─► socket
//
// A stream goes to the kernel once both ends are confirmed, a channel of TURN once bound. It stays, or comes back, for
// RTCP, forks, peers on this machine, IPsec, devices without Ethernet headers, and packet
// by packet for STUN, DTLS, fragments, options, a TTL that ends, and what exceeds the MTU.
// TTL and hop limit fall by one at least (64 at most), so that a loop of relays ends.
// XDP takes what is simple before tc sees it; the rest it passes on to tc, uncounted.
// The kernel forwards only as long as the daemon's lease lasts. A redirect bypasses
// netfilter: the flow table is the firewall of these packets.
package fastpath
