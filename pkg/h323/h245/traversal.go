package h245

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
)

// TraversalOID is the messageIdentifier of H.460.19 in genericInformation.
const TraversalOID = "0.0.8.460.19.0.1"

// Traversal is TraversalParameters of H.460.19 §7.4. Addresses that are absent are not valid.
type Traversal struct {
	MediaChannel        netip.AddrPort // multiplexedMediaChannel
	MediaControlChannel netip.AddrPort // multiplexedMediaControlChannel
	MultiplexID         uint32
	Multiplexed         bool // multiplexID is there
	KeepAliveChannel    netip.AddrPort
	KeepAlivePayload    uint8         // 0..127
	KeepAlive           bool          // keepAlivePayloadType is there
	KeepAliveInterval   time.Duration // whole seconds; 0 if absent
}

// TraversalAt finds the octets of TraversalParameters in an OpenLogicalChannel, its
// Ack or another message; None if there are none.
func TraversalAt(t *per.Tree, r per.Ref) per.Ref { return Generic(t, r, TraversalOID, 1) }

// directOID is how the messageIdentifiers of H.460.24 begin.
const directOID = "0.0.8.460.24."

// DirectAt returns the elements of genericInformation by which H.460.24 names addresses for media.
func DirectAt(t *per.Tree, list per.Ref) (out []per.Ref) {
	for g := range each(t, list, schema.H245GenericMessage) {
		if strings.HasPrefix(per.DottedOID(t.Octets(t.Find(g, "messageIdentifier", "standard")))+".", directOID) {
			out = append(out, g)
		}
	}
	return out
}

// GenericOf returns what is to be dropped with the octets that TraversalAt found: the element of genericInformation, or
// the whole list if there is no other.
func GenericOf(t *per.Tree, octets per.Ref) per.Ref {
	element := octets
	for element != per.None && t.Type(element) != schema.H245GenericMessage {
		element = t.Parent(element)
	}
	list := t.Parent(element)
	n := 0
	for range t.Elems(list) {
		n++
	}
	if n > 1 {
		return element
	}
	return list
}

// DecodeTraversal decodes the octets that TraversalAt found.
func DecodeTraversal(octets []byte) (Traversal, error) {
	t, err := NewDecoder().Decode(schema.H460TraversalParameters, octets)
	if err != nil {
		return Traversal{}, fmt.Errorf("traversal parameters: %w", err)
	}
	root := t.Root()
	channel := func(name string) netip.AddrPort {
		if r := t.Child(root, name); r != per.None {
			return address(t, r).AddrPort
		}
		return netip.AddrPort{}
	}
	id, payload := t.Child(root, "multiplexID"), t.Child(root, "keepAlivePayloadType")
	return Traversal{
		MediaChannel:        channel("multiplexedMediaChannel"),
		MediaControlChannel: channel("multiplexedMediaControlChannel"),
		MultiplexID:         uint32(t.Int(id)),
		Multiplexed:         id != per.None,
		KeepAliveChannel:    channel("keepAliveChannel"),
		KeepAlivePayload:    uint8(t.Int(payload)),
		KeepAlive:           payload != per.None,
		KeepAliveInterval:   time.Duration(t.Int(t.Child(root, "keepAliveInterval"))) * time.Second,
	}, nil
}

// Append appends the encoding of v to dst.
func (v Traversal) Append(dst []byte) ([]byte, error) {
	var f []per.Field
	channel := func(name string, a netip.AddrPort) {
		if a.IsValid() {
			f = append(f, per.F(name, MediaAddress(a)))
		}
	}
	channel("multiplexedMediaChannel", v.MediaChannel)
	channel("multiplexedMediaControlChannel", v.MediaControlChannel)
	if v.Multiplexed {
		f = append(f, per.F("multiplexID", per.Number(int64(v.MultiplexID))))
	}
	channel("keepAliveChannel", v.KeepAliveChannel)
	if v.KeepAlive {
		f = append(f, per.F("keepAlivePayloadType", per.Number(int64(v.KeepAlivePayload))))
	}
	if v.KeepAliveInterval > 0 {
		f = append(f, per.F("keepAliveInterval", per.Number(int64(v.KeepAliveInterval/time.Second))))
	}
	return schema.Tables().Encode(dst, schema.H460TraversalParameters, per.Fields(f...))
}
