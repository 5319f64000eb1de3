// Package sharedport lets several services share one TCP port, by what the first bytes of a connection are.
//
// It reads nothing that is not its own: the bytes are looked at where they wait (MSG_PEEK), so that whoever gets the
// connection gets all of it, as if nobody had been before. Its own are headers of the PROXY protocol from trusted
// balancers, and TLS, which it ends but for the server names that somebody wants unread; then it classifies again.
// It answers nothing before the class is known; what no service wants is reset without a byte, counted and logged.
//
//	accept ─► limits ─► peek, at most first_bytes ─► class ─┬─► listener of that kind ─► service
//	                     ▲ PROXY header taken off ◄─────────┤
//	                                    TLS ended here ◄────┴─► reset, counted by reason
//	                                    read ─► class inside ─► listener of that kind and server name
//
// A service sees an ordinary [net.Listener]; of what was inside TLS its connections have ConnectionState.
package sharedport
