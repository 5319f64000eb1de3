package mailbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"
)

// Entry is a message in the queue of one device.
type Entry struct {
	Seq     uint64 // grows; 0 for an ephemeral one, which is not acknowledged
	From    Device
	ID      ID
	Flags   Flags
	Queued  time.Time
	Expires time.Time
	Size    int64

	inline []byte
	file   string
}

// Body opens the body. It fails with ErrNoEntry if the message was acknowledged or purged meanwhile.
func (e *Entry) Body() (Body, error) {
	if e.file == "" {
		return inlineBody{bytes.NewReader(e.inline)}, nil
	}
	f, err := os.Open(e.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNoEntry
	}
	return f, err
}

// Body is the octets of a message.
type Body interface {
	io.ReaderAt
	io.Closer
}

type inlineBody struct{ *bytes.Reader }

func (inlineBody) Close() error { return nil }

const (
	readMessages = 256
	readOctets   = 1 << 20
)

// Read returns messages of a device that come after a sequence number, in order, as many as are worth a turn, and up to where it
// has looked: what cannot be read or is too old is left out. Ephemeral ones come first and are gone with this.
func (s *Store) Read(d Device, after uint64) (list []Entry, upto uint64, err error) {
	list = s.takePassing(d)
	t, err := s.db.Begin(false)
	if err != nil {
		return nil, after, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	b, now, octets := buckt(t), time.Now(), 0
	c := b.queue.Cursor()
	for k, v := c.Seek(queueKey(d, after+1)); bytes.HasPrefix(k, d[:]); k, v = c.Next() {
		after = binary.BigEndian.Uint64(k[32:])
		e, err := s.entry(b, k, v)
		if err != nil {
			s.damaged(d, after, err)
			continue
		}
		if e.Expires.Before(now) {
			continue
		}
		octets += len(e.inline)
		if list = append(list, e); len(list) >= readMessages || octets >= readOctets {
			break
		}
	}
	return list, after, nil
}

// damaged counts a message that cannot be read. It leaves the queue when a later one is acknowledged, or when it expires.
func (s *Store) damaged(d Device, seq uint64, err error) {
	s.mu.Lock()
	s.stats.Damaged++
	s.mu.Unlock()
	s.opts.Log.Error("stored message cannot be read", zap.Stringer("device", d), zap.Uint64("seq", seq), zap.Error(err))
}

// entry reads one entry of a queue and its body, or that of its file.
func (s *Store) entry(t tx, k, v []byte) (Entry, error) {
	seq, q, err := parseQueue(k, v)
	if err != nil {
		return Entry{}, err
	}
	h, err := parseBody(t.bodies.Get(k[32:]))
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Seq: seq, From: h.from, ID: h.id, Flags: q.flags, Queued: q.queued, Expires: q.expires, Size: h.size}
	if h.kind == bodyInline {
		e.inline = bytes.Clone(h.rest)
		return e, nil
	}
	e.file = s.path(h.file)
	st, err := os.Stat(e.file)
	if err == nil && st.Size() != h.size {
		err = fmt.Errorf("body: %d octets, the file has %d", h.size, st.Size())
	}
	return e, err
}

// queued is the value of an entry of a queue.
type queued struct {
	size            int64
	queued, expires time.Time
	flags           Flags
}

func parseQueue(k, v []byte) (uint64, queued, error) {
	if len(k) != queueKeyLen || len(v) != queueValueLen {
		return 0, queued{}, fmt.Errorf("queue: bad record of %d, %d octets", len(k), len(v))
	}
	ms := func(b []byte) time.Time { return time.UnixMilli(int64(binary.BigEndian.Uint64(b))) }
	return binary.BigEndian.Uint64(k[32:]), queued{int64(binary.BigEndian.Uint64(v)), ms(v[8:]), ms(v[16:]), Flags(v[24])}, nil
}

// Attach says that a reader of the device is there: Discard keeps messages for it. The reader calls the returned func when it leaves.
func (s *Store) Attach(d Device) (leave func()) {
	return s.enter(d, func(b *box) *int { return &b.readers })
}

// enter counts somebody who keeps a box from being forgotten.
func (s *Store) enter(d Device, of func(*box) *int) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*of(s.box(d))++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		*of(s.box(d))--
		s.forget(d)
	}
}

