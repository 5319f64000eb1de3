package carry

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
)

// Reader gets a device's messages. It is for one goroutine.
type Reader struct {
	c           *Client
	s           *call
	store       [16]byte
	asked, told uint64 // up to where messages are acknowledged, and up to where the relay has said that it dropped them
	waiting     []Message
}

// Read begins to read the messages that come after a sequence number of the store, 0 for all. The reader ends with ctx.
func (c *Client) Read(ctx context.Context, after uint64) (*Reader, error) {
	s, err := c.call(ctx, purposeRead)
	if err != nil {
		return nil, err
	}
	r := &Reader{c: c, s: s}
	_, err = s.s.Write(frame(frameRead, binary.BigEndian.AppendUint64(nil, after)...))
	if err == nil {
		var kind byte
		var payload []byte
		if kind, payload, err = s.next(); err == nil && (kind != frameHello || copy(r.store[:], payload) != len(r.store)) {
			err = errFrame
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return r, nil
}

// Store names the relay's store, in which sequence numbers have a meaning.
func (r *Reader) Store() [16]byte { return r.store }

// Close ends the reading. What was not acknowledged comes again.
func (r *Reader) Close() { r.s.close() }

// Next waits for the next message. Messages come in order; after a reconnection those that were not acknowledged come again.
func (r *Reader) Next() (Message, error) {
	for len(r.waiting) == 0 {
		if err := r.frame(); err != nil {
			return Message{}, err
		}
	}
	m := r.waiting[0]
	r.waiting = r.waiting[1:]
	return m, nil
}

// frame reads one frame.
func (r *Reader) frame() error {
	kind, payload, err := r.s.next()
	if err != nil {
		return err
	}
	switch kind {
	case frameMessage:
		m, err := parseMessage(payload)
		r.waiting = append(r.waiting, m)
		return err
	case frameAcked:
		upto, _, err := parseAcked(payload)
		r.told = max(r.told, upto)
		return err
	}
	return errFrame
}

// Ack tells the relay that all messages up to and with a sequence number are safe here. The relay drops them.
func (r *Reader) Ack(upto uint64) error {
	r.asked = max(r.asked, upto)
	_, err := r.s.s.Write(frame(frameAck, binary.BigEndian.AppendUint64(nil, upto)...))
	return err
}

func parseAcked(payload []byte) (upto uint64, store [16]byte, err error) {
	f := fields{b: payload}
	upto, store = f.u64(), [16]byte(f.take(16))
	return upto, store, f.end()
}

// Ack is Reader.Ack without a reader. It returns once the relay has dropped the messages, and which store it was.
func (c *Client) Ack(ctx context.Context, upto uint64) (store [16]byte, err error) {
	answer, err := c.ask(ctx, frame(frameAck, binary.BigEndian.AppendUint64(nil, upto)...), frameAcked)
	if err != nil {
		return store, err
	}
	_, store, err = parseAcked(answer)
	return store, err
}

// Settle waits until the relay has dropped what was acknowledged. Messages that come meanwhile, at most a few hundred at a time,
// are kept for Next.
func (r *Reader) Settle() error {
	for r.told < r.asked {
		if err := r.frame(); err != nil {
			return err
		}
		if len(r.waiting) > maxWaiting {
			return errors.New("mailbox: too many messages came before an answer")
		}
	}
	return nil
}

const maxWaiting = 4096

// Fetch writes the sealed body of a large message from an offset on.
func (c *Client) Fetch(ctx context.Context, m Message, offset int64, w io.Writer) error {
	s, err := c.call(ctx, purposeFetch)
	if err != nil {
		return err
	}
	defer s.close()
	question := binary.BigEndian.AppendUint64(beginFrame(nil, frameFetch), m.Seq)
	if _, err := s.s.Write(endFrame(binary.BigEndian.AppendUint64(question, uint64(offset)), 0)); err != nil {
		return err
	}
	for offset < m.Size {
		kind, payload, err := s.next()
		if err != nil {
			return err
		}
		if kind != frameData || len(payload) == 0 || int64(len(payload)) > m.Size-offset {
			return errFrame
		}
		if _, err := w.Write(payload); err != nil {
			return err
		}
		offset += int64(len(payload))
	}
	return nil
}

// Open opens a message whose sealed body is read from r.
func (c *Client) Open(m Message, r io.Reader) (*letter.Opener, error) {
	return c.key.Open(r, m.Size, m.ID, m.From)
}

// Gone tells whether an error says that a message is at the relay no more.
func Gone(err error) bool { return errors.Is(err, mailbox.ErrNoEntry) }
