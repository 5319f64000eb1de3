// Package groove carries byte streams as Groove's relays and clients did: HTTP encapsulation ([MS-GRVHENC]: LongLived,
// KeepAlive and, as an experiment, Polling), and the plain stream of its SSTP ([MS-GRVSSTP]), whose Connect command is
// recognised for its addressee. Both ends of the carriage are here. It is no relay of Groove: what is inside passes
// unread to a relay that somebody still has, or to edged's own tunnel.
//
//	GET ◄── server to client ──┐
//	POST ── client to server ─►┴► virtual connection ([Conn]) ─► by the relay's name: [Deps].Virtual, or
//	raw SSTP ─► Connect read ─────────────────────────────────► a TCP connection to the relay of that name
//
// There is no half-close and no resume: whatever goes wrong ends a virtual connection, both ways, and its end does not
// tell whether the peer has finished. Who needs to know says so inside.
package groove
