package mailbox

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// filesDir holds large bodies, whole and half-sent ones, under random names. Records say which are which.
const filesDir = "files"

func fileName(f [16]byte) string { return hex.EncodeToString(f[:]) }

func (s *Store) path(f [16]byte) string { return filepath.Join(s.dir, filesDir, fileName(f)) }

// partKey names a half-sent message.
type partKey struct {
	from Device
	id   ID
}

func (k partKey) bytes() []byte {
	return binary.BigEndian.AppendUint64(markKey(k.from, k.id.Epoch), k.id.Counter)
}

// part is the record of a half-sent message: file 16, size 8, synced 8, when 8 (Unix ms), then the recipients, 32 each.
type part struct {
	file   [16]byte
	size   int64
	synced int64
	when   time.Time
	to     []Device
}

func (p part) bytes() []byte {
	b := append([]byte(nil), p.file[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.size))
	b = binary.BigEndian.AppendUint64(b, uint64(p.synced))
	b = binary.BigEndian.AppendUint64(b, uint64(p.when.UnixMilli()))
	for _, d := range p.to {
		b = append(b, d[:]...)
	}
	return b
}

func parsePart(v []byte) (part, error) {
	if len(v) < 40 || (len(v)-40)%32 != 0 || (len(v)-40)/32 > MaxRecipients {
		return part{}, fmt.Errorf("part: record of %d octets", len(v))
	}
	p := part{
		file: [16]byte(v), size: int64(binary.BigEndian.Uint64(v[16:])), synced: int64(binary.BigEndian.Uint64(v[24:])),
		when: time.UnixMilli(int64(binary.BigEndian.Uint64(v[32:]))),
	}
	for v = v[40:]; len(v) > 0; v = v[32:] {
		p.to = append(p.to, Device(v))
	}
	if p.size < 0 || p.synced < 0 || p.synced > p.size {
		return part{}, fmt.Errorf("part: %d of %d octets", p.synced, p.size)
	}
	return p, nil
}

// Upload is a large body on its way in. One goroutine uses it; another Begin of the same message fences it.
type Upload struct {
	s         *Store
	m         Message
	key       partKey
	discarded int

	mu     sync.Mutex
	f      *os.File // nil once fenced or closed
	part   part
	offset int64 // octets that the file has
}

// syncEvery is after how many octets an upload is synced: so much of it may have to be sent again after a loss of power.
const syncEvery = 8 << 20

// Begin starts a body that is larger than an inline one, or goes on with it: see Upload.Offset. It refuses like Append. The upload
// is nil if the receipt says all: a message that was stored before, or that is kept for nobody.
func (s *Store) Begin(m Message) (*Upload, Receipt, error) {
	if m.Size <= maxInline {
		return nil, Receipt{}, s.refuse(fmt.Errorf("%w: %d octets are not an upload", ErrBad, m.Size))
	}
	if err := s.admit(&m); err != nil {
		return nil, Receipt{}, s.refuse(err)
	}
	if dup, err := s.taken(m.From, m.ID); dup || err != nil {
		return nil, Receipt{Duplicate: dup}, s.refuse(err)
	}
	key := partKey{m.From, m.ID}
	if !s.beginning(key) {
		return nil, Receipt{}, s.refuse(ErrFenced)
	}
	defer s.begun(key)
	p, err := s.findPart(key)
	if err != nil {
		return nil, Receipt{}, err
	}
	u := &Upload{s: s, m: m, key: key}
	if p != nil && p.size == m.Size && sameDevices(p.to, m) {
		u.part = *p
		if err := s.adopt(u); err != nil {
			return nil, Receipt{}, err
		}
		return u, Receipt{}, nil
	}
	if p != nil { // the sender has changed its mind
		if err := s.dropPart(key); err != nil {
			return nil, Receipt{}, err
		}
	}
	if u.discarded = s.discard(&u.m); len(u.m.To) == 0 {
		var out Outcome // only the number is remembered
		s.store([]*pending{{m: u.m, discarded: u.discarded, out: &out}})
		return nil, out.Receipt, out.Err
	}
	if err := s.start(u); err != nil {
		return nil, Receipt{}, s.refuse(err)
	}
	return u, Receipt{}, nil
}

