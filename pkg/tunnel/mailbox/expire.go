package mailbox

import (
	"encoding/binary"
	"time"
)

// Expire removes what is older than it may be: messages, half-sent ones that nobody goes on with, and marks of senders. It
// returns how many messages. The store does so by itself every few minutes; readers do not see expired messages before.
func (s *Store) Expire(now time.Time) (int, error) {
	n, err := s.removeWhile(nil, func(k, v []byte) (bool, bool) {
		_, q, err := parseQueue(k, v)
		return err == nil && q.expires.Before(now), false
	})
	s.mu.Lock()
	s.stats.Expired += uint64(n)
	for d, b := range s.boxes {
		s.expirePassing(b, now)
		s.forget(d)
	}
	s.mu.Unlock()
	if err != nil {
		return n, err
	}
	old, err := s.partsWhere(func(p part) bool { return p.when.Add(partLife).Before(now) })
	if err != nil {
		return n, err
	}
	for _, k := range old {
		if err := s.dropPart(k); err != nil {
			return n, err
		}
	}
	return n, s.expireMarks(now)
}

// partsWhere returns the keys of half-sent messages.
func (s *Store) partsWhere(match func(part) bool) ([]partKey, error) {
	t, err := s.db.Begin(false)
	if err != nil {
		return nil, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	var list []partKey
	err = buckt(t).parts.ForEach(func(k, v []byte) error {
		p, err := parsePart(v)
		if err == nil && len(k) == 48 && match(p) {
			id := ID{binary.BigEndian.Uint64(k[32:]), binary.BigEndian.Uint64(k[40:])}
			list = append(list, partKey{Device(k[:32]), id})
		}
		return err
	})
	return list, err
}

// expireMarks forgets senders' epochs in which nothing was sent for long.
func (s *Store) expireMarks(now time.Time) error {
	limit := uint64(now.Add(-markLife).UnixMilli())
	t, err := s.db.Begin(false)
	if err != nil {
		return ErrClosed
	}
	var old [][]byte
	err = buckt(t).marks.ForEach(func(k, v []byte) error {
		if len(v) == 16 && binary.BigEndian.Uint64(v[8:]) < limit {
			old = append(old, append([]byte(nil), k...))
		}
		return nil
	})
	if err := t.Rollback(); err != nil {
		return err
	}
	for len(old) > 0 && err == nil {
		n := min(len(old), removeBatch)
		some := old[:n]
		old = old[n:]
		err = s.do(func(t tx) (refused, failed error) {
			for _, k := range some {
				if err := t.marks.Delete(k); err != nil {
					return nil, err
				}
			}
			return nil, nil
		}, func() {
			for _, k := range some {
				d := Device(k[:32])
				if s.epochs[d]--; s.epochs[d] <= 0 {
					delete(s.epochs, d)
				}
			}
		})
	}
	return err
}
