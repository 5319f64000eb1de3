//go:build lab

package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edged.dev/edged/internal/tpkt"
	"edged.dev/edged/pkg/h323/h225"
	"edged.dev/edged/pkg/h323/h245"
	"edged.dev/edged/pkg/h323/ras"
)

// The oracle of H.323 is the kernel's helper (nf_nat_h323): recorded conversations are held again between a host inside and
// one outside, through it and through edged, and what became of each address is compared.
//
//	capture ─► record ─► dialogue ─► adapted to the rig's hosts, ports of its own
//	dialogue ─► h323Stage.play: each message by its connection, through the gateway ─► []fate

// party is one of the two that speak: the one who called, or registered, and the other.
type party int

const (
	caller party = iota
	callee
)

func (p party) other() party { return 1 - p }

// protocol is what a channel of a dialogue carries.
type protocol int

const (
	callSignalling protocol = iota
	controlChannel          // H.245
	registration            // RAS
)

// dialogue is what two parties have said to each other, in order.
type dialogue struct {
	name     string
	channels []channel
	lines    []line
}

// channel is a connection, or the datagrams between two ports.
type channel struct {
	kind   protocol
	server party
	port   uint16 // of the server
	client uint16 // of the client; of registration only
}

// line is one message: the payload of a TPKT or datagram.
type line struct {
	channel int
	from    party
	payload []byte
}

// recording reads a dialogue from packets.
type recording struct {
	host     [2]netip.Addr
	d        *dialogue
	opaque   bool // a party's address stands where it cannot be changed: in parameters of H.460.19
	open     map[[2]netip.AddrPort]*recorded
	announce map[netip.AddrPort]bool
}

// recorded is one direction of a channel.
type recorded struct {
	channel int
	from    party
	next    uint32
	split   tpkt.Splitter
	lost    bool
}

const (
	callPort = 1720
	rasPort  = 1719
	// maxRegistration bounds the datagrams of one dialogue; more are refreshes.
	maxRegistration = 24
)

// record returns the first call among the packets, or withRAS what was said to a gatekeeper; nil if there is none.
func record(name string, packets []Packet, withRAS bool) *dialogue {
	r := &recording{d: &dialogue{name: name}, open: map[[2]netip.AddrPort]*recorded{}, announce: map[netip.AddrPort]bool{}}
	for _, p := range packets {
		switch {
		case p.TCP && !withRAS:
			r.segment(p)
		case !p.TCP && withRAS && len(p.Payload) > 0:
			r.datagram(p)
		}
	}
	if r.opaque || len(r.d.lines) < 2 || !withRAS && !isSetup(r.d.lines[0]) {
		return nil
	}
	return r.d
}

// isSetup: a connection that an endpoint makes because it was told of a call (H.460.18) begins otherwise.
func isSetup(l line) bool {
	m, err := h225.NewCodec().Decode(l.payload)
	return err == nil && m.Body == h225.Setup
}

// hidden are hosts of the corpora that say their own address though a gateway speaks for them: a NAT at 203.0.113.1
// for the first, a gatekeeper that is 10.77.1.1 to the inside for the second.
var hidden = [][2]netip.Addr{
	{netip.MustParseAddr("10.77.1.2"), netip.MustParseAddr("203.0.113.1")},
	{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("10.77.1.1")},
}

// partyOf returns whose address it is.
func (r *recording) partyOf(a netip.Addr) (party, bool) {
	for p, h := range r.host {
		if a == h || slices.Contains(hidden, [2]netip.Addr{a, h}) {
			return party(p), true
		}
	}
	return caller, false
}

func (r *recording) segment(p Packet) {
	way := [2]netip.AddrPort{p.Src, p.Dst}
	s := r.open[way]
	if s == nil {
		if s = r.begin(p); s == nil {
			return
		}
	}
	skip := int(int32(s.next - p.Seq))
	switch {
	case s.lost || skip >= len(p.Payload):
		return
	case skip < 0:
		s.lost = true // the capture lacks octets
		return
	}
	s.next = p.Seq + uint32(len(p.Payload))
	s.split.Push(p.Payload[skip:])
	for {
		m, ok, err := s.split.Next()
		if err != nil || !ok {
			return
		}
		if len(m.Payload) > 0 {
			r.add(s, slices.Clone(m.Payload))
		}
	}
}

