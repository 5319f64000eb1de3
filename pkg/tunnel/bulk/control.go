package bulk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/mux"
)

// A message of the control stream: what u8 | number u64, big-endian.
type message struct {
	what   byte
	number uint64
}

const (
	move     = 'M' // what I write from this number on is beside the session
	ack      = 'A' // I have what is before this number
	lost     = 'L' // I read nothing more there, and have what is before this number
	end      = 'E' // my direction ends at this number
	finished = 'F' // I have all of it
)

const messageLen = 9

// Move has c go on beside its session: over tcp, of which the peer has the
// other end, with ctl to tell one another where. Both belong to c from then on.
// It waits until c is back from where it was moved before.
func (c *Conn) Move(ctl *mux.Stream, tcp *net.TCPConn) error {
	direct, err := splice.NewDirect(tcp)
	l := &leg{ctl: ctl, tcp: direct}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer func() { c.asked = false }()
	if err != nil {
		tcp.Close()
		ctl.Reset(mux.CodeCanceled)
		return err
	}
	for c.err == nil && !c.closed && c.leg != nil && !c.leg.over {
		c.changed.Wait()
	}
	if c.err != nil || c.closed || c.settled {
		tcp.Close()
		ctl.Reset(mux.CodeCanceled)
		return net.ErrClosed
	}
	c.leg = l
	watchful(tcp)
	tcp.SetReadDeadline(c.readBy)
	_ = tcp.SetWriteDeadline(c.writeBy)
	c.told = c.got
	go c.control(l)
	return nil
}

// silent is how long the other end of a TCP connection may acknowledge nothing,
// or take nothing, before the connection counts as lost.
const silent = 20 * time.Second

// watchful has the kernel find out that the other end is gone.
func watchful(tcp *net.TCPConn) {
	tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: silent / 2, Interval: silent / 6, Count: 3})
	raw, err := tcp.SyscallConn()
	if err != nil {
		return // it is closed, as its users will see
	}
	_ = raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silent.Milliseconds()))
	})
}

// control is the goroutine that reads a leg's control stream; it ends with the leg.
func (c *Conn) control(l *leg) {
	var b [messageLen]byte
	for {
		_, err := io.ReadFull(l.ctl, b[:])
		if err == nil {
			err = c.heard(l, message{b[0], binary.BigEndian.Uint64(b[1:])})
		}
		if err != nil {
			c.unheard(l, err)
			return
		}
	}
}

// unheard decides what the end of the control stream means.
func (c *Conn) unheard(l *leg, err error) {
	c.mu.Lock()
	over := l.over
	said := l.lostGot && errors.Is(err, io.EOF) // the peer has said all; we may not have
	if !l.peerMoved && !over && !said {
		// The peer has ended, or does not want to move. What it wrote is in the session.
		over, l.over, l.dead = true, true, true
		if l.moved {
			c.werr = err
			c.dropLocked()
		}
		l.tcp.Close()
		c.changed.Broadcast()
	}
	closed := c.closed
	c.mu.Unlock()
	if over {
		_ = l.ctl.Close()
		if closed {
			c.finish()
		}
	}
	if over || said {
		return
	}
	code := mux.CodeInternal
	if r := (*mux.ResetError)(nil); errors.As(err, &r) {
		code = r.Code
	} else {
		err = fmt.Errorf("%w: %v", ErrCut, err) //nolint:errorlint // an io.EOF in the chain would be an orderly end
	}
	c.fail(err, code)
}

// heard does what a message says.
func (c *Conn) heard(l *leg, m message) error {
	c.mu.Lock()
	say, err := c.heardLocked(l, m)
	resend := err == nil && m.what == lost
	finish := c.closed && l.finished
	c.mu.Unlock()
	c.say(l, say)
	if resend {
		go c.resend(l, m.number)
	}
	if finish {
		c.finish()
	}
	return err
}

func (c *Conn) heardLocked(l *leg, m message) ([]message, error) {
	switch m.what {
	case move:
		if l.lostSent {
			return nil, nil // what was beside the session is in it already, or will be
		}
		if m.number < c.got || l.peerMoved {
			return nil, fmt.Errorf("MOVE at %d after %d", m.number, c.got)
		}
		l.peerMoved, l.peerFrom, c.told = true, m.number, m.number
		c.kickLocked()
	case ack, finished:
		if l.lostGot {
			return nil, nil // it was overtaken by LOST, which has said as much
		}
		return nil, c.arrivedLocked(l, m)
	case end:
		if m.number < c.got || m.number > 1<<62 {
			return nil, fmt.Errorf("END at %d after %d", m.number, c.got)
		}
		c.end = int64(m.number)
		c.kickLocked()
		return c.finishLocked(l), nil
	case lost:
		if l.lostGot || l.moved && m.number > c.handed {
			return nil, fmt.Errorf("LOST at %d of %d", m.number, c.handed)
		}
		l.lostGot = true
		c.loseLocked(l)
		return c.lostLocked(l), nil
	default:
		return nil, fmt.Errorf("message %#x", m.what)
	}
	return nil, nil
}

