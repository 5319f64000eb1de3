package mux

import "time"

// leastRTT is taken for paths that are shorter: what counts there is how often
// the goroutines have to wait for one another.
const leastRTT = 2 * time.Millisecond

// takeLocked counts n bytes that arrived against the session's window.
func (s *Session) takeLocked(n int) { s.recvCredit -= int64(n) }

// returnLocked grants n bytes of the session's window again.
func (s *Session) returnLocked(n int) {
	s.toReturn += int64(n)
	if s.toReturn >= int64(s.cfg.SessionWindow/8) {
		s.creditDue = true
	}
}

// consumedLocked grants n bytes again that the application has read.
func (st *Stream) consumedLocked(n int) {
	s := st.s
	s.returnLocked(n)
	if !st.finRecv && !st.recv.closed {
		st.toReturn += int64(n)
		st.tuneLocked(n)
		if st.toReturn >= int64(st.window/4) {
			st.ctlLocked(needCredit)
		}
	}
	s.fillLocked()
}

// tuneLocked doubles the window when one was read in less than two round
// trips: then the window, not the reader, is what the sender waits for. A
// quarter of the session's window stays for other streams.
func (st *Stream) tuneLocked(n int) {
	s := st.s
	if st.tuneBytes == 0 {
		st.tuneFrom = time.Now()
	}
	if st.tuneBytes += n; st.tuneBytes < st.window {
		return
	}
	rtt := leastRTT
	if s.last != nil {
		rtt = max(rtt, s.last.rtt)
	}
	fast := time.Since(st.tuneFrom) < 2*rtt
	st.tuneBytes = 0
	more := min(st.window, s.cfg.MaxStreamWindow-st.window)
	if fast && more > 0 && s.windows+int64(more) <= int64(s.cfg.SessionWindow/4*3) {
		st.window += more
		s.windows += int64(more)
		st.toReturn += int64(more)
	}
}
