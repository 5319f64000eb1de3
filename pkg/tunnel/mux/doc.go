// Package mux carries many streams and datagrams over one session, and the
// session over one carrier after another: when a carrier dies, the next one
// goes on at the exact byte, and no stream notices. It knows nothing of
// devices, paths or TLS; it is given connections that somebody authenticated.
//
//	Stream.Write ─► DRR ─► ring ─► writer ─► carrier ─► reader ─► Stream.Read
//	                        ▲ kept until the peer's ACK            │ CREDIT
//	Stream.SendDatagram ─► queue of 64 ─► writer (never replayed)  ▼
//
// Both ends count the bytes of the frames that may not be lost. A new carrier
// begins with a HELLO of each end that says how many it has; the other sends
// the rest again from its ring. An epoch, one higher on every carrier, fences
// the old one: what it still brings is not read any more.
package mux
