// Package forwardproxy is a forward proxy for TCP and UDP that nobody needs to read: HTTP CONNECT (RFC 9110 §9.3.6, with
// Basic of RFC 7617) and SOCKS 5 (RFC 1928 CONNECT and UDP ASSOCIATE, RFC 1929 names and passwords). It is no web proxy:
// it fetches nothing, caches nothing, and looks at nothing that passes.
//
//	client ─► listener ─► limits ─► who? (network or name and password) ─► CONNECT host:port, SOCKS request
//	                                         Dial(network, host, port) ◄──────┘
//	            judged: name, then the very address that is dialled ◄─┘─► splice.Join, or datagrams of an association
//
// [Server] reads requests and knows who may ask, and whom it is dialled by is given: [Dialer] dials the networks of this
// host by an allow-list; others may lead names elsewhere.
package forwardproxy
