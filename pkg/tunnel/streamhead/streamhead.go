// Package streamhead is what a stream of a session says first: what it is for.
//
// A device opens a stream at its relay to reach a service of another; the relay offers it to that device, or asks another
// relay, once. All of it is read from whoever is authenticated but not trusted: a head is exact, or it is refused.
//
//	agent A ──Open(B, service)──► relay ──Offer(A, service)──► agent B
//	                              relay ──Hop(B, A, service)──► relay ──Offer──► agent B
//	agent A ──Bulk(B, token)───► relay ──BulkOffer(A, token)──► agent B      for a stream between them that is worth it
//	octets: kind 1 | flags 1 | peer 32 | caller 32, in a Hop only | token 16, of bulk only | service, the rest (1-63)
//
// Kinds from [FirstOther] on belong to others, whose heads are not read here.
package streamhead

import (
	"errors"
	"fmt"

	"edged.dev/edged/pkg/tunnel/device"
)

// Kind is the first octet of a head.
type Kind uint8

// The kinds.
const (
	Open     Kind = 1 // a device wants a service of Peer
	Offer    Kind = 2 // Peer wants a service of the device that gets this
	Hop      Kind = 3 // a relay passes on what Caller wants of Peer; it is not passed on again
	Presence Kind = 4 // a device asks who is there; it has no more octets

	// Bulk and BulkOffer open the control stream of package bulk for a stream that was opened before, which Token
	// names to its two ends. The relay's first octets on it are a ticket.
	Bulk      Kind = 5
	BulkOffer Kind = 6

	FirstOther Kind = 16 // the kinds from here to LastOther are for mailboxes
	LastOther  Kind = 31
)

// flagDatagrams says that the stream carries datagrams beside its bytes.
const flagDatagrams = 1

// Head is what a stream of the kinds above is for.
type Head struct {
	Kind      Kind
	Datagrams bool
	Peer      device.ID
	Caller    device.ID // in a Hop
	Token     [16]byte  // of bulk
	Service   string
}

// MarshalBinary writes the head; it is an error if its service has no valid name.
func (h Head) MarshalBinary() ([]byte, error) {
	flags := byte(0)
	if h.Datagrams {
		flags = flagDatagrams
	}
	b := []byte{byte(h.Kind), flags}
	switch h.Kind {
	case Presence:
		return b[:1], nil
	case Open, Offer:
		b = append(b, h.Peer[:]...)
	case Hop:
		b = append(append(b, h.Peer[:]...), h.Caller[:]...)
	case Bulk, BulkOffer:
		b = append(append(b, h.Peer[:]...), h.Token[:]...)
	default:
		return nil, fmt.Errorf("no head of kind %d", h.Kind)
	}
	if err := device.CheckName(h.Service); err != nil {
		return nil, fmt.Errorf("service: %w", err)
	}
	return append(b, h.Service...), nil
}

var errShort = errors.New("the head of the stream is cut short")

// Parse reads a head of the kinds above.
func Parse(b []byte) (Head, error) {
	if len(b) == 0 {
		return Head{}, errShort
	}
	h := Head{Kind: Kind(b[0])}
	ids, token := 1, 0
	switch h.Kind {
	case Presence:
		if len(b) != 1 {
			return Head{}, errors.New("more than the head is there")
		}
		return h, nil
	case Open, Offer:
	case Hop:
		ids = 2
	case Bulk, BulkOffer:
		token = len(h.Token)
	default:
		return Head{}, fmt.Errorf("streams of kind %d are not known", b[0])
	}
	const size = len(device.ID{})
	if len(b) < 2+ids*size+token {
		return Head{}, errShort
	}
	if b[1]&^flagDatagrams != 0 {
		return Head{}, fmt.Errorf("flags %#x are not known", b[1])
	}
	h.Datagrams = b[1]&flagDatagrams != 0
	h.Peer = device.ID(b[2 : 2+size])
	if ids == 2 {
		h.Caller = device.ID(b[2+size : 2+2*size])
	}
	rest := b[2+ids*size:]
	copy(h.Token[:], rest[:token])
	h.Service = string(rest[token:])
	if err := device.CheckName(h.Service); err != nil {
		return Head{}, fmt.Errorf("service: %w", err)
	}
	return h, nil
}
