package mailbox

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
)

// Store is the queues of all devices, in one folder. It is safe for concurrent use.
type Store struct {
	dir   string
	opts  Options
	db    *bolt.DB
	id    [16]byte
	ops   chan *op
	stop  chan struct{}
	wg    sync.WaitGroup
	close sync.Once

	mu        sync.Mutex
	boxes     map[Device]*box
	groups    map[string]int64
	total     int64 // on disk and promised
	uploads   map[partKey]*Upload
	begins    map[partKey]bool // uploads that are begun at this moment
	epochs    map[Device]int   // remembered, by sender
	ephemeral int64            // octets in memory
	broken    error            // the first error of the disk other than "full"; nothing more is taken
	stats     Stats
}

// box is what is known in memory of one device's queue. Empty ones that nobody waits for are forgotten.
type box struct {
	group   string
	count   int   // entries, promised ones included
	bytes   int64 // with overhead, promised ones included
	readers int
	waiters int
	wake    chan struct{} // closed when something arrives; nil if nobody waits
	passing []Entry       // ephemeral ones
}

// Open opens the store in dir, and makes it if there is none. Only one process can have it open.
func Open(dir string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	for _, d := range []string{dir, filepath.Join(dir, filesDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("mailbox: %w", err)
		}
	}
	db, err := openDB(filepath.Join(dir, "mailbox.db"), o.Log)
	if err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	s := &Store{
		dir: dir, opts: o, db: db, ops: make(chan *op), stop: make(chan struct{}),
		boxes: make(map[Device]*box), groups: make(map[string]int64), uploads: make(map[partKey]*Upload), begins: make(map[partKey]bool),
		epochs: make(map[Device]int),
	}
	s.stats.refused = make(map[string]uint64)
	if err := s.restore(); err != nil {
		return nil, errors.Join(fmt.Errorf("mailbox: %w", err), db.Close())
	}
	s.wg.Go(s.commits)
	s.wg.Go(s.sweeps)
	return s, nil
}

// Close ends all waiting, and closes the files. Uploads can be gone on with after the next Open.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		close(s.stop)
		s.wg.Wait()
		s.mu.Lock()
		uploads := slices.Collect(maps.Values(s.uploads))
		s.mu.Unlock()
		for _, u := range uploads {
			u.fence()
		}
		err = s.db.Close()
	})
	return err
}

// ID names this store for readers: sequence numbers of another one mean nothing here.
func (s *Store) ID() [16]byte { return s.id }

// Buckets of the database; numbers are big-endian so that keys sort by them.
//
//	queue   device 32 | seq 8                    → size 8, queued 8, expires 8 (Unix ms), flags 1
//	bodies  seq 8                                → kind 1, from 32, epoch 8, counter 8, size 8, then the body or file 16
//	refs    seq 8                                → recipients left, 4; missing: one
//	marks   from 32 | epoch 8                    → highest counter 8, when 8
//	parts   from 32 | epoch 8 | counter 8        → see part.go
//	keys    device 32                            → what the device published
//	meta    "id"                                 → 16 random octets
func buckets() [][]byte {
	return [][]byte{[]byte("queue"), []byte("bodies"), []byte("refs"), []byte("marks"), []byte("parts"), []byte("keys"), []byte("meta")}
}

// tx is a transaction with its buckets.
type tx struct {
	*bolt.Tx
	queue, bodies, refs, marks, parts, keys, meta *bolt.Bucket
}

func buckt(t *bolt.Tx) tx {
	b := func(name string) *bolt.Bucket { return t.Bucket([]byte(name)) }
	return tx{t, b("queue"), b("bodies"), b("refs"), b("marks"), b("parts"), b("keys"), b("meta")}
}

// openDB opens the database. The list of free pages is not written with each commit: it is found again at opening.
func openDB(file string, log *zap.Logger) (*bolt.DB, error) {
	o := &bolt.Options{Timeout: 5 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType}
	db, err := bolt.Open(file, 0o600, o)
	if err != nil {
		return nil, err
	}
	if small, err := compact(db, file, o); err != nil {
		log.Warn("mailbox database not compacted", zap.Error(err))
	} else if small {
		if err := db.Close(); err != nil {
			return nil, err
		}
		if err := replace(file+".compact", file); err != nil {
			return nil, err
		}
		return bolt.Open(file, 0o600, o)
	}
	return db, nil
}

// compactFrom is the size from which a database that is mostly free pages is written anew at opening.
const compactFrom = 64 << 20

