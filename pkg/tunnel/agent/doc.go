// Package agent is the tunnel at a site that may only dial out. It keeps a session with a relay, serves what it is
// told to other devices, and brings applications of the site to services of other devices.
//
// It trusts the relay with who meets whom and with nothing else: what passes is TLS 1.3 between the two devices, each of
// which knows the other's key by its ID. It opens no listening socket; they are given to it.
//
//	application ─► ServeTCP, ServeUDP, Dial ─► stream to the relay ─► E2E TLS, the other's ID pinned ─► status ─► join
//	relay offers a stream ─► service known? ─► E2E TLS, the caller's ID pinned ─► allowed? ─► dial ─► status ─► join
//	                                           datagrams: sealed by keys of that TLS
package agent
