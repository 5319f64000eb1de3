// Package ras is a view of H.225.0 RAS (v7): one message in a UDP datagram, bare
// PER. It finds the transport addresses, aliases, identifiers and lifetimes of
// every message and changes them in place; it matches no replies to requests
// and registers nobody.
//
//	datagram ─► Codec.Decode ─► Message ─► Addresses, SeqNum, TimeToLive …
//	                │                          │
//	datagram ◄─ Codec.Apply ◄─ Codec.Editor ◄──┘
//	Append ─► datagram of our own
package ras

import (
	"errors"
	"fmt"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
)

// Kind is the name of a message as in H.225.0.
type Kind string

// The messages.
const (
	GRQ  Kind = "gatekeeperRequest"
	GCF  Kind = "gatekeeperConfirm"
	GRJ  Kind = "gatekeeperReject"
	RRQ  Kind = "registrationRequest"
	RCF  Kind = "registrationConfirm"
	RRJ  Kind = "registrationReject"
	URQ  Kind = "unregistrationRequest"
	UCF  Kind = "unregistrationConfirm"
	URJ  Kind = "unregistrationReject"
	ARQ  Kind = "admissionRequest"
	ACF  Kind = "admissionConfirm"
	ARJ  Kind = "admissionReject"
	BRQ  Kind = "bandwidthRequest"
	BCF  Kind = "bandwidthConfirm"
	BRJ  Kind = "bandwidthReject"
	DRQ  Kind = "disengageRequest"
	DCF  Kind = "disengageConfirm"
	DRJ  Kind = "disengageReject"
	LRQ  Kind = "locationRequest"
	LCF  Kind = "locationConfirm"
	LRJ  Kind = "locationReject"
	IRQ  Kind = "infoRequest"
	IRR  Kind = "infoRequestResponse"
	NSM  Kind = "nonStandardMessage"
	XRS  Kind = "unknownMessageResponse"
	RIP  Kind = "requestInProgress"
	RAI  Kind = "resourcesAvailableIndicate"
	RAC  Kind = "resourcesAvailableConfirm"
	IACK Kind = "infoRequestAck"
	INAK Kind = "infoRequestNak"
	SCI  Kind = "serviceControlIndication"
	SCR  Kind = "serviceControlResponse"
)

// Codec decodes and edits one message at a time, and keeps its memory from one to
// the next. Not for concurrent use.
type Codec struct {
	dec *per.Decoder
	ed  *per.Editor
	msg Message
}

// NewCodec returns a Codec.
func NewCodec() *Codec {
	return &Codec{dec: per.NewDecoder(schema.Tables()), ed: per.NewEditor(schema.Tables())}
}

// Message is a decoded message, valid until the next Decode of its Codec.
type Message struct {
	Tree *per.Tree
	Kind Kind    // empty for a message newer than the schema
	Body per.Ref // its contents
}

// Decode decodes a datagram, which must not change while the message is in use.
func (c *Codec) Decode(datagram []byte) (*Message, error) {
	c.msg = Message{Body: per.None}
	t, err := c.dec.Decode(schema.H225RasMessage, datagram)
	if err != nil {
		return nil, fmt.Errorf("ras: %w", err)
	}
	name, body := t.Chosen(t.Root())
	c.msg = Message{Tree: t, Kind: Kind(name), Body: body}
	c.ed.Begin(t)
	return &c.msg, nil
}

// Editor edits the message that was decoded last.
func (c *Codec) Editor() *per.Editor { return c.ed }

// Apply appends the datagram with all edits to dst; without edits as it came. On
// an error dst is returned as it was.
func (c *Codec) Apply(dst []byte) ([]byte, error) {
	t := c.msg.Tree
	if t == nil {
		return dst, errors.New("ras: no message to write")
	}
	if !c.ed.Changed() {
		return append(append(dst, t.Source()...), t.Rest()...), nil
	}
	out, err := c.ed.Apply(dst)
	if err != nil {
		return dst, fmt.Errorf("ras: %w", err)
	}
	return append(out, t.Rest()...), nil
}

// Append encodes a message of our own.
func Append(dst []byte, k Kind, fields ...per.Field) ([]byte, error) {
	return schema.Tables().Encode(dst, schema.H225RasMessage, per.Alternative(string(k), per.Fields(fields...)))
}

func (m *Message) child(name string) per.Ref { return m.Tree.Child(m.Body, name) }

// SeqNum returns the requestSeqNum, 1..65535; 0 if there is none.
func (m *Message) SeqNum() uint16 { return uint16(m.Tree.Int(m.child("requestSeqNum"))) }

// EndpointID returns the endpointIdentifier; empty if absent.
func (m *Message) EndpointID() string { return m.Tree.Text(m.child("endpointIdentifier")) }

// GatekeeperID returns the gatekeeperIdentifier; empty if absent.
func (m *Message) GatekeeperID() string { return m.Tree.Text(m.child("gatekeeperIdentifier")) }

// TimeToLive returns the lifetime of a registration (RRQ, RCF) or gatekeeper's advice; false
// if absent.
func (m *Message) TimeToLive() (time.Duration, bool) {
	r := m.child("timeToLive")
	return time.Duration(m.Tree.Int(r)) * time.Second, r != per.None
}

// SetTimeToLive sets the lifetime, 1 s .. 2³²-1 s, where there is one.
func (c *Codec) SetTimeToLive(d time.Duration) error {
	return c.ed.SetInt(c.msg.child("timeToLive"), int64(d/time.Second))
}

// KeepAlive tells whether an RRQ only refreshes a registration.
func (m *Message) KeepAlive() bool { return m.Tree.Int(m.child("keepAlive")) != 0 }

// CallID returns the callIdentifier; false if absent.
func (m *Message) CallID() (h225.ID, bool) {
	return m.id(m.Tree.Find(m.Body, "callIdentifier", "guid"))
}

// ConferenceID returns the conferenceID; false if absent.
func (m *Message) ConferenceID() (h225.ID, bool) { return m.id(m.child("conferenceID")) }

func (m *Message) id(r per.Ref) (h225.ID, bool) {
	if r == per.None {
		return h225.ID{}, false
	}
	return h225.ID(m.Tree.Octets(r)), true
}

// CallRef returns the callReferenceValue; false if absent.
func (m *Message) CallRef() (uint16, bool) {
	r := m.child("callReferenceValue")
	return uint16(m.Tree.Int(r)), r != per.None
}

// RejectReason returns the name of the reason of a reject, such as
// "duplicateAlias"; empty if there is none.
func (m *Message) RejectReason() string {
	name, _ := m.Tree.Chosen(m.child("rejectReason"))
	return name
}

// Addresses appends every IP transport address of the message.
func (m *Message) Addresses(dst []h245.Address) []h245.Address {
	return h245.Addresses(dst, m.Tree, m.Tree.Root())
}

// Aliases appends the aliases of the message.
func (m *Message) Aliases(dst []h225.Alias) []h225.Alias {
	return h225.Aliases(dst, m.Tree, m.Tree.Root())
}

// Features appends the features and generic data of the message.
func (m *Message) Features(dst []h225.Feature) []h225.Feature { return h225.Features(dst, m.Tree) }

// Protection tells what H.235 tokens cover.
func (m *Message) Protection() h225.Protection { return h225.ProtectionOf(m.Tree) }
