package carry

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
)

// Stream is a stream of the tunnel's session. Close may be called while others read or write, and ends them.
type Stream interface{ io.ReadWriteCloser }

// Client is a device's side. It is safe for concurrent use; each call has a stream of its own.
type Client struct {
	key  *letter.Key
	open func(ctx context.Context, head []byte) (Stream, error)

	mu        sync.Mutex
	published bool
	known     map[mailbox.Device]letter.Card // a device's card is the same for ever
}

// NewClient returns a client of whichever relay open opens streams at.
func NewClient(key *letter.Key, open func(ctx context.Context, head []byte) (Stream, error)) *Client {
	return &Client{key: key, open: open, known: make(map[mailbox.Device]letter.Card)}
}

// call is a stream that is closed when a context ends.
type call struct {
	s    Stream
	r    *bufio.Reader
	buf  []byte
	stop func() bool
}

func (c *Client) call(ctx context.Context, purpose byte) (*call, error) {
	s, err := c.open(ctx, head(purpose))
	if err != nil {
		return nil, err
	}
	return &call{s: s, r: bufio.NewReaderSize(s, maxFrame), stop: context.AfterFunc(ctx, func() { s.Close() })}, nil
}

func (c *call) close() {
	c.stop()
	c.s.Close()
}

// next reads a frame; a refusal is an error.
func (c *call) next() (byte, []byte, error) {
	kind, payload, err := readFrame(c.r, &c.buf)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil || kind != frameRefused {
		return kind, payload, err
	}
	refused, err := parseRefused(payload)
	if err != nil {
		return kind, nil, err
	}
	return kind, nil, refused
}

// ask sends one question and reads its answer.
func (c *Client) ask(ctx context.Context, question []byte, want byte) ([]byte, error) {
	s, err := c.call(ctx, purposeAsk)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if _, err := s.s.Write(question); err != nil {
		return nil, err
	}
	kind, payload, err := s.next()
	if err == nil && kind != want {
		err = errFrame
	}
	return payload, err
}

// Publish lets others find this device's key for letters. Until then nobody can send to it. It is done once for each client.
func (c *Client) Publish(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.published {
		return nil
	}
	_, err := c.ask(ctx, frame(framePublish, c.key.Card()...), frameDone)
	c.published = err == nil
	return err
}

// ErrNoCard says that a device has never been attached to the relay, so that nothing can be sealed for it.
var ErrNoCard = errors.New("the device has not published a key yet: it must have been attached once")

// maxKnown bounds how many cards are remembered.
const maxKnown = 4096

// cards returns the cards of devices, those that are remembered or what the relay says.
func (c *Client) cards(ctx context.Context, to []mailbox.Device) ([]letter.Card, error) {
	var missing []mailbox.Device
	c.mu.Lock()
	for _, d := range to {
		if _, ok := c.known[d]; !ok {
			missing = append(missing, d)
		}
	}
	c.mu.Unlock()
	found, err := c.lookup(ctx, missing)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var cards []letter.Card
	for _, d := range to {
		card, ok := c.known[d]
		if !ok {
			card = found[d]
			if len(c.known) < maxKnown {
				c.known[d] = card
			}
		}
		cards = append(cards, card)
	}
	return cards, nil
}

// lookup asks the relay for the cards of devices.
func (c *Client) lookup(ctx context.Context, devices []mailbox.Device) (map[mailbox.Device]letter.Card, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	question := beginFrame(nil, frameLookup)
	for _, d := range devices {
		question = append(question, d[:]...)
	}
	answer, err := c.ask(ctx, endFrame(question, 0), frameCards)
	if err != nil {
		return nil, err
	}
	f := fields{b: answer}
	cards := make(map[mailbox.Device]letter.Card)
	for _, d := range devices {
		b := f.take(f.u16())
		if f.bad {
			return nil, errFrame
		}
		if len(b) == 0 {
			return nil, fmt.Errorf("%s: %w", d, ErrNoCard)
		}
		if cards[d], err = letter.ReadCard(b, d); err != nil {
			return nil, fmt.Errorf("%s: %w", d, err)
		}
	}
	return cards, f.end()
}

// State is what waits for this device at the relay.
type State struct {
	Messages      uint64
	Octets, Quota uint64
	Oldest        time.Time // zero if nothing waits
}

// Status asks what waits.
func (c *Client) Status(ctx context.Context) (State, error) {
	answer, err := c.ask(ctx, frame(frameStatus), frameState)
	if err != nil {
		return State{}, err
	}
	f := fields{b: answer}
	st := State{Messages: f.u64(), Octets: f.u64(), Quota: f.u64()}
	if ms := f.u64(); ms != 0 {
		st.Oldest = time.UnixMilli(int64(ms))
	}
	return st, f.end()
}

