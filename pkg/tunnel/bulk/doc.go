// Package bulk moves what is much out of the session: a stream between two
// devices goes on over a TCP connection of its own, which the relay splices in
// the kernel, and comes back into the session when that connection is lost.
// What passes is TLS from end to end already, so the relay's TLS is dropped
// first; Conn lies beneath it and does not look into it.
//
//	in the session    A ══ stream ══ relay ══ stream ══ B     bytes 0 … x, y …
//	                  A ── control ─ relay ─ control ── B     MOVE x, ACK, LOST y, END
//	beside it         A ── TCP ──── splice ──── TCP ─── B     bytes x … y
//
// Each byte has its number, whichever way it goes: so nothing is added to the
// stream, and nothing is lost or doubled. Who dials and who may is decided by
// others; Pairs are the relay's tickets.
package bulk
