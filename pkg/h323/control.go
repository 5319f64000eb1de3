package h323

import (
	"fmt"
	"net/netip"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/pinhole"
)

// H.245: what is said of logical channels, on a connection of its own or tunnelled.

// controlCodec decodes and edits H.245 on its own connection.
type controlCodec struct {
	decoder *per.Decoder
	editor  *per.Editor
}

func newControlCodec() controlCodec { return controlCodec{h245.NewDecoder(), h245.NewEditor()} }

// Control handles the payload of a TPKT on an H.245 connection: one message or several in a row. It returns
// what the other side gets. After an error the connection should be closed: what follows cannot be trusted.
func (c *Core) Control(now time.Time, k *call, from pinhole.Side, payload []byte) ([]byte, error) {
	if k.channels == nil {
		return nil, fmt.Errorf("the call has ended: %w", pinhole.ErrClosed)
	}
	var out []byte
	for rest := payload; len(rest) > 0; {
		m, after, err := h245.Decode(c.control.decoder, rest)
		if err != nil {
			c.counts.drop(droppedMalformed)
			return nil, err
		}
		c.counts.control++
		if k.traverses[from] && h245.Generic(m.Tree, m.Body, controlTraversal, 1) != per.None {
			rest = after // says to the edge for which call the connection is
			continue
		}
		c.control.editor.Begin(m.Tree)
		x := exchange{core: c, call: k, from: from, now: now, tree: m.Tree, editor: c.control.editor}
		if err := x.h245(m); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Kind, err)
		}
		if !x.editor.Changed() {
			out = append(out, m.Tree.Source()...)
		} else if out, err = x.editor.Apply(out); err != nil {
			c.counts.drop(droppedEdit)
			return nil, fmt.Errorf("%s: %w", m.Kind, err)
		}
		rest = after
	}
	return out, nil
}

// h245 edits a message. Those that name no address and open or close nothing pass as they are.
func (x *exchange) h245(m h245.Message) error {
	switch m.Kind {
	case h245.OpenLogicalChannel:
		ch, ok := m.Channel()
		if !ok {
			return nil
		}
		return x.open(channelKey{x.from, ch.Number}, ch)
	case h245.OpenLogicalChannelAck:
		ch, ok := m.Channel()
		if !ok {
			return nil
		}
		return x.acknowledge(channelKey{x.from.Other(), ch.Number}, ch)
	case h245.OpenLogicalChannelReject:
		if ch, ok := m.Channel(); ok {
			x.core.closeChannel(x.call, channelKey{x.from.Other(), ch.Number})
		}
	case h245.CloseLogicalChannel:
		if ch, ok := m.Channel(); ok {
			x.core.closeChannel(x.call, channelKey{x.from, ch.Number})
		}
	case h245.CommunicationModeCommand, h245.CommunicationModeReply:
		return x.communicationMode(m)
	case h245.MCLocationIndication:
		for _, a := range h245.Addresses(nil, m.Tree, m.Body) {
			if usable(a).IsValid() {
				return x.controlAddress(a)
			}
		}
	}
	return nil
}

// fastStart edits one item: an OpenLogicalChannel that proposes a channel, or takes one (H.323 §8.1.7). Its
// forward direction is always the caller's.
func (x *exchange) fastStart(r per.Ref) error {
	ch, ok := h245.ChannelAt(x.tree, r)
	if !ok {
		return nil // too new to be understood: it passes, and opens nothing
	}
	key := channelKey{pinhole.Near, ch.Number}
	if ch.Forward.Media == h245.None {
		key.opener = pinhole.Far
	}
	return x.open(key, ch)
}

// open edits an OpenLogicalChannel.
func (x *exchange) open(key channelKey, ch h245.Channel) error {
	if ch.SeparateStack.Valid() || ch.Forward.Media == h245.T120 {
		return x.data(key, ch)
	}
	return x.channel(key, ch, false)
}

