package carry

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/mailbox"
	"edged.dev/edged/pkg/tunnel/mailbox/letter"
)

// relay is a real server with a real store, reached over loopback TCP.
type relay struct {
	t      *testing.T
	server *Server
	ln     net.Listener
	ctx    context.Context //nolint:containedctx // of the test
	wg     sync.WaitGroup
}

func newRelay(t *testing.T, change func(*mailbox.Options)) *relay {
	t.Helper()
	o := mailbox.Options{Config: mailbox.Default()}
	o.MinFree = 0
	if change != nil {
		change(&o)
	}
	store, err := mailbox.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &relay{t: t, ln: ln, ctx: ctx, server: &Server{
		Store: store, Allow: func(_, _ mailbox.Device) error { return nil }, Log: zap.NewNop(),
		Card: func(b []byte, d mailbox.Device) error { _, err := letter.ReadCard(b, d); return err },
	}}
	t.Cleanup(func() {
		cancel()
		ln.Close()
		r.wg.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// stream returns both ends of a connection.
func (r *relay) stream() (client, server net.Conn) {
	r.t.Helper()
	client, err := net.Dial("tcp", r.ln.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	server, err = r.ln.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	return client, server
}

func newKey(t testing.TB, n byte) *letter.Key {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	k, err := letter.NewKey(private.Public().(ed25519.PublicKey), func(b []byte) []byte { return ed25519.Sign(private, b) })
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// device returns a client that has published its key.
func (r *relay) device(n byte) (*Client, mailbox.Device) {
	r.t.Helper()
	k := newKey(r.t, n)
	c := NewClient(k, func(_ context.Context, head []byte) (Stream, error) {
		client, server := r.stream()
		r.wg.Go(func() { r.server.Serve(r.ctx, head, server, k.Device()) })
		return client, nil
	})
	if err := c.Publish(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	return c, k.Device()
}

func outgoing(counter uint64, text []byte, to ...mailbox.Device) Outgoing {
	return Outgoing{ID: mailbox.ID{Epoch: 1, Counter: counter}, To: to, Meta: []byte("m"), Size: int64(len(text)), Text: bytes.NewReader(text)}
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// text gives the text of a message, fetched if need be.
func text(ctx context.Context, t *testing.T, c *Client, m Message) []byte {
	t.Helper()
	sealed := bytes.NewBuffer(bytes.Clone(m.Body))
	if m.Body == nil {
		half := &limited{left: m.Size / 2}
		if err := c.Fetch(ctx, m, 0, half); err == nil {
			t.Fatal("the fetch is not cut")
		}
		sealed.Write(half.Bytes())
		if err := c.Fetch(ctx, m, int64(sealed.Len()), sealed); err != nil {
			t.Fatal(err)
		}
	}
	o, err := c.Open(m, sealed)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(o)
	if err != nil || string(o.Meta) != "m" {
		t.Fatal(err, o.Meta)
	}
	return b
}

// limited is a writer that fails after some octets.
type limited struct {
	bytes.Buffer
	left int64
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= int64(len(b)); l.left < 0 {
		return 0, io.ErrShortWrite
	}
	return l.Buffer.Write(b)
}

func TestSendAndRead(t *testing.T) {
	ctx, r := timeout(t), newRelay(t, nil)
	alice, from := r.device(1)
	bob, b := r.device(2)
	carol, c := r.device(3)
	large := bytes.Repeat([]byte("0123456789"), 100_000)
	texts := [][]byte{[]byte("hello"), large, nil, []byte("last")}
	for i, text := range texts {
		var done int64
		o := outgoing(uint64(i+1), text, b, c)
		o.Progress = func(n int64) { done = n }
		if _, err := alice.Send(ctx, o); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if len(text) > 100_000 && done != int64(len(text)) {
			t.Errorf("progress ends at %d", done)
		}
		if again, err := alice.Send(ctx, outgoing(uint64(i+1), text, b, c)); err != nil || !again.Duplicate {
			t.Errorf("sent again: %+v, %v", again, err)
		}
	}
	for _, client := range []*Client{bob, carol} {
		rd, err := client.Read(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range texts {
			m, err := rd.Next()
			if err != nil || m.From != from || m.ID.Counter != uint64(i+1) {
				t.Fatalf("%+v, %v", m, err)
			}
			if got := text(ctx, t, client, m); !bytes.Equal(got, want) {
				t.Fatalf("message %d: %d octets", i, len(got))
			}
			if err := rd.Ack(m.Seq); err != nil {
				t.Fatal(err)
			}
		}
		if err := rd.Settle(); err != nil {
			t.Fatal(err)
		}
		if st, err := client.Status(ctx); err != nil || st.Quota == 0 || st.Messages != 0 {
			t.Errorf("%+v, %v", st, err)
		}
		rd.Close()
	}
	late := outgoing(5, []byte("to who waits"), b)
	rd, err := bob.Read(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if _, err := alice.Send(ctx, late); err != nil {
		t.Fatal(err)
	}
	if m, err := rd.Next(); err != nil || string(text(ctx, t, bob, m)) != "to who waits" {
		t.Error(err)
	}
}

// TestSendIsCut cuts the stream of a large message again and again. The sender goes on where it ended.
func TestSendIsCut(t *testing.T) {
	ctx, r := timeout(t), newRelay(t, nil)
	bob, b := r.device(2)
	k := newKey(t, 1)
	var written int64
	cuts := 0
	alice := NewClient(k, func(_ context.Context, head []byte) (Stream, error) {
		client, server := r.stream()
		r.wg.Go(func() { r.server.Serve(r.ctx, head, server, k.Device()) })
		return &cutting{Conn: client, left: 400_000 + rand.Int64N(400_000), written: &written}, nil
	})
	large := make([]byte, 4<<20)
	for i := range large {
		large[i] = byte(i * i >> 8)
	}
	for {
		_, err := alice.Send(ctx, outgoing(1, large, b))
		if err == nil {
			break
		}
		if cuts++; cuts > 100 || errors.As(err, new(*RefusedError)) {
			t.Fatalf("after %d cuts: %v", cuts, err)
		}
	}
	if cuts < 4 || written > int64(len(large))+int64(cuts+2)*600_000 {
		t.Errorf("%d cuts, %d octets were sent for %d", cuts, written, len(large))
	}
	rd, err := bob.Read(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if m, err := rd.Next(); err != nil || !bytes.Equal(text(ctx, t, bob, m), large) {
		t.Fatal(err)
	}
}

type cutting struct {
	net.Conn
	left    int64
	written *int64
}

func (c *cutting) Write(b []byte) (int, error) {
	if c.left -= int64(len(b)); c.left < 0 {
		c.Close()
	}
	n, err := c.Conn.Write(b)
	*c.written += int64(n)
	return n, err
}

func TestRefusals(t *testing.T) {
	ctx := timeout(t)
	r := newRelay(t, func(o *mailbox.Options) { o.PerDevice, o.MaxSize = 200_000, 1<<20 })
	alice, _ := r.device(1)
	_, b := r.device(2)
	_, c := r.device(3)
	r.server.Allow = func(_, to mailbox.Device) error {
		if to == c {
			return errors.New("no rule allows it")
		}
		return nil
	}
	for name, test := range map[string]struct {
		o    Outgoing
		want error
	}{
		"quota, large": {outgoing(1, make([]byte, 300_000), b), mailbox.ErrQuota},
		"too large":    {outgoing(1, make([]byte, 2<<20), b), mailbox.ErrTooBig},
		"gap":          {outgoing(2, nil, b), mailbox.ErrGap},
		"denied":       {outgoing(1, nil, c), ErrDenied},
		"unknown":      {outgoing(1, nil, mailbox.Device{1}), ErrNoCard},
		"short text":   {Outgoing{ID: mailbox.ID{Epoch: 1, Counter: 1}, To: []mailbox.Device{b}, Size: 10, Text: bytes.NewReader(nil)}, io.EOF},
	} {
		if _, err := alice.Send(ctx, test.o); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	for i := range 4 {
		_, err := alice.Send(ctx, outgoing(uint64(i+1), make([]byte, 60_000), b))
		if full := i == 3; errors.Is(err, mailbox.ErrQuota) != full || !full && err != nil {
			t.Errorf("message %d: %v", i, err)
		}
	}
}

// TestPipelined has many small messages written before any answer is read: they are stored together, in order.
func TestPipelined(t *testing.T) {
	r := newRelay(t, nil)
	_, b := r.device(2)
	client, server := r.stream()
	defer client.Close()
	from := mailbox.Device{9}
	r.wg.Go(func() { r.server.Serve(r.ctx, head(purposeSend), server, from) })
	const n = 1000
	go func() {
		var out []byte
		for i := range n {
			body := []byte(fmt.Sprint(i))
			out = appendPut(out, &mailbox.Message{ID: mailbox.ID{Epoch: 1, Counter: uint64(i + 1)}, To: []mailbox.Device{b}, Size: int64(len(body))}, body)
		}
		client.Write(out)
	}()
	var buf []byte
	for i := range n {
		kind, payload, err := readFrame(client, &buf)
		if err != nil || kind != frameStored {
			t.Fatal(kind, err)
		}
		if id, _, err := parseStored(payload); err != nil || id.Counter != uint64(i+1) {
			t.Fatalf("%d: %v, %v", i, id, err)
		}
	}
	if st := r.server.Store.Stats(); st.Stored != n || st.Commits > n/4 {
		t.Errorf("%d messages in %d transactions", st.Stored, st.Commits)
	}
}

func FuzzServe(f *testing.F) {
	put := appendPut(nil, &mailbox.Message{ID: mailbox.ID{Epoch: 1, Counter: 1}, To: []mailbox.Device{{1}}, Size: 1}, []byte("x"))
	f.Add(byte(purposeSend), put)
	f.Add(byte(purposeSend), append(appendPut(nil, &mailbox.Message{ID: mailbox.ID{Epoch: 2, Counter: 1}, To: []mailbox.Device{{1}}, Size: 1 << 17}, nil),
		append(frame(frameFrom, make([]byte, 8)...), frame(frameData, make([]byte, 100)...)...)...))
	f.Add(byte(purposeRead), append(frame(frameRead, make([]byte, 8)...), frame(frameAck, make([]byte, 8)...)...))
	f.Add(byte(purposeFetch), frame(frameFetch, make([]byte, 16)...))
	f.Add(byte(purposeAsk), append(frame(frameStatus), frame(frameLookup, make([]byte, 32)...)...))
	o := mailbox.Options{Config: mailbox.Default()}
	o.MinFree, o.Total = 0, 1<<20
	store, err := mailbox.Open(f.TempDir(), o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { store.Close() })
	s := &Server{
		Store: store, Allow: func(_, _ mailbox.Device) error { return nil }, Log: zap.NewNop(),
		Card: func(b []byte, d mailbox.Device) error { _, err := letter.ReadCard(b, d); return err },
	}
	f.Fuzz(func(t *testing.T, purpose byte, b []byte) {
		s.Serve(t.Context(), head(purpose), &scripted{r: bytes.NewReader(b)}, mailbox.Device{2})
		for _, parse := range []func() error{
			func() error { _, err := parseMessage(b); return err },
			func() error { _, _, err := parseStored(b); return err },
			func() error { _, err := parseRefused(b); return err },
		} {
			if err := parse(); err != nil && !errors.Is(err, errFrame) {
				t.Error(err)
			}
		}
		if st := store.Stats(); st.Octets > int64(o.Total) || st.Broken {
			t.Fatalf("%+v", st)
		}
	})
}

// scripted is a stream that says what was written for it, and then ends.
type scripted struct{ r io.Reader }

func (s *scripted) Read(b []byte) (int, error)  { return s.r.Read(b) }
func (s *scripted) Write(b []byte) (int, error) { return len(b), nil }
func (s *scripted) Close() error                { return nil }

// TestStreamFlood has a device open more streams than it may: those that are too many end, and others' do not.
func TestStreamFlood(t *testing.T) {
	r := newRelay(t, nil)
	open := func(d mailbox.Device) net.Conn {
		client, server := r.stream()
		t.Cleanup(func() { client.Close() })
		r.wg.Go(func() { r.server.Serve(r.ctx, head(purposeAsk), server, d) })
		return client
	}
	answers := func(c net.Conn) bool {
		var buf []byte
		if _, err := c.Write(frame(frameStatus)); err != nil {
			return false
		}
		kind, _, err := readFrame(c, &buf)
		return err == nil && kind == frameState
	}
	for i := range maxStreams + 3 {
		if got := answers(open(mailbox.Device{1})); got != (i < maxStreams) {
			t.Errorf("stream %d answers: %v", i, got)
		}
	}
	if !answers(open(mailbox.Device{2})) {
		t.Error("another device pays for it")
	}
}
