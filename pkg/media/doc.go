// Package media is the relay: it grants pinholes (package pinhole), decides which
// packets may pass, and counts them. It reads no signalling; a [Path] moves UDP.
//
//	ALG ── Open/Declare/Close ──► Relay ── Set(Socket, []*Flow) ──► Path
//	                                ▲                                │ packet
//	                                └──── latch, once ◄── Pick ◄─────┘
//
// What arrives at a socket belongs to a [Flow]: from one confirmed source to one
// destination. A flow is never changed, only replaced, so a path needs no lock.
// TCP pinholes are joined here by io.Copy (splice). A TURN client's port is read and written by
// its owner (pinhole.Port); what bound channels carry are flows as all others (channel.go).
//
// A peer is heard only from the address that signalling declared, or from the host
// that signalling came from; its first packet locks the source. Packets are sent only
// to a locked source, or before that to a declared address that is reachable.
package media
