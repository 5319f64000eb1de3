package mux

import (
	"encoding/binary"
)

// A frame: type u8 | flags u8 | length of the payload u16 | stream u32, then
// the payload; big-endian. With its header a frame fills at most one TLS
// record of 16 KiB.
//
//	HELLO   version u8 | flags u8 | 0 u16 | session 16 | epoch u32 | stream window u32 |
//	        session window u32 | streams u32 | received u64
//	OPEN    header of the stream, opaque; flag 1: with datagrams
//	ACCEPT  empty                     DATA    bytes
//	CREDIT  u32; stream 0: session    FIN     empty
//	RESET   code u32; flag 1: only stop sending
//	DGRAM   bytes                     ACK     received u64
//	PING    u64                       PONG    the same u64
//	GOAWAY  seconds u32               END     code u32
//
// OPEN to RESET and GOAWAY are counted and replayed, the others not. Of
// unknown types those below 0x40 are faults; the others are skipped, and from
// 0x80 on counted.
const (
	headerLen  = 8
	maxFrame   = 16 << 10
	maxPayload = maxFrame - headerLen
	helloLen   = 44
	maxHello   = 256 // later versions may append
	version    = 1
)

// MaxHeader is the longest header of a stream, in bytes.
const MaxHeader = 4 << 10

// MaxDatagram is the longest datagram, in bytes.
const MaxDatagram = maxPayload

type frameType uint8

const (
	typeHello frameType = iota + 1
	typeOpen
	typeAccept
	typeData
	typeCredit
	typeFin
	typeReset
	typeDgram
	typeAck
	typePing
	typePong
	typeGoAway
	typeEnd

	firstSkipped frameType = 0x40
	firstCounted frameType = 0x80
)

const (
	flagDatagrams uint8 = 1 // of OPEN
	flagStop      uint8 = 1 // of RESET
	flagNew       uint8 = 1 // of HELLO
)

// counted says whether frames of the type are counted and replayed.
func (t frameType) counted() bool {
	return t >= typeOpen && t <= typeReset || t == typeGoAway || t >= firstCounted
}

type header struct {
	typ    frameType
	flags  uint8
	size   int // of the payload
	stream uint32
}

func (h header) put(b []byte) {
	b[0], b[1] = byte(h.typ), h.flags
	binary.BigEndian.PutUint16(b[2:], uint16(h.size))
	binary.BigEndian.PutUint32(b[4:], h.stream)
}

// parseHeader reads the 8 bytes of b, and checks what the type allows.
func parseHeader(b []byte) (header, *SessionError) {
	h := header{frameType(b[0]), b[1], int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint32(b[4:])}
	lo, hi, known := h.typ.sizes()
	switch {
	case !known:
		return h, fault(CodeProtocol, "frame of unknown type %d", h.typ)
	case h.size < lo || h.size > hi:
		return h, fault(CodeProtocol, "frame of type %d with %d bytes", h.typ, h.size)
	case h.typ.onSession() != (h.stream == 0) && h.typ != typeCredit && h.typ < firstSkipped:
		return h, fault(CodeProtocol, "frame of type %d on stream %d", h.typ, h.stream)
	}
	return h, nil
}

// sizes returns the shortest and the longest payload.
func (t frameType) sizes() (lo, hi int, known bool) {
	switch t {
	case typeHello:
		return helloLen, maxHello, true
	case typeOpen:
		return 0, MaxHeader, true
	case typeAccept, typeFin:
		return 0, 0, true
	case typeData, typeDgram:
		return 0, maxPayload, true
	case typeCredit, typeReset, typeGoAway, typeEnd:
		return 4, 4, true
	case typeAck, typePing, typePong:
		return 8, 8, true
	}
	return 0, maxPayload, t >= firstSkipped
}

// onSession says whether the type belongs to the session, not to a stream.
func (t frameType) onSession() bool {
	switch t {
	case typeHello, typeAck, typePing, typePong, typeGoAway, typeEnd:
		return true
	}
	return false
}

// endFrame returns the frame that ends a session.
func endFrame(why Code) []byte {
	var f [headerLen + 4]byte
	header{typeEnd, 0, 4, 0}.put(f[:])
	binary.BigEndian.PutUint32(f[headerLen:], uint32(why))
	return f[:]
}

// appendFrame64 appends a frame of the session whose payload is one 64-bit number.
func appendFrame64(b []byte, t frameType, v uint64) []byte {
	var f [headerLen + 8]byte
	header{t, 0, 8, 0}.put(f[:])
	binary.BigEndian.PutUint64(f[headerLen:], v)
	return append(b, f[:]...)
}

// hello is the payload of HELLO.
type hello struct {
	version       uint8
	flags         uint8
	id            ID
	epoch         uint32
	streamWindow  uint32
	sessionWindow uint32
	streams       uint32 // how many the peer may have open at once
	received      uint64 // counted bytes that arrived whole
}

// frame returns the whole frame.
func (h hello) frame() []byte {
	f := make([]byte, headerLen+helloLen)
	header{typeHello, 0, helloLen, 0}.put(f)
	p := f[headerLen:]
	p[0], p[1] = h.version, h.flags
	copy(p[4:], h.id[:])
	binary.BigEndian.PutUint32(p[20:], h.epoch)
	binary.BigEndian.PutUint32(p[24:], h.streamWindow)
	binary.BigEndian.PutUint32(p[28:], h.sessionWindow)
	binary.BigEndian.PutUint32(p[32:], h.streams)
	binary.BigEndian.PutUint64(p[36:], h.received)
	return f
}

// parseHello reads a payload of at least helloLen bytes.
func parseHello(p []byte) (hello, *SessionError) {
	h := hello{
		version:       p[0],
		flags:         p[1],
		id:            ID(p[4:20]),
		epoch:         binary.BigEndian.Uint32(p[20:]),
		streamWindow:  binary.BigEndian.Uint32(p[24:]),
		sessionWindow: binary.BigEndian.Uint32(p[28:]),
		streams:       binary.BigEndian.Uint32(p[32:]),
		received:      binary.BigEndian.Uint64(p[36:]),
	}
	switch {
	case h.version != version:
		return h, fault(CodeNewVersionRequired, "version %d", h.version)
	case h.streamWindow > maxCredit || h.sessionWindow > maxCredit:
		return h, fault(CodeFlowControl, "windows of %d and %d bytes", h.streamWindow, h.sessionWindow)
	case h.epoch == 0:
		return h, fault(CodeProtocol, "epoch 0")
	}
	return h, nil
}
