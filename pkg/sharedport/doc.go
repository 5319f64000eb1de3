// Package sharedport lets several services share one TCP port, by what the first bytes of a connection are.
//
// It reads nothing: the bytes are looked at where they wait (MSG_PEEK), so that whoever gets the connection gets
// all of it, as if nobody had been before. It terminates no TLS and answers nothing; a connection that no
// service wants is reset, counted and logged.
//
//	accept ─► limits ─► peek, at most Wait ─► Classify ─► listener of that class and server name ─► service
//	                                                   └─► reset, counted by class
//
// A service sees an ordinary [net.Listener] that gives *net.TCPConn.
package sharedport
