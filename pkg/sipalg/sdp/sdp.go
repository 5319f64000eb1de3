// Package sdp edits session descriptions in place (RFC 8866, 3264). It indexes the
// bytes that carry transport addresses, tells the caller what each m-line wants, and
// writes the description out again with other addresses. Whatever else stands in it
// (order, spelling, line ends, unknown types and attributes) passes untouched.
//
// It is not an SDP model: it negotiates nothing, opens no pinholes, and does not look
// at codecs. It does no I/O and keeps no reference to a message but [Session].
//
//	body ── EachPart / RewriteBody ──► SDP part ── Parse ──► Session ── Media(i) ──► pinholes
//	                                                           │                       │
//	body ◄── spliced ◄────────── AppendRewritten ◄─────────────┴────── Placement ◄─────┘
package sdp

import (
	"net/netip"
)

// Bounds of what is read. Anything larger is refused, with an [Error].
const (
	// MaxBytes is the longest description, in bytes.
	MaxBytes = 64 << 10
	// MaxMedia is the largest number of m-lines.
	MaxMedia = 64
	// maxMarks bounds the lines that carry addresses.
	maxMarks = 4096
	// maxGroups bounds the a=group:BUNDLE lines.
	maxGroups = 16
)

// Error says why a description or body cannot be edited. Reason is one of a fixed set of
// tokens, fit for a counter's label: too_large, too_many_media, too_many_lines, bad_media,
// bare_cr, not_sdp (descriptions); no_boundary, no_parts, too_deep, too_many_parts,
// encoded_part (bodies).
type Error struct {
	Reason string
	// Offset is the byte at which the fault was seen.
	Offset int
}

// Error returns "sdp: REASON".
func (e *Error) Error() string { return "sdp: " + e.Reason }

// MediaKind tells what kind of pinhole an m-line needs.
type MediaKind uint8

const (
	// Unknown is a transport that is not known here.
	Unknown MediaKind = iota
	// RTP is RTP over UDP with any profile, keyed by DTLS or not: RTP/AVP, RTP/SAVPF, UDP/TLS/RTP/SAVPF.
	RTP
	// UDPTL is T.38 fax (udptl, UDP/TLS/UDPTL).
	UDPTL
	// MSRP is RFC 4975 (TCP/MSRP, TCP/TLS/MSRP).
	MSRP
	// BFCP is RFC 8856, over TCP or UDP: see [Media.Stream].
	BFCP
	// UDPOther is one UDP port (UDP/DTLS/SCTP, udp).
	UDPOther
	// TCPOther is one TCP port (tcp, TCP/RTP/AVP).
	TCPOther
	// NotMedia is an m-line whose port is no media port (Microsoft's "x-ms-message 5060 sip null").
	NotMedia
	// T120 is a data conference of Microsoft's clients ("m=application 1503 tcp msdata"): its port is always
	// that of T.120, so whoever calls is known by his address only.
	T120
)

// String returns the kind in lower case.
func (k MediaKind) String() string {
	return [...]string{"unknown", "rtp", "udptl", "msrp", "bfcp", "udp", "tcp", "none", "t120"}[k]
}

// Direction is the direction attribute (RFC 8866 §6.7), seen from the sender of the description.
type Direction uint8

const (
	SendRecv Direction = iota
	SendOnly
	RecvOnly
	Inactive
)

// String returns the attribute's name.
func (d Direction) String() string {
	return [...]string{"sendrecv", "sendonly", "recvonly", "inactive"}[d]
}

// Media is what one m-line says, with the session level's attributes taken into account.
// Its slices point into the parsed bytes.
type Media struct {
	// Type and Proto are the first and third field of the m-line.
	Type, Proto []byte
	// Kind is derived from Proto.
	Kind MediaKind
	// Stream says that the media runs over TCP connections.
	Stream bool
	// Port is 0 for a rejected m-line, and for one that is bundle-only.
	Port uint16
	// PortCount is the number of port pairs (RFC 8866 §5.14: "49170/2"), 1 where none is given.
	PortCount int
	// Addr is the connection address; not valid if it is a name or missing.
	Addr netip.Addr
	// AddrIsName says that the connection address is a domain name.
	AddrIsName bool
	// Multicast says that Addr is a group. Such an m-line is never rewritten.
	Multicast bool
	// Hold says that the sender wants no media: a=inactive, or the address 0.0.0.0 or :: (RFC 3264 §8.4).
	Hold bool
	// Unset says that the address is 0.0.0.0 because ICE has no default candidate yet
	// (RFC 8840 §4.1.1: port 9; early WebRTC wrote 1). That is not a hold.
	Unset bool
	// Direction as given, at the session level if not here.
	Direction Direction
	// RTCPPort and RTCPAddr are a=rtcp (RFC 3605); 0 and not valid if not given.
	RTCPPort uint16
	RTCPAddr netip.Addr
	// MuxRTCP says that RTCP may share the port (RFC 5761).
	MuxRTCP bool
	// Setup is the value of a=setup (RFC 4145), empty if there is none.
	Setup []byte
	// MID is the value of a=mid.
	MID []byte
	// BundleOnly is a=bundle-only (RFC 8843).
	BundleOnly bool
	// InBundle says that a BUNDLE group names MID; Bundle is the group's number, from 1.
	InBundle bool
	Bundle   int
	// ICE says that ICE attributes apply, of either dialect; Candidates counts the a=candidate lines.
	ICE        bool
	Candidates int
	// Cryptos counts the a=crypto lines (RFC 4568), see [Session.Cryptos]; Fingerprint says that a=fingerprint
	// applies (RFC 8122).
	Cryptos     int
	Fingerprint bool
	// Lite says that the sender is a lite agent of ICE (RFC 8445 §2.5).
	Lite bool
	// Path is the first URI of the MSRP path.
	Path MSRPPath

	ownConn, ownRTCP bool
}

// MSRPPath is the part of the first URI of a=path (RFC 4975 §8.2) that names a transport address.
type MSRPPath struct {
	// Host is a name or an address, without brackets; empty if there is no path.
	Host []byte
	// Addr is Host as an address; not valid if it is a name.
	Addr netip.Addr
	// Port is 2855 where the URI has none.
	Port uint16
}

// AddrPort returns where the sender wants to receive. It is not valid if the address is a name or missing.
func (m *Media) AddrPort() netip.AddrPort {
	if !m.Addr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(m.Addr, m.Port)
}

// RTCP returns where the sender wants RTCP: a=rtcp, else AddrPort if mux, else the next port.
// Mux is not [Media.MuxRTCP]: it takes both sides of an offer and answer to multiplex.
func (m *Media) RTCP(mux bool) netip.AddrPort {
	a := m.AddrPort()
	if mux || !a.IsValid() || m.Port == 0 {
		return a
	}
	port := m.Port + 1
	if m.RTCPPort != 0 {
		port = m.RTCPPort
	}
	if m.RTCPAddr.IsValid() {
		return netip.AddrPortFrom(m.RTCPAddr, port)
	}
	return netip.AddrPortFrom(m.Addr, port)
}

// heldByAddress tells whether the address itself says hold (RFC 2543 style), and must go on saying so.
func (m *Media) heldByAddress() bool { return m.Addr.IsUnspecified() && !m.Unset }
