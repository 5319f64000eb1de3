// Package relay is where devices that may only dial out meet. It keeps a session with each of them, knows who may reach
// which service of whom, and joins a stream of the one to a stream of the other, or to that of one further relay.
//
// It reads nothing of what it carries: the two devices speak TLS 1.3 with each other inside the stream. It opens no
// socket; connections come to it authenticated, with the ID of the device whose key is at the other end.
//
//	Session(conn, ID) ─► mux ─► Open(B, service) ─► known? policy? limits? ─┬─► Offer to B, attached here ─► pipe
//	                              refused with a code ◄─── nowhere ◄────────┴─► Hop to a peer that has B ─► pipe
//	Enrol(conn, ID) ─► one-time token ─► the device is known from now on
package relay
