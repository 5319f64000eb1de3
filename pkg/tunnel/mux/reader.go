package mux

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"
)

// read is the goroutine that reads the carrier.
func (s *Session) read(c *carrier) {
	defer s.ended(c)
	for {
		err := s.readFrame(c)
		if err == nil {
			continue
		}
		var bad *SessionError
		if errors.As(err, &bad) {
			s.end(bad, !bad.Remote)
		} else {
			s.lose(c, err)
		}
		return
	}
}

// readFrame reads one frame and does what it says. An error that is a
// *SessionError ends the session, any other one the carrier.
func (s *Session) readFrame(c *carrier) error {
	var b [headerLen + 8]byte
	if err := s.readFull(c, b[:headerLen]); err != nil {
		return err
	}
	h, bad := parseHeader(b[:])
	if bad != nil {
		return bad
	}
	switch {
	case h.typ == typeData:
		return s.readData(c, h)
	case h.typ == typeOpen:
		head := make([]byte, h.size)
		if err := s.readFull(c, head); err != nil {
			return err
		}
		return s.counted(h, func() *SessionError { return s.openedLocked(h, head) })
	case h.typ == typeDgram:
		p := make([]byte, h.size)
		if err := s.readFull(c, p); err != nil {
			return err
		}
		s.gotDatagram(h.stream, p)
		return nil
	case h.typ >= firstSkipped:
		if err := s.skip(c, h.size); err != nil || !h.typ.counted() {
			return err
		}
		return s.counted(h, func() *SessionError { return nil })
	case h.typ == typeHello:
		return fault(CodeProtocol, "a second HELLO")
	}
	p := b[headerLen : headerLen+h.size] // parseHeader knows that it fits
	if err := s.readFull(c, p); err != nil {
		return err
	}
	if h.typ.counted() {
		return s.counted(h, func() *SessionError { return s.controlLocked(h, p) })
	}
	return s.carrierFrame(c, h, p)
}

// readFull is io.ReadFull, and notes that something came.
func (s *Session) readFull(c *carrier, b []byte) error {
	for len(b) > 0 {
		n, err := c.conn.Read(b)
		if n > 0 {
			s.mu.Lock()
			c.heard = time.Now()
			s.mu.Unlock()
		}
		b = b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}

func (s *Session) skip(c *carrier, n int) error {
	if n == 0 {
		return nil
	}
	p := piecePool.Get().(*piece)
	defer piecePool.Put(p)
	return s.readFull(c, p.buf[:n])
}

// counted does what a counted frame says, and counts it.
func (s *Session) counted(h header, do func() *SessionError) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bad := do(); bad != nil {
		return bad
	}
	s.countLocked(h)
	s.fillLocked()
	return nil
}

// countLocked counts a frame that is done with, and sees to its ACK.
func (s *Session) countLocked(h header) {
	s.received += uint64(headerLen + h.size)
	s.arrivedLocked()
	switch {
	case s.received-s.acked >= ackEvery:
		s.ackDue = true
		s.wakeLocked()
	case !s.ackArmed:
		s.ackArmed = true
		if s.ackTimer == nil {
			s.ackTimer = time.AfterFunc(ackAfter, s.ackLate)
		} else {
			s.ackTimer.Reset(ackAfter)
		}
	}
}

func (s *Session) ackLate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ackArmed = false
	if s.received != s.acked {
		s.ackDue = true
		s.wakeLocked()
	}
}

