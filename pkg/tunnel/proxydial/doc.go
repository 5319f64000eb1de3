// Package proxydial opens TCP connections from networks that only let a proxy out: HTTP CONNECT by http:// and
// https:// proxies, SOCKS5, and plain requests by HTTP proxies. It logs in by Negotiate, NTLMv2, Digest or Basic, the
// strongest that the proxy offers and that there are credentials for, all legs on one connection, which net/http
// cannot. It holds no pool, runs no goroutine of its own, and is no proxy itself.
//
//	Config ─► Proxies: url │ PAC │ environment ─► []Proxy
//	                                               │ Dial(proxy, target)
//	 TCP (TLS) ─► CONNECT ◄─► 407, challenge, answer (login) ─► 200 ─► Connected
//	     └──────► SOCKS5 methods, password, request (remote DNS) ─────────┘
//	 Web: one request before, to learn the login and how long a turn takes; then connections for more requests
package proxydial
