package sharedport

import (
	"fmt"
	"slices"
	"strings"
)

// Outer is what the first bytes of a connection were found in.
type Outer string

// The values of Outer.
const (
	OverTCP Outer = "tcp"
	OverTLS Outer = "tls" // decrypted by the port
)

// Class is what a connection begins with.
type Class string

// The classes.
const (
	// TLS is a TLS ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2).
	TLS Class = "tls"
	// Tunnel is a ClientHello that offers edged's own tunnel (TunnelProtocol); where no service wants it, it is TLS.
	Tunnel Class = "edged_tunnel"
	// SSL2 is a hello in the format of SSL 2.0, with which some clients of 2001-2006 still begin (RFC 5246 §E.2).
	SSL2 Class = "ssl2"
	// SSLTCP is Google's fixed hello in that format, after which its old TURN followed in clear.
	SSLTCP Class = "ssltcp"
	// PseudoTLS is the fixed hello of [MS-TURN] §3.1.4, after which TURN follows in clear.
	PseudoTLS Class = "pseudo_tls"
	// MSTURN is TURN in the framing of [MS-TURN] §2.1.
	MSTURN Class = "ms_turn"
	// STUN is STUN or TURN over TCP (RFC 8489 §6.2.2).
	STUN Class = "stun"
	// T120 is a connection request of X.224 in a TPKT (RFC 1006 §6) as T.123 has it.
	T120 Class = "t120"
	// RDP is the same with what only remote desktops put into it ([MS-RDPBCGR] §2.2.1.1).
	RDP Class = "rdp"
	// H225 is Q.931 in a TPKT: the call signalling of H.323.
	H225 Class = "h225"
	// HTTP is a request of HTTP that is none of the following.
	HTTP Class = "http"
	// WebSocket is a request to upgrade to a WebSocket for SIP (RFC 7118 §4); it is told from HTTP only where
	// both are served.
	WebSocket Class = "sip_websocket"
	// Connect is a request for a tunnel (RFC 9110 §9.3.6).
	Connect Class = "connect"
	// SSTP is Microsoft's VPN ([MS-SSTP] §3.2.4.1).
	SSTP Class = "sstp"
	// RPC is RPC over HTTP, and the gateway of remote desktops ([MS-RPCH] §2.1.2, [MS-TSGU] §3.3.5.1).
	RPC Class = "rpc_http"
	// SIP is a SIP message or its keep-alive (RFC 5626 §4.4.1).
	SIP Class = "sip"
	// SOCKS is SOCKS 5 (RFC 1928 §3) or 4.
	SOCKS Class = "socks"
	// Groove is the Connect command of Groove's SSTP ([MS-GRVSSTP] §2.2.1).
	Groove Class = "groove"
	// Proxy is a header of the PROXY protocol, version 1 or 2; it is looked for from trusted sources only.
	Proxy Class = "proxy"
	// Silent is who said too little within the wait: after TLS, a client that expects to be spoken to or has
	// nothing to say yet.
	Silent Class = "silent"
	// Unknown is all else.
	Unknown Class = "unknown"
)

// classes lists those that a listener can ask for.
func classes() []Class {
	return []Class{
		TLS, Tunnel, SSL2, SSLTCP, PseudoTLS, MSTURN, STUN, T120, RDP, H225, HTTP, WebSocket, Connect, SSTP, RPC, SIP, SOCKS, Groove,
		Silent, Unknown,
	}
}

// Kind is a class, and what it was found in; with an empty Outer either.
type Kind struct {
	Outer Outer
	Class Class
}

// UnmarshalText reads "CLASS", "tcp/CLASS" or "tls/CLASS".
func (k *Kind) UnmarshalText(b []byte) error {
	outer, class, both := strings.Cut(string(b), "/")
	if !both {
		outer, class = "", outer
	}
	found := Kind{Outer(outer), Class(class)}
	if both && found.Outer != OverTCP && found.Outer != OverTLS || !slices.Contains(classes(), found.Class) {
		return fmt.Errorf("%q is not CLASS, tcp/CLASS or tls/CLASS, with CLASS one of %s", b, classNames())
	}
	if (found.Class == TLS || found.Class == Tunnel) && found.Outer == OverTLS {
		return fmt.Errorf("%q: TLS within TLS is not looked into", b)
	}
	*k = found
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// String returns "CLASS", "tcp/CLASS" or "tls/CLASS".
func (k Kind) String() string {
	if k.Outer == "" {
		return string(k.Class)
	}
	return string(k.Outer) + "/" + string(k.Class)
}

// Each returns the kinds with an Outer that k stands for.
func (k Kind) Each() []Kind {
	switch {
	case k.Outer != "":
		return []Kind{k}
	case k.Class == TLS || k.Class == Tunnel:
		return []Kind{{OverTCP, k.Class}}
	}
	return []Kind{{OverTCP, k.Class}, {OverTLS, k.Class}}
}

func classNames() string {
	var names []string
	for _, c := range classes() {
		names = append(names, string(c))
	}
	return strings.Join(names, ", ")
}