// beginning tells whether nobody else begins the same upload at this moment: two that begin would each have room promised, and
// only one could give it back.
func (s *Store) beginning(k partKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begins[k] {
		return false
	}
	s.begins[k] = true
	return true
}

func (s *Store) begun(k partKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.begins, k)
}

// sameDevices tells whether a kept part is for the recipients of now, less those whom Discard had left out.
func sameDevices(kept []Device, now Message) bool {
	have := make(map[Device]bool, len(now.To))
	for _, d := range now.To {
		have[d] = true
	}
	for _, d := range kept {
		if !have[d] {
			return false
		}
	}
	return len(kept) == len(now.To) || now.Flags&Discard != 0
}

func (s *Store) findPart(k partKey) (*part, error) {
	t, err := s.db.Begin(false)
	if err != nil {
		return nil, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	v := buckt(t).parts.Get(k.bytes())
	if v == nil {
		return nil, nil
	}
	p, err := parsePart(v)
	return &p, err
}

// start promises room, and makes file and record.
func (s *Store) start(u *Upload) error {
	if err := s.promise(u.m.To, u.m.Size); err != nil {
		return err
	}
	u.part = part{size: u.m.Size, when: time.Now(), to: u.m.To}
	err := u.createFile()
	if err == nil {
		record := u.part.bytes()
		err = s.do(func(t tx) (error, error) { return nil, t.parts.Put(u.key.bytes(), record) }, nil)
	}
	if err != nil {
		s.release(u.m.To, u.m.Size)
		if u.f != nil {
			err = errors.Join(err, u.f.Close(), os.Remove(u.f.Name()))
		}
		return diskError(err)
	}
	s.register(u)
	return nil
}

func (u *Upload) createFile() (err error) {
	if _, err := rand.Read(u.part.file[:]); err != nil {
		return err
	}
	u.f, err = os.OpenFile(u.s.path(u.part.file), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return syncDir(filepath.Join(u.s.dir, filesDir))
}

// adopt goes on with a part that is there. Its room is promised already.
func (s *Store) adopt(u *Upload) (err error) {
	u.m.To = u.part.to
	s.mu.Lock()
	old := s.uploads[u.key]
	s.mu.Unlock()
	if old != nil {
		old.fence() // s.mu must not be held: old may wait for a commit
	}
	if u.f, err = os.OpenFile(s.path(u.part.file), os.O_RDWR, 0); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	st, err := u.f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("upload: %w", err), u.f.Close())
	}
	u.offset = min(st.Size(), u.part.size)
	s.register(u)
	return nil
}

func (s *Store) register(u *Upload) {
	s.mu.Lock()
	old := s.uploads[u.key]
	s.uploads[u.key] = u
	s.mu.Unlock()
	if old != nil {
		old.fence()
	}
}

// fence ends an upload for its old user. What it has written stays.
func (u *Upload) fence() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.f != nil {
		u.f.Close()
		u.f = nil
	}
}

// Offset returns how many octets of the body are there; Write goes on after them.
func (u *Upload) Offset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.offset
}

// Rewind forgets what is there from an offset on, for a sender that cannot make the same octets again.
func (u *Upload) Rewind(to int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.f == nil:
		return ErrFenced
	case to < 0 || to > u.offset:
		return fmt.Errorf("%w: %d octets are there, it goes on at %d", ErrBad, u.offset, to)
	case to == u.offset:
		return nil
	}
	if err := u.f.Truncate(to); err != nil {
		return diskError(err)
	}
	u.offset = to
	if to >= u.part.synced {
		return nil
	}
	return u.sync() // what comes there now is not on disk yet
}

// Write takes the next octets of the body; more than its size are refused.
func (u *Upload) Write(b []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.f == nil {
		return 0, ErrFenced
	}
	if int64(len(b)) > u.part.size-u.offset {
		return 0, fmt.Errorf("%w: more octets than said", ErrBad)
	}
	n, err := u.f.WriteAt(b, u.offset)
	u.offset += int64(n)
	if err != nil {
		return n, u.s.refuse(diskError(err))
	}
	if u.offset-u.part.synced >= syncEvery {
		return n, u.sync()
	}
	return n, nil
}

