package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

const (
	queueKeyLen   = 40
	queueValueLen = 25
	bodyHeadLen   = 57

	bodyInline = 1
	bodyFile   = 2
)

// bodyHead is what stands before a body, or the name of its file.
type bodyHead struct {
	kind byte
	from Device
	id   ID
	size int64
	file [16]byte
	rest []byte // the inline body
}

func (h bodyHead) append(b []byte) []byte {
	b = append(b, h.kind)
	b = append(b, h.from[:]...)
	b = binary.BigEndian.AppendUint64(b, h.id.Epoch)
	b = binary.BigEndian.AppendUint64(b, h.id.Counter)
	b = binary.BigEndian.AppendUint64(b, uint64(h.size))
	if h.kind == bodyFile {
		return append(b, h.file[:]...)
	}
	return append(b, h.rest...)
}

func parseBody(v []byte) (bodyHead, error) {
	if len(v) < bodyHeadLen {
		return bodyHead{}, fmt.Errorf("body: record of %d octets", len(v))
	}
	h := bodyHead{kind: v[0], from: Device(v[1:33]), rest: v[bodyHeadLen:]}
	h.id = ID{binary.BigEndian.Uint64(v[33:]), binary.BigEndian.Uint64(v[41:])}
	h.size = int64(binary.BigEndian.Uint64(v[49:]))
	switch {
	case h.kind == bodyFile && len(h.rest) == len(h.file):
		h.file = [16]byte(h.rest)
	case h.kind == bodyInline && int64(len(h.rest)) == h.size:
	default:
		return bodyHead{}, fmt.Errorf("body: kind %d, size %d, record of %d octets", h.kind, h.size, len(v))
	}
	return h, nil
}

func queueKey(d Device, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, queueKeyLen), d[:]...), seq)
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func markKey(from Device, epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, queueKeyLen), from[:]...), epoch)
}

// Append stores a message and returns once it is synced. It refuses, before it reads the body, what there is no room for:
// with ErrQuota, ErrDisk, ErrTooBig, ErrGap or ErrBad. A large body that was sent in part goes on where it ended.
// Any other error leaves open whether the message was stored: send it again with the same ID.
func (s *Store) Append(ctx context.Context, m Message) (Receipt, error) {
	if m.Size > maxInline {
		return s.appendFile(ctx, m)
	}
	if err := m.check(&s.opts); err != nil {
		return Receipt{}, s.refuse(err)
	}
	if m.Flags&Ephemeral == 0 {
		if dup, err := s.taken(m.From, m.ID); dup || err != nil {
			return Receipt{Duplicate: dup}, s.refuse(err)
		}
	}
	out := s.AppendAll([]Message{m})[0]
	return out.Receipt, out.Err
}

// Outcome is what became of one message of AppendAll.
type Outcome struct {
	Receipt Receipt
	Err     error
}

// AppendAll stores messages with small bodies in one transaction, in order, each as Append would. One that is refused does not
// keep the others from being stored, except that those of its epoch which follow have a gap before them.
func (s *Store) AppendAll(list []Message) []Outcome {
	out := make([]Outcome, len(list))
	var ready []*pending
	for i, m := range list {
		p := &pending{m: m, out: &out[i]}
		switch err := s.prepare(p); {
		case err != nil:
			out[i].Err = s.refuse(err)
		case p.m.Flags&Ephemeral != 0:
			out[i].Receipt, out[i].Err = s.pass(p.m)
		default:
			ready = append(ready, p)
		}
	}
	if len(ready) > 0 {
		s.store(ready)
	}
	return out
}

// pending is a message on its way into a transaction. Its room is promised.
type pending struct {
	m         Message
	record    []byte // its body's
	discarded int
	out       *Outcome
}

