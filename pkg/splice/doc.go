// Package splice joins two TCP streams that were terminated here: what comes from one goes out of
// the other, both ways, until both have ended. Half-closes stay half-closes, resets resets, bytes that
// were read before the hand-over go first, and a slow reader slows its writer down.
//
// It reads nothing of what passes, knows no protocol and dials nobody: [forward] does, with
// listeners and allow-lists. Where the kernel can rewrite segments (media/fastpath) no byte comes here.
//
//	a ◄──► socket ─ recv, send (little) ─────────► socket ◄──► b
//	             └─ splice(2) ─ pipe ─ splice(2) ─┘ (much)
//
// One epoll loop per core serves all joins, since a goroutine for each direction costs two wakes per
// message. Connections that are no TCP (TLS, in-memory) are copied by two goroutines.
package splice
