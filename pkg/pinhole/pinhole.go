// Package pinhole is the vocabulary between the ALGs, which read signalling, and
// the relay, which moves packets. It holds words only: no sockets, no goroutines,
// nothing but the standard library.
//
// An ALG finds an address in a message, asks an [Opener] for a [Lease], and writes
// the lease's local address into the message instead. A lease has an end on each
// network; each end has a local address (ours, written into messages) and a remote
// one (the peer's: declared by signalling, then possibly latched).
//
//	ALG ── Open(Request) ──► Opener ──► Lease ── Local(side) ──► into the message
//	                                      ▲
//	ALG ── Declare(side, Remote) ─────────┘        (an answer, a re-INVITE)
//
// It is the Linux conntrack "expectation" said in Go: owner, kind, the two ends,
// allowed peer, lifetime, limit per owner.
package pinhole

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// Kind tells which ports a lease has at each end.
type Kind uint8

const (
	// RTP is a pair of UDP ports, even for RTP and the next odd one for RTCP (RFC 3550 §11).
	RTP Kind = iota
	// UDP is one UDP port (T.38 UDPTL, DTLS/SCTP).
	UDP
	// TCP is one TCP listening port; accepted connections are joined to the other end's remote.
	TCP
)

// String returns "rtp", "udp" or "tcp".
func (k Kind) String() string { return [...]string{"rtp", "udp", "tcp"}[k] }

// Side names one end of a lease.
type Side uint8

const (
	// Near is the side of the peer whose message made the ALG ask.
	Near Side = 0
	// Far is the other side.
	Far Side = 1
)

// Other returns the opposite side.
func (s Side) Other() Side { return 1 - s }

// Errors that an ALG branches on. The relay wraps them with detail.
var (
	// ErrExhausted: no free port is left in the configured range.
	ErrExhausted = errors.New("no media port is free")
	// ErrLimit: the owner has as many pinholes as it may have.
	ErrLimit = errors.New("the owner's pinhole limit is reached")
	// ErrTarget: the declared address is not one that this sender may name (NAT slipstreaming).
	ErrTarget = errors.New("the declared address is not the sender's own")
	// ErrNetwork: the request names a network that does not exist or has no address of the family.
	ErrNetwork = errors.New("no such network or address family")
	// ErrClosed: the lease was closed before.
	ErrClosed = errors.New("the pinhole is closed")
)

// Family is an address family wanted at an end.
type Family uint8

const (
	// AnyFamily lets the relay use the network's first address.
	AnyFamily Family = 0
	// IPv4 wants an IPv4 local address.
	IPv4 Family = 4
	// IPv6 wants an IPv6 local address.
	IPv6 Family = 6
)

// FamilyOf returns the family of a, AnyFamily if a is not valid.
func FamilyOf(a netip.Addr) Family {
	switch {
	case !a.IsValid():
		return AnyFamily
	case a.Unmap().Is4():
		return IPv4
	}
	return IPv6
}

// Request asks for a lease.
type Request struct {
	// Owner pays for the pinhole: the limit per owner counts it. Usually the signalling source's host.
	Owner string
	// Label tells a person what the pinhole is for, e.g. a Call-ID and a media type.
	Label string
	// Kind of ports.
	Kind Kind
	// Networks are the names of the networks of the Near and the Far end.
	Networks [2]string
	// Families are the address families of the local addresses at each end.
	Families [2]Family
	// Shared, for kind RTP, names a port for a side at which the lease has no ports of its own: it shares this one, which is
	// even, and the next one with all others that name it on the network. Each packet there begins with four
	// octets (H.460.19 §7.3): one to the edge with Local.Tag, one to the peer with Remote.Tag. Zero: ports of its own.
	// Such a lease cannot be forked.
	Shared [2]uint16
	// Ports, for kind TCP, are the first and the last port that may listen, where a protocol's peers take no
	// others; zero means the relay's own. Where no port is left at an address of the network its next
	// one of that family is used, unless all are advertised as one. Such a port does not rest when it is given back.
	Ports [2]uint16
	// Listen, for kind TCP, are the ends that accept connections; neither means both. The other end only
	// dials what is declared there, takes no port, and has port 0 as its local address.
	Listen [2]bool
	// Once, for kind TCP, lets each end accept one connection: it ends the listener and gives the port
	// back, while the pair of connections lives on with the lease. Refused ones do not count.
	Once bool
	// Admit, for kind TCP, reads from a connection accepted at a side what proves that its caller is the one
	// expected, before the other end is dialled. It returns the connection that Serve is to get, from which what
	// was read can be read again, or an error: then the connection is reset. It runs on a goroutine of its own, several
	// at once; its conn has a deadline, which ends with it. With Admit, an end of which no peer is declared takes
	// connections of every host of its network.
	Admit func(ctx context.Context, from Side, conn net.Conn) (net.Conn, error)
	// Unjoined, for kind TCP, is called on a goroutine of the relay when a connection that was accepted, and
	// admitted, gets no other half: the other end could not be dialled, or did not come. Nil: only the relay counts it.
	Unjoined func(err error)
	// Serve, for kind TCP, speaks on each joined pair of connections in the relay's stead, on a goroutine
	// of its own: it moves what comes from conns[Near] to conns[Far] and back, and reads it on the way (H.245,
	// T.120). It tells moved how many bytes came from a side, which keeps the pair from being idle. ctx ends
	// with the lease; conns are closed when Serve returns and when the lease is closed. Nil: the relay copies.
	Serve func(ctx context.Context, conns [2]net.Conn, moved func(from Side, bytes int))
	// Idle is the time without any packet from either side after which OnIdle is called;
	// 0 means the relay's default. Ends that are Quiet are not counted.
	Idle time.Duration
	// OnIdle is called on a goroutine of the relay: with true when the lease has been idle for Idle, with
	// false when it is not any more. The lease stays open: its owner decides. Nil means the relay closes it.
	OnIdle func(idle bool)
}