// prepare judges a message, promises room, and reads the body.
func (s *Store) prepare(p *pending) error {
	m := &p.m
	if err := s.admit(m); err != nil || m.Flags&Ephemeral != 0 {
		return err
	}
	if m.Size > maxInline {
		return fmt.Errorf("%w: %d octets are an upload", ErrBad, m.Size)
	}
	p.discarded = s.discard(m)
	if len(m.To) > 0 {
		if err := s.promise(m.To, m.Size); err != nil {
			return err
		}
	}
	body := make([]byte, m.Size)
	if _, err := io.ReadFull(m.Body, body); err != nil {
		s.release(m.To, m.Size)
		return shortBody(err)
	}
	h := bodyHead{kind: bodyInline, from: m.From, id: m.ID, size: m.Size, rest: body}
	p.record = h.append(make([]byte, 0, bodyHeadLen+len(body)))
	return nil
}

// appendFile stores a large body by way of an upload.
func (s *Store) appendFile(ctx context.Context, m Message) (Receipt, error) {
	u, r, err := s.Begin(m)
	if err != nil || u == nil {
		return r, err
	}
	defer u.Close()
	if _, err := io.CopyN(io.Discard, m.Body, u.Offset()); err != nil {
		return Receipt{}, shortBody(err)
	}
	if _, err := io.CopyN(u, m.Body, m.Size-u.Offset()); err != nil {
		return Receipt{}, shortBody(err)
	}
	if err := ctx.Err(); err != nil {
		return Receipt{}, err
	}
	return u.Commit()
}

func shortBody(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrShort
	}
	return fmt.Errorf("body: %w", err)
}

// refuse counts a refusal by its reason.
func (s *Store) refuse(err error) error {
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.refuse(err)
	return err
}

// admit judges a message alone, and the disk.
func (s *Store) admit(m *Message) error {
	if err := m.check(&s.opts); err != nil {
		return err
	}
	if m.TTL == 0 || m.TTL > s.opts.TTL {
		m.TTL = s.opts.TTL
	}
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil || m.Flags&Ephemeral != 0 {
		return broken
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("free space: %w", err)
	}
	if free := int64(min(st.Bavail, 1<<50)) * st.Bsize; free < int64(s.opts.MinFree)+m.Size {
		return fmt.Errorf("%w: %d octets are free, of which %d stay so", ErrDisk, free, s.opts.MinFree)
	}
	return nil
}

