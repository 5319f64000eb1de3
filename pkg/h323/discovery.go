package h323

import (
	"net/netip"
	"time"

	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
	"edged.dev/edged/pkg/h323/rasrelay"
)

// Endpoints that know no gatekeeper ask all there are (H.225.0 §7.8, appendix IV):
//
//	GRQ ──► 224.0.1.41:1718 ──► Core.Discover ──► GCF from the edge's RAS listener, or the other gatekeeper's

// DiscoveryGroup is the multicast group of gatekeepers, and its port.
func DiscoveryGroup() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 1, 41}), 1718)
}

// Discover takes a message that was sent to the gatekeepers' group on a network; false: there is nothing to send. Only
// GRQ and LRQ may be. A GRQ is answered at the port that it names of its own host.
func (c *Core) Discover(now time.Time, network string, from netip.AddrPort, b []byte) (rasrelay.Datagram, bool) {
	m, err := c.discovery.Decode(b)
	if err != nil {
		c.counts.drop(droppedMalformed)
		return rasrelay.Datagram{}, false
	}
	switch m.Kind {
	case ras.GRQ:
		for _, a := range m.Addresses(nil) {
			if a.Field == h245.RasAddress && a.AddrPort.Addr() == from.Addr() && a.AddrPort.Port() != 0 {
				from = a.AddrPort
				break
			}
		}
	case ras.LRQ:
	default:
		c.counts.drop(droppedNoCall)
		return rasrelay.Datagram{}, false
	}
	return c.Datagram(now, network, netip.AddrPort{}, from, b)
}
