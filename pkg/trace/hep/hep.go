// Package hep sends copies of signalling to a collector such as Homer by HEP3, the HOMER Encapsulation Protocol of
// version 3, over UDP. It is sent and forgotten: a collector that is away costs nothing but the copies.
//
//	"HEP3" length16 chunk chunk ...      chunk: vendor16 type16 length16 value; lengths with their heads
package hep

import (
	"encoding/binary"
	"math"
	"net/netip"
	"time"
)

// Packet is a message as the collector is told of it.
type Packet struct {
	Time     time.Time
	From, To netip.AddrPort
	// Stream: by TCP.
	Stream bool
	// Capture is the number by which the collector knows this edge.
	Capture uint32
	// CallID correlates it with others.
	CallID string
	// Data is the message, of at most [MaxData] octets.
	Data []byte
}

// MaxData bounds the data of a packet, so that it fits a datagram.
const MaxData = 60000

// Chunk types of the generic vendor, 0.
const (
	chunkFamily     = 0x01
	chunkProto      = 0x02
	chunkFrom4      = 0x03
	chunkTo4        = 0x04
	chunkFrom6      = 0x05
	chunkTo6        = 0x06
	chunkFromPort   = 0x07
	chunkToPort     = 0x08
	chunkSeconds    = 0x09
	chunkMicros     = 0x0a
	chunkProtoType  = 0x0b
	chunkCaptureID  = 0x0c
	chunkPayload    = 0x0f
	chunkCorrelated = 0x11
)

// Append appends a packet in HEP3. What is not known of an address is unspecified.
func Append(b []byte, p Packet) []byte {
	start := len(b)
	b = append(b, "HEP3\x00\x00"...)
	from, to := p.From.Addr().Unmap().WithZone(""), p.To.Addr().Unmap().WithZone("")
	if from.Is4() || to.Is4() || !from.IsValid() && !to.IsValid() {
		b = number8(b, chunkFamily, 2)
		b = chunk(b, chunkFrom4, octets4(from))
		b = chunk(b, chunkTo4, octets4(to))
	} else {
		b = number8(b, chunkFamily, 10)
		b = chunk(b, chunkFrom6, octets16(from))
		b = chunk(b, chunkTo6, octets16(to))
	}
	proto := byte(17)
	if p.Stream {
		proto = 6
	}
	b = number8(b, chunkProto, proto)
	b = chunk(b, chunkFromPort, binary.BigEndian.AppendUint16(nil, p.From.Port()))
	b = chunk(b, chunkToPort, binary.BigEndian.AppendUint16(nil, p.To.Port()))
	b = chunk(b, chunkSeconds, binary.BigEndian.AppendUint32(nil, uint32(p.Time.Unix()&math.MaxUint32)))
	b = chunk(b, chunkMicros, binary.BigEndian.AppendUint32(nil, uint32(p.Time.Nanosecond()/1000)))
	b = number8(b, chunkProtoType, 1) // SIP
	b = chunk(b, chunkCaptureID, binary.BigEndian.AppendUint32(nil, p.Capture))
	if p.CallID != "" {
		b = chunk(b, chunkCorrelated, []byte(p.CallID[:min(len(p.CallID), 1000)]))
	}
	b = chunk(b, chunkPayload, p.Data[:min(len(p.Data), MaxData)])
	binary.BigEndian.PutUint16(b[start+4:], uint16(len(b)-start))
	return b
}

func chunk(b []byte, kind uint16, value []byte) []byte {
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(6+len(value)))
	return append(b, value...)
}

func number8(b []byte, kind uint16, n byte) []byte { return chunk(b, kind, []byte{n}) }

func octets4(a netip.Addr) []byte {
	if !a.Is4() {
		return make([]byte, 4)
	}
	return a.AsSlice()
}

func octets16(a netip.Addr) []byte {
	if !a.Is6() {
		return make([]byte, 16)
	}
	return a.AsSlice()
}
