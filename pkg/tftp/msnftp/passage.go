package msnftp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// maxAnswer bounds what the file's receiver may say after TFR: a good-bye.
	maxAnswer = 4 << 10
	// headSize is how much of a file a Check has seen before any of it passes.
	headSize = 512
	// tailSize is how much of its end, in whole blocks, waits for the verdict.
	tailSize = 32 << 10
	// maxHeld bounds what waits: the tail, one block, what was read at once, and headers of small blocks.
	maxHeld  = tailSize + 64<<10 + readSize + 32<<10
	readSize = 32 << 10
)

// passage moves a file block by block, and shows it to a Check. Its octets pass unchanged, the last ones after
// the verdict.
//
//	sender ─► blocks ─┬─► Check        held: whole blocks that may not pass yet
//	                  └─► held ─► receiver
type passage struct {
	*session
	check  Check
	blocks blocks
	// got counts the file's octets.
	got int64
	// held came and has not passed, free of it may.
	held []byte
	free int
	// over says that the file's data have passed; trailer is what came of a line behind them.
	over    bool
	trailer []byte
	macs    int // lines with one that have come

	mu      sync.Mutex
	err     error  // the first one
	goodbye string // what the receiver said last
}

func newPassage(s *session, c Check) *passage { return &passage{session: s, check: c} }

// run moves both directions until both have ended.
func (p *passage) run() error {
	var back sync.WaitGroup
	back.Go(p.answer)
	p.fail(p.send())
	back.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	whole := p.got == p.size && (p.macs > 0 || p.version != secure)
	switch {
	case errors.Is(p.err, ErrDenied) || errors.Is(p.err, ErrLimit):
		return p.err
	case whole && p.goodbye == byeDone:
		return nil // how the connections end afterwards does not matter
	case p.err != nil:
		return p.err
	case p.goodbye != "" && p.goodbye != byeDone:
		return fmt.Errorf("%q: %w", p.goodbye, ErrCancelled)
	case !whole:
		return ErrCut
	}
	return nil
}

// fail notes the first error, which ends both directions.
func (p *passage) fail(err error) {
	if err == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		p.close(err)
	}
}

// read waits until something comes, or nothing has come from either side for too long.
func (p *passage) read(r *reader, b []byte) (int, error) {
	if n := copy(b, r.rest); n > 0 {
		r.rest = r.rest[n:]
		return n, nil
	}
	for {
		quiet := time.Unix(0, p.active.Load()).Add(p.idle())
		r.conn.SetReadDeadline(quiet)
		n, err := r.conn.Read(b)
		p.moved(r.side, n)
		switch {
		case n > 0:
			return n, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Unix(0, p.active.Load()).Add(p.idle()).After(time.Now()):
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("%w: %w", ErrIdle, err)
		default:
			return 0, err
		}
	}
}

func (p *passage) write(to net.Conn, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	to.SetWriteDeadline(time.Now().Add(p.idle()))
	_, err := to.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrIdle, err)
	}
	p.active.Store(time.Now().UnixNano())
	return err
}

// answer passes what the file's receiver says.
func (p *passage) answer() {
	var said []byte
	b := make([]byte, maxLine)
	for {
		n, err := p.read(p.to, b)
		switch {
		case errors.Is(err, io.EOF):
			closeWrite(p.from.conn)
			return
		case err == nil && len(said)+n > maxAnswer:
			err = fmt.Errorf("from the receiver: %w", ErrLimit)
		}
		if err == nil {
			said = append(said, b[:n]...)
			p.hearAll(said)
			err = p.write(p.from.conn, b[:n])
		}
		if err != nil {
			p.fail(err)
			return
		}
	}
}

// hearAll looks for the last good-bye in what the receiver said.
func (p *passage) hearAll(said []byte) {
	for {
		l, rest, ok, err := nextLine(said)
		if !ok || err != nil {
			return
		}
		said = rest
		if w := l.words(); w[0] == "CCL" || w[0] == "BYE" {
			p.mu.Lock()
			p.goodbye = w[len(w)-1]
			p.mu.Unlock()
		}
	}
}

// send passes what the sender says, until it has ended.
func (p *passage) send() error {
	if p.size == 0 {
		if err := p.finish(); err != nil {
			return err
		}
	}
	b, most := make([]byte, readSize), uint64(mostOctets(p.size))
	for {
		n, err := p.read(p.from, b)
		switch {
		case errors.Is(err, io.EOF):
			return p.end()
		case err != nil:
			return err
		case p.octets[p.from.side].Load() > most:
			return p.deny(ErrLimit)
		}
		if err := p.feed(b[:n]); err != nil {
			return err
		}
	}
}