// Outgoing is a message to send. The relay takes each ID once: a message that is sent again with the same ID, recipients, meta
// data and size goes on where it ended, or is found to be there.
type Outgoing struct {
	ID       mailbox.ID
	To       []mailbox.Device
	Flags    mailbox.Flags
	TTL      time.Duration
	Meta     []byte
	Size     int64
	Text     io.Reader          // from its beginning
	Progress func(octets int64) // of the text, that the relay has; may be nil
}

// Send seals a message, sends it, and returns once the relay has it on disk.
func (c *Client) Send(ctx context.Context, o Outgoing) (mailbox.Receipt, error) {
	cards, err := c.cards(ctx, o.To)
	if err != nil {
		return mailbox.Receipt{}, err
	}
	l := letter.Letter{ID: o.ID, To: cards, Meta: o.Meta, Size: o.Size}
	m := mailbox.Message{ID: o.ID, From: c.key.Device(), To: o.To, Flags: o.Flags, TTL: o.TTL, Size: l.SealedSize()}
	s, err := c.call(ctx, purposeSend)
	if err != nil {
		return mailbox.Receipt{}, err
	}
	defer s.close()
	if m.Size > inline {
		return c.sendLarge(s, l, m, o)
	}
	sealer, err := c.key.Seal(l, o.Text, 0)
	if err != nil {
		return mailbox.Receipt{}, err
	}
	body, err := io.ReadAll(sealer)
	if err != nil {
		return mailbox.Receipt{}, err
	}
	if _, err := s.s.Write(appendPut(nil, &m, body)); err != nil {
		return mailbox.Receipt{}, err
	}
	return s.stored(m.ID)
}

// stored reads the last answer.
func (c *call) stored(id mailbox.ID) (mailbox.Receipt, error) {
	kind, payload, err := c.next()
	if err != nil {
		return mailbox.Receipt{}, err
	}
	got, r, err := parseStored(payload)
	if kind != frameStored || err != nil || got != id {
		return mailbox.Receipt{}, errFrame
	}
	return r, nil
}

func (c *Client) sendLarge(s *call, l letter.Letter, m mailbox.Message, o Outgoing) (mailbox.Receipt, error) {
	if _, err := s.s.Write(appendPut(nil, &m, nil)); err != nil {
		return mailbox.Receipt{}, err
	}
	kind, payload, err := s.next()
	if err != nil {
		return mailbox.Receipt{}, err
	}
	if kind == frameStored {
		id, r, err := parseStored(payload)
		if err != nil || id != m.ID {
			return mailbox.Receipt{}, errFrame
		}
		return r, nil
	}
	f := fields{b: payload}
	id, offset := f.id(), int64(f.u64())
	if kind != frameGoOn || f.end() != nil || id != m.ID || offset < 0 || offset > m.Size {
		return mailbox.Receipt{}, errFrame
	}
	from := l.Boundary(offset)
	if _, err := s.s.Write(frame(frameFrom, binary.BigEndian.AppendUint64(nil, uint64(from))...)); err != nil {
		return mailbox.Receipt{}, err
	}
	sealer, err := c.key.Seal(l, o.Text, from)
	if err != nil {
		return mailbox.Receipt{}, err
	}
	return s.body(sealer, from, m, o)
}

// body writes the sealed letter and waits for the answer, which may come before the end: a refusal.
func (c *call) body(sealer io.Reader, from int64, m mailbox.Message, o Outgoing) (r mailbox.Receipt, err error) {
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		if failed = c.data(sealer, from, m.Size, o); failed != nil {
			c.s.Close() // no answer will come
		}
	})
	r, err = c.stored(m.ID)
	if err != nil {
		c.s.Close()
	}
	wg.Wait()
	if err != nil && failed != nil && !errors.As(err, new(*RefusedError)) {
		err = failed
	}
	return r, err
}

// data writes the sealed letter.
func (c *call) data(sealer io.Reader, at, size int64, o Outgoing) error {
	out := make([]byte, frameHead+dataLen)
	for at < size {
		n := int(min(size-at, dataLen))
		out = beginFrame(out[:0], frameData)[:frameHead+n]
		if _, err := io.ReadFull(sealer, out[frameHead:]); err != nil {
			return err
		}
		if _, err := c.s.Write(endFrame(out, 0)); err != nil {
			return err
		}
		if at += int64(n); o.Progress != nil {
			o.Progress(o.Size * at / size)
		}
	}
	return nil
}
