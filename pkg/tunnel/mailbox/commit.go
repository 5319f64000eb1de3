package mailbox

import (
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
)

// op is one change of the database. Ops that wait while a transaction is synced are the next transaction.
type op struct {
	// apply makes the change. An error that it returns as refused goes to its caller alone, and must leave the transaction
	// untouched; one that it returns as failed ends the whole transaction.
	apply func(t tx) (refused, failed error)
	// done runs once it is on disk, before anybody is told, with s.mu held.
	done   func()
	octets int // about what it writes
	reply  chan error
}

// Bounds of a transaction: changes, and about what they write.
const (
	maxBatch       = 1024
	maxBatchOctets = 16 << 20
)

// do has an op committed. It returns once it is synced, or refused. It is not given up when a context ends: what became of it
// would be unknown.
func (s *Store) do(apply func(t tx) (refused, failed error), done func()) error {
	return s.doSized(overhead, apply, done)
}

func (s *Store) doSized(octets int, apply func(t tx) (refused, failed error), done func()) error {
	o := &op{apply, done, octets, make(chan error, 1)}
	select {
	case s.ops <- o:
		return <-o.reply
	case <-s.stop:
		return ErrClosed
	}
}

// commits is the goroutine that writes.
func (s *Store) commits() {
	for {
		select {
		case o := <-s.ops:
			s.commit(s.waiting(o))
		case <-s.stop:
			return
		}
	}
}

// waiting returns first and all that wait now.
func (s *Store) waiting(first *op) []*op {
	batch, octets := []*op{first}, first.octets
	for len(batch) < maxBatch && octets < maxBatchOctets {
		select {
		case o := <-s.ops:
			batch, octets = append(batch, o), octets+o.octets
		default:
			return batch
		}
	}
	return batch
}

// commit writes a batch as one transaction.
func (s *Store) commit(batch []*op) {
	refused := make([]error, len(batch))
	s.mu.Lock()
	err := s.broken
	s.mu.Unlock()
	if err == nil {
		start := time.Now()
		err = s.db.Update(func(t *bolt.Tx) error {
			b := buckt(t)
			for i, o := range batch {
				var failed error
				if refused[i], failed = o.apply(b); failed != nil {
					return failed
				}
			}
			return nil
		})
		err = s.committed(len(batch), time.Since(start), err)
	}
	s.mu.Lock()
	for i, o := range batch {
		if err == nil && refused[i] == nil && o.done != nil {
			o.done()
		}
	}
	s.mu.Unlock()
	for i, o := range batch {
		if err != nil {
			o.reply <- err
		} else {
			o.reply <- refused[i]
		}
	}
}

// committed counts a transaction and judges its error: after one that is not about room, what the kernel still holds is
// unknown (a failed fsync may drop pages), so nothing more is taken until the store is opened again.
func (s *Store) committed(n int, took time.Duration, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.stats.commit(n, took)
		return nil
	}
	if full(err) {
		return fmt.Errorf("%w: %w", ErrDisk, err)
	}
	s.broken = fmt.Errorf("mailbox broken until restart: %w", err)
	s.opts.Log.Error("mailbox broken until restart", zap.Error(err))
	return s.broken
}

// sweeps is the goroutine that drops what is too old.
func (s *Store) sweeps() {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			if _, err := s.Expire(now); err != nil {
				s.opts.Log.Warn("mailbox not swept", zap.Error(err))
			}
			s.ballast()
		case <-s.stop:
			return
		}
	}
}
