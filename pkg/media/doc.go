// Package media is the relay: it grants pinholes (package pinhole) from the
// configured ports, decides which packets may pass, and counts them. It reads no
// signalling, and does not move UDP packets itself: a [Path] does.
//
//	ALG ── Open/Declare/Close ──► Relay ── Set(Socket, []*Flow) ──► Path
//	                                ▲                                │ packet
//	                                └──── latch, once ◄── Pick ◄─────┘
//
// A lease has a pair of sockets on each side. What arrives at a socket belongs to a
// [Flow]: from one confirmed source to one destination. A flow is never changed, only
// replaced, so a path needs no lock. TCP pinholes are joined here by io.Copy (splice).
//
// The relay hears a peer only from the address that signalling declared, or from the
// host that signalling came from; the first such packet locks the source. It sends
// only to a locked source, or before that to a declared address that is reachable.
package media
