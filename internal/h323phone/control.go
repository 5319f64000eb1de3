package h323phone

import (
	"fmt"
	"net/netip"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
)

// The numbers of the channels that a phone opens.
const (
	audioChannel = 1
	backChannel  = 2 // proposed for the other direction in a fast start
	dataChannel  = 101
)

// control sends a message of H.245, by whatever carries it.
func (c *Call) say(class string, kind h245.Kind, v per.Value) error {
	b, err := h245.Append(nil, class, kind, v)
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if c.tunnels() {
		return c.tunnel(b)
	}
	if c.h245 == nil {
		c.waiting = append(c.waiting, b)
		return nil
	}
	return write(c.h245, b)
}

func (c *Call) tunnel(b []byte) error {
	return c.send(q931.Facility, h225.Empty, per.Nothing(), per.F("h245Control", per.Elements(per.Octet(b))))
}

// begin says what a phone can do, and determines the master.
func (c *Call) begin() error {
	c.state.CapsSent = true
	if err := c.say("request", h245.TerminalCapabilitySet, per.Fields(
		per.F("sequenceNumber", per.Number(1)), per.F("protocolIdentifier", per.Identifier(h245ID)))); err != nil {
		return err
	}
	kind := int64(50)
	if c.caller {
		kind = 60
	}
	return c.say("request", h245.MasterSlaveDetermination, per.Fields(
		per.F("terminalType", per.Number(kind)), per.F("statusDeterminationNumber", per.Number(kind*1000))))
}

// control handles what came by H.245: one message or several.
func (c *Call) control(b []byte) error {
	for len(b) > 0 {
		m, rest, err := h245.Decode(h245.NewDecoder(), b)
		if err != nil {
			return err
		}
		if err := c.heard(m); err != nil {
			return fmt.Errorf("%s: %w", m.Kind, err)
		}
		b = rest
	}
	return nil
}

func (c *Call) heard(m h245.Message) error {
	switch m.Kind {
	case h245.TerminalCapabilitySet:
		if !c.state.CapsSent {
			if err := c.begin(); err != nil {
				return err
			}
		}
		return c.say("response", "terminalCapabilitySetAck", per.Fields(per.F("sequenceNumber", per.Number(1))))
	case h245.MasterSlaveDetermination:
		decision := "master" // what the other is
		if c.caller {
			decision = "slave"
		}
		return c.say("response", "masterSlaveDeterminationAck", per.Fields(
			per.F("decision", per.Alternative(decision, per.Nothing()))))
	case "terminalCapabilitySetAck":
		c.state.CapsAcked = true
		return c.openAudio()
	case "masterSlaveDeterminationAck":
		c.state.Master = true
		return c.openAudio()
	case "genericRequest":
		return c.token("response", "genericResponse", tokenResponse)
	case "genericResponse":
		return c.present()
	case h245.OpenLogicalChannel:
		ch, _ := m.Channel()
		if err := c.traversed(m, ch); err != nil {
			return err
		}
		if err := c.keepAlive(m, ch); err != nil {
			return err
		}
		return c.accept(ch)
	case h245.OpenLogicalChannelAck:
		ch, _ := m.Channel()
		if err := c.traversed(m, ch); err != nil {
			return err
		}
		return c.acked(ch)
	}
	return nil
}

// params are the H2250LogicalChannelParameters of audio.
func params(rtp, rtcp netip.AddrPort) per.Value {
	f := []per.Field{per.F("sessionID", per.Number(1))}
	if rtp.IsValid() {
		f = append(f, per.F("mediaChannel", h245.MediaAddress(rtp)))
	}
	return per.Alternative("h2250LogicalChannelParameters", per.Fields(append(f, per.F("mediaControlChannel", h245.MediaAddress(rtcp)))...))
}

func audio() per.Value {
	return per.Alternative("audioData", per.Alternative("g711Alaw64k", per.Number(20)))
}

func forward(rtp, rtcp netip.AddrPort) per.Field {
	return per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", audio()), per.F("multiplexParameters", params(rtp, rtcp))))
}

func backward(rtp, rtcp netip.AddrPort) []per.Field {
	return []per.Field{
		per.F("forwardLogicalChannelParameters", per.Fields(per.F("dataType", per.Alternative("nullData", per.Nothing())),
			per.F("multiplexParameters", per.Alternative("none", per.Nothing())))),
		per.F("reverseLogicalChannelParameters", per.Fields(per.F("dataType", audio()), per.F("multiplexParameters", params(rtp, rtcp)))),
	}
}