// feed takes octets of the sender.
func (p *passage) feed(b []byte) error {
	for len(b) > 0 && !p.over {
		next := p.blocks.next(b)
		if p.got += int64(len(next.data)); p.got > p.size {
			return p.deny(ErrLimit)
		}
		if len(next.data) > 0 && p.check != nil {
			if _, err := p.check.Write(next.data); err != nil {
				return p.deny(fmt.Errorf("%w: %w", ErrDenied, err))
			}
		}
		p.held, b = append(p.held, b[:next.size]...), b[next.size:]
		if next.end && (p.check == nil || p.got <= p.size-tailSize) {
			p.free = len(p.held)
		}
		if next.stop || next.end && p.got == p.size {
			if err := p.finish(); err != nil {
				return err
			}
		}
	}
	if p.over {
		return p.pass(b)
	}
	return p.release()
}

// release passes the blocks that may.
func (p *passage) release() error {
	if p.got < headSize && p.check != nil || p.free == 0 {
		if len(p.held) > maxHeld {
			return p.deny(fmt.Errorf("blocks of nothing: %w", ErrLimit))
		}
		return nil
	}
	err := p.write(p.to.conn, p.held[:p.free])
	p.held = append(p.held[:0], p.held[p.free:]...)
	p.free = 0
	return err
}

// finish asks for the verdict, and passes the end of the file.
func (p *passage) finish() error {
	if p.check != nil {
		if err := p.verdict(); err != nil {
			return p.deny(fmt.Errorf("%w: %w", ErrDenied, err))
		}
	}
	p.over = true
	err := p.write(p.to.conn, p.held)
	p.held = nil
	return err
}

// verdict waits for the check, and nobody is idle meanwhile.
func (p *passage) verdict() error {
	done := make(chan struct{}) // closed when it is there
	var alive sync.WaitGroup
	alive.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				p.active.Store(now.UnixNano())
				p.tell(p.from.side, 0)
			case <-done:
				return
			}
		}
	})
	err := p.check.Verdict()
	close(done)
	alive.Wait()
	return err
}

// pass takes what follows the data: headers without data, and lines.
func (p *passage) pass(b []byte) error {
	p.trailer = append(p.trailer, b...)
	for len(p.trailer) > 0 {
		n := headerSize
		if p.trailer[0] > 1 {
			l, _, ok, err := nextLine(p.trailer)
			if err != nil || !ok {
				return err
			}
			if err := p.mac(l); err != nil {
				return err
			}
			n = len(l)
		}
		if len(p.trailer) < n {
			return nil
		}
		if p.trailer[0] == 0 && !bytes.Equal(p.trailer[1:3], []byte{0, 0}) {
			return p.deny(fmt.Errorf("data behind the end: %w", ErrLimit))
		}
		if err := p.write(p.to.conn, p.trailer[:n]); err != nil {
			return err
		}
		p.trailer = p.trailer[n:]
	}
	return nil
}

// mac has the sender's MAC judged; other lines it lets pass.
func (p *passage) mac(l line) error {
	w := l.words()
	if w[0] == "MAC" {
		p.macs++
	}
	if w[0] != "MAC" || p.check == nil {
		return nil
	}
	if err := p.check.MAC(w[len(w)-1]); err != nil {
		return p.deny(fmt.Errorf("%w: %w", ErrDenied, err))
	}
	return nil
}

// end passes what is left when the sender has ended, and the end.
func (p *passage) end() error {
	rest := p.trailer
	if p.over {
		if err := p.mac(line(rest)); err != nil {
			return err
		}
	} else if p.check == nil {
		rest = p.held
	}
	if err := p.write(p.to.conn, rest); err != nil {
		return err
	}
	closeWrite(p.to.conn)
	return nil
}

// deny ends the transfer in the protocol's own words: the receiver hears that no data follow, the sender that the
// receiver wants no more. It returns err.
func (p *passage) deny(err error) error {
	p.mu.Lock()
	if p.err == nil {
		p.err = err
	}
	p.mu.Unlock()
	// The sender first: once the receiver ends, so does what can be said to the sender.
	heard := p.write(p.from.conn, []byte("BYE "+byeAbort+"\r\n")) == nil
	if !p.over {
		_ = p.write(p.to.conn, []byte{1, 0, 0}) // whether it still hears or not
	}
	closeWrite(p.to.conn)
	if heard {
		farewell(p.from.conn)
	}
	p.close(err)
	return err
}