// Remote is what signalling says of the peer at one end.
type Remote struct {
	// Addr is where the peer wants to receive (RTP, UDP), or listens (TCP; port 9 or 0 if it only dials).
	// The zero value says that nothing is known yet.
	Addr netip.AddrPort
	// RTCP is where the peer wants RTCP (RFC 3605); the zero value means Addr's port + 1, and
	// Addr itself says that RTP and RTCP share the port (RFC 5761).
	RTCP netip.AddrPort
	// Source is the host from which the signalling came: the only one besides Addr that may be
	// latched, and the one that Addr is compared with (see [ErrTarget]).
	Source netip.Addr
	// Tag, if Tagged, is what packets to this peer begin with at a shared port, in network order; without it
	// they have nothing before them, as anywhere else.
	Tag    uint32
	Tagged bool
	// Trusted says that the sender may name hosts other than itself (a configured server).
	Trusted bool
	// Asymmetric says that the peer may send from another port than Addr's, on which it alone receives
	// (H.323; a SIP peer sends from where it receives). Behind a NAT only the port it sends from is known.
	Asymmetric bool
	// Quiet says that no packets are expected from this peer (hold, inactive, recvonly).
	Quiet bool
	// SRTP, for kind RTP, protects what goes to and comes from this peer; nil: nothing does, or the peers do so
	// between themselves. It is not changed once declared. While its keys are the same their state lives on.
	SRTP *SRTP
	// DTLS, for kind RTP, in the place of SRTP: the relay and the peer find keys themselves.
	DTLS *DTLS
	// ICE, for kind RTP, has the peer prove where it is; nil: it is where it says or sends from.
	ICE *ICE
}

// Local is the relay's own address at one end, as it is to be written into messages
// (the advertised one where the edge is itself behind a 1:1 NAT).
type Local struct {
	Addr netip.AddrPort
	// RTCP is Addr's port + 1 for kind RTP, the zero value otherwise.
	RTCP netip.AddrPort
	// Tag is what packets to Addr and RTCP begin with at a shared port, in network order; 0 elsewhere.
	Tag uint32
}

// Lease is an open pinhole. Its methods may be called concurrently and never block on the network.
type Lease interface {
	// Local returns the local address at side s.
	Local(s Side) Local
	// Declare tells what signalling said of the peer at side s, at first and whenever it is said again.
	// The latched source is kept if Addr is unchanged, and forgotten if it changed.
	// It returns an error wrapping ErrTarget, and changes nothing, if the peer may not name Addr.
	Declare(s Side, r Remote) error
	// Fork returns a lease that shares the Far local address but has a Near one of its own, for a
	// second answer to one offer (a forked INVITE). Packets that arrive at the Far end go to the lease
	// whose Far remote they come from. Closing either leaves the other whole.
	Fork() (Lease, error)
	// Close releases the ports (into quarantine) and returns the final counters.
	// A second call returns the same summary.
	Close() Summary
}

// Opener grants leases.
type Opener interface {
	// Open returns an error wrapping ErrExhausted, ErrLimit or ErrNetwork if no lease can be had.
	// The ports are bound and listening when it returns. The caller must Close the lease.
	Open(ctx context.Context, r Request) (Lease, error)
}

// Summary holds the final counters of a lease, for call records.
type Summary struct {
	Opened, Closed time.Time
	// From holds what was received at each side (index Near, Far).
	From [2]StreamStats
}

// StreamStats counts what was received from the peer at one side.
type StreamStats struct {
	// Packets (UDP payloads, not for TCP) and Bytes came from the confirmed source, RTCP included.
	Packets, Bytes uint64
	// Dropped counts packets that were not relayed (unknown source, peer not known yet).
	Dropped uint64
	// Lost is the cumulative number of RTP packets lost (RFC 3550 §6.4.1); negative with duplicates.
	Lost int64
	// Jitter is the interarrival jitter (RFC 3550 §6.4.1).
	Jitter time.Duration
	// RTT is the last round-trip time between the edge and this peer, computed from RTCP reports that
	// passed; 0 if unknown.
	RTT time.Duration
	// MOS is the estimated mean opinion score, 1.0-4.5 (ITU-T G.107 simplified), 0 if unknown.
	MOS float64
}