// begin takes the first packet of a direction; nil if it belongs to no channel of the call.
func (r *recording) begin(p Packet) *recorded {
	s := &recorded{next: p.Seq + 1} // after the SYN
	if back := r.open[[2]netip.AddrPort{p.Dst, p.Src}]; back != nil {
		s.channel, s.from = back.channel, back.from.other()
	} else {
		first := !r.host[caller].IsValid() && p.Dst.Port() == callPort
		if first {
			r.host = [2]netip.Addr{p.Src.Addr(), p.Dst.Addr()}
		}
		if len(p.Payload) > 0 || !first && !r.announce[p.Dst] {
			return nil
		}
		kind := callSignalling
		if !first {
			kind = controlChannel
		}
		server, _ := r.partyOf(p.Dst.Addr())
		s.channel, s.from = len(r.d.channels), server.other()
		r.d.channels = append(r.d.channels, channel{kind: kind, server: server, port: p.Dst.Port()})
	}
	r.open[[2]netip.AddrPort{p.Src, p.Dst}] = s
	return s
}

func (r *recording) datagram(p Packet) {
	from := caller
	switch {
	case p.Src.Port() == rasPort:
		from = callee
	case p.Dst.Port() != rasPort:
		return
	}
	end := [2]netip.AddrPort{p.Src, p.Dst}
	if from == callee {
		end = [2]netip.AddrPort{p.Dst, p.Src}
	}
	if len(r.d.channels) == 0 {
		r.host = [2]netip.Addr{end[0].Addr(), end[1].Addr()}
		r.d.channels = []channel{{kind: registration, server: callee, port: rasPort, client: end[0].Port()}}
	}
	if end[0] != netip.AddrPortFrom(r.host[caller], r.d.channels[0].client) || len(r.d.lines) >= maxRegistration {
		return // another endpoint
	}
	r.add(&recorded{channel: 0, from: from}, slices.Clone(p.Payload))
}

// add files a message with its addresses as 0.0.0.x: 1 is the caller, 2 the called party.
func (r *recording) add(s *recorded, payload []byte) {
	kind := r.d.channels[s.channel].kind
	out, _, err := readdress(kind, payload, func(a h245.Address) (netip.AddrPort, bool) {
		if a.Field == h245.H245Address {
			r.announce[a.AddrPort] = true
		}
		p, ok := r.partyOf(a.AddrPort.Addr())
		return netip.AddrPortFrom(placeholder(p), a.AddrPort.Port()), ok && a.AddrPort.Addr().Is4()
	})
	if err != nil {
		return
	}
	for _, h := range append(hidden, r.host) {
		for _, a := range h {
			r.opaque = r.opaque || bytes.Contains(out, a.AsSlice())
		}
	}
	r.d.lines = append(r.d.lines, line{s.channel, s.from, out})
}

// placeholder is what a recording has in the place of a party's address.
func placeholder(p party) netip.Addr { return netip.AddrFrom4([4]byte{0, 0, 0, byte(p) + 1}) }

// place returns the dialogue between two hosts. Ports become the next ones from *port on, so that no two dialogues share
// one: the helper drops what names an address that it still expects.
func (d *dialogue) place(host [2]netip.Addr, port *uint16) *dialogue {
	ports := map[uint16]uint16{}
	mapped := func(p uint16) uint16 {
		if p == rasPort || p == callPort && d.channels[0].kind == callSignalling || p == 0 {
			return p
		}
		if _, ok := ports[p&^1]; !ok {
			ports[p&^1] = *port
			*port += 2
		}
		return ports[p&^1] + p&1
	}
	out := &dialogue{name: d.name}
	for _, c := range d.channels {
		c.port, c.client = mapped(c.port), mapped(c.client)
		out.channels = append(out.channels, c)
	}
	for _, l := range d.lines {
		b, _, err := readdress(d.channels[l.channel].kind, l.payload, func(a h245.Address) (netip.AddrPort, bool) {
			for p, h := range host {
				if a.AddrPort.Addr() == placeholder(party(p)) {
					return netip.AddrPortFrom(h, mapped(a.AddrPort.Port())), true
				}
			}
			return netip.AddrPort{}, false
		})
		if err == nil {
			out.lines = append(out.lines, line{l.channel, l.from, b})
		}
	}
	return out
}

