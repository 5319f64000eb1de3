package mux

import (
	"encoding/binary"
	"time"
)

// A write that takes longer than slowWrite makes the next one shorter, so that
// what is urgent waits behind less; one shorter than fastWrite, longer.
const (
	slowWrite = 10 * time.Millisecond
	fastWrite = 2 * time.Millisecond
)

// fillLocked moves what is to be sent into the ring, control first, while the
// carrier has little waiting there: what is in the ring has its order.
func (s *Session) fillLocked() {
	if s.err != nil {
		return
	}
	for s.ring.unsent() < s.batch && s.ring.size() < s.cfg.Ring {
		if !s.fillControlLocked() && !s.fillDataLocked() {
			break
		}
	}
	if s.carrier != nil && s.ring.unsent() > 0 {
		s.wakeLocked()
	}
}

// fillControlLocked appends the control frames of the session or of one stream.
func (s *Session) fillControlLocked() bool {
	switch {
	case s.goAwayDue:
		s.put32Locked(typeGoAway, 0, 0, s.goAway)
		s.goAwayDue = false
	case s.creditDue:
		s.put32Locked(typeCredit, 0, 0, uint32(s.toReturn))
		s.recvCredit += s.toReturn
		s.toReturn, s.creditDue = 0, false
	case len(s.refusals) > 0:
		r := s.refusals[0]
		s.refusals = s.refusals[1:]
		s.put32Locked(typeReset, 0, r.stream, uint32(r.code))
	case len(s.ctl) > 0:
		st := s.ctl[0]
		s.ctl = s.ctl[1:]
		st.putControlLocked()
	default:
		return false
	}
	return true
}

func (s *Session) putLocked(t frameType, flags uint8, stream uint32, payload []byte) {
	b := s.ring.reserve(headerLen + len(payload))
	header{t, flags, len(payload), stream}.put(b)
	copy(b[headerLen:], payload)
}

func (s *Session) put32Locked(t frameType, flags uint8, stream, v uint32) {
	var p [4]byte
	binary.BigEndian.PutUint32(p[:], v)
	s.putLocked(t, flags, stream, p[:])
}

// fillDataLocked appends one DATA frame of the stream whose turn it is.
func (s *Session) fillDataLocked() bool {
	if s.sendCredit <= 0 {
		return false
	}
	st := s.sched.next()
	if st == nil {
		return false
	}
	n := int(min(int64(len(st.pending)), maxPayload, st.sendCredit, s.sendCredit))
	if room := s.ring.room() - headerLen; room >= sliver {
		n = min(n, room)
	}
	s.putLocked(typeData, 0, st.id, st.pending[:n])
	st.pending = st.pending[n:]
	st.sendCredit -= int64(n)
	s.sendCredit -= int64(n)
	st.turn.spent(headerLen + n)
	if len(st.pending) == 0 {
		st.writers.Broadcast()
	}
	if len(st.pending) == 0 || st.sendCredit == 0 {
		s.sched.remove(st)
	}
	return true
}

// parcel is what the writer writes at once.
type parcel struct {
	scratch *chunk // what head is in; nil if there is no head
	head    []byte // frames that are not counted, and the body if it is short
	body    []byte // of the ring
	beside  [][]byte
	stop    bool // the carrier is lost
	leave   bool // no stream will soon have more
}

// write is the goroutine that writes the carrier. It leaves when there is nothing to do.
func (s *Session) write(c *carrier) {
	defer s.ended(c)
	for {
		p := s.nextParcel(c)
		if p.leave {
			return
		}
		if p.stop {
			break
		}
		start := time.Now()
		err := p.writeTo(c)
		s.wrote(c, p, time.Since(start), err)
		if err != nil {
			return
		}
	}
	if c.tell {
		_, _ = c.conn.Write(endFrame(s.err.Code))
	}
}

// nextParcel waits until there is something to write; without streams nothing is waited for.
func (s *Session) nextParcel(c *carrier) parcel {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !c.lost && !c.pingDue && !c.pongDue && !s.ackDue && s.datagrams.empty() && s.ring.unsent() == 0 {
		if len(s.streams) == 0 {
			c.writing = false
			return parcel{leave: true}
		}
		s.wake.Wait()
	}
	if c.lost {
		return parcel{stop: true}
	}
	var p parcel
	p.scratch = chunkPool.Get().(*chunk)
	p.head = p.scratch.buf[:0]
	s.headLocked(c, &p)
	p.body = s.ring.next(s.batch)
	if len(p.body) > 0 && len(p.head)+len(p.body) <= maxFrame {
		p.head, p.body = append(p.head, p.body...), nil
	}
	s.outstandingLocked(c)
	s.fillLocked()
	return p
}

// headLocked collects what goes before the ring's bytes.
func (s *Session) headLocked(c *carrier, p *parcel) {
	if c.pongDue {
		p.head = appendFrame64(p.head, typePong, c.pong)
		c.pongDue = false
	}
	if c.pingDue && c.pinged.IsZero() {
		c.pinged = time.Now()
		p.head = appendFrame64(p.head, typePing, uint64(c.pinged.UnixNano()))
	}
	c.pingDue = false
	if s.ackDue || s.received != s.acked && s.ring.unsent() > 0 {
		p.head = appendFrame64(p.head, typeAck, s.received)
		s.acked, s.ackDue = s.received, false
	}
	for len(p.head) <= 2*maxFrame && len(p.beside) < datagramQueue {
		st, b := s.datagrams.pop()
		if st == nil {
			break
		}
		s.stats.DatagramsSent++
		at := len(p.head)
		p.head = append(p.head, make([]byte, headerLen)...)
		header{typeDgram, 0, len(b), st.id}.put(p.head[at:])
		p.head = append(p.head, b...)
		if c.beside != nil {
			p.beside = append(p.beside, append([]byte(nil), p.head[at:]...))
			p.head = p.head[:at]
		}
	}
}

func (p *parcel) writeTo(c *carrier) error {
	for _, b := range p.beside {
		if c.beside.SendDatagram(b) != nil {
			p.head = append(p.head, b...) // too long for a packet of QUIC, most likely
		}
	}
	if len(p.head) > 0 {
		if _, err := c.conn.Write(p.head); err != nil {
			return err
		}
	}
	if len(p.body) > 0 {
		if _, err := c.conn.Write(p.body); err != nil {
			return err
		}
	}
	return nil
}

// wrote takes the parcel back and lets waiting writers have the next turn.
func (s *Session) wrote(c *carrier, p parcel, took time.Duration, err error) {
	chunkPool.Put(p.scratch)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ring.written()
	switch {
	case err != nil:
		s.loseLocked(c, err)
		return
	case took > slowWrite:
		s.batch = max(s.batch/2, maxFrame)
	case took < fastWrite:
		s.batch = min(s.batch*2, chunkSize)
	}
	s.fillLocked()
}
