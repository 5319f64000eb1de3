// Package flow names the paths that SIP messages take. A [Flow] is what RFC 5626
// calls a flow: one UDP address pair, or one TCP, TLS or WebSocket connection. The
// proxy core decides by flow, the transports carry by flow; neither needs to know
// the other. There is no I/O here.
package flow

import (
	"net/netip"
)

// Proto is a SIP transport (RFC 3261 §18, RFC 7118).
type Proto uint8

const (
	UDP Proto = iota + 1
	TCP
	TLS
	WS
	WSS
)

// String returns the transport parameter's value, lower case ("udp", "tcp", "tls", "ws", "wss").
func (p Proto) String() string {
	return [...]string{"", "udp", "tcp", "tls", "ws", "wss"}[p]
}

// Via returns the transport as a Via header field writes it ("UDP", "TLS", ...).
func (p Proto) Via() string {
	return [...]string{"", "UDP", "TCP", "TLS", "WS", "WSS"}[p]
}

// Stream tells whether the transport is reliable, so that nothing is retransmitted.
func (p Proto) Stream() bool { return p != UDP }

// Secure tells whether the transport is encrypted.
func (p Proto) Secure() bool { return p == TLS || p == WSS }

// ParseProto returns the transport named s in any case, 0 if there is none.
func ParseProto(s string) Proto {
	for p := UDP; p <= WSS; p++ {
		if equalFold(p.String(), s) {
			return p
		}
	}
	return 0
}

func equalFold(lower, s string) bool {
	if len(lower) != len(s) {
		return false
	}
	for i := range len(s) {
		if lower[i] != s[i]|0x20 {
			return false
		}
	}
	return true
}

// Flow identifies a path to a peer. It is comparable.
type Flow struct {
	// Conn numbers the connection, unique while the process lives; 0 for UDP.
	Conn uint64
	// Network is the name of the edge's network.
	Network string
	Proto   Proto
	// Local is the edge's own address (for UDP and accepted connections the listener's).
	Local netip.AddrPort
	// Remote is the peer's address as seen in the packets.
	Remote netip.AddrPort
	// Called is the address of somebody else that the peer sent to, where a transparent listener has taken it; what goes
	// back comes from there. Not valid: the peer sent to Local.
	Called netip.AddrPort
}

// Target is a destination to which no flow may exist yet.
type Target struct {
	Network string
	Proto   Proto
	Addr    netip.AddrPort
	// ServerName is verified against the certificate (TLS, WSS) and sent as SNI; empty = Addr's host.
	ServerName string
}