// arrivedLocked takes what the peer says that it has of what we wrote.
func (c *Conn) arrivedLocked(l *leg, m message) error {
	switch {
	case m.what == finished && (!c.fin || !l.moved || c.handed != c.out):
		return errors.New("finished before the end")
	case m.what == finished:
		l.finished = true
		c.keep.drop(c.keep.end)
		c.settleLocked(l)
	case m.number > c.handed || !l.moved:
		return fmt.Errorf("ACK of %d bytes of %d", m.number, c.handed)
	case m.number > c.keep.base:
		c.keep.drop(m.number)
		c.changed.Broadcast()
	}
	return nil
}

// finishLocked says that all of the peer's direction has come, once.
func (c *Conn) finishLocked(l *leg) []message {
	if l == nil || !l.peerMoved || l.dead || c.finTold || c.end < 0 || c.got != uint64(c.end) {
		return nil
	}
	c.finTold = true
	c.settleLocked(l)
	return []message{{finished, c.got}}
}

// settleLocked ends a leg whose directions have both ended.
func (c *Conn) settleLocked(l *leg) {
	if !l.finished || !c.finTold || l.over {
		return
	}
	l.over, c.settled = true, true
	c.changed.Broadcast()
}

// lose gives the leg up.
func (c *Conn) lose(l *leg) {
	c.mu.Lock()
	c.loseLocked(l)
	say := c.lostLocked(l)
	c.mu.Unlock()
	c.say(l, say)
}

func (c *Conn) loseLocked(l *leg) {
	if l == nil || l.dead || l.over {
		return
	}
	l.dead = true
	l.tcp.Close() // a Read or Write there ends
	c.changed.Broadcast()
}

// lostLocked returns what to tell the peer once nothing reads the dead leg any more.
func (c *Conn) lostLocked(l *leg) []message {
	if l == nil || !l.dead || l.over || l.lostSent || c.reading == l {
		return nil
	}
	l.lostSent = true
	return []message{{lost, c.got}}
}

// say writes messages to the peer. If it cannot, control finds out.
func (c *Conn) say(l *leg, all []message) {
	if len(all) == 0 {
		return
	}
	l.tx.Lock()
	defer l.tx.Unlock()
	for _, m := range all {
		b := binary.BigEndian.AppendUint64([]byte{m.what}, m.number)
		if _, err := l.ctl.Write(b); err != nil {
			l.ctl.Reset(mux.CodeInternal)
			return
		}
		if m.what == lost {
			c.mu.Lock()
			l.lostSaid = true
			c.mu.Unlock()
			c.backAgain(l)
		}
	}
}

// backAgain ends a lost leg when both ends have said all about it.
func (c *Conn) backAgain(l *leg) {
	c.mu.Lock()
	done := l.lostSaid && l.resent && !l.over
	l.over = l.over || done
	c.changed.Broadcast()
	closed := c.closed
	c.mu.Unlock()
	if done {
		_ = l.ctl.CloseWrite() // the peer does the same
		if closed {
			c.finish()
		}
	}
}

// resend is the goroutine that brings the session's stream to where a lost leg
// was: the peer has what is before the number. Nobody else writes to the stream
// meanwhile: Write waits.
func (c *Conn) resend(l *leg, from uint64) {
	c.mu.Lock()
	for c.keep.pinned { // not for long: the leg's TCP is closed
		c.changed.Wait()
	}
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	moved := l.moved
	if moved && from > c.keep.base {
		c.keep.drop(from)
	}
	c.free = true
	_ = c.stream.SetWriteDeadline(time.Time{})
	c.mu.Unlock()
	var err error
	for b := c.resendNext(0); moved && err == nil && len(b) > 0; b = c.resendNext(len(b)) {
		_, err = c.stream.Write(b)
	}
	c.mu.Lock()
	c.free = false
	_ = c.stream.SetWriteDeadline(c.writeBy)
	c.dropLocked()
	l.moved, l.resent = false, true
	fin := c.fin && moved
	c.changed.Broadcast()
	c.mu.Unlock()
	if err == nil && fin {
		err = c.stream.CloseWrite()
	}
	if err != nil {
		c.fail(err, mux.CodeInternal)
		return
	}
	c.backAgain(l)
}

// resendNext forgets n bytes that are in the session now and returns those after them.
func (c *Conn) resendNext(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep.drop(c.keep.base + uint64(n))
	return c.keep.next()
}
