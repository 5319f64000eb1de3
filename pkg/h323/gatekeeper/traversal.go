package gatekeeper

import (
	"net/netip"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

// H.460.18: an endpoint behind a NAT registers often enough to keep the way for RAS open. Of an incoming call it is
// told by RAS (SCI); then it connects by itself, and says by a Facility which call it has come for.

const (
	// signallingTraversal is the feature of H.460.18.
	signallingTraversal = 18
	// mediaTraversal is that of H.460.19.
	mediaTraversal = 19
	// incomingCallIndication is its parameter in SCI.
	incomingCallIndication = 1
	// traversalLife is the longest lifetime of a registration through a NAT, which forgets UDP in 30 s or more.
	traversalLife = 19 * time.Second
)

// traverses tells whether the sender is behind a NAT, or may be, and wants to be told of calls.
func traverses(r request) bool {
	for _, f := range r.Features(nil) {
		if f.ID == signallingTraversal {
			return true
		}
	}
	return false
}

// traversalServer is what the gatekeeper adds to its answers to such an endpoint.
func traversalServer(on bool) []per.Field {
	if !on {
		return nil
	}
	return []per.Field{per.F("featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)),
		per.F("supportedFeatures", per.Elements(h225.GenericData(signallingTraversal)))))}
}

// Behind tells whether an address that [Gatekeeper.Lookup] has returned is that of an endpoint behind a NAT, and on
// which network it can be told of a call at which RAS address.
func (g *Gatekeeper) Behind(signalling netip.AddrPort) (network string, at netip.AddrPort, ok bool) {
	e := g.table.bySignalling[signalling]
	if e == nil || !e.traversal {
		return "", netip.AddrPort{}, false
	}
	return e.network, e.ras, true
}

// Traverses tells whether there is an endpoint behind a NAT at a host.
func (g *Gatekeeper) Traverses(host netip.Addr) bool { return g.table.traversal[host] > 0 }

// Incoming is the message that tells an endpoint to connect to an address for a call (H.460.18 §7).
func Incoming(seq uint16, at netip.AddrPort, call h225.ID) ([]byte, error) {
	indication, err := schema.Tables().Encode(nil, schema.H460IncomingCallIndication, per.Fields(
		per.F("callSignallingAddress", h245.CallAddress(at)), per.F("callID", per.Fields(per.F("guid", per.Octet(call[:]))))))
	if err != nil {
		return nil, err
	}
	return ras.Append(nil, ras.SCI, per.F("requestSeqNum", per.Number(int64(max(seq, 1)))), per.F("serviceControl", per.Elements()),
		per.F("genericData", per.Elements(h225.GenericData(signallingTraversal, h225.RawParameter(incomingCallIndication, indication)))))
}
