// Package link is a wire between two devices of the tunnel: a point-to-point network interface (TUN) at each, and every
// packet that is routed into one comes out of the other. An edge without a public address uses another edge as its public
// side this way: both run SIP, H.323 and media over it as over any network, and know nothing of the tunnel.
//
//	kernel ─► TUN ─► to the peer, from us? ─► Send of the newest carrier ═ sealed datagrams ═► the other device
//	kernel ◄─ TUN ◄─ from the peer, to us? ◄─ Receive of each carrier ◄════════════════════════
//
// It routes nothing: a packet leaves or arrives only between the two addresses of the wire. It retransmits and reorders
// nothing, and keeps no queue: what no carrier takes is dropped, as by any wire that is cut.
package link