func number(n int64) per.Field { return per.F("forwardLogicalChannelNumber", per.Number(n)) }

// openAudio opens the channel for what this phone sends, once capabilities and roles are known.
func (c *Call) openAudio() error {
	if !c.state.CapsAcked || !c.state.Master || c.state.Opened {
		return nil
	}
	c.state.Opened = true
	if !c.state.Fast {
		if err := c.say("request", h245.OpenLogicalChannel, per.Fields(
			append(c.shares(false), number(audioChannel), forward(netip.AddrPort{}, c.media.rtcpAddr()))...)); err != nil {
			return err
		}
	}
	if err := c.openVideo(); err != nil {
		return err
	}
	if !c.caller || !c.phone.Mode.T120 && !c.phone.Mode.T120InAck {
		return nil
	}
	return c.openData()
}

// accept takes a channel that the other side opens.
func (c *Call) accept(ch h245.Channel) error {
	if ch.Forward.Media == h245.T120 {
		return c.acceptData(ch)
	}
	if ch.Forward.Media == h245.Video {
		return c.acceptVideo(ch)
	}
	err := c.say("response", h245.OpenLogicalChannelAck, per.Fields(append(c.shares(true), number(int64(ch.Number)),
		per.F("forwardMultiplexAckParameters", per.Alternative("h2250LogicalChannelAckParameters", per.Fields(
			per.F("sessionID", per.Number(1)), per.F("mediaChannel", h245.MediaAddress(c.media.rtpAddr())),
			per.F("mediaControlChannel", h245.MediaAddress(c.media.rtcpAddr())), per.F("flowControlToZero", per.Truth(false))))))...))
	c.state.Receives = true
	c.announce()
	return err
}

// acked begins to send to where the other side receives.
func (c *Call) acked(ch h245.Channel) error {
	if ch.Number == dataChannel {
		if ch.SeparateStack.Valid() {
			return c.data.dial(ch.SeparateStack.AddrPort)
		}
		return nil
	}
	if !ch.Forward.MediaChannel.Valid() {
		return fmt.Errorf("the acknowledgement names no mediaChannel")
	}
	if c.ackedVideo(ch) {
		return nil
	}
	c.talkTo(ch.Forward.MediaChannel.AddrPort)
	return nil
}

func (c *Call) talkTo(to netip.AddrPort) {
	c.media.talk(to)
	c.state.Sends = true
	c.announce()
}

func (c *Call) announce() {
	if c.state.Sends && c.state.Receives && !c.state.Announced {
		c.state.Announced = true
		close(c.open)
	}
}

// proposals are the channels of a fast start: one each way.
func (c *Call) proposals() per.Value {
	return per.Elements(
		per.Encoded(per.Fields(number(audioChannel), forward(netip.AddrPort{}, c.media.rtcpAddr()))),
		per.Encoded(per.Fields(append([]per.Field{number(backChannel)}, backward(c.media.rtpAddr(), c.media.rtcpAddr())...)...)))
}

// takeFast handles fastStart: proposals are answered, answers are used.
func (c *Call) takeFast(m *h225.Message, items []per.Ref) (answers []per.Value, err error) {
	if !c.phone.Mode.FastStart {
		return nil, nil
	}
	for _, r := range items {
		ch, ok := h245.ChannelAt(m.Tree, r)
		if !ok {
			return nil, fmt.Errorf("a fastStart item was not understood")
		}
		forwards := ch.Forward.Media != h245.None
		c.state.Fast = true
		switch {
		case c.caller && forwards:
			c.talkTo(ch.Forward.MediaChannel.AddrPort)
		case c.caller:
			c.state.Receives = true
			c.announce()
		case forwards: // the caller will send
			c.state.Receives = true
			answers = append(answers, per.Encoded(per.Fields(number(int64(ch.Number)), forward(c.media.rtpAddr(), c.media.rtcpAddr()))))
		default: // the answer repeats where the caller receives
			c.talkTo(ch.Reverse.MediaChannel.AddrPort)
			answers = append(answers, per.Encoded(per.Fields(append([]per.Field{number(int64(ch.Number))},
				backward(ch.Reverse.MediaChannel.AddrPort, c.media.rtcpAddr())...)...)))
		}
	}
	return answers, nil
}
