package mux

import (
	"context"
	"slices"
)

const (
	datagramQueue = 64      // of a stream, in each direction; the oldest go first
	datagramBytes = 4 << 20 // of a session, in each direction
)

// datagrams are those that wait for the writer.
type datagrams struct {
	turns []*Stream // with waiting datagrams; one of each in turn
	bytes int
}

func (q *datagrams) empty() bool { return len(q.turns) == 0 }

// push appends b and returns how many others it pushed out.
func (q *datagrams) push(st *Stream, b []byte) (dropped int) {
	if len(st.out) == 0 {
		q.turns = append(q.turns, st)
	}
	if len(st.out) >= datagramQueue {
		q.bytes -= len(st.out[0])
		st.out = slices.Delete(st.out, 0, 1)
		dropped = 1
	}
	st.out = append(st.out, b)
	q.bytes += len(b)
	return dropped
}

func (q *datagrams) pop() (*Stream, []byte) {
	if len(q.turns) == 0 {
		return nil, nil
	}
	st := q.turns[0]
	q.turns = slices.Delete(q.turns, 0, 1)
	b := st.out[0]
	st.out = slices.Delete(st.out, 0, 1)
	q.bytes -= len(b)
	if len(st.out) > 0 {
		q.turns = append(q.turns, st)
	}
	return st, b
}

// drop forgets what waits on st.
func (q *datagrams) drop(st *Stream) {
	for _, b := range st.out {
		q.bytes -= len(b)
	}
	if len(st.out) > 0 {
		q.turns = slices.DeleteFunc(q.turns, func(o *Stream) bool { return o == st })
	}
	st.out = nil
}

// clear forgets everything and returns how many that were.
func (q *datagrams) clear() (n int) {
	for _, st := range q.turns {
		n += len(st.out)
		st.out = nil
	}
	*q = datagrams{}
	return n
}

// SendDatagram queues a copy of b. It does not wait: of 64 that wait, the
// oldest goes. A datagram may be lost, never twice there; the order holds only
// on one carrier without datagrams of its own.
func (st *Stream) SendDatagram(b []byte) error {
	if len(b) > MaxDatagram {
		return ErrDatagramSize
	}
	return st.sendDatagram(slices.Clone(b))
}

func (st *Stream) sendDatagram(b []byte) error {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !st.datagrams:
		return ErrNoDatagrams
	case st.werr != nil:
		return st.werr
	case s.carrier == nil:
		s.stats.DroppedCarrier++
		return nil
	case s.datagrams.bytes+len(b) > datagramBytes:
		s.stats.DroppedQueue++
		return nil
	}
	s.stats.DroppedQueue += uint64(s.datagrams.push(st, b))
	s.wakeLocked()
	return nil
}

// ReceiveDatagram waits for a datagram, which then belongs to the caller.
func (st *Stream) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !st.datagrams {
		return nil, ErrNoDatagrams
	}
	if len(st.in) == 0 {
		defer context.AfterFunc(ctx, func() { s.broadcast(&st.readers) })()
	}
	for len(st.in) == 0 && st.rerr == nil && ctx.Err() == nil {
		st.readers.Wait()
	}
	if len(st.in) == 0 {
		if st.rerr != nil {
			return nil, st.rerr
		}
		return nil, context.Cause(ctx)
	}
	b := st.in[0]
	st.in = slices.Delete(st.in, 0, 1)
	s.unreadDatagrams -= len(b)
	return b, nil
}

// gotDatagram takes a datagram that arrived.
func (s *Session) gotDatagram(id uint32, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrivedLocked()
	st := s.streams[id]
	if st == nil || !st.datagrams || st.rerr != nil {
		s.stats.DroppedNoStream++
		return
	}
	if len(st.in) >= datagramQueue {
		s.unreadDatagrams -= len(st.in[0])
		st.in = slices.Delete(st.in, 0, 1)
		s.stats.DroppedQueue++
	}
	if s.unreadDatagrams+len(b) > datagramBytes {
		s.stats.DroppedQueue++
		return
	}
	st.in = append(st.in, b)
	s.unreadDatagrams += len(b)
	s.stats.DatagramsRecv++
	st.readers.Broadcast()
}

// readDatagrams is the goroutine that reads those that come beside the carrier's stream.
func (s *Session) readDatagrams(ctx context.Context, c *carrier) {
	defer s.ended(c)
	for {
		b, err := c.beside.ReceiveDatagram(ctx)
		if err != nil {
			s.lose(c, err)
			return
		}
		if len(b) < headerLen || frameType(b[0]) != typeDgram {
			continue
		}
		h, bad := parseHeader(b)
		if bad == nil && h.size == len(b)-headerLen {
			s.gotDatagram(h.stream, slices.Clone(b[headerLen:]))
		}
	}
}