// sync has the file's octets, then the record of how many there are, on disk. u.mu is held.
func (u *Upload) sync() error {
	if err := u.f.Sync(); err != nil {
		return u.s.refuse(diskError(err))
	}
	u.part.synced, u.part.when = u.offset, time.Now()
	record := u.part.bytes()
	return u.s.do(func(t tx) (refused, failed error) {
		if t.parts.Get(u.key.bytes()) == nil {
			return ErrFenced, nil // purged meanwhile
		}
		return nil, t.parts.Put(u.key.bytes(), record)
	}, nil)
}

// Commit makes a message of a whole body, and returns once it is synced.
func (u *Upload) Commit() (Receipt, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.f == nil {
		return Receipt{}, ErrFenced
	}
	if u.offset != u.part.size {
		return Receipt{}, fmt.Errorf("%w: %d of %d octets", ErrShort, u.offset, u.part.size)
	}
	if err := u.f.Sync(); err != nil {
		return Receipt{}, u.s.refuse(diskError(err))
	}
	r, err := u.s.storePart(u)
	r.Discarded = u.discarded
	return r, err
}

// storePart commits the message, and its part is none any more.
func (s *Store) storePart(u *Upload) (Receipt, error) {
	var r Receipt
	now := time.Now()
	record := bodyHead{kind: bodyFile, from: u.m.From, id: u.m.ID, size: u.m.Size, file: u.part.file}.append(nil)
	err := s.do(func(t tx) (refused, failed error) {
		if t.parts.Get(u.key.bytes()) == nil {
			return ErrFenced, nil
		}
		if dup, refused := t.taken(u.m.From, u.m.ID); dup || refused != nil {
			return errors.Join(ErrFenced, refused), nil
		}
		if refused := s.newEpoch(t, u.m.From, u.m.ID); refused != nil {
			return refused, nil
		}
		if r.Seq, failed = t.put(u.m, record, now); failed != nil {
			return nil, failed
		}
		return nil, t.parts.Delete(u.key.bytes())
	}, func() {
		s.stored(&u.m)
		if s.uploads[u.key] == u {
			delete(s.uploads, u.key)
		}
	})
	if err != nil {
		return Receipt{}, s.refuse(err)
	}
	return r, nil
}

// Close ends the use of an upload. What was written stays for another Begin, unless Commit has succeeded.
func (u *Upload) Close() {
	u.fence()
	u.s.mu.Lock()
	defer u.s.mu.Unlock()
	if u.s.uploads[u.key] == u {
		delete(u.s.uploads, u.key)
	}
}

// diskError tells a full disk from other errors.
func diskError(err error) error {
	if full(err) && !errors.Is(err, ErrDisk) {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	return err
}

// dropPart forgets a half-sent message.
func (s *Store) dropPart(k partKey) error {
	var p part
	err := s.do(func(t tx) (refused, failed error) {
		v := t.parts.Get(k.bytes())
		if v == nil {
			return ErrNoEntry, nil
		}
		if p, failed = parsePart(v); failed != nil {
			return nil, failed
		}
		return nil, t.parts.Delete(k.bytes())
	}, nil)
	if errors.Is(err, ErrNoEntry) {
		return nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	u := s.uploads[k]
	delete(s.uploads, k)
	s.mu.Unlock()
	if u != nil {
		u.fence()
	}
	s.release(p.to, p.size)
	return s.unlink(p.file)
}

func (s *Store) unlink(f [16]byte) error {
	if err := os.Remove(s.path(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// restoreParts counts the room of half-sent messages, and cuts their files to what is known to be on disk.
func (s *Store) restoreParts(files map[string]bool) error {
	t, err := s.db.Begin(false)
	if err != nil {
		return err
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	return buckt(t).parts.ForEach(func(_, v []byte) error {
		p, err := parsePart(v)
		if err != nil {
			return err
		}
		s.total += p.size + overhead*int64(len(p.to))
		for _, d := range p.to {
			b := s.box(d)
			b.count++
			s.charge(b, p.size+overhead)
		}
		files[fileName(p.file)] = true
		st, err := os.Stat(s.path(p.file))
		if err != nil || st.Size() <= p.synced {
			return err
		}
		return os.Truncate(s.path(p.file), p.synced)
	})
}
