package h323

import (
	"encoding/hex"
	"net/netip"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/q931"
	"edged.dev/edged/pkg/h323/ras"
	"edged.dev/edged/pkg/h323/rasrelay"
)

// Traced is a message that passed, as it came or as it was sent.
type Traced struct {
	Protocol Protocol
	// Call is the callIdentifier in hexadecimal, or of RAS outside of calls "ras HOST".
	Call string
	// Placed: it is a Setup that was sent on.
	Placed bool
	// Kind is its name, From and To are the parties of a call, as far as that is known without looking.
	Kind, From, To string
	Out            bool
	Network        string
	Local, Remote  netip.AddrPort
	// Data is a TPKT or a datagram, valid during the call.
	Data []byte
}

// heard traces a message that came on a connection, and returns the call that answers to it belong to.
func (c *Core) heard(l *leg, m *h225.Message, k *call, p tpkt.Packet) {
	if c.trace == nil {
		return
	}
	t := Traced{Protocol: H225, Kind: typeName(m.Type), Network: l.network, Local: l.local, Remote: l.remote, Data: whole(p.Second, p.Payload)}
	if k != nil {
		t.Call = k.id
	} else if guid, ok := m.CallID(); ok {
		t.Call = hex.EncodeToString(guid[:])
	}
	if m.Type == q931.Setup && m.Tree != nil {
		t.From = callerName(m)
		if names := calledNames(m); len(names) > 0 {
			t.To = names[0]
		}
	}
	if c.traced = t.Call; t.Call != "" {
		c.trace(t)
	}
}

// said traces a message that leaves by a connection: b is a TPKT.
func (c *Core) said(l *leg, b []byte) {
	if c.trace == nil {
		return
	}
	m, err := q931.Parse(payloadOf(b))
	if err != nil {
		return // a keep-alive
	}
	t := Traced{
		Protocol: H225, Call: c.traced, Placed: m.Type == q931.Setup, Kind: typeName(m.Type), Out: true,
		Network: l.network, Local: l.local, Remote: l.remote, Data: b,
	}
	if k := l.calls[callKey{m.CallRef, !m.FromDest}]; k != nil {
		t.Call = k.id
	}
	if t.Call != "" {
		c.trace(t)
	}
}

// rasKey finds a request that waits for its reply.
type rasKey struct {
	peer netip.AddrPort
	seq  uint16
}

// rasTracer tells to which call RAS belongs: replies say it by their number only.
type rasTracer struct {
	codec *ras.Codec
	calls map[rasKey]string
}

// maxRASKeys bounds what a rasTracer remembers.
const maxRASKeys = 4096

func newRASTracer() *rasTracer { return &rasTracer{ras.NewCodec(), map[rasKey]string{}} }

// of returns the kind of a message, and to what it belongs; "" if it is not understood.
func (r *rasTracer) of(b []byte, from netip.AddrPort) (kind, id string) {
	m, err := r.codec.Decode(b)
	if err != nil {
		return "", ""
	}
	if guid, ok := m.CallID(); ok {
		return string(m.Kind), hex.EncodeToString(guid[:])
	}
	if id, ok := r.calls[rasKey{from, m.SeqNum()}]; ok {
		return string(m.Kind), id
	}
	return string(m.Kind), "ras " + from.Addr().String()
}

// sent remembers to what a message belongs that was sent to somebody, and returns its kind.
func (r *rasTracer) sent(b []byte, to netip.AddrPort, id string) (kind string) {
	m, err := r.codec.Decode(b)
	if err != nil {
		return ""
	}
	if len(r.calls) >= maxRASKeys {
		clear(r.calls)
	}
	r.calls[rasKey{to, m.SeqNum()}] = id
	return string(m.Kind)
}

// traceRAS traces a datagram that came, and what was sent for it if ok.
func (c *Core) traceRAS(network string, local, from netip.AddrPort, b []byte, d rasrelay.Datagram, ok bool) {
	if c.trace == nil {
		return
	}
	kind, id := c.rasTraces.of(b, from)
	if id == "" {
		return
	}
	c.trace(Traced{Protocol: RAS, Call: id, Kind: kind, Network: network, Local: local, Remote: from, Data: b})
	if ok {
		kind = c.rasTraces.sent(d.Data, d.To, id)
		c.trace(Traced{Protocol: RAS, Call: id, Kind: kind, Out: true, Network: d.Network, Local: d.Local, Remote: d.To, Data: d.Data})
	}
}
