// Package tpkt cuts a TCP stream into TPKTs and writes them (RFC 1006 §6,
// H.225.0 Appendix IV). It is not a connection: it reads no socket and keeps no
// time. What is inside a TPKT is not its business.
//
//	 0        1        2   3
//	┌────────┬────────┬─────────┬──────────────┐
//	│ 3      │ second │ length  │ payload      │   length counts all of it
//	└────────┴────────┴─────────┴──────────────┘
//
//	octets as they come ─► Splitter.Push ─► Splitter.Next ─► Packet … ─► Append
//
// Second is 0 by the book; some senders put anything there, and it goes on as
// it came. A TPKT without payload is a keep-alive (H.460.18). Four octets
// 00 03 04 00 are what Tandberg endpoints send as one, without the 1020 octets
// that they announce; they are swallowed.
package tpkt

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	header = 4
	// MaxPayload is the largest payload, in octets.
	MaxPayload = 65535 - header
)

var (
	// ErrVersion is returned when a packet does not begin with version 3.
	ErrVersion = errors.New("tpkt: not a TPKT")
	// ErrLength is returned for a length below that of the header.
	ErrLength = errors.New("tpkt: length below 4")
	// ErrTooLong is returned for a payload above MaxPayload.
	ErrTooLong = errors.New("tpkt: payload too long")
)

// Packet is one TPKT.
type Packet struct {
	Second  byte   // of the header; 0 by RFC 1006
	Payload []byte // empty for a keep-alive; valid until the next Push
}

// Splitter finds the TPKTs in a stream, however it was cut into segments. The
// zero value is ready. It holds at most one unfinished TPKT and what was pushed last.
type Splitter struct {
	buf    []byte
	read   int // octets of buf that Next has returned
	bogus  int
	broken error
}

// Push adds octets of the stream, which are copied. Call Next until it has no more
// before the next Push.
func (s *Splitter) Push(b []byte) {
	n := copy(s.buf, s.buf[s.read:])
	s.buf = append(s.buf[:n], b...)
	s.read = 0
}

// Next returns the next whole packet, false if there is none yet. An error is
// final: there is no way to find the next packet, and the connection must be closed.
func (s *Splitter) Next() (Packet, bool, error) {
	for s.broken == nil {
		b := s.buf[s.read:]
		if len(b) < header {
			s.broken = begins(b)
			break
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		switch {
		case isBogus(b):
			s.read += header
			s.bogus++
			continue
		case b[0] != 3:
			s.broken = fmt.Errorf("%w: first octet %#x", ErrVersion, b[0])
		case n < header:
			s.broken = fmt.Errorf("%w: %d", ErrLength, n)
		case len(b) >= n:
			s.read += n
			return Packet{Second: b[1], Payload: b[header:n:n]}, true, nil
		}
		break
	}
	return Packet{}, false, s.broken
}

// begins refuses what cannot become a header, so that a peer that speaks
// something else is told after its first octets.
func begins(b []byte) error {
	if len(b) == 0 || b[0] == 3 {
		return nil
	}
	bogus := [header]byte{0, 3, 4, 0}
	for i := range b {
		if b[i] != bogus[i] {
			return fmt.Errorf("%w: first octet %#x", ErrVersion, b[0])
		}
	}
	return nil
}

func isBogus(b []byte) bool { return b[0] == 0 && b[1] == 3 && b[2] == 4 && b[3] == 0 }

// Pending is the number of octets that wait for the rest of their packet.
func (s *Splitter) Pending() int { return len(s.buf) - s.read }

// Bogus is the number of bogus keep-alives that were swallowed.
func (s *Splitter) Bogus() int { return s.bogus }

// Append appends a TPKT to dst. Second is 0 for a packet of our own.
func Append(dst []byte, second byte, payload []byte) ([]byte, error) {
	if len(payload) > MaxPayload {
		return dst, fmt.Errorf("%w: %d octets", ErrTooLong, len(payload))
	}
	dst = append(dst, 3, second)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(payload)+header))
	return append(dst, payload...), nil
}
