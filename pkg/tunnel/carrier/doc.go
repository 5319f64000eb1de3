// Package carrier brings one authenticated byte pipe from a device to its relay over whatever the network lets through:
// a ladder of rungs, tried in a race. It knows nothing of sessions, streams or messages (package mux does), and it
// trusts no proxy's word: on every rung both ends prove their keys by TLS 1.3 inside.
//
//	QUIC ─ TLS ─ CONNECT ─ SOCKS5 ─ WebSocket in TLS ─ WebSocket ─ LongLived ─ KeepAlive ─ Polling
//	  └─ each: path (proxydial) ─► byte pipe ─► tunnel TLS, mutual ─► probe, timed ─► preamble ─► Carrier
//
//	after tunnel TLS, the device says:  'P' len u32, len octets ─► the same octets back (at most 8 times)
//	                                    'S' a session follows │ 'B' 16 octets of ticket, bulk follows │ 'E' enrolment
//
// The relay's side is Server: ServeConn (TLS that the shared port hands over), Handler (WebSocket), ServeQUIC,
// ServeVirtual (connections of package groove).
package carrier
