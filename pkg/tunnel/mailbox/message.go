package mailbox

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"
)

// Device is the ID of a device: SHA-256 of its Ed25519 public key.
type Device [32]byte

// String returns the first octets in hexadecimal, for logs.
func (d Device) String() string { return hex.EncodeToString(d[:6]) }

// ID is what a sender calls a message. Messages of one epoch are numbered 1, 2, 3…; they are taken in this order and each
// once. A sender that has lost count starts another epoch, a random number.
type ID struct{ Epoch, Counter uint64 }

// Flags say how a message is kept.
type Flags uint8

const (
	// Discard drops the message for recipients that no reader is attached for (Groove's flag D).
	Discard Flags = 1 << iota
	// Ephemeral keeps the message in memory only: it may be lost, is not numbered (Counter 0) and is gone after a minute.
	Ephemeral

	allFlags = Discard | Ephemeral
)

// Message is what is stored for each device of To.
type Message struct {
	ID    ID
	From  Device
	To    []Device // 1 to MaxRecipients, no two the same
	Flags Flags
	TTL   time.Duration // 0 is the store's own; a longer one is cut to it
	Size  int64         // octets of Body, 0 to MaxSize
	Body  io.Reader     // exactly Size octets
}

// MaxRecipients is the longest list that a message is sent to at once.
const MaxRecipients = 512

// Receipt tells a sender that its message is on disk.
type Receipt struct {
	Seq       uint64 // of the store; 0 for one that was stored before, or for which nothing was stored
	Duplicate bool   // the number was taken before: nothing was stored now
	Discarded int    // recipients that Discard left out
}

// Errors for senders. Nothing is stored when one is returned.
var (
	ErrQuota   = errors.New("quota would be exceeded")
	ErrDisk    = errors.New("the disk is full")
	ErrGap     = errors.New("a message before this one is missing")
	ErrTooBig  = errors.New("message too large")
	ErrBad     = errors.New("bad message")
	ErrFenced  = errors.New("the upload was taken over by another connection")
	ErrShort   = errors.New("the body is shorter than said")
	ErrClosed  = errors.New("mailbox closed")
	ErrNoEntry = errors.New("no such message")
)

// check says what is wrong with m as such.
func (m *Message) check(o *Options) error {
	switch {
	case len(m.To) == 0 || len(m.To) > MaxRecipients:
		return fmt.Errorf("%w: %d recipients, want 1 to %d", ErrBad, len(m.To), MaxRecipients)
	case m.Size < 0 || m.TTL < 0 || m.Flags&^allFlags != 0:
		return fmt.Errorf("%w: size, lifetime or flags", ErrBad)
	case m.Size > int64(o.MaxSize):
		return fmt.Errorf("%w: %d octets, at most %d", ErrTooBig, m.Size, o.MaxSize)
	case m.Flags&Ephemeral != 0 && m.Size > maxInline:
		return fmt.Errorf("%w: %d octets, an ephemeral one has at most %d", ErrTooBig, m.Size, maxInline)
	case (m.ID.Counter == 0) != (m.Flags&Ephemeral != 0):
		return fmt.Errorf("%w: ephemeral ones are number 0, and only they", ErrBad)
	}
	seen := make(map[Device]bool, len(m.To))
	for _, d := range m.To {
		if seen[d] {
			return fmt.Errorf("%w: a recipient stands twice", ErrBad)
		}
		seen[d] = true
	}
	return nil
}
