package pinhole

import (
	"fmt"
	"net/netip"
	"slices"
)

// Network is a named side of the edge.
type Network struct {
	// Addresses are the edge's own addresses on this network; the first of each family is used for media.
	Addresses []netip.Addr
	// Advertise is written into messages instead of the address of the same family: the public
	// address of a 1:1 NAT in front of the edge. Not valid = none.
	Advertise netip.Addr
	// Subnets are the hosts of this network. Empty: whatever the routing table says.
	Subnets []netip.Prefix
	// Trusted networks may start calls to any other; hosts of an untrusted one reach only what is
	// registered, configured or part of a dialog.
	Trusted bool
}

// Networks maps names to networks.
type Networks map[string]Network

// Local returns the bound address for a family at a network, and the one to advertise.
func (n Networks) Local(name string, f Family) (bind, advertise netip.Addr, err error) {
	nw, ok := n[name]
	if !ok {
		return bind, advertise, fmt.Errorf("network %q: %w", name, ErrNetwork)
	}
	for _, a := range nw.Addresses {
		if f == AnyFamily || FamilyOf(a) == f {
			return a, nw.Public(a), nil
		}
	}
	return bind, advertise, fmt.Errorf("network %q has no IPv%d address: %w", name, f, ErrNetwork)
}

// Public returns the address to write into messages for the own address a.
func (n Network) Public(a netip.Addr) netip.Addr {
	if n.Advertise.IsValid() && FamilyOf(n.Advertise) == FamilyOf(a) {
		return n.Advertise
	}
	return a
}

// Of returns the name of the network whose subnets hold a, "" if none does.
// The longest prefix wins.
func (n Networks) Of(a netip.Addr) string {
	best, bits := "", -1
	for name, nw := range n {
		for _, p := range nw.Subnets {
			if p.Contains(a) && (p.Bits() > bits || p.Bits() == bits && name < best) {
				best, bits = name, p.Bits()
			}
		}
	}
	return best
}

// Own tells whether a is one of the edge's own addresses, bound or advertised, on any network.
func (n Networks) Own(a netip.Addr) bool {
	if !a.IsValid() {
		return false // else it would equal an Advertise that is not set
	}
	for _, nw := range n {
		if nw.Advertise == a || slices.Contains(nw.Addresses, a) {
			return true
		}
	}
	return false
}
