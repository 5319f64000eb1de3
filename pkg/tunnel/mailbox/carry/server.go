package carry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

// Server serves the streams of devices at a relay.
type Server struct {
	Store *mailbox.Store
	// Allow tells whether a device may leave messages for another. It is called for each recipient.
	Allow func(from, to mailbox.Device) error
	// Card verifies what a device publishes.
	Card func(card []byte, d mailbox.Device) error
	Log  *zap.Logger

	mu      sync.Mutex
	streams map[mailbox.Device]int
}

// maxStreams bounds the streams of one device: each may cost more than 1 MiB.
const maxStreams = 32

// enter counts a stream of a device in; leave counts it out.
func (s *Server) enter(d mailbox.Device) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams == nil {
		s.streams = make(map[mailbox.Device]int)
	}
	if s.streams[d] >= maxStreams {
		return false
	}
	s.streams[d]++
	return true
}

func (s *Server) leave(d mailbox.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[d]--; s.streams[d] == 0 {
		delete(s.streams, d)
	}
}

// Serve serves one stream, whose head it is given, of a device. It returns when the stream has ended, and closes it. What came
// from the network and what failed on the way is returned for the log; io.EOF is not an error.
func (s *Server) Serve(ctx context.Context, head []byte, stream io.ReadWriteCloser, peer mailbox.Device) error {
	defer stream.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	if len(head) != 2 || head[0] != Kind {
		return errFrame
	}
	if !s.enter(peer) {
		return fmt.Errorf("mailbox: more than %d streams of a device", maxStreams)
	}
	defer s.leave(peer)
	c := &served{Server: s, r: bufio.NewReaderSize(stream, maxFrame), w: stream, peer: peer}
	var err error
	switch head[1] {
	case purposeSend:
		err = c.send(ctx)
	case purposeRead:
		err = c.read(ctx, cancel)
	case purposeFetch:
		err = c.fetch()
	case purposeAsk:
		err = c.ask()
	default:
		err = errFrame
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// served is one stream.
type served struct {
	*Server
	r    *bufio.Reader
	w    io.Writer
	peer mailbox.Device
	buf  []byte
}

// batchOctets bounds what is stored in one go for one stream.
const batchOctets = 1 << 20

// send stores what comes. Small messages that are here already are stored together.
func (c *served) send(ctx context.Context) error {
	var list []mailbox.Message
	octets := 0
	flush := func() error {
		err := c.storeAll(list)
		list, octets = nil, 0
		return err
	}
	for {
		kind, payload, err := readFrame(c.r, &c.buf)
		if err != nil {
			return err
		}
		if kind != framePut {
			return fmt.Errorf("%w: type %d", errFrame, kind)
		}
		m, body, err := parsePut(payload)
		if err != nil {
			return err
		}
		m.From = c.peer
		if m.Size > inline {
			if err := flush(); err != nil {
				return err
			}
			if err := c.upload(ctx, m); err != nil {
				return err
			}
			continue
		}
		m.Body = bytes.NewReader(bytes.Clone(body))
		list, octets = append(list, m), octets+len(payload)
		if octets < batchOctets && waiting(c.r) {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
	}
}

// storeAll stores small messages and answers for each, in order.
func (c *served) storeAll(list []mailbox.Message) error {
	denied := make([]error, len(list))
	var allowed []mailbox.Message
	for i, m := range list {
		if denied[i] = c.allowed(m); denied[i] == nil {
			allowed = append(allowed, m)
		}
	}
	outcomes := c.Store.AppendAll(allowed)
	var out []byte
	for i, m := range list {
		if denied[i] != nil {
			out = appendRefused(out, m.ID, denied[i])
			continue
		}
		o := outcomes[0]
		outcomes = outcomes[1:]
		if o.Err != nil {
			out = appendRefused(out, m.ID, o.Err)
		} else {
			out = appendStored(out, m.ID, o.Receipt)
		}
	}
	_, err := c.w.Write(out)
	return err
}

func (c *served) allowed(m mailbox.Message) error {
	for _, d := range m.To {
		if err := c.Allow(c.peer, d); err != nil {
			return fmt.Errorf("%w: %w", ErrDenied, err)
		}
	}
	return nil
}

// upload takes one large message.
func (c *served) upload(ctx context.Context, m mailbox.Message) error {
	u, r, err := (*mailbox.Upload)(nil), mailbox.Receipt{}, c.allowed(m)
	if err == nil {
		u, r, err = c.Store.Begin(m)
	}
	if u != nil {
		defer u.Close()
		if r, err = c.body(ctx, u, m); errors.Is(err, errStream) {
			return err
		}
	}
	var out []byte
	if err != nil {
		out = appendRefused(nil, m.ID, err)
	} else {
		out = appendStored(nil, m.ID, r)
	}
	_, werr := c.w.Write(out)
	if err == nil || u == nil || werr != nil {
		return werr
	}
	for werr == nil { // the rest of the body may be on its way; the sender ends the stream when it has read the answer
		_, _, werr = readFrame(c.r, &c.buf)
	}
	return err
}

// errStream says that nothing can be answered any more.
var errStream = errors.New("mailbox: stream")

func (c *served) body(ctx context.Context, u *mailbox.Upload, m mailbox.Message) (mailbox.Receipt, error) {
	goOn := binary.BigEndian.AppendUint64(appendID(beginFrame(nil, frameGoOn), m.ID), uint64(u.Offset()))
	if _, err := c.w.Write(endFrame(goOn, 0)); err != nil {
		return mailbox.Receipt{}, fmt.Errorf("%w: %w", errStream, err)
	}
	kind, payload, err := readFrame(c.r, &c.buf)
	if err != nil {
		return mailbox.Receipt{}, fmt.Errorf("%w: %w", errStream, err)
	}
	f := fields{b: payload}
	from := int64(f.u64())
	if kind != frameFrom || f.end() != nil || from < 0 {
		return mailbox.Receipt{}, errFrame
	}
	if err := u.Rewind(from); err != nil {
		return mailbox.Receipt{}, err
	}
	for u.Offset() < m.Size {
		if err := ctx.Err(); err != nil {
			return mailbox.Receipt{}, err
		}
		kind, payload, err := readFrame(c.r, &c.buf)
		if err != nil {
			return mailbox.Receipt{}, fmt.Errorf("%w: %w", errStream, err)
		}
		if kind != frameData {
			return mailbox.Receipt{}, errFrame
		}
		if _, err := u.Write(payload); err != nil {
			return mailbox.Receipt{}, err
		}
	}
	return u.Commit()
}

// read gives a device its messages as they come, and takes its acknowledgements.
func (c *served) read(ctx context.Context, cancel context.CancelFunc) error {
	kind, payload, err := readFrame(c.r, &c.buf)
	if err != nil {
		return err
	}
	f := fields{b: payload}
	after := f.u64()
	if kind != frameRead || f.end() != nil {
		return errFrame
	}
	defer c.Store.Attach(c.peer)()
	var mu sync.Mutex // of writing
	id := c.Store.ID()
	if _, err := c.w.Write(frame(frameHello, id[:]...)); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var acks error
	wg.Go(func() {
		defer cancel()
		acks = c.acks(&mu)
	})
	err = c.push(ctx, after, &mu)
	cancel() // closes the stream, which ends the reading of acknowledgements
	wg.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	if err == nil || errors.Is(acks, errFrame) {
		return acks
	}
	return err
}

// push writes messages until ctx ends.
func (c *served) push(ctx context.Context, after uint64, mu *sync.Mutex) error {
	var out []byte
	for {
		if err := c.Store.Wait(ctx, c.peer, after); err != nil {
			return err
		}
		list, upto, err := c.Store.Read(c.peer, after)
		if err != nil {
			return err
		}
		for i := range list {
			if out, err = appendEntry(out[:0], &list[i]); err != nil {
				return err
			}
			mu.Lock()
			_, err := c.w.Write(out)
			mu.Unlock()
			if err != nil {
				return err
			}
		}
		after = upto
	}
}

func appendEntry(out []byte, e *mailbox.Entry) ([]byte, error) {
	if e.Size > inline {
		return appendMessage(out, e, nil), nil
	}
	body, err := e.Body()
	if err != nil {
		return out, err
	}
	defer body.Close()
	b := make([]byte, e.Size)
	if _, err := io.ReadFull(io.NewSectionReader(body, 0, e.Size), b); err != nil {
		return out, err
	}
	return appendMessage(out, e, b), nil
}

// acks takes acknowledgements. It answers each once it is on disk.
func (c *served) acks(mu *sync.Mutex) error {
	for {
		kind, payload, err := readFrame(c.r, &c.buf)
		if err != nil {
			return err
		}
		f := fields{b: payload}
		upto := f.u64()
		if kind != frameAck || f.end() != nil {
			return errFrame
		}
		if _, err := c.Store.Ack(c.peer, upto); err != nil {
			return err
		}
		mu.Lock()
		_, err = c.w.Write(c.acked(upto))
		mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// acked is the answer to an Ack: up to where 8 | store 16.
func (c *served) acked(upto uint64) []byte {
	id := c.Store.ID()
	return frame(frameAcked, append(binary.BigEndian.AppendUint64(nil, upto), id[:]...)...)
}

// fetch gives bodies.
func (c *served) fetch() error {
	for {
		kind, payload, err := readFrame(c.r, &c.buf)
		if err != nil {
			return err
		}
		f := fields{b: payload}
		seq, offset := f.u64(), int64(f.u64())
		if kind != frameFetch || f.end() != nil || offset < 0 {
			return errFrame
		}
		e, err := c.Store.Entry(c.peer, seq)
		var body mailbox.Body
		if err == nil {
			body, err = e.Body()
		}
		if err != nil {
			if _, err := c.w.Write(appendRefused(nil, mailbox.ID{}, err)); err != nil {
				return err
			}
			continue
		}
		err = c.data(body, offset, e.Size)
		if err = errors.Join(err, body.Close()); err != nil {
			return err
		}
	}
}

func (c *served) data(body io.ReaderAt, offset, size int64) error {
	var out []byte
	for offset < size {
		n := int(min(size-offset, dataLen))
		out = beginFrame(out[:0], frameData)
		out = append(out, make([]byte, n)...)
		if _, err := body.ReadAt(out[frameHead:], offset); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("body: %w", err)
		}
		if _, err := c.w.Write(endFrame(out, 0)); err != nil {
			return err
		}
		offset += int64(n)
	}
	return nil
}

// ask answers questions.
func (c *served) ask() error {
	for {
		kind, payload, err := readFrame(c.r, &c.buf)
		if err != nil {
			return err
		}
		var out []byte
		switch kind {
		case framePublish:
			out, err = c.publish(payload)
		case frameLookup:
			out, err = c.lookup(payload)
		case frameStatus:
			out, err = c.status(), nil
		case frameAck:
			f := fields{b: payload}
			upto := f.u64()
			if err = f.end(); err == nil {
				_, err = c.Store.Ack(c.peer, upto)
			}
			out = c.acked(upto)
		default:
			err = errFrame
		}
		if errors.Is(err, errFrame) {
			return err
		}
		if err != nil {
			out = appendRefused(nil, mailbox.ID{}, err)
		}
		if _, err := c.w.Write(out); err != nil {
			return err
		}
	}
}

func (c *served) publish(card []byte) ([]byte, error) {
	if err := c.Card(card, c.peer); err != nil {
		return nil, fmt.Errorf("%w: %w", mailbox.ErrBad, err)
	}
	return frame(frameDone), c.Store.Publish(c.peer, bytes.Clone(card))
}

// lookup answers with the cards of devices, each with its length before it; 0 for one that has none.
func (c *served) lookup(payload []byte) ([]byte, error) {
	if len(payload)%32 != 0 || len(payload)/32 > mailbox.MaxRecipients {
		return nil, errFrame
	}
	out := beginFrame(nil, frameCards)
	for ; len(payload) > 0; payload = payload[32:] {
		d := mailbox.Device(payload)
		if err := c.Allow(c.peer, d); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDenied, err)
		}
		card, err := c.Store.Published(d)
		if err != nil {
			return nil, err
		}
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(card))), card...)
	}
	return endFrame(out, 0), nil
}

// status answers with what waits for the device: messages 8 | octets 8 | quota 8 | oldest 8, 0 if none.
func (c *served) status() []byte {
	st := c.Store.Box(c.peer)
	out := binary.BigEndian.AppendUint64(beginFrame(nil, frameState), uint64(st.Messages))
	out = binary.BigEndian.AppendUint64(out, uint64(st.Octets))
	out = binary.BigEndian.AppendUint64(out, uint64(st.Quota))
	oldest := int64(0)
	if !st.Oldest.IsZero() {
		oldest = st.Oldest.UnixMilli()
	}
	return endFrame(binary.BigEndian.AppendUint64(out, uint64(oldest)), 0)
}
