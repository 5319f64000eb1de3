package h323phone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"edged.dev/edged/internal/per"
	"edged.dev/edged/internal/per/schema"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
)

// The client of H.460.18 and H.460.19: a phone behind a NAT.

const signallingTraversal = 18

// traversal is how GRQ and RRQ begin.
func (p *Phone) traversal() []per.Field {
	f := []per.Field{per.F("protocolIdentifier", per.Identifier(protocolID))}
	if !p.Mode.Traversal {
		return f
	}
	return append(f, per.F("featureSet", per.Fields(per.F("replacementFeatureSet", per.Truth(false)),
		per.F("supportedFeatures", per.Elements(h225.GenericData(signallingTraversal))))))
}

// Accept waits until the gatekeeper tells of a call, connects to where it says, and takes the call.
func (r *Registration) Accept(ctx context.Context) (*Call, error) {
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		_ = r.conn.SetReadDeadline(time.Now().Add(rasWait))
		n, err := r.conn.Read(buf)
		if err != nil {
			continue // nothing yet
		}
		m, err := ras.NewCodec().Decode(buf[:n])
		if err != nil {
			return nil, err
		}
		if m.Kind != ras.SCI {
			continue
		}
		at, id, err := incoming(m)
		if err != nil {
			return nil, err
		}
		b, err := ras.Append(nil, ras.SCR, per.F("requestSeqNum", per.Number(int64(m.SeqNum()))))
		if err == nil {
			_, err = r.conn.Write(b)
		}
		if err != nil {
			return nil, err
		}
		return r.phone.fetch(ctx, at, id)
	}
	return nil, ctx.Err()
}

// incoming reads an IncomingCallIndication.
func incoming(m *ras.Message) (at netip.AddrPort, id h225.ID, err error) {
	for _, f := range m.Features(nil) {
		_, content := f.Parameter(m.Tree, 1)
		if f.ID != signallingTraversal || content == per.None {
			continue
		}
		t, err := per.NewDecoder(schema.Tables()).Decode(schema.H460IncomingCallIndication, m.Tree.Octets(content))
		if err != nil {
			return at, id, err
		}
		for _, a := range h245.Addresses(nil, t, t.Root()) {
			at = a.AddrPort
		}
		return at, h225.ID(t.Octets(t.Find(t.Root(), "callID", "guid"))), nil
	}
	return at, id, errors.New("told of no call")
}

// fetch connects for a call, and says so.
func (p *Phone) fetch(ctx context.Context, at netip.AddrPort, id h225.ID) (*Call, error) {
	d := net.Dialer{Timeout: dialTime, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.addr, 0))}
	conn, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	b, err := h225.Build(nil, q931.Facility, 0, false, nil, h225.Info(h225.Facility, per.Fields(
		per.F("protocolIdentifier", per.Identifier(protocolID)), per.F("reason", per.Alternative("undefinedReason", per.Nothing())),
		per.F("callIdentifier", per.Fields(per.F("guid", per.Octet(id[:])))),
		per.F("multipleCalls", per.Truth(false)), per.F("maintainConnection", per.Truth(false)))))
	if err == nil {
		err = write(conn, b)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return p.take(ctx, conn)
}

// sayWhose tells, on an H.245 connection of its own making, which call it is for.
func (c *Call) sayWhose() error {
	if !c.phone.Mode.Traversal {
		return nil
	}
	return c.say("indication", "genericIndication", h245.GenericInformation("0.0.8.460.18.0.1", 1, c.id[:]))
}

// keepAlive opens the NAT for media where an OpenLogicalChannel asks for that.
func (c *Call) keepAlive(m h245.Message, ch h245.Channel) error {
	at := h245.TraversalAt(m.Tree, ch.Ref)
	if at == per.None || !c.phone.Mode.Traversal {
		return nil
	}
	v, err := h245.DecodeTraversal(m.Tree.Octets(at))
	if err != nil {
		return fmt.Errorf("traversal: %w", err)
	}
	if v.KeepAliveChannel.IsValid() {
		empty := [12]byte{0x80, v.KeepAlivePayload}
		_, err = c.media.rtp.WriteToUDPAddrPort(c.media.tagged(empty[:]), v.KeepAliveChannel)
	}
	return err
}

const (
	mediaTraversal      = 19
	transmitMultiplexed = 1
	// multiplexID is what packets to a phone begin with.
	multiplexID = 0x48460019
)

// multiplexing is the feature by which a phone says that it can send several channels to one port.
func multiplexing() per.Value {
	return h225.GenericData(mediaTraversal, per.Fields(per.F("id", per.Alternative("standard", per.Number(transmitMultiplexed)))))
}

// multiplexes notes whether the other side can do that too.
func (c *Call) multiplexes(m *h225.Message) {
	if !c.phone.Mode.Multiplex || m.Tree == nil {
		return
	}
	for _, f := range h225.Features(nil, m.Tree) {
		c.state.Multiplexed = c.state.Multiplexed || f.ID == mediaTraversal && f.Has(m.Tree, transmitMultiplexed)
	}
}

// shares says in an OpenLogicalChannel or its Ack where this phone shares ports, and with what its packets must begin.
func (c *Call) shares(ack bool) []per.Field {
	if !c.state.Multiplexed {
		return nil
	}
	id := uint32(multiplexID)
	c.media.own.Store(&id)
	v := h245.Traversal{
		MediaChannel: c.media.rtpAddr(), MediaControlChannel: c.media.rtcpAddr(), MultiplexID: id, Multiplexed: true,
		KeepAlivePayload: 127, KeepAlive: ack,
	}
	b, err := v.Append(nil)
	if err != nil {
		return nil // then it shares nothing
	}
	return []per.Field{per.F("genericInformation", per.Elements(h245.GenericInformation(h245.TraversalOID, 1, b)))}
}

// Multiplexed tells whether packets begin with a multiplexID in both directions.
func (c *Call) Multiplexed() bool { return c.media.own.Load() != nil && c.media.peer.Load() != nil }

// traversed notes with what packets to the other side must begin.
func (c *Call) traversed(m h245.Message, ch h245.Channel) error {
	at := h245.TraversalAt(m.Tree, ch.Ref)
	if at == per.None || !c.state.Multiplexed {
		return nil
	}
	v, err := h245.DecodeTraversal(m.Tree.Octets(at))
	if err == nil && v.Multiplexed {
		c.media.peer.Store(&v.MultiplexID)
	}
	return err
}