// taken tells whether an ID is that of a message which was stored before, and refuses one that is not the next.
func (s *Store) taken(from Device, id ID) (dup bool, err error) {
	t, err := s.db.Begin(false)
	if err != nil {
		return false, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	return buckt(t).taken(from, id)
}

func (t tx) taken(from Device, id ID) (dup bool, err error) {
	var last uint64
	if v := t.marks.Get(markKey(from, id.Epoch)); len(v) == 16 {
		last = binary.BigEndian.Uint64(v)
	}
	if id.Counter <= last {
		return true, nil
	}
	if id.Counter != last+1 {
		return false, fmt.Errorf("%w: %d is next, not %d", ErrGap, last+1, id.Counter)
	}
	return false, nil
}

// discard leaves out those for whom a message is not kept.
func (s *Store) discard(m *Message) int {
	if m.Flags&Discard == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept []Device
	for _, d := range m.To {
		if b := s.boxes[d]; b != nil && b.readers > 0 {
			kept = append(kept, d)
		}
	}
	n := len(m.To) - len(kept)
	m.To = kept
	s.stats.Discarded += uint64(n)
	return n
}

// promise reserves room for a body of size octets in each queue and on disk, or in none.
func (s *Store) promise(to []Device, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	need, each := size+overhead*int64(len(to)), size+overhead
	if s.total+need > int64(s.opts.Total) {
		return fmt.Errorf("%w: %d of %d octets are used", ErrQuota, s.total, int64(s.opts.Total))
	}
	people := make(map[string]int64)
	for _, d := range to {
		b := s.box(d)
		people[b.group] += each
		var err error
		switch {
		case b.bytes+each > int64(s.opts.PerDevice):
			err = fmt.Errorf("%w: of the device %s", ErrQuota, d)
		case b.count >= s.opts.MaxMessages:
			err = fmt.Errorf("%w: %d messages wait for the device %s", ErrQuota, b.count, d)
		case b.group != "" && int64(s.opts.PerGroup) > 0 && s.groups[b.group]+people[b.group] > int64(s.opts.PerGroup):
			err = fmt.Errorf("%w: of %q", ErrQuota, b.group)
		}
		if err != nil {
			for _, d := range to {
				s.forget(d)
			}
			return err
		}
	}
	s.total += need
	for _, d := range to {
		b := s.box(d)
		b.count++
		s.charge(b, each)
	}
	return nil
}

// release gives back what promise has reserved.
func (s *Store) release(to []Device, size int64) {
	if len(to) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total -= size
	for _, d := range to {
		s.drop(d, size)
	}
}

// drop takes one message of size octets out of a box. s.mu is held.
func (s *Store) drop(d Device, size int64) {
	b := s.box(d)
	b.count--
	s.charge(b, -size-overhead)
	s.total -= overhead
	s.forget(d)
}

// store commits messages whose room is promised.
func (s *Store) store(list []*pending) {
	now, octets := time.Now(), 0
	for _, p := range list {
		octets += len(p.record)
	}
	err := s.doSized(octets, func(t tx) (refused, failed error) {
		for _, p := range list {
			r := Receipt{Discarded: p.discarded}
			r.Duplicate, p.out.Err = t.taken(p.m.From, p.m.ID)
			if p.out.Err == nil && !r.Duplicate {
				p.out.Err = s.newEpoch(t, p.m.From, p.m.ID)
			}
			if p.out.Err == nil && !r.Duplicate {
				if r.Seq, failed = t.put(p.m, p.record, now); failed != nil {
					return nil, failed
				}
			}
			p.out.Receipt = r
		}
		return nil, nil
	}, func() {
		for _, p := range list {
			if p.out.Err == nil && !p.out.Receipt.Duplicate {
				s.stored(&p.m)
			}
		}
	})
	for _, p := range list {
		if err != nil {
			p.out.Err = err
		}
		if p.out.Err != nil || p.out.Receipt.Duplicate {
			s.release(p.m.To, p.m.Size)
			p.out.Receipt = Receipt{Duplicate: p.out.Err == nil}
			s.refuse(p.out.Err) //nolint:errcheck // it returns what it is given
		}
	}
}

// stored counts a message that is on disk, and wakes its readers. s.mu is held.
func (s *Store) stored(m *Message) {
	s.stats.Stored++
	if m.ID.Counter == 1 {
		s.epochs[m.From]++
	}
	for _, d := range m.To {
		s.box(d).notify()
	}
}

// newEpoch bounds how many epochs are remembered for a sender.
func (s *Store) newEpoch(t tx, from Device, id ID) error {
	if id.Counter != 1 || t.marks.Get(markKey(from, id.Epoch)) != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epochs[from] >= maxEpochs {
		return fmt.Errorf("%w: too many epochs of one sender", ErrQuota)
	}
	return nil
}

// put writes a message's records: the mark of its sender, its body, and an entry in each queue.
func (t tx) put(m Message, record []byte, now time.Time) (seq uint64, err error) {
	mark := binary.BigEndian.AppendUint64(nil, m.ID.Counter)
	mark = binary.BigEndian.AppendUint64(mark, uint64(now.UnixMilli()))
	if err := t.marks.Put(markKey(m.From, m.ID.Epoch), mark); err != nil || len(m.To) == 0 {
		return 0, err
	}
	if seq, err = t.bodies.NextSequence(); err != nil {
		return 0, err
	}
	t.bodies.FillPercent = 0.95 // keys grow
	if err := t.bodies.Put(seqKey(seq), record); err != nil {
		return 0, err
	}
	if len(m.To) > 1 {
		if err := t.refs.Put(seqKey(seq), binary.BigEndian.AppendUint32(nil, uint32(len(m.To)))); err != nil {
			return 0, err
		}
	}
	v := binary.BigEndian.AppendUint64(nil, uint64(m.Size))
	v = binary.BigEndian.AppendUint64(v, uint64(now.UnixMilli()))
	v = binary.BigEndian.AppendUint64(v, uint64(now.Add(m.TTL).UnixMilli()))
	v = append(v, byte(m.Flags))
	for _, d := range m.To {
		if err := t.queue.Put(queueKey(d, seq), v); err != nil {
			return 0, err
		}
	}
	return seq, nil
}
