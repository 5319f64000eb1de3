package carry

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

// Kind is the first octet of the head of a mailbox's stream.
const Kind = 16

// What a stream is for: the second octet of its head.
const (
	purposeSend  = 1
	purposeRead  = 2
	purposeFetch = 3
	purposeAsk   = 4
)

// head returns the head of a stream.
func head(purpose byte) []byte { return []byte{Kind, purpose} }

// Types of frames.
const (
	framePut     = 1
	frameStored  = 2
	frameRefused = 3
	frameGoOn    = 4
	frameFrom    = 5
	frameData    = 6
	frameRead    = 16
	frameHello   = 17
	frameMessage = 18
	frameAck     = 19
	frameAcked   = 20
	frameFetch   = 21
	framePublish = 32
	frameDone    = 33
	frameLookup  = 34
	frameCards   = 35
	frameStatus  = 36
	frameState   = 37
)

const (
	frameHead = 5
	maxFrame  = 256 << 10
	inline    = 64 << 10 // larger bodies follow in Data frames
	dataLen   = 64 << 10
)

var errFrame = errors.New("mailbox: bad frame")

// appendFrame begins a frame; the caller appends its payload, then calls endFrame.
func beginFrame(b []byte, kind byte) []byte { return append(b, kind, 0, 0, 0, 0) }

// endFrame writes the length of the frame that begins at start.
func endFrame(b []byte, start int) []byte {
	binary.BigEndian.PutUint32(b[start+1:], uint32(len(b)-start-frameHead))
	return b
}

// frame returns a frame of a payload.
func frame(kind byte, payload ...byte) []byte {
	return endFrame(append(beginFrame(nil, kind), payload...), 0)
}

// readFrame reads a frame into buf, which it may replace by a larger one. The payload is valid until the next call.
func readFrame(r io.Reader, buf *[]byte) (kind byte, payload []byte, err error) {
	var h [frameHead]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("%w: %d octets", errFrame, n)
	}
	if cap(*buf) < int(n) {
		*buf = make([]byte, n)
	}
	payload = (*buf)[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("%w: cut", errFrame)
	}
	return h[0], payload, nil
}

// waiting tells whether a whole frame can be read without waiting.
func waiting(r *bufio.Reader) bool {
	h, err := r.Peek(min(frameHead, r.Buffered()))
	return err == nil && len(h) == frameHead && r.Buffered() >= frameHead+int(binary.BigEndian.Uint32(h[1:]))
}

// fields takes a payload apart. Reading past the end is remembered; the values are zero then.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if n < 0 || n > len(f.b) {
		f.bad = true
		f.b = nil
		return make([]byte, max(0, min(n, 64)))
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) u8() byte               { return f.take(1)[0] }
func (f *fields) u16() int               { return int(binary.BigEndian.Uint16(f.take(2))) }
func (f *fields) u32() uint32            { return binary.BigEndian.Uint32(f.take(4)) }
func (f *fields) u64() uint64            { return binary.BigEndian.Uint64(f.take(8)) }
func (f *fields) device() mailbox.Device { return mailbox.Device(f.take(32)) }
func (f *fields) id() mailbox.ID         { return mailbox.ID{Epoch: f.u64(), Counter: f.u64()} }
func (f *fields) time() time.Time        { return time.UnixMilli(int64(f.u64())) }

// end says whether all was there, and nothing more.
func (f *fields) end() error {
	if f.bad || len(f.b) != 0 {
		return errFrame
	}
	return nil
}

func appendID(b []byte, id mailbox.ID) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, id.Epoch), id.Counter)
}

// appendPut writes a Put frame: epoch 8 | counter 8 | flags 1 | TTL in seconds 4 | size 8 | recipients 2 | each 32 | the body, if inline.
func appendPut(b []byte, m *mailbox.Message, body []byte) []byte {
	start := len(b)
	b = appendID(beginFrame(b, framePut), m.ID)
	b = append(b, byte(m.Flags))
	b = binary.BigEndian.AppendUint32(b, uint32(min(m.TTL/time.Second, 1<<31)))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Size))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.To)))
	for _, d := range m.To {
		b = append(b, d[:]...)
	}
	return endFrame(append(b, body...), start)
}

