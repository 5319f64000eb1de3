package mailbox

import (
	"bytes"
	"errors"
	"maps"
	"time"
)

// Stats is what a store has done since it was opened, and what it holds.
type Stats struct {
	Stored, Passed, Acked, Expired, Purged, Discarded, Damaged uint64 // messages; Passed are the ephemeral ones

	Commits   uint64 // transactions
	Changes   uint64 // of all transactions
	SyncTimes [syncBuckets + 1]uint64
	SyncTotal time.Duration

	Devices  int   // for which something waits
	Messages int   // that wait, counted for each recipient; half-sent ones included
	Octets   int64 // on disk and promised
	Uploads  int   // that are going on now
	Oldest   time.Duration
	Broken   bool // the disk has failed: nothing is taken until the store is opened again

	refused map[string]uint64
}

const syncBuckets = 11

// SyncBounds returns the upper bounds of Stats.SyncTimes, the last of which counts what took longer.
func SyncBounds() [syncBuckets]time.Duration {
	const ms = time.Millisecond
	return [syncBuckets]time.Duration{ms, 2 * ms, 5 * ms, 10 * ms, 20 * ms, 50 * ms, 100 * ms, 200 * ms, 500 * ms, time.Second, 5 * time.Second}
}

// Refused returns how many messages were refused, by reason: quota, disk, gap, size, bad, fenced, other.
func (s Stats) Refused() map[string]uint64 { return s.refused }

func (s *Stats) commit(n int, took time.Duration) {
	s.Commits++
	s.Changes += uint64(n)
	s.SyncTotal += took
	i, bounds := 0, SyncBounds()
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	s.SyncTimes[i]++
}

func (s *Stats) refuse(err error) { s.refused[Reason(err)]++ }

// Reason names an error of Append in a word, for counters.
func Reason(err error) string {
	for _, r := range []struct {
		err  error
		word string
	}{{ErrQuota, "quota"}, {ErrDisk, "disk"}, {ErrGap, "gap"}, {ErrTooBig, "size"}, {ErrBad, "bad"}, {ErrFenced, "fenced"}} {
		if errors.Is(err, r.err) {
			return r.word
		}
	}
	return "other"
}

// Stats returns the figures of now. It looks at the first message of each queue.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	st := s.stats
	st.refused = maps.Clone(st.refused)
	st.Octets, st.Uploads, st.Broken = s.total, len(s.uploads), s.broken != nil
	for _, b := range s.boxes {
		if b.count > 0 {
			st.Devices++
			st.Messages += b.count
		}
	}
	s.mu.Unlock()
	if q, ok := s.oldest(nil); ok {
		st.Oldest = max(0, time.Since(q))
	}
	return st
}

// oldest returns when the message was queued that waits longest, of one device or of all.
func (s *Store) oldest(d *Device) (oldest time.Time, ok bool) {
	t, err := s.db.Begin(false)
	if err != nil {
		return oldest, false
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	c := buckt(t).queue.Cursor()
	var prefix []byte
	if d != nil {
		prefix = d[:]
	}
	for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); {
		_, q, err := parseQueue(k, v)
		if err == nil && (!ok || q.queued.Before(oldest)) {
			oldest, ok = q.queued, true
		}
		next := append(bytes.Clone(k[:32]), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // the next device
		k, v = c.Seek(next)
	}
	return oldest, ok
}

// BoxStats is what waits for one device.
type BoxStats struct {
	Messages int
	Octets   int64 // as the quota counts them
	Quota    int64
	Oldest   time.Time // zero if nothing waits
	Readers  int
}

// Box returns what waits for a device.
func (s *Store) Box(d Device) BoxStats {
	st := BoxStats{Quota: int64(s.opts.PerDevice)}
	s.mu.Lock()
	if b := s.boxes[d]; b != nil {
		st.Messages, st.Octets, st.Readers = b.count, b.bytes, b.readers
	}
	s.mu.Unlock()
	st.Oldest, _ = s.oldest(&d)
	return st
}

// Boxes returns what waits, by device; only devices for which something waits.
func (s *Store) Boxes() map[Device]BoxStats {
	s.mu.Lock()
	var list []Device
	for d, b := range s.boxes {
		if b.count > 0 {
			list = append(list, d)
		}
	}
	s.mu.Unlock()
	out := make(map[Device]BoxStats, len(list))
	for _, d := range list {
		out[d] = s.Box(d)
	}
	return out
}

// maxPublished bounds what a device publishes.
const maxPublished = 512

// Publish keeps a few octets that a device wants others to find: its encryption key, signed. The caller has verified it.
func (s *Store) Publish(d Device, v []byte) error {
	if len(v) > maxPublished {
		return ErrTooBig
	}
	if old, err := s.Published(d); err != nil || bytes.Equal(old, v) {
		return err
	}
	return s.do(func(t tx) (error, error) { return nil, t.keys.Put(d[:], v) }, nil)
}

// Published returns what a device has published, nil if nothing.
func (s *Store) Published(d Device) ([]byte, error) {
	t, err := s.db.Begin(false)
	if err != nil {
		return nil, ErrClosed
	}
	defer t.Rollback() //nolint:errcheck // of what was only read
	return bytes.Clone(buckt(t).keys.Get(d[:])), nil
}
