// Package h245 is a view of H.245 messages (v16) for the engine: which message,
// which channel, and where each transport address is. It knows where things are
// and changes them by a per.Editor; what is to be done with them is pkg/h323's.
//
// A message comes by itself (an H.245 connection, several in one TPKT), or
// inside of H.225.0 (tunnelled, or an OpenLogicalChannel of fastStart); then it
// is a part of the tree of the H.225.0 message, and is seen with At.
//
//	TPKT ─► Decode ─► Message ─► Kind, Channel, Addresses ─► Address.Set(editor, to)
//	h225 item ─► At ──┘              (fastStart: ChannelAt)          editor.Apply
package h245

import (
	"fmt"
	"iter"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
)

// Kind is the name of a message as in H.245, whatever of request, response,
// command or indication it is.
type Kind string

// The messages that the engine tells apart.
const (
	MasterSlaveDetermination Kind = "masterSlaveDetermination"
	TerminalCapabilitySet    Kind = "terminalCapabilitySet"
	OpenLogicalChannel       Kind = "openLogicalChannel"
	OpenLogicalChannelAck    Kind = "openLogicalChannelAck"
	OpenLogicalChannelReject Kind = "openLogicalChannelReject"
	CloseLogicalChannel      Kind = "closeLogicalChannel"
	CloseLogicalChannelAck   Kind = "closeLogicalChannelAck"
	RequestChannelClose      Kind = "requestChannelClose"
	EndSession               Kind = "endSessionCommand"
	CommunicationModeCommand Kind = "communicationModeCommand"
	CommunicationModeReply   Kind = "communicationModeResponse"
	MCLocationIndication     Kind = "mcLocationIndication"
	RoundTripDelayRequest    Kind = "roundTripDelayRequest"
	UserInput                Kind = "userInput"
)

// Message is one H.245 message in a tree.
type Message struct {
	Tree *per.Tree
	Root per.Ref // the MultimediaSystemControlMessage
	Kind Kind    // empty for a message newer than the schema
	Body per.Ref // its contents
}

// NewDecoder returns a decoder for Decode.
func NewDecoder() *per.Decoder { return per.NewDecoder(schema.Tables()) }

// NewEditor returns an editor for the trees of all packages of pkg/h323.
func NewEditor() *per.Editor { return per.NewEditor(schema.Tables()) }

// Decode decodes the first message in b; rest is what follows it, which is another
// message or nothing. The message is valid until the next Decode with d.
func Decode(d *per.Decoder, b []byte) (m Message, rest []byte, err error) {
	t, err := d.Decode(schema.H245MultimediaSystemControlMessage, b)
	if err != nil {
		return Message{}, nil, fmt.Errorf("h245: %w", err)
	}
	return At(t, t.Root()), t.Rest(), nil
}

// At views the MultimediaSystemControlMessage at root in a tree, or inside an
// OCTET STRING there. Kind is empty if there is none that could be decoded.
func At(t *per.Tree, root per.Ref) Message {
	if in := t.Inside(root); in != per.None {
		root = in
	}
	m := Message{Tree: t, Root: root, Body: per.None}
	if t.Type(root) != schema.H245MultimediaSystemControlMessage {
		return m
	}
	_, class := t.Chosen(root)
	name, body := t.Chosen(class)
	m.Kind, m.Body = Kind(name), body
	return m
}

// Append encodes a message of our own: class is request, response, command or
// indication, v the contents as per's Value.
func Append(dst []byte, class string, kind Kind, v per.Value) ([]byte, error) {
	return schema.Tables().Encode(dst, schema.H245MultimediaSystemControlMessage,
		per.Alternative(class, per.Alternative(string(kind), v)))
}

// Media is what a channel carries.
type Media uint8

// Kinds of media. None is a direction of a channel that is not there.
const (
	None Media = iota
	Audio
	Video
	Data
	T120
	Other // encryption control, non-standard, multiplexed streams
)

// Flow is one direction of a channel.
type Flow struct {
	Media               Media
	Codec               string // the name of the capability, for logs: "g711Alaw64k"
	MediaChannel        Address
	MediaControlChannel Address
}

// Channel is what OpenLogicalChannel and its Ack, a Close or Reject say of a channel.
type Channel struct {
	Number        uint16 // forwardLogicalChannelNumber, 1..65535
	ReverseNumber uint16 // of an Ack; 0 if there is none
	SessionID     uint8  // 0 if the master is to choose, or if it is absent
	Forward       Flow   // sent by the sender of the OpenLogicalChannel; of an Ack, what the acker receives
	Reverse       Flow   // sent to it
	Bidirectional bool   // both directions are in this channel
	SeparateStack Address
	SetupProc     string // t120SetupProcedure: originateCall, waitForCall, issueQuery or empty
	Generic       bool   // genericInformation is there (H.460.19, H.460.24)
	Ref           per.Ref
}

// Channel views the channel of an OpenLogicalChannel, its Ack, Reject or a Close;
// false for other messages.
func (m Message) Channel() (Channel, bool) {
	switch m.Kind {
	case OpenLogicalChannel:
		return ChannelAt(m.Tree, m.Body)
	case OpenLogicalChannelAck:
		return ack(m.Tree, m.Body), true
	case OpenLogicalChannelReject, CloseLogicalChannel, CloseLogicalChannelAck, RequestChannelClose:
		return Channel{Number: number(m.Tree, m.Body, "forwardLogicalChannelNumber"), Ref: m.Body}, true
	}
	return Channel{}, false
}

