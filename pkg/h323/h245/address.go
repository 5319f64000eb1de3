package h245

import (
	"net/netip"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
)

// Field is the name of the component that an address is in, as in H.225.0 and H.245.
type Field string

// The fields that the engine tells apart; others have their name as well.
const (
	H245Address             Field = "h245Address"
	SourceCallSignalAddress Field = "sourceCallSignalAddress"
	DestCallSignalAddress   Field = "destCallSignalAddress"
	SrcCallSignalAddress    Field = "srcCallSignalAddress"
	CallSignalAddress       Field = "callSignalAddress"
	RasAddress              Field = "rasAddress"
	ReplyAddress            Field = "replyAddress"
	AlternativeAddress      Field = "alternativeAddress"
	TransportID             Field = "transportID" // an AliasAddress
	SendAddress             Field = "sendAddress"
	RecvAddress             Field = "recvAddress"
	MediaChannel            Field = "mediaChannel"
	MediaControlChannel     Field = "mediaControlChannel"
	LocalAreaAddress        Field = "localAreaAddress" // of separateStack
	SignalAddress           Field = "signalAddress"    // of mcLocationIndication
	SignallingAddress       Field = "callSignallingAddress"
)

// Address is an IP transport address in a message, of H.245 or of H.225.0: they are
// different types with the same octets, and fastStart puts both into one tree.
type Address struct {
	Field     Field
	AddrPort  netip.AddrPort
	Multicast bool    // a multicastAddress
	Carrier   Field   // fastStart, h245Control or parallelH245Control; empty for the message's own
	Item      per.Ref // the carrier's OCTET STRING; None for the message's own
	Ref       per.Ref // the TransportAddress
	ip, port  per.Ref
}

// Carriers of H.245 in H.225.0.
const (
	FastStart           Field = "fastStart"
	H245Control         Field = "h245Control"
	ParallelH245Control Field = "parallelH245Control"
)

// Valid tells whether there is an address.
func (a Address) Valid() bool { return a.AddrPort.IsValid() }

// Addresses appends every IP transport address in r and inside of it, in the
// order of the message. Addresses of other networks (IPX, NSAP) are none.
func Addresses(dst []Address, t *per.Tree, r per.Ref) []Address {
	if r == per.None {
		return dst
	}
	item, carrier := per.None, Field("")
	for n, end := r, t.Next(r); n < end; n++ {
		switch t.Type(n) {
		case schema.H245OpenLogicalChannel, schema.H245MultimediaSystemControlMessage:
			if p := t.Parent(n); t.Kind(p) == per.Octets {
				item, carrier = p, carrierOf(t, p)
			}
		case schema.H225TransportAddress, schema.H245TransportAddress:
			a := address(t, n)
			if !a.Valid() {
				continue
			}
			if item != per.None && n < t.Next(item) {
				a.Item, a.Carrier = item, carrier
			}
			dst = append(dst, a)
		}
	}
	return dst
}

// carrierOf names the list that an OCTET STRING is an element of.
func carrierOf(t *per.Tree, octets per.Ref) Field {
	return Field(t.Name(t.Parent(octets)))
}

// address views a TransportAddress; its AddrPort is not valid if it is no IP address.
func address(t *per.Tree, r per.Ref) Address {
	a := Address{Ref: r, Item: per.None, ip: per.None, port: per.None}
	name, v := t.Chosen(r)
	ipName := "ip"
	if t.Type(r) == schema.H245TransportAddress {
		a.Multicast = name == "multicastAddress"
		ipName = "network"
		name, v = t.Chosen(v)
	}
	portName := "port"
	switch name {
	case "ipAddress", "ipSourceRoute", "ip6Address":
	case "iPAddress", "iPSourceRouteAddress", "iP6Address":
		portName = "tsapIdentifier"
	default:
		return a
	}
	a.ip, a.port = t.Child(v, ipName), t.Child(v, portName)
	ip, ok := netip.AddrFromSlice(t.Octets(a.ip))
	if !ok || a.port == per.None {
		return a
	}
	a.AddrPort = netip.AddrPortFrom(ip, uint16(t.Int(a.port)))
	for p := r; p != per.None && a.Field == ""; p = t.Parent(p) {
		a.Field = Field(t.Name(p))
	}
	return a
}

// Set writes another address in the place of a: in place if it is of the same family,
// else in the form of the other (H.225.0 §7.6, H.245 TransportAddress).
func (a Address) Set(e *per.Editor, t *per.Tree, to netip.AddrPort) error {
	if to.Addr().Unmap().Is4() == a.AddrPort.Addr().Is4() {
		return e.SetAddr(a.ip, a.port, to)
	}
	if t.Type(a.Ref) == schema.H225TransportAddress {
		return e.Replace(a.Ref, CallAddress(to))
	}
	return e.Replace(a.Ref, transportAddress(to, a.Multicast))
}

// CallAddress is a TransportAddress of H.225.0.
func CallAddress(to netip.AddrPort) per.Value {
	name := "ipAddress"
	if !to.Addr().Unmap().Is4() {
		name = "ip6Address"
	}
	return per.Alternative(name, per.Fields(per.F("ip", per.Address(to.Addr())), per.F("port", per.Number(int64(to.Port())))))
}

// MediaAddress is a unicast TransportAddress of H.245.
func MediaAddress(to netip.AddrPort) per.Value { return transportAddress(to, false) }

func transportAddress(to netip.AddrPort, multicast bool) per.Value {
	cast, name := "unicastAddress", "iPAddress"
	if multicast {
		cast = "multicastAddress"
	}
	if !to.Addr().Unmap().Is4() {
		name = "iP6Address"
	}
	return per.Alternative(cast, per.Alternative(name, per.Fields(
		per.F("network", per.Address(to.Addr())), per.F("tsapIdentifier", per.Number(int64(to.Port()))))))
}
