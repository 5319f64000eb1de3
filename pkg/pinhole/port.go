package pinhole

import (
	"context"
	"errors"
	"net"
	"net/netip"
)

// ErrNotCarried: the relay does not move what comes by this socket; the caller does.
var ErrNotCarried = errors.New("the relay does not carry channels of this socket")

// PortRequest asks for one UDP port that a client owns: a TURN allocation (RFC 8656 §7.2).
type PortRequest struct {
	// Owner pays for the port: the limit per owner counts it. Usually the user, or the client's host.
	Owner string
	// Label tells a person what the port is for.
	Label string
	// Network is where the port is, for peers to send to; Family is that of its address.
	Network string
	Family  Family
	// Even wants an even port number, Pair also that the next one is held for [Port.Next] (EVEN-PORT, RFC 8656 §18.6).
	Even, Pair bool
	// Ports are the first and the last that it may be; zero: those of all pinholes.
	Ports [2]uint16
	// Client is where the client was seen, for people to read and for the counters of its network.
	Client netip.AddrPort
}

// Port is a UDP port that a client owns. What no bound channel carries is read and written here. Its methods may be
// called concurrently. ReadFrom returns an error when the port is closed or the deadline is over, and for no other
// reason: an ICMP error that a peer has answered with is counted and ends nothing. Close releases the port (into
// quarantine), the one that is held beside it, and all bindings.
type Port interface { //nolint:interfacebloat // a socket, and no part of the rest is of use alone
	net.PacketConn
	// Local returns the address to write into messages; LocalAddr is the bound one.
	Local() Local
	// Next returns the port that is held beside this one, once, as a port of its own with this one's owner;
	// an error wrapping ErrExhausted if none is held.
	Next(ctx context.Context) (Port, error)
	// Bind has the relay move what the client sends on the channel to the peer, and back, without the caller from now on.
	// A number, and a peer, that are bound already are bound anew. An error wraps ErrNotCarried if the caller has to go on
	// moving it himself, ErrLimit if the port has too many channels, ErrClosed, or ErrNetwork if the peer is of
	// another family than the port.
	Bind(c Channel) error
	// Unbind ends it: when the channel, the permission for its peer, or the allocation has ended. A number that is not bound is
	// no error.
	Unbind(number uint16)
	// Stats counts what came from the client (0) and from peers (1), whoever moved it: application data without headers.
	Stats() [2]StreamStats
}

// Channel is a channel of TURN (RFC 8656 §12) from a client to a peer.
type Channel struct {
	// Number is 0x4000-0x7FFF.
	Number uint16
	// Client is the client's transport address, at the socket Front, which is one that [PortOpener.Front] has returned.
	Client netip.AddrPort
	Front  net.PacketConn
	Peer   netip.AddrPort
}

// PortOpener grants ports.
type PortOpener interface {
	// OpenPort returns an error wrapping ErrExhausted, ErrLimit, ErrNetwork or ErrClosed if no port can be had. The caller must
	// Close the port.
	OpenPort(ctx context.Context, r PortRequest) (Port, error)
	// Front returns what conn, the UDP socket of a listener, is to be read and written by from now on: the relay takes out
	// of it what channels carry. conn itself must not be used any more but is closed with what was returned. Of a
	// socket that the relay can not read it returns conn; channels at it are not carried.
	Front(conn net.PacketConn) (net.PacketConn, error)
}
