// Package pcapng writes packet captures as Wireshark reads them (draft-ietf-opsawg-pcapng), of messages rather than of
// packets: it makes the headers of IP and of UDP or TCP that a message had, or could have had where TLS hid it, in Ethernet
// frames between made-up stations. There are no handshakes and acknowledgements.
//
//	Section Header ─ Interface Description ─ Enhanced Packet ─ Enhanced Packet ─ ...
package pcapng

import (
	"encoding/binary"
	"io"
	"net/netip"
	"time"
)

// Packet is a message between two addresses.
type Packet struct {
	Time     time.Time
	From, To netip.AddrPort
	// Stream: it was sent by TCP, or inside of it.
	Stream bool
	Data   []byte
	// Comment is shown beside the packet; empty = none.
	Comment string
	// Interface names where it passed, such as a network; empty = not said.
	Interface string
	// Direction is [Inbound] or [Outbound], 0 if it is not said.
	Direction uint32
}

// The directions of a packet, as its flags have them.
const (
	Inbound  = 1
	Outbound = 2
)

// maxInterfaces bounds the names of interfaces in a file; what comes later has none.
const maxInterfaces = 256

const (
	// linkEthernet is LINKTYPE_ETHERNET. LINKTYPE_RAW (101) would need no frame, but libpcap calls it 12 (DLT_RAW) inside,
	// compares the two numbers from the second interface on, and refuses the file.
	linkEthernet = 1
	maxPayload   = 65535 - 60
	maxComment   = 1000 // octets
)

// Writer writes one section, with an interface for each name that packets have.
type Writer struct {
	w io.Writer
	// interfaces are numbered in the order of their names' first use.
	interfaces map[string]uint32
	// sent counts the octets of each direction of each stream.
	sent map[[2]netip.AddrPort]uint32
}

// NewWriter writes the head of a file.
func NewWriter(w io.Writer) (*Writer, error) {
	section := binary.LittleEndian.AppendUint32(nil, 0x1a2b3c4d)
	section = append(section, 1, 0, 0, 0)                        // version 1.0
	section = binary.LittleEndian.AppendUint64(section, 1<<64-1) // of unknown length
	_, err := w.Write(block(0x0a0d0d0a, section))
	return &Writer{w: w, interfaces: map[string]uint32{}, sent: map[[2]netip.AddrPort]uint32{}}, err
}

// number returns the number of an interface, after describing it if it is new.
func (w *Writer) number(name string) (uint32, error) {
	if n, ok := w.interfaces[name]; ok {
		return n, nil
	}
	if len(w.interfaces) >= maxInterfaces {
		return 0, nil
	}
	b := binary.LittleEndian.AppendUint16(nil, linkEthernet)
	b = append(b, 0, 0, 0, 0, 0, 0) // no limit of lengths
	if name != "" {
		b = option(b, 2, []byte(name[:min(len(name), 200)])) // if_name
	}
	b = append(option(b, 9, []byte{9}), 0, 0, 0, 0) // if_tsresol: nanoseconds; opt_endofopt
	n := uint32(len(w.interfaces))
	w.interfaces[name] = n
	_, err := w.w.Write(block(1, b))
	return n, err
}

// Statistics ends a file with what is known of its completeness, on the interface that was named first: how many packets
// passed, and how many of them are missing. comment says more.
func (w *Writer) Statistics(at time.Time, passed, missing uint64, comment string) error {
	if len(w.interfaces) == 0 {
		if _, err := w.number(""); err != nil {
			return err
		}
	}
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = stamp(b, at)
	b = option(b, 1, []byte(comment[:min(len(comment), maxComment)]))
	b = option(b, 4, binary.LittleEndian.AppendUint64(nil, passed))  // isb_ifrecv
	b = option(b, 5, binary.LittleEndian.AppendUint64(nil, missing)) // isb_ifdrop
	_, err := w.w.Write(block(5, append(b, 0, 0, 0, 0)))
	return err
}

// stamp appends a time in the resolution of the interfaces.
func stamp(b []byte, at time.Time) []byte {
	ns := uint64(at.UnixNano())
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	return binary.LittleEndian.AppendUint32(b, uint32(ns))
}

