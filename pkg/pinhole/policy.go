package pinhole

import (
	"fmt"
	"net/netip"
	"slices"
)

// Reasons why a declared address is refused, as the reason label of metrics.
const (
	ReasonUnspecified  = "unspecified"
	ReasonMulticast    = "multicast"
	ReasonNotSource    = "not_source"
	ReasonOwnAddress   = "own_address"
	ReasonOtherNetwork = "other_network"
	ReasonLoopback     = "loopback"
	ReasonLinkLocal    = "link_local"
	ReasonServicePort  = "service_port"
)

// TargetError says which declared address was refused, and why. It wraps [ErrTarget].
type TargetError struct {
	Addr netip.Addr
	// Reason is one of the Reason constants.
	Reason string
}

// Error returns the address and the reason in words.
func (e *TargetError) Error() string {
	return fmt.Sprintf("%s (%s): %v", e.Addr, e.Reason, ErrTarget)
}

// Unwrap returns ErrTarget.
func (e *TargetError) Unwrap() error { return ErrTarget }

// Policy decides whether a peer may name an address: the defence against NAT slipstreaming. It stands
// here, and not in the relay, so that the fake of the ALG tests refuses exactly what the relay refuses.
type Policy struct {
	Networks Networks
	// Allow holds, per network, the hosts that anybody there may name.
	Allow map[string][]netip.Prefix
	// OwnPort tells whether one of the edge's own addresses is an open relay port. A call that comes
	// back through an outside proxy (a spiral) names one. Nil means that none is open.
	OwnPort func(netip.AddrPort) bool
}

// Check returns a *TargetError if the peer at the network may not name r.Addr or r.RTCP. Reachable
// tells whether packets may be sent there before one was received: not if a peer with a public
// source names a private address, for then it sits behind a NAT.
//
// On a trusted network the address must be the sender's own, and no service port; one of the other family
// is believed once it is heard from. Elsewhere any unicast address may be
// named (trunks have media servers of their own) but those of other networks, of the edge, loopback
// and link-local. Multicast is only ever allowed by Allow, the unspecified address never.
func (p Policy) Check(network string, r Remote) (reachable bool, err error) {
	if !r.Addr.IsValid() || r.ICE != nil {
		return false, nil // with ICE the peer proves where it is, and before that nothing is sent
	}
	if err := p.check(network, r, r.Addr); err != nil {
		return false, err
	}
	if r.RTCP.IsValid() && r.RTCP != r.Addr {
		if err := p.check(network, r, r.RTCP); err != nil {
			return false, err
		}
	}
	if r.Addr.Port() == 0 {
		return false, nil
	}
	return r.Trusted || p.allowed(network, r.Addr.Addr().Unmap()) || !hidden(r) && !(p.Networks[network].Trusted && otherFamily(r)), nil
}

// otherFamily tells whether the sender names an address of another family than it signals from, as a
// dual-stack phone does. Nobody can tell whose it is, so nothing is sent there until it has spoken itself.
func otherFamily(r Remote) bool {
	return r.Source.IsValid() && FamilyOf(r.Source) != FamilyOf(r.Addr.Addr())
}

// hidden tells whether the declared address cannot be reached from where the source was seen.
func hidden(r Remote) bool {
	a, src := r.Addr.Addr().Unmap(), r.Source.Unmap()
	return src.IsValid() && a != src && Private(a) && !Private(src)
}

func (p Policy) allowed(network string, a netip.Addr) bool {
	return slices.ContainsFunc(p.Allow[network], func(n netip.Prefix) bool { return n.Contains(a) })
}

func (p Policy) check(network string, r Remote, named netip.AddrPort) error {
	a, src := named.Addr().Unmap().WithZone(""), r.Source.Unmap().WithZone("")
	nw := p.Networks[network]
	refuse := func(reason string) error { return &TargetError{Addr: a, Reason: reason} }
	switch own := p.Networks.Own(a); {
	case a.IsUnspecified():
		return refuse(ReasonUnspecified)
	case p.allowed(network, a):
		return nil
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return refuse(ReasonMulticast)
	case r.Trusted:
		return nil
	case own && nw.has(a) && p.OwnPort != nil && p.OwnPort(netip.AddrPortFrom(a, named.Port())):
		return nil
	case own && a != src:
		return refuse(ReasonOwnAddress)
	case nw.Trusted && a != src && !otherFamily(Remote{Addr: named, Source: src}):
		return refuse(ReasonNotSource)
	case nw.Trusted && servicePort(named.Port()):
		return refuse(ReasonServicePort)
	case nw.Trusted:
		return nil
	}
	return p.checkUntrusted(network, a, src)
}

func (p Policy) checkUntrusted(network string, a, src netip.Addr) error {
	other := p.Networks.Of(a)
	switch {
	case other != "" && other != network:
		return &TargetError{Addr: a, Reason: ReasonOtherNetwork}
	case a.IsLoopback() && !src.IsLoopback():
		return &TargetError{Addr: a, Reason: ReasonLoopback}
	case a.IsLinkLocalUnicast() && a != src:
		return &TargetError{Addr: a, Reason: ReasonLinkLocal}
	}
	return nil
}

// servicePort tells whether a port is one of system services, on which no media is received: a page that
// makes a browser speak SIP could open it to the outside. Port 9 says that the peer only dials (RFC 4145)
// or has no address yet (RFC 8840).
func servicePort(port uint16) bool { return port > 0 && port < 1024 && port != 9 }

// has tells whether a is the edge's own address on this network, bound or advertised.
func (n Network) has(a netip.Addr) bool {
	return n.Advertise == a || slices.Contains(n.Addresses, a)
}

// Private tells whether a is not routed on the public Internet: RFC 1918, RFC 4193 and the
// shared addresses of carriers (RFC 6598).
func Private(a netip.Addr) bool {
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	return a.IsPrivate() || shared.Contains(a)
}
