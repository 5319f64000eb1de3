package rasrelay

import (
	"net/netip"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

// What is replaced, by message, stands in H.225.0 §7.8-7.18: every element of every list.

// dropped are components that name hosts beside the edge: others gatekeepers, other addresses of
// an endpoint, other endpoints. Without them nobody leaves the edge out.
func dropped() []string {
	return []string{"alternateGatekeeper", "altGKInfo", "assignedGatekeeper", "alternateEndpoints", "alternateTransportAddresses"}
}

// traversal tells whether a feature is one of H.460 by which endpoints and gatekeeper traverse NAT by themselves (17,
// 18, 19, 23, 24, 26): the edge does that for them.
func traversal(id int64) bool {
	switch id {
	case 17, 18, 19, 23, 24, 26:
		return true
	}
	return false
}

// edit is one message that is being edited.
type edit struct {
	*Relay
	in   received
	gone []per.Ref
	// addrs are the addresses that are left.
	addrs []h245.Address
}

// begin numbers the message and removes what would lead around the edge.
func (r *Relay) begin(in received, seq uint16) (edit, error) {
	e := edit{Relay: r, in: in}
	ed := r.codec.Editor()
	if at := in.Tree.Child(in.Body, "requestSeqNum"); at != per.None && seq != in.SeqNum() {
		if err := ed.SetInt(at, int64(seq)); err != nil {
			return e, err
		}
	}
	names := dropped()
	for n := in.Body; n != per.None && int(n) < in.Tree.Len(); n++ {
		for _, name := range names {
			if !e.removed(n) && in.Tree.Name(n) == name {
				if err := ed.Drop(n); err != nil {
					return e, err
				}
				e.gone = append(e.gone, n)
			}
		}
	}
	for _, a := range in.Addresses(nil) {
		if !e.removed(a.Ref) && a.AddrPort.Port() != 0 && !a.AddrPort.Addr().IsUnspecified() {
			e.addrs = append(e.addrs, a)
		}
	}
	return e, nil
}

// removed tells whether a node is inside of what was removed.
func (e *edit) removed(n per.Ref) bool {
	for _, g := range e.gone {
		if n >= g && n < e.in.Tree.Next(g) {
			return true
		}
	}
	return false
}

func (e *edit) set(a h245.Address, to netip.AddrPort) error {
	if !to.IsValid() || to == a.AddrPort {
		return nil
	}
	return a.Set(e.codec.Editor(), e.in.Tree, to)
}

// toGatekeeper edits what an endpoint says; ep is nil where that does not matter.
func (r *Relay) toGatekeeper(in received, ep *endpoint, seq uint16) error {
	e, err := r.begin(in, seq)
	if err != nil {
		return err
	}
	for _, f := range in.Features(nil) {
		if traversal(f.ID) && !e.removed(f.Ref) {
			if err := r.codec.Editor().Drop(f.Ref); err != nil {
				return err
			}
			e.gone = append(e.gone, f.Ref)
		}
	}
	for _, a := range e.addrs {
		if e.removed(a.Ref) {
			continue
		}
		if err := e.set(a, r.seenByGatekeeper(in, ep, a)); err != nil {
			return err
		}
	}
	return nil
}

// seenByGatekeeper returns what the gatekeeper is told in the place of an endpoint's address; not valid: it stays.
func (r *Relay) seenByGatekeeper(in received, ep *endpoint, a h245.Address) netip.AddrPort {
	gk := r.cfg.Gatekeeper.Addr()
	host := a.AddrPort.Addr()
	switch {
	case a.Field == h245.RasAddress || a.Field == h245.ReplyAddress:
		return r.cfg.RAS(r.cfg.Network, gk)
	case ep != nil && (a.Field == h245.CallSignalAddress || a.AddrPort == ep.signalling):
		return ep.door.Addr()
	case ep != nil && a.Field == whose(in):
		return ep.door.Addr()
	case host == in.from.Addr():
		return netip.AddrPortFrom(r.cfg.Signalling(r.cfg.Network, gk).Addr(), a.AddrPort.Port())
	case r.cfg.Own(host):
		return r.cfg.Signalling(r.cfg.Network, gk)
	case r.table.byAddr[a.AddrPort] != nil:
		return r.table.byAddr[a.AddrPort].door.Addr()
	}
	return netip.AddrPort{}
}

// whose returns the field of an ARQ that names who asks: the caller, or the called party.
func whose(in received) h245.Field {
	if isAnswer(in) {
		return h245.DestCallSignalAddress
	}
	return h245.SrcCallSignalAddress
}

// isAnswer tells whether an ARQ is the called party's.
func isAnswer(in received) bool { return in.Tree.Int(in.Tree.Child(in.Body, "answerCall")) != 0 }

// toEndpoint edits what the gatekeeper says to a host.
func (r *Relay) toEndpoint(in received, network string, host netip.Addr, ep *endpoint, seq uint16) error {
	e, err := r.begin(in, seq)
	if err != nil {
		return err
	}
	for _, a := range e.addrs {
		if err := e.set(a, r.seenByEndpoint(network, host, ep, a)); err != nil {
			return err
		}
	}
	if _, said := in.TimeToLive(); in.Kind == ras.RCF && !said {
		// Who is not told would never refresh, and its door would close.
		return r.codec.Editor().Add(in.Body, "timeToLive", per.Number(int64(defaultLife/time.Second)))
	}
	return nil
}

// seenByEndpoint returns what an endpoint is told in the place of an address of the gatekeeper's; not valid: it
// stays.
func (r *Relay) seenByEndpoint(network string, host netip.Addr, ep *endpoint, a h245.Address) netip.AddrPort {
	switch {
	case a.Field == h245.RasAddress || a.Field == h245.ReplyAddress:
		return r.cfg.RAS(network, host)
	case ep != nil && a.AddrPort == ep.door.Addr():
		return ep.signalling
	case a.Field == h245.CallSignalAddress || a.Field == h245.DestCallSignalAddress || a.Field == h245.SrcCallSignalAddress:
		return r.cfg.Signalling(network, host)
	case r.cfg.Own(a.AddrPort.Addr()):
		return r.cfg.Signalling(network, host)
	}
	return netip.AddrPort{}
}