func parsePut(payload []byte) (m mailbox.Message, body []byte, err error) {
	f := fields{b: payload}
	m = mailbox.Message{ID: f.id(), Flags: mailbox.Flags(f.u8()), TTL: time.Duration(f.u32()) * time.Second, Size: int64(f.u64())}
	n := f.u16()
	if f.bad || n > mailbox.MaxRecipients || m.Size < 0 {
		return m, nil, errFrame
	}
	for range n {
		m.To = append(m.To, f.device())
	}
	if m.Size <= inline {
		body = f.take(int(m.Size))
	}
	return m, body, f.end()
}

// appendMessage writes a Message frame: seq 8 | from 32 | epoch 8 | counter 8 | flags 1 | queued 8 | expires 8 | size 8 | the body, if inline.
func appendMessage(b []byte, e *mailbox.Entry, body []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(beginFrame(b, frameMessage), e.Seq)
	b = append(b, e.From[:]...)
	b = append(appendID(b, e.ID), byte(e.Flags))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Queued.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Expires.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Size))
	return endFrame(append(b, body...), start)
}

// Message is a message as a reader gets it.
type Message struct {
	Seq     uint64 // 0 for an ephemeral one, which is not acknowledged
	From    mailbox.Device
	ID      mailbox.ID
	Flags   mailbox.Flags
	Queued  time.Time
	Expires time.Time
	Size    int64
	Body    []byte // nil if it is to be fetched
}

func parseMessage(payload []byte) (m Message, err error) {
	f := fields{b: payload}
	m = Message{
		Seq: f.u64(), From: f.device(), ID: f.id(), Flags: mailbox.Flags(f.u8()), Queued: f.time(), Expires: f.time(), Size: int64(f.u64()),
	}
	if f.bad || m.Size < 0 {
		return m, errFrame
	}
	if m.Size <= inline {
		m.Body = append([]byte{}, f.take(int(m.Size))...)
	}
	return m, f.end()
}

// refusals are the codes of Refused frames.
func refusals() map[byte]error {
	return map[byte]error{
		1: mailbox.ErrQuota, 2: mailbox.ErrDisk, 3: mailbox.ErrGap, 4: mailbox.ErrTooBig, 5: mailbox.ErrBad, 6: ErrDenied,
		7: ErrTryLater, 8: mailbox.ErrFenced, 9: mailbox.ErrNoEntry,
	}
}

// Errors that a relay answers with, beside those of package mailbox.
var (
	ErrDenied   = errors.New("the relay's policy denies it")
	ErrTryLater = errors.New("the relay cannot do it now")
)

const maxReason = 512

// appendRefused writes a Refused frame: epoch 8 | counter 8 | code 1 | text.
func appendRefused(b []byte, id mailbox.ID, err error) []byte {
	code := byte(7)
	for c, is := range refusals() {
		if errors.Is(err, is) {
			code = c
		}
	}
	text := err.Error()
	if code == 7 { // what is wrong inside the relay is its own business
		text = ErrTryLater.Error()
	}
	start := len(b)
	b = append(appendID(beginFrame(b, frameRefused), id), code)
	return endFrame(append(b, text[:min(len(text), maxReason)]...), start)
}

// RefusedError is a refusal by the relay. It unwraps to one of the errors of package mailbox, ErrDenied or ErrTryLater.
type RefusedError struct {
	Text string
	code error
}

func (e *RefusedError) Error() string { return "relay: " + e.Text }
func (e *RefusedError) Unwrap() error { return e.code }

// parseRefused returns what a Refused frame says. Streams answer in order, so its number says nothing new.
func parseRefused(payload []byte) (refused *RefusedError, err error) {
	f := fields{b: payload}
	f.id()
	code, ok := refusals()[f.u8()]
	if f.bad || len(f.b) > maxReason {
		return nil, errFrame
	}
	if !ok {
		code = ErrTryLater
	}
	return &RefusedError{string(f.b), code}, nil
}

// appendStored writes a Stored frame: epoch 8 | counter 8 | duplicate 1 | discarded 2.
func appendStored(b []byte, id mailbox.ID, r mailbox.Receipt) []byte {
	start := len(b)
	b = appendID(beginFrame(b, frameStored), id)
	if r.Duplicate {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return endFrame(binary.BigEndian.AppendUint16(b, uint16(r.Discarded)), start)
}

func parseStored(payload []byte) (mailbox.ID, mailbox.Receipt, error) {
	f := fields{b: payload}
	id := f.id()
	r := mailbox.Receipt{Duplicate: f.u8() == 1, Discarded: f.u16()}
	return id, r, f.end()
}