// acknowledge edits an OpenLogicalChannelAck: a number of the other side's.
func (x *exchange) acknowledge(key channelKey, ch h245.Channel) error {
	if old := x.call.channels[key]; ch.SeparateStack.Valid() || old != nil && old.session == nil {
		return x.data(key, ch)
	}
	return x.channel(key, ch, true)
}

// channel edits the media addresses of a channel in an OpenLogicalChannel or its Ack.
func (x *exchange) channel(key channelKey, ch h245.Channel, ack bool) error {
	f, r := ch.Forward, ch.Reverse
	if !f.MediaChannel.Valid() && !f.MediaControlChannel.Valid() && !r.MediaChannel.Valid() && !r.MediaControlChannel.Valid() && ch.SessionID == 0 && !ch.Generic {
		return nil // no RTP: nothing to open
	}
	s, err := x.session(ch.SessionID, key)
	if err != nil {
		return err
	}
	if !x.offer {
		if err := x.enter(key, &channel{session: s}); err != nil {
			return err
		}
	}
	said, err := x.toServer(s, ch)
	if err != nil {
		return err
	}
	if err := x.media(s, f.MediaChannel, f.MediaControlChannel); err != nil {
		return err
	}
	if err := x.media(s, r.MediaChannel, r.MediaControlChannel); err != nil {
		return err
	}
	if said.Multiplexed && s.shared(x.from) {
		if _, _, err := x.place(s, said.MediaChannel, said.MediaControlChannel); err != nil {
			return err
		}
	}
	if err := x.dropDirect(ch); err != nil {
		return err
	}
	return x.traversal(s, ch, ack)
}

// enter notes that a channel is open.
func (x *exchange) enter(key channelKey, ch *channel) error {
	k := x.call
	if old := k.channels[key]; old != nil {
		if old.data == nil {
			old.session = ch.session
		}
		return nil
	}
	if len(k.channels) >= maxChannels {
		return errTooMany
	}
	k.channels[key] = ch
	return nil
}

// data edits the address of a T.120 channel, which may stand in the OpenLogicalChannel, in its Ack or in both
// (H.323 §6.2.7.1): the one who names it listens there.
func (x *exchange) data(key channelKey, ch h245.Channel) error {
	k, a := x.call, ch.SeparateStack
	old := k.channels[key]
	if old == nil {
		old = &channel{}
		if err := x.enter(key, old); err != nil {
			return err
		}
	}
	listens := usable(a)
	if !listens.IsValid() {
		return nil
	}
	if old.data == nil {
		req := x.request(pinhole.TCP, "t120", listens.Addr())
		req.Idle, req.Serve = quietTime, x.core.t120
		lease, err := x.join(req, listens)
		if err != nil {
			return err
		}
		old.data = lease
	} else if old.data.Local(x.from).Addr != listens {
		if err := old.data.Declare(x.from, x.remote(x.from, listens, netip.AddrPort{})); err != nil {
			return err
		}
	}
	return x.set(a, old.data.Local(x.from.Other()).Addr)
}

// communicationMode edits the table of a conference's sessions (H.245 §7.20): where the MC receives.
func (x *exchange) communicationMode(m h245.Message) error {
	list := h245.Addresses(nil, m.Tree, m.Body)
	for i, a := range list {
		entry := m.Tree.Parent(a.Ref)
		id := uint8(m.Tree.Int(m.Tree.Child(entry, "sessionID")))
		pair := [2]h245.Address{}
		switch {
		case a.Field == h245.MediaChannel:
			pair[0] = a
			if i+1 < len(list) && list[i+1].Field == h245.MediaControlChannel && m.Tree.Parent(list[i+1].Ref) == entry {
				pair[1] = list[i+1]
			}
		case a.Field == h245.MediaControlChannel && (i == 0 || m.Tree.Parent(list[i-1].Ref) != entry):
			pair[1] = a
		default:
			continue
		}
		s, err := x.session(id, channelKey{x.from, 0})
		if err == nil {
			err = x.media(s, pair[0], pair[1])
		}
		if err != nil {
			return err
		}
	}
	return nil
}
