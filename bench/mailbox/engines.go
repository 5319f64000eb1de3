package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"edged.dev/edged/pkg/tunnel/mailbox"
)

// edged is the product's store. Each writer is a sender that numbers its messages.
type edged struct {
	store *mailbox.Store
	sent  [1024]uint64
}

func openEdged(dir string) (engine, error) {
	s, err := mailbox.Open(dir, mailbox.Options{Config: mailbox.Default()})
	return &edged{store: s}, err
}

func device(n int) (d mailbox.Device) {
	binary.BigEndian.PutUint64(d[:], uint64(n)*0x9e3779b97f4a7c15) // spread, as hashes are
	return d
}

func (e *edged) put(w, d int, body []byte) error {
	e.sent[w]++
	_, err := e.store.Append(context.Background(), mailbox.Message{
		ID: mailbox.ID{Epoch: 1, Counter: e.sent[w]}, From: device(1<<20 + w), To: []mailbox.Device{device(d)},
		Size: int64(len(body)), Body: bytes.NewReader(body),
	})
	return err
}

// drain has 64 devices read at once, as relays see it: their acknowledgements share transactions.
func (e *edged) drain() (int, error) {
	var total atomic.Int64
	var g errgroup.Group
	g.SetLimit(64)
	for d := range e.store.Boxes() {
		g.Go(func() error {
			n, err := e.drainOne(d)
			total.Add(int64(n))
			return err
		})
	}
	err := g.Wait()
	return int(total.Load()), err
}

func (e *edged) drainOne(d mailbox.Device) (total int, err error) {
	for after := uint64(0); ; {
		list, upto, err := e.store.Read(d, after)
		if err != nil || len(list) == 0 {
			return total, err
		}
		after = upto
		n, err := e.store.Ack(d, after)
		if total += n; err != nil {
			return total, err
		}
	}
}

func (e *edged) close() error { return e.store.Close() }

// jets is an embedded JetStream with sync_interval always.
type jets struct {
	server *server.Server
	conn   *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
}

func openJetStream(dir string) (engine, error) { return open(dir) }

func open(dir string) (*jets, error) {
	s, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: dir, SyncAlways: true, NoSigs: true, NoLog: true,
		JetStreamMaxStore: 64 << 30, JetStreamMaxMemory: 1 << 30,
	})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("nats-server does not start")
	}
	j := &jets{server: s}
	if j.conn, err = nats.Connect("", nats.InProcessServer(s)); err != nil {
		return nil, err
	}
	if j.js, err = jetstream.New(j.conn, jetstream.WithPublishAsyncMaxPending(4096)); err != nil {
		return nil, err
	}
	j.stream, err = j.js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: "M", Subjects: []string{"m.>"}, Storage: jetstream.FileStorage, Retention: jetstream.WorkQueuePolicy, AllowAtomicPublish: true,
	})
	return j, err
}

func (j *jets) put(_, d int, body []byte) error {
	f, err := j.js.PublishAsync("m."+strconv.Itoa(d), body)
	if err != nil {
		return err
	}
	select {
	case <-f.Ok():
		return nil
	case err := <-f.Err():
		return err
	}
}

// drain has one consumer for all subjects: kinder than one for each mailbox would be.
func (j *jets) drain() (int, error) {
	ctx := context.Background()
	c, err := j.stream.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 10_000})
	if err != nil {
		return 0, err
	}
	info, err := j.stream.Info(ctx)
	if err != nil {
		return 0, err
	}
	total := 0
	for want := int(info.State.Msgs); total < want; {
		batch, err := c.Fetch(256, jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return total, err
		}
		before := total
		for m := range batch.Messages() {
			if err := m.Ack(); err != nil {
				return total, err
			}
			total++
		}
		if total == before {
			return total, errors.Join(errors.New("JetStream gives no more messages"), batch.Error())
		}
	}
	return total, j.conn.Flush()
}

func (j *jets) close() error {
	j.conn.Close()
	j.server.Shutdown()
	j.server.WaitForShutdown()
	return nil
}

// waiting is a message whose writer waits.
type waiting struct {
	device int
	body   []byte
	done   chan error
}

// batches gathers all messages that wait, as edged's store does by itself.
type batches struct {
	in     chan waiting
	ended  chan struct{}
	commit func([]waiting) error
}

func newBatches(commit func([]waiting) error) *batches {
	b := &batches{make(chan waiting), make(chan struct{}), commit}
	go b.run()
	return b
}

func (b *batches) run() {
	defer close(b.ended)
	for first := range b.in {
		list := []waiting{first}
	more:
		for len(list) < 256 {
			select {
			case w, ok := <-b.in:
				if !ok {
					break more
				}
				list = append(list, w)
			default:
				break more
			}
		}
		err := b.commit(list)
		for _, w := range list {
			w.done <- err
		}
	}
}

func (b *batches) put(_, d int, body []byte) error {
	w := waiting{d, body, make(chan error, 1)}
	b.in <- w
	return <-w.done
}

func (b *batches) end() { close(b.in); <-b.ended }

// batched is JetStream with one atomic batch (NATS 2.12) for all that waited.
type batched struct {
	*jets
	b *batches
	n int
}

func openBatches(dir string) (engine, error) {
	j, err := open(dir)
	if err != nil {
		return nil, err
	}
	e := &batched{jets: j}
	e.b = newBatches(e.commit)
	return e, nil
}

func (e *batched) put(w, d int, body []byte) error { return e.b.put(w, d, body) }

func (e *batched) commit(list []waiting) error {
	e.n++
	for i, w := range list {
		m := nats.NewMsg("m." + strconv.Itoa(w.device))
		m.Data = w.body
		m.Header.Set("Nats-Batch-Id", strconv.Itoa(e.n))
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < len(list)-1 {
			if err := e.conn.PublishMsg(m); err != nil {
				return err
			}
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		answer, err := e.conn.RequestMsg(m, 30*time.Second)
		if err != nil {
			return err
		}
		if bytes.Contains(answer.Data, []byte(`"error"`)) {
			return fmt.Errorf("JetStream: %s", answer.Data)
		}
	}
	return nil
}

func (e *batched) close() error {
	e.b.end()
	return e.jets.close()
}

// log is a file that is appended to: no queues, no dedupe, nothing is ever deleted.
type log struct {
	f *os.File
	b *batches
}

func openLog(dir string) (engine, error) {
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	var buf []byte
	return &log{f, newBatches(func(list []waiting) error {
		buf = buf[:0]
		for _, w := range list {
			buf = binary.BigEndian.AppendUint32(buf, uint32(w.device))
			buf = binary.BigEndian.AppendUint32(buf, uint32(len(w.body)))
			buf = append(buf, w.body...)
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
		return f.Sync()
	})}, nil
}

func (l *log) put(w, d int, body []byte) error { return l.b.put(w, d, body) }
func (l *log) drain() (int, error)             { return 0, nil }
func (l *log) close() error {
	l.b.end()
	return l.f.Close()
}