// named is an address of a message and where it stands.
type named struct {
	where string // message and field: "setup fastStart mediaChannel"
	addr  netip.AddrPort
}

// readdress edits the addresses of a message for which to returns another one, and returns those that it had.
func readdress(kind protocol, payload []byte, to func(h245.Address) (netip.AddrPort, bool)) ([]byte, []named, error) {
	var had []named
	change := func(e *edited, list []h245.Address, what string) error {
		for _, a := range list {
			had = append(had, named{where(what, a), a.AddrPort})
			if b, ok := to(a); ok && b != a.AddrPort {
				if err := e.set(a, b); err != nil {
					return err
				}
			}
		}
		return nil
	}
	switch kind {
	case callSignalling:
		c := h225.NewCodec()
		m, err := c.Decode(payload)
		if err != nil || m.Tree == nil {
			return payload, nil, err
		}
		if err := change(&edited{c.Editor(), m.Tree}, m.Addresses(nil), string(m.Body)); err != nil {
			return nil, nil, err
		}
		out, err := c.Apply(nil)
		return out, had, err
	case registration:
		c := ras.NewCodec()
		m, err := c.Decode(payload)
		if err != nil {
			return nil, nil, err
		}
		if err := change(&edited{c.Editor(), m.Tree}, m.Addresses(nil), string(m.Kind)); err != nil {
			return nil, nil, err
		}
		out, err := c.Apply(nil)
		return out, had, err
	}
	var out []byte
	for dec, ed := h245.NewDecoder(), h245.NewEditor(); len(payload) > 0; { // a TPKT may hold several
		m, rest, err := h245.Decode(dec, payload)
		if err != nil {
			return nil, nil, err
		}
		ed.Begin(m.Tree)
		if err := change(&edited{ed, m.Tree}, h245.Addresses(nil, m.Tree, m.Root), string(m.Kind)); err != nil {
			return nil, nil, err
		}
		if out, err = ed.Apply(out); err != nil {
			return nil, nil, err
		}
		payload = rest
	}
	return out, had, nil
}

// where names the place of an address. What carries tunnelled H.245 does not matter.
func where(message string, a h245.Address) string {
	switch a.Carrier {
	case "":
		return message + " " + string(a.Field)
	case h245.H245Control, h245.ParallelH245Control:
		return "(tunnelled) " + string(a.Field)
	}
	return fmt.Sprint(message, " ", a.Carrier, " ", a.Field)
}

// asEthernet gives the packets of a capture on all interfaces (LINUX_SLL2) the header of an Ethernet frame.
func asEthernet(b []byte) []byte {
	if len(b) < 24 || binary.LittleEndian.Uint32(b[20:]) != 276 {
		return b
	}
	out := slices.Clone(b[:24])
	binary.LittleEndian.PutUint32(out[20:], 1)
	for b = b[24:]; len(b) >= 16; {
		n := int(binary.LittleEndian.Uint32(b[8:]))
		if n < 20 || len(b) < 16+n {
			break
		}
		head := slices.Clone(b[:16])
		binary.LittleEndian.PutUint32(head[8:], uint32(n-20+14))
		out = append(out, head...)
		out = append(append(out, make([]byte, 12)...), b[16:18]...)
		out = append(out, b[16+20:16+n]...)
		b = b[16+n:]
	}
	return out
}

// fate is what became of an address on its way.
type fate struct {
	where string
	// outward: it was said inside, for somebody outside.
	outward bool
	// whose host it names: sender, receiver, nobody (no address at all), other.
	whose string
	// became: kept, gateway (its address on the receiver's side), receiver, removed, lost (with the message), other.
	became string
}

// key is a fate without what became of the address.
func (f fate) key() string {
	way := "in"
	if f.outward {
		way = "out"
	}
	return strings.Join([]string{f.where, way, f.whose}, "\t")
}