// Write appends a packet. Data beyond what an IP packet holds is cut off.
func (w *Writer) Write(p Packet) error {
	p.Data = p.Data[:min(len(p.Data), maxPayload)]
	n, err := w.number(p.Interface)
	if err != nil {
		return err
	}
	raw := w.frame(p)
	b := make([]byte, 0, len(raw)+len(p.Comment)+48)
	b = stamp(binary.LittleEndian.AppendUint32(b, n), p.Time)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
	b = pad(append(b, raw...))
	options := len(b)
	if p.Comment != "" {
		b = option(b, 1, []byte(p.Comment[:min(len(p.Comment), maxComment)]))
	}
	if p.Direction != 0 {
		b = option(b, 2, binary.LittleEndian.AppendUint32(nil, p.Direction)) // epb_flags
	}
	if len(b) > options {
		b = append(b, 0, 0, 0, 0)
	}
	_, err = w.w.Write(block(6, b))
	return err
}

// frame returns a message as an Ethernet frame. The edge is the station 02:00:00:00:00:01 and everybody else
// 02:00:00:00:00:02, addresses that no vendor gives away (IEEE 802 §8.4).
func (w *Writer) frame(p Packet) []byte {
	packet := w.packet(p)
	to, from, kind := byte(1), byte(2), uint16(0x0800)
	if p.Direction == Outbound {
		to, from = from, to
	}
	if packet[0]>>4 == 6 {
		kind = 0x86dd
	}
	head := []byte{2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from}
	return append(binary.BigEndian.AppendUint16(head, kind), packet...)
}

// packet returns a message as an IP packet (RFC 791, RFC 8200).
func (w *Writer) packet(p Packet) []byte {
	from, to := p.From.Addr().Unmap().WithZone(""), p.To.Addr().Unmap().WithZone("")
	from, to = known(from, to), known(to, from)
	if from.Is4() != to.Is4() { // no packet can be so; but nothing is worth losing it
		from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
	}
	proto, upper := byte(17), w.udp(p)
	if p.Stream {
		proto, upper = 6, w.tcp(p)
	}
	src, dst := from.AsSlice(), to.AsSlice()
	sum := checksum(sumOf(src) + sumOf(dst) + uint32(proto) + uint32(len(upper)) + sumOf(upper))
	at := 6
	if p.Stream {
		at = 16
	}
	binary.BigEndian.PutUint16(upper[at:], sum)
	var head []byte
	if from.Is4() {
		head = binary.BigEndian.AppendUint16([]byte{0x45, 0}, uint16(20+len(upper)))
		head = append(head, 0, 0, 0x40, 0, 64, proto, 0, 0)
		head = append(append(head, src...), dst...)
		binary.BigEndian.PutUint16(head[10:], checksum(sumOf(head)))
	} else {
		head = binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(upper)))
		head = append(append(append(head, proto, 64), src...), dst...)
	}
	return append(head, upper...)
}

// known returns a, or if it is not known the unspecified address of the other's family.
func known(a, other netip.Addr) netip.Addr {
	switch {
	case a.IsValid():
		return a
	case other.Is6():
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (w *Writer) udp(p Packet) []byte {
	b := binary.BigEndian.AppendUint16(nil, p.From.Port())
	b = binary.BigEndian.AppendUint16(b, p.To.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(p.Data)))
	return append(append(b, 0, 0), p.Data...)
}

func (w *Writer) tcp(p Packet) []byte {
	way, back := [2]netip.AddrPort{p.From, p.To}, [2]netip.AddrPort{p.To, p.From}
	b := binary.BigEndian.AppendUint16(nil, p.From.Port())
	b = binary.BigEndian.AppendUint16(b, p.To.Port())
	b = binary.BigEndian.AppendUint32(b, 1+w.sent[way])
	b = binary.BigEndian.AppendUint32(b, 1+w.sent[back])
	b = append(b, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0) // PSH, ACK
	w.sent[way] += uint32(len(p.Data))
	return append(b, p.Data...)
}

func sumOf(b []byte) (sum uint32) {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

// checksum folds a sum (RFC 1071).
func checksum(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// block wraps a body of whole words.
func block(kind uint32, body []byte) []byte {
	n := uint32(12 + len(body))
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, n), kind)
	b = binary.LittleEndian.AppendUint32(b, n)
	return binary.LittleEndian.AppendUint32(append(b, body...), n)
}

func option(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