// compact writes a copy of db beside it if most of it is free.
func compact(db *bolt.DB, file string, o *bolt.Options) (bool, error) {
	st, err := os.Stat(file)
	if err != nil {
		return false, err
	}
	free := int64(db.Stats().FreePageN) * int64(db.Info().PageSize)
	if st.Size() < compactFrom || free < st.Size()/2 {
		return false, nil
	}
	if err := os.Remove(file + ".compact"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	to, err := bolt.Open(file+".compact", 0o600, o)
	if err != nil {
		return false, err
	}
	err = bolt.Compact(to, db, 16<<20)
	err = errors.Join(err, to.Sync(), to.Close())
	if err != nil {
		return false, errors.Join(err, os.Remove(file+".compact"))
	}
	return true, nil
}

func replace(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// restore makes what is missing on disk, and counts what is there.
func (s *Store) restore() error {
	if err := s.create(); err != nil {
		return err
	}
	files := make(map[string]bool)
	if err := s.db.View(func(t *bolt.Tx) error { return s.count(buckt(t), files) }); err != nil {
		return err
	}
	if err := s.restoreParts(files); err != nil {
		return err
	}
	if err := s.removeOrphans(files); err != nil {
		return err
	}
	s.ballast()
	return nil
}

// create makes the buckets and the store's ID, if they are not there: a full disk must not keep a store from being opened.
func (s *Store) create() error {
	there := false
	err := s.db.View(func(t *bolt.Tx) error {
		if meta := t.Bucket([]byte("meta")); meta != nil {
			there = copy(s.id[:], meta.Get([]byte("id"))) == len(s.id)
		}
		return nil
	})
	if there || err != nil {
		return err
	}
	return s.db.Update(func(t *bolt.Tx) error {
		for _, name := range buckets() {
			if _, err := t.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		if _, err := rand.Read(s.id[:]); err != nil {
			return err
		}
		return t.Bucket([]byte("meta")).Put([]byte("id"), s.id[:])
	})
}

// count adds up the queues, and collects the files of bodies.
func (s *Store) count(t tx, files map[string]bool) error {
	shared := make(map[uint64]bool)
	err := t.queue.ForEach(func(k, v []byte) error {
		if len(k) != queueKeyLen || len(v) != queueValueLen {
			return fmt.Errorf("queue: bad record of %d, %d octets", len(k), len(v))
		}
		size, seq := int64(binary.BigEndian.Uint64(v)), binary.BigEndian.Uint64(k[32:])
		b := s.box(Device(k[:32]))
		b.count++
		s.charge(b, size+overhead)
		s.total += overhead
		if !shared[seq] {
			s.total += size
			shared[seq] = t.refs.Get(k[32:]) != nil
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = t.marks.ForEach(func(k, _ []byte) error {
		s.epochs[Device(k[:32])]++
		return nil
	})
	if err != nil {
		return err
	}
	return t.bodies.ForEach(func(_, v []byte) error {
		h, err := parseBody(v)
		if err == nil && h.kind == bodyFile {
			files[fileName(h.file)] = true
		}
		return err
	})
}

// removeOrphans deletes the files that no record names: what a crash has left.
func (s *Store) removeOrphans(files map[string]bool) error {
	dir := filepath.Join(s.dir, filesDir)
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if !files[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// box returns the box of a device. s.mu is held, or the store is being opened.
func (s *Store) box(d Device) *box {
	b := s.boxes[d]
	if b == nil {
		b = &box{}
		if s.opts.Group != nil {
			b.group = s.opts.Group(d)
		}
		s.boxes[d] = b
	}
	return b
}

// charge adds octets, which may be negative, to a box and its group.
func (s *Store) charge(b *box, n int64) {
	b.bytes += n
	if b.group != "" {
		if s.groups[b.group] += n; s.groups[b.group] == 0 {
			delete(s.groups, b.group)
		}
	}
}

// forget drops a box that holds nothing.
func (s *Store) forget(d Device) {
	if b := s.boxes[d]; b != nil && b.count == 0 && b.readers == 0 && b.waiters == 0 && len(b.passing) == 0 {
		delete(s.boxes, d)
	}
}

// notify wakes who waits.
func (b *box) notify() {
	if b.wake != nil {
		close(b.wake)
		b.wake = nil
	}
}

// full tells whether an error says that there is no room. bbolt does not wrap all of its causes.
func full(err error) bool {
	for _, no := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, no) || err != nil && strings.HasSuffix(err.Error(), no.Error()) {
			return true
		}
	}
	return false
}
