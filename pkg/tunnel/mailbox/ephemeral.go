package mailbox

import (
	"fmt"
	"io"
	"time"
)

const (
	passingOctets = 1 << 20  // ephemeral octets for one device
	passingTotal  = 64 << 20 // ephemeral octets in all
)

// pass keeps an ephemeral message in memory.
func (s *Store) pass(m Message) (Receipt, error) {
	body := make([]byte, m.Size)
	if _, err := io.ReadFull(m.Body, body); err != nil {
		return Receipt{}, shortBody(err)
	}
	now := time.Now()
	e := Entry{From: m.From, Flags: m.Flags, Queued: now, Expires: now.Add(min(m.TTL, ephemeralLife)), Size: m.Size, inline: body}
	discarded := s.discard(&m)
	s.mu.Lock()
	defer s.mu.Unlock()
	each := m.Size + overhead
	for _, d := range m.To {
		held := int64(0)
		if b := s.boxes[d]; b != nil {
			s.expirePassing(b, now)
			held = passingSize(b)
		}
		if held+each > passingOctets || s.ephemeral+each*int64(len(m.To)) > passingTotal {
			err := fmt.Errorf("%w: of ephemeral messages", ErrQuota)
			s.stats.refuse(err)
			return Receipt{}, err
		}
	}
	for _, d := range m.To {
		b := s.box(d)
		b.passing = append(b.passing, e)
		s.ephemeral += each
		b.notify()
	}
	s.stats.Passed++
	return Receipt{Discarded: discarded}, nil
}

func passingSize(b *box) (n int64) {
	for _, e := range b.passing {
		n += e.Size + overhead
	}
	return n
}

// takePassing hands out a device's ephemeral messages.
func (s *Store) takePassing(d Device) []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.boxes[d]
	if b == nil || len(b.passing) == 0 {
		return nil
	}
	s.expirePassing(b, time.Now())
	list := b.passing
	s.dropPassing(b)
	s.forget(d)
	return list
}

func (s *Store) dropPassing(b *box) {
	s.ephemeral -= passingSize(b)
	b.passing = nil
}

// expirePassing drops the ephemeral messages of a box that are too old. s.mu is held.
func (s *Store) expirePassing(b *box, now time.Time) {
	for len(b.passing) > 0 && b.passing[0].Expires.Before(now) {
		s.ephemeral -= b.passing[0].Size + overhead
		b.passing = b.passing[1:]
	}
}