// readData reads a DATA frame straight into its stream's buffer.
func (s *Session) readData(c *carrier, h header) error {
	st, at, bad := s.reserve(h)
	if bad != nil {
		return bad
	}
	if st == nil {
		if err := s.skip(c, h.size); err != nil {
			return err
		}
		return s.counted(h, func() *SessionError {
			s.takeLocked(h.size)
			s.returnLocked(h.size)
			return nil
		})
	}
	err := s.readFull(c, at.first)
	if err == nil {
		err = s.readFull(c, at.second)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.recv.commit(at, err == nil)
	if err != nil {
		return err
	}
	s.takeLocked(h.size)
	if st.recv.closed {
		s.returnLocked(h.size)
	} else {
		st.recvCredit -= int64(h.size)
		st.readers.Broadcast()
	}
	s.countLocked(h)
	s.fillLocked()
	return nil
}

// reserve finds room for a DATA frame: no stream if it is to be skipped. The
// credit is taken when all of it has come.
func (s *Session) reserve(h header) (st *Stream, at room, bad *SessionError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if int64(h.size) > s.recvCredit {
		return nil, at, fault(CodeFlowControl, "%d bytes with session credit of %d", h.size, s.recvCredit)
	}
	st, bad = s.findLocked(h)
	if bad != nil || st == nil || st.recv.closed || h.size == 0 {
		return nil, at, bad
	}
	if st.finRecv {
		return nil, at, fault(CodeProtocol, "DATA after FIN on stream %d", h.stream)
	}
	if int64(h.size) > st.recvCredit {
		return nil, at, fault(CodeFlowControl, "%d bytes with credit of %d", h.size, st.recvCredit)
	}
	return st, st.recv.reserve(h.size), nil
}

// findLocked returns the stream of a frame; nil if it is over.
func (s *Session) findLocked(h header) (*Stream, *SessionError) {
	if st := s.streams[h.stream]; st != nil {
		return st, nil
	}
	if s.oursLocked(h.stream) && h.stream < s.nextID || !s.oursLocked(h.stream) && h.stream <= s.lastID {
		return nil, nil
	}
	return nil, fault(CodeProtocol, "frame of type %d on stream %d, which was never opened", h.typ, h.stream)
}

func (s *Session) oursLocked(id uint32) bool { return id%2 == s.nextID%2 }

// openedLocked takes an OPEN of the peer.
func (s *Session) openedLocked(h header, head []byte) *SessionError {
	if s.err != nil {
		return nil
	}
	if s.oursLocked(h.stream) || h.stream <= s.lastID {
		return fault(CodeProtocol, "OPEN of stream %d after %d", h.stream, s.lastID)
	}
	s.lastID = h.stream
	if s.theirs >= s.cfg.MaxStreams || len(s.incoming) >= s.cfg.Backlog || s.leaving {
		s.stats.Refused++
		if len(s.refusals) >= maxRefusals {
			return fault(CodeTryLater, "opens streams over the limit and reads no answer")
		}
		s.refusals = append(s.refusals, refusal{h.stream, CodeTryLater})
		return nil
	}
	st := s.newStreamLocked(h.stream, OpenOptions{Datagrams: h.flags&flagDatagrams != 0})
	st.header = head
	s.theirs++
	if s.take != nil {
		s.handLocked(st)
		return nil
	}
	s.incoming = append(s.incoming, st)
	s.changed.Broadcast()
	return nil
}

// controlLocked does what a counted frame of fixed size says.
func (s *Session) controlLocked(h header, p []byte) *SessionError {
	var v uint32
	if h.size == 4 {
		v = binary.BigEndian.Uint32(p)
	}
	if h.typ == typeGoAway {
		s.retry = time.Duration(v) * time.Second
		if !s.wentAway {
			s.wentAway = true
			close(s.away)
			s.changed.Broadcast()
		}
		return nil
	}
	if h.typ == typeCredit {
		return s.creditedLocked(h, v)
	}
	st, bad := s.findLocked(h)
	if bad != nil || st == nil {
		return bad
	}
	switch h.typ {
	case typeAccept:
		if !s.oursLocked(h.stream) {
			return fault(CodeProtocol, "ACCEPT of stream %d, which is the peer's", h.stream)
		}
		st.accepted = true
		s.changed.Broadcast()
	case typeFin:
		if st.finRecv {
			return fault(CodeProtocol, "second FIN on stream %d", h.stream)
		}
		st.finRecv = true
		st.readers.Broadcast()
		st.settleLocked()
	case typeReset:
		st.resetByPeerLocked(&ResetError{Code(v)}, h.flags&flagStop != 0)
	}
	return nil
}

// creditedLocked takes a CREDIT.
func (s *Session) creditedLocked(h header, n uint32) *SessionError {
	credit := &s.sendCredit
	if h.stream != 0 {
		st, bad := s.findLocked(h)
		if bad != nil || st == nil {
			return bad
		}
		credit = &st.sendCredit
		defer st.turnLocked()
	}
	if *credit += int64(n); *credit > maxCredit || n == 0 {
		return fault(CodeFlowControl, "CREDIT of %d on stream %d", n, h.stream)
	}
	return nil
}

// carrierFrame does what a frame of the carrier says.
func (s *Session) carrierFrame(c *carrier, h header, p []byte) error {
	if h.typ == typeEnd {
		return &SessionError{Code: Code(binary.BigEndian.Uint32(p)), Remote: true}
	}
	v := binary.BigEndian.Uint64(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch h.typ {
	case typePing:
		c.pong, c.pongDue = v, true
		s.wakeLocked()
	case typePong:
		if c.pinged.IsZero() || v != uint64(c.pinged.UnixNano()) {
			return nil
		}
		if rtt := time.Since(c.pinged); c.rtt == 0 || rtt < c.rtt {
			c.rtt = rtt
		}
		c.pinged = time.Time{}
		s.outstandingLocked(c)
	case typeAck:
		if !s.ring.ack(v) {
			return fault(CodeProtocol, "ACK of %d bytes, %d were sent", v, s.ring.sent)
		}
		s.outstandingLocked(c)
		s.fillLocked()
		if s.ring.size() == 0 {
			s.changed.Broadcast()
		}
	}
	return nil
}

// forgetLocked takes a stream that the peer gave up out of the queue for Accept.
func (s *Session) forgetLocked(st *Stream) {
	s.incoming = slices.DeleteFunc(s.incoming, func(o *Stream) bool { return o == st })
}
