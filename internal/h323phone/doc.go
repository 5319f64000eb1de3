// Package h323phone is a minimal H.323 endpoint for the demo and for tests: it
// places and takes calls of one audio channel each way, in every mode that real
// endpoints use, and tells whether it hears the other. It is no product: it knows one codec,
// no gatekeeper, and believes its peer.
//
//	Phone.Call ──► Setup ──► … ──► H.245 (own connection, tunnelled, fast start) ──► RTP
//	Phone.Accept ◄──────────────── the other phone
//
// On purpose it sends RTP from another port than it receives on, writes the header
// of a TPKT apart from its payload, and repeats in a fast start what it was told.
package h323phone