// Wait returns once a message after a sequence number is there to be read, or when ctx ends.
func (s *Store) Wait(ctx context.Context, d Device, after uint64) error {
	leave := s.enter(d, func(b *box) *int { return &b.waiters })
	defer leave()
	for {
		s.mu.Lock()
		b := s.box(d)
		if b.wake == nil {
			b.wake = make(chan struct{})
		}
		wake, passing := b.wake, len(b.passing) > 0
		s.mu.Unlock()
		if passing {
			return nil
		}
		if there, err := s.there(d, after); there || err != nil {
			return err
		}
		select {
		case <-wake:
		case <-s.stop:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Store) there(d Device, after uint64) (bool, error) {
	t, err := s.db.Begin(false)
	if err != nil {
		return false, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	k, _ := buckt(t).queue.Cursor().Seek(queueKey(d, after+1))
	return bytes.HasPrefix(k, d[:]), nil
}

// dropped is an entry that a transaction has removed.
type dropped struct {
	device Device
	size   int64
	last   bool     // nobody else waits for the body
	file   [16]byte // of the last one's body; zero for an inline one
}

// remove deletes an entry, and its body if nobody else waits for it. Keys and values may be those of a cursor: they are copied.
func (t tx) remove(k, v []byte) (dropped, error) {
	k = bytes.Clone(k)
	seq := k[32:]
	d := dropped{device: Device(k[:32]), size: int64(binary.BigEndian.Uint64(v))}
	if err := t.queue.Delete(k); err != nil {
		return d, err
	}
	if r := t.refs.Get(seq); len(r) == 4 {
		left := binary.BigEndian.Uint32(r) - 1
		if left > 0 {
			return d, t.refs.Put(seq, binary.BigEndian.AppendUint32(nil, left))
		}
		if err := t.refs.Delete(seq); err != nil {
			return d, err
		}
	}
	d.last = true
	if h, err := parseBody(t.bodies.Get(seq)); err == nil {
		d.file = h.file
	}
	return d, t.bodies.Delete(seq)
}

// drops takes what a transaction has removed off the accounts. s.mu is held.
func (s *Store) drops(list []dropped) {
	for _, d := range list {
		s.drop(d.device, d.size)
		if d.last {
			s.total -= d.size
		}
	}
}

// unlinks deletes the files of bodies that no record names any more.
func (s *Store) unlinks(list []dropped) {
	for _, d := range list {
		if d.file == ([16]byte{}) {
			continue
		}
		if err := s.unlink(d.file); err != nil { // the next Open removes it
			s.opts.Log.Warn("file of a message not removed", zap.Error(err))
		}
	}
}

// removeBatch bounds how many entries one transaction removes for one caller.
const removeBatch = 256

// Ack removes a device's messages up to and with a sequence number. It returns how many, once that is synced.
func (s *Store) Ack(d Device, upto uint64) (int, error) {
	n, err := s.removeWhile(d[:], func(k, _ []byte) (bool, bool) { return true, binary.BigEndian.Uint64(k[32:]) > upto })
	s.mu.Lock()
	s.stats.Acked += uint64(n)
	s.mu.Unlock()
	return n, err
}

// Purge removes all that waits for a device, half-sent messages for it alone included. It returns how many messages.
func (s *Store) Purge(d Device) (int, error) {
	n, err := s.removeWhile(d[:], func(_, _ []byte) (bool, bool) { return true, false })
	if err != nil {
		return n, err
	}
	parts, err := s.partsWhere(func(p part) bool { return len(p.to) == 1 && p.to[0] == d })
	if err != nil {
		return n, err
	}
	for _, k := range parts {
		if err := s.dropPart(k); err != nil {
			return n, err
		}
	}
	s.mu.Lock()
	s.stats.Purged += uint64(n)
	s.dropPassing(s.box(d))
	s.forget(d)
	s.mu.Unlock()
	return n, nil
}

// removeWhile removes entries whose key begins with prefix, in order: those that pick takes, until it says stop. After each
// transaction it goes on behind the last key that it saw.
func (s *Store) removeWhile(prefix []byte, pick func(k, v []byte) (take, stop bool)) (int, error) {
	total, from := 0, prefix
	for {
		var list []dropped
		var next []byte
		remove := func() error {
			return s.do(func(t tx) (refused, failed error) {
				list, next, failed = t.removeSome(prefix, from, pick)
				return nil, failed
			}, func() { s.drops(list) })
		}
		err := remove()
		if errors.Is(err, ErrDisk) && s.castOff() {
			err = remove()
		}
		if err != nil {
			return total, err
		}
		s.unlinks(list)
		total += len(list)
		if next == nil {
			return total, nil
		}
		from = next
	}
}

// removeSome is one transaction of removeWhile. next is where to go on, nil at the end.
func (t tx) removeSome(prefix, from []byte, pick func(k, v []byte) (take, stop bool)) (list []dropped, next []byte, err error) {
	var keys, values [][]byte
	c := t.queue.Cursor()
	seen := 0
	for k, v := c.Seek(from); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		take, stop := pick(k, v)
		if stop {
			break
		}
		if seen++; len(keys) >= removeBatch || seen > 100*removeBatch {
			next = bytes.Clone(k)
			break
		}
		if take {
			keys, values = append(keys, bytes.Clone(k)), append(values, bytes.Clone(v))
		}
	}
	for i, k := range keys {
		d, err := t.remove(k, values[i])
		if err != nil {
			return nil, nil, err
		}
		list = append(list, d)
	}
	return list, next, nil
}

// Entry returns one message of a device; ErrNoEntry if it is not there.
func (s *Store) Entry(d Device, seq uint64) (Entry, error) {
	t, err := s.db.Begin(false)
	if err != nil {
		return Entry{}, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	b, k := buckt(t), queueKey(d, seq)
	v := b.queue.Get(k)
	if v == nil {
		return Entry{}, ErrNoEntry
	}
	return s.entry(b, k, v)
}
