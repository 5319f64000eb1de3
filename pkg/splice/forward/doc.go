// Package forward carries whole TCP connections from listeners to fixed targets, for who is on an
// allow-list. It reads nothing of what passes; protocols with addresses in their messages need an ALG.
//
//	client ─► listener ─► allowed? limits? ─► dial target ─► splice.Join ─► counters, log
//	client ─► kernel (where it can) ──────────────────────► target
//
// A [Kernel] may carry connections without this package seeing a byte. The listener stays open
// all the same: it gets the connections that the kernel leaves alone.
package forward
