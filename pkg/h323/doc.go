// Package h323 is the H.323 application-level gateway: it terminates call signalling
// (H.225.0, TCP 1720) between networks that cannot reach each other, opens its
// own connection to the called party, and puts the edge's addresses in the place of
// those in call signalling and in H.245, wherever that is carried: tunnelled, in fastStart, in Setup,
// or on a connection of its own. Media and T.120 pass through pinholes.
//
//	TCP 1720 ──► Server ──► Core.Message ──► Output ──► Server ──► TCP
//	                           │ asks pinhole.Opener for leases
//	H.245 connection ──► pinhole.Request.Serve ──► Core.Control ──► the other side
//
// [Core] is the inner half: no socket, goroutine or clock. server.go is the only file with sockets.
// Messages are edited in place (packages h225, h245, q931); what is not understood passes as it came.
package h323
