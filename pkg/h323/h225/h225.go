// Package h225 is a view of H.225.0 call signalling (v7) for the engine: a Q.931
// message with its H323-UserInformation. It finds the call, the transport addresses,
// aliases, fastStart and tunnelled H.245 and changes them in place; it
// keeps no call and opens nothing. RAS, which shares the notation, is pkg/h323/ras.
//
//	payload of a TPKT ─► Codec.Decode ─► Message ─► Addresses, FastStart, Tunnelled …
//	                                        │              │ h245.At, h245.ChannelAt
//	     bytes ◄─ Codec.Apply ◄─ Message.Edit ◄────────────┘
//	Build ─► payload of our own
package h225

import (
	"errors"
	"fmt"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// ID is a GloballyUniqueID: a callIdentifier or conferenceID.
type ID [16]byte

// Body is the name of the h323-message-body.
type Body string

// The bodies. Any of them may carry tunnelled H.245; Empty carries nothing else.
const (
	Setup            Body = "setup"
	CallProceeding   Body = "callProceeding"
	Connect          Body = "connect"
	Alerting         Body = "alerting"
	Information      Body = "information"
	ReleaseComplete  Body = "releaseComplete"
	Facility         Body = "facility"
	Progress         Body = "progress"
	Empty            Body = "empty"
	Status           Body = "status"
	StatusInquiry    Body = "statusInquiry"
	SetupAcknowledge Body = "setupAcknowledge"
	Notify           Body = "notify"
)

// Codec decodes and edits one message at a time, and keeps its memory from one to
// the next. Not for concurrent use.
type Codec struct {
	dec *per.Decoder
	ed  *per.Editor
	msg Message
	per []byte
}

// NewCodec returns a Codec.
func NewCodec() *Codec {
	return &Codec{dec: per.NewDecoder(schema.Tables()), ed: h245.NewEditor()}
}

// Message is a decoded message, valid until the next Decode of its Codec.
type Message struct {
	q931.Message
	Tree *per.Tree // nil if the message has no User-User element
	Body Body      // empty then, or if the body is newer than the schema
	pdu  per.Ref   // h323-uu-pdu
	body per.Ref
}

// Decode decodes the payload of a TPKT, which must not change while the message is in use.
func (c *Codec) Decode(payload []byte) (*Message, error) {
	c.msg = Message{pdu: per.None, body: per.None}
	q, err := q931.Parse(payload)
	if err != nil {
		return nil, fmt.Errorf("h225: %w", err)
	}
	c.msg.Message = q
	if q.UserUser() == nil {
		return &c.msg, nil
	}
	t, err := c.dec.Decode(schema.H225H323UserInformation, q.UserUser())
	if err != nil {
		return nil, fmt.Errorf("h225: %w", err)
	}
	m := &c.msg
	m.Tree = t
	m.pdu = t.Child(t.Root(), "h323-uu-pdu")
	name, body := t.Chosen(t.Child(m.pdu, "h323-message-body"))
	m.Body, m.body = Body(name), body
	c.ed.Begin(t)
	return m, nil
}

// Editor edits the message that was decoded last. It must have a Tree.
func (c *Codec) Editor() *per.Editor { return c.ed }

// Apply appends the payload with all edits to dst. Without edits it is the payload as it
// came, also if Decode refused its PER; of a payload that is not Q.931 there is nothing to
// write. On an error dst is returned as it was.
func (c *Codec) Apply(dst []byte) ([]byte, error) {
	if c.msg.Empty() {
		return dst, errors.New("h225: no message to write")
	}
	if c.msg.Tree == nil || !c.ed.Changed() {
		return c.msg.AppendTo(dst), nil
	}
	out, err := c.ed.Apply(c.per[:0])
	if err != nil {
		return dst, fmt.Errorf("h225: %w", err)
	}
	c.per = append(out, c.msg.Tree.Rest()...)
	return c.msg.AppendWith(dst, c.per)
}

// Build appends a message of our own: elements are those of Q.931 beside the
// User-User element, info the H323-UserInformation.
func Build(dst []byte, t q931.Type, callRef uint16, fromDest bool, elements []q931.Element, info per.Value) ([]byte, error) {
	uu, err := schema.Tables().Encode(nil, schema.H225H323UserInformation, info)
	if err != nil {
		return dst, fmt.Errorf("h225: %w", err)
	}
	return q931.Append(dst, t, callRef, fromDest, elements, uu)
}

// Info is the H323-UserInformation with that body; more are further components of
// H323-UU-PDU, such as h245Tunnelling.
func Info(body Body, v per.Value, more ...per.Field) per.Value {
	return per.Fields(per.F("h323-uu-pdu", per.Fields(append([]per.Field{
		per.F("h323-message-body", per.Alternative(string(body), v)),
	}, more...)...)))
}

// BodyRef returns the body, for components that this view has no method for.
func (m *Message) BodyRef() per.Ref { return m.body }

// PDU returns the H323-UU-PDU, where generic data and tunnelled H.245 are added.
func (m *Message) PDU() per.Ref { return m.pdu }

// find follows names in the body; None without a tree.
func (m *Message) find(names ...string) per.Ref {
	if m.Tree == nil {
		return per.None
	}
	return m.Tree.Find(m.body, names...)
}

// CallID returns the callIdentifier; false if it is absent, as in version 1.
func (m *Message) CallID() (ID, bool) { return m.id(m.find("callIdentifier", "guid")) }

// ConferenceID returns the conferenceID of the body.
func (m *Message) ConferenceID() (ID, bool) { return m.id(m.find("conferenceID")) }

func (m *Message) id(r per.Ref) (ID, bool) {
	if r == per.None {
		return ID{}, false
	}
	return ID(m.Tree.Octets(r)), true
}

// Reason returns the name of the reason of a Facility or ReleaseComplete, such as
// "startH245"; empty if there is none.
func (m *Message) Reason() string {
	if m.Tree == nil {
		return ""
	}
	name, _ := m.Tree.Chosen(m.find("reason"))
	return name
}

// Addresses appends every IP transport address of the message, those in fastStart
// and tunnelled H.245 included.
func (m *Message) Addresses(dst []h245.Address) []h245.Address {
	if m.Tree == nil {
		return dst
	}
	return h245.Addresses(dst, m.Tree, m.Tree.Root())
}

// Tunnelling returns h245Tunnelling, and whether it is there.
func (m *Message) Tunnelling() (on, present bool) {
	if m.Tree == nil {
		return false, false
	}
	r := m.Tree.Child(m.pdu, "h245Tunnelling")
	return m.Tree.Int(r) != 0, r != per.None
}

// Tunnelled appends the items of h245Control, whatever the body is: OCTET STRINGs,
// for h245.At.
func (m *Message) Tunnelled(dst []per.Ref) []per.Ref {
	if m.Tree == nil {
		return dst
	}
	return m.items(dst, m.Tree.Child(m.pdu, "h245Control"))
}

// Parallel appends the items of parallelH245Control, for h245.At.
func (m *Message) Parallel(dst []per.Ref) []per.Ref {
	return m.items(dst, m.find("parallelH245Control"))
}

// FastStart appends the items of fastStart, for h245.ChannelAt.
func (m *Message) FastStart(dst []per.Ref) []per.Ref { return m.items(dst, m.find("fastStart")) }

func (m *Message) items(dst []per.Ref, list per.Ref) []per.Ref {
	if list == per.None {
		return dst
	}
	for r := range m.Tree.Elems(list) {
		dst = append(dst, r)
	}
	return dst
}