// ChannelAt views an OpenLogicalChannel, or that inside an OCTET STRING (an item of
// fastStart); false if it could not be decoded.
func ChannelAt(t *per.Tree, r per.Ref) (Channel, bool) {
	if in := t.Inside(r); in != per.None {
		r = in
	}
	if t.Type(r) != schema.H245OpenLogicalChannel {
		return Channel{}, false
	}
	c := channel(t, r)
	forward := t.Child(r, "forwardLogicalChannelParameters")
	reverse := t.Child(r, "reverseLogicalChannelParameters")
	c.Forward = flow(t, forward)
	c.Reverse = flow(t, reverse)
	c.Bidirectional = c.Forward.Media != None && c.Reverse.Media != None
	for _, p := range []per.Ref{forward, reverse} {
		if id := t.Find(p, "multiplexParameters", "h2250LogicalChannelParameters", "sessionID"); c.SessionID == 0 {
			c.SessionID = uint8(t.Int(id))
		}
	}
	return c, true
}

// ack views an OpenLogicalChannelAck.
func ack(t *per.Tree, r per.Ref) Channel {
	c := channel(t, r)
	forward := t.Find(r, "forwardMultiplexAckParameters", "h2250LogicalChannelAckParameters")
	reverse := t.Child(r, "reverseLogicalChannelParameters")
	c.ReverseNumber = number(t, reverse, "reverseLogicalChannelNumber")
	c.Bidirectional = reverse != per.None
	c.Forward = channels(t, forward)
	c.Reverse = channels(t, t.Find(reverse, "multiplexParameters", "h2250LogicalChannelParameters"))
	c.SessionID = uint8(t.Int(t.Child(forward, "sessionID")))
	return c
}

// channel views what OpenLogicalChannel and its Ack have in common.
func channel(t *per.Tree, r per.Ref) Channel {
	stack := t.Child(r, "separateStack")
	c := Channel{Number: number(t, r, "forwardLogicalChannelNumber"), Ref: r}
	if a := t.Find(stack, "networkAddress", "localAreaAddress"); a != per.None {
		c.SeparateStack = address(t, a)
	}
	c.SetupProc, _ = t.Chosen(t.Child(stack, "t120SetupProcedure"))
	c.Generic = t.Child(r, "genericInformation") != per.None
	return c
}

func number(t *per.Tree, r per.Ref, name string) uint16 {
	return uint16(t.Int(t.Child(r, name)))
}

// flow views forward- or reverseLogicalChannelParameters.
func flow(t *per.Tree, params per.Ref) Flow {
	f := channels(t, t.Find(params, "multiplexParameters", "h2250LogicalChannelParameters"))
	f.Media, f.Codec = media(t, t.Child(params, "dataType"))
	return f
}

func channels(t *per.Tree, h2250 per.Ref) Flow {
	var f Flow
	if a := t.Child(h2250, "mediaChannel"); a != per.None {
		f.MediaChannel = address(t, a)
	}
	if a := t.Child(h2250, "mediaControlChannel"); a != per.None {
		f.MediaControlChannel = address(t, a)
	}
	return f
}

// media says what a DataType is.
func media(t *per.Tree, dataType per.Ref) (Media, string) {
	if dataType == per.None {
		return None, ""
	}
	name, v := t.Chosen(dataType)
	if name == "h235Media" { // encrypted: what it is, is one level down
		name, v = t.Chosen(t.Child(v, "mediaType"))
	}
	switch name {
	case "nullData":
		return None, ""
	case "audioData":
		codec, _ := t.Chosen(v)
		return Audio, codec
	case "videoData":
		codec, _ := t.Chosen(v)
		return Video, codec
	case "data":
		app, _ := t.Chosen(t.Child(v, "application"))
		if app == "t120" {
			return T120, app
		}
		return Data, app
	}
	return Other, name
}

// Generic finds the parameter of a generic message or of genericInformation that
// is known by a standard object identifier (dotted), such as "0.0.8.460.19.0.1" of
// H.460.19: its octets' node, None if it is not there.
func Generic(t *per.Tree, r per.Ref, oid string, parameter int64) per.Ref {
	for g := range each(t, r, schema.H245GenericMessage) {
		if per.DottedOID(t.Octets(t.Find(g, "messageIdentifier", "standard"))) != oid {
			continue
		}
		for p := range t.Elems(t.Child(g, "messageContent")) {
			id := t.Find(p, "parameterIdentifier", "standard")
			if id != per.None && t.Int(id) == parameter {
				return t.Find(p, "parameterValue", "octetString")
			}
		}
	}
	return per.None
}

// each yields the nodes of type id in r and inside of it.
func each(t *per.Tree, r per.Ref, id per.TypeID) iter.Seq[per.Ref] {
	return func(yield func(per.Ref) bool) {
		if r == per.None {
			return
		}
		for n := r; n < t.Next(r); n++ {
			if t.Type(n) == id && !yield(n) {
				return
			}
		}
	}
}

// GenericInformation is an element of genericInformation with one parameter of octets,
// for a standard object identifier (dotted).
func GenericInformation(oid string, parameter int64, octets []byte) per.Value {
	return per.Fields(
		per.F("messageIdentifier", per.Alternative("standard", per.Identifier(oid))),
		per.F("messageContent", per.Elements(per.Fields(
			per.F("parameterIdentifier", per.Alternative("standard", per.Number(parameter))),
			per.F("parameterValue", per.Alternative("octetString", per.Octet(octets)))))))
}
