// Package scenario is the story that `edged demo` tells: two networks on loopback that hear nobody
// but their own hosts and the edge, two phones inside, one outside, a registrar outside; calls in
// both directions and three at once; then a verdict. It does not start the edge: whoever runs the
// scenario does, so that tests can put something else in its place and see the verdict fail.
//
//	inside 127.10.k.0/24                        outside 127.20.k.0/24
//	alice .10 ─┐                                ┌─ .9  registrar
//	           ├─ .1  edge (given by the caller)  .1 ─┤
//	carol .11 ─┘                                └─ .10 bob
package scenario

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Domain is the SIP domain of all phones.
const Domain = "example.org"

// Plan holds the addresses of a scenario. All SIP sockets share one port.
type Plan struct {
	// Inside and Outside are the two networks.
	Inside, Outside netip.Prefix
	// EdgeInside and EdgeOutside are the edge's SIP addresses.
	EdgeInside, EdgeOutside netip.AddrPort
	// Admin is the TCP address of the edge's admin listener.
	Admin netip.AddrPort
	// Alice and Carol are inside, Bob and the Registrar outside.
	Alice, Carol, Bob, Registrar netip.AddrPort
}

// NewPlan returns a plan whose addresses and ports are free now. 5060 is preferred, but an
// exchange that runs on this machine may hold it on every address.
func NewPlan() (Plan, error) {
	for _, add := range []uint16{0, 10, 20, 10000, 20000, 30000} {
		for k := range byte(32) {
			p := planAt(k, 5060+add, 9060+add)
			if p.free() {
				return p, nil
			}
		}
	}
	return Plan{}, errors.New("no free ports for SIP (UDP) and the admin listener (TCP) on the loopback addresses 127.10.0.0/16 and 127.20.0.0/16")
}

func planAt(k byte, port, admin uint16) Plan {
	in := func(host byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 10, k, host}), port)
	}
	out := func(host byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 20, k, host}), port)
	}
	return Plan{
		Inside:     netip.PrefixFrom(in(0).Addr(), 24),
		Outside:    netip.PrefixFrom(out(0).Addr(), 24),
		EdgeInside: in(1), EdgeOutside: out(1),
		Admin: netip.AddrPortFrom(in(1).Addr(), admin),
		Alice: in(10), Carol: in(11), Bob: out(10), Registrar: out(9),
	}
}

// free tells whether all addresses can be bound.
func (p Plan) free() bool {
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(p.Admin))
	if err != nil {
		return false
	}
	ln.Close()
	for _, a := range []netip.AddrPort{p.EdgeInside, p.EdgeOutside, p.Alice, p.Carol, p.Bob, p.Registrar} {
		c, err := bind(a)
		if err != nil {
			return false
		}
		c.Close()
	}
	return true
}

func bind(a netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	if err != nil {
		return nil, fmt.Errorf("bind %v: %w", a, err)
	}
	return c, nil
}
