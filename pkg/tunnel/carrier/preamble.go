package carrier

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// What a device says first.
const (
	sayProbe   = 'P'
	saySession = 'S'
	sayBulk    = 'B'
	sayEnrol   = 'E'
)

const (
	shortEcho = 32       // octets
	longEcho  = 64 << 10 // octets; the relay echoes no more
	maxProbes = 8        // of one connection
	echoChunk = 16 << 10 // octets that the relay holds of an echo
	echoPiece = 1400     // octets of an echo in a record of TLS: the relay's TLS keeps room for the longest as long as it lives

	slowLimit = 20 * time.Second // for the whole probe: beyond this a way is not slow, it is shut
)

// Limits say how a probe is judged. The zero value is the defaults.
type Limits struct {
	Echo  time.Duration // a short echo may take this and two round trips; default 100 ms
	Cross time.Duration // 64 KiB there and back may take this and eight round trips (TCP starts slowly); default 1 s
}

func (l Limits) completed() Limits {
	if l.Echo == 0 {
		l.Echo = 100 * time.Millisecond
	}
	if l.Cross == 0 {
		l.Cross = time.Second
	}
	return l
}

// probed is what a probe has measured.
type probed struct {
	echo, cross time.Duration
	slow        bool
}

// probe times a short echo, then a long one. rtt is what a turn on this path takes at least. A way that is found slow is
// measured to its end: it may be the only one.
func probe(ctx context.Context, conn net.Conn, rtt time.Duration, l Limits) (p probed, err error) {
	ctx, cancel := context.WithTimeout(ctx, slowLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	l = l.completed()
	if p.echo, err = echo(conn, shortEcho); err == nil {
		p.cross, err = echo(conn, longEcho)
	}
	if !stop() {
		return p, fmt.Errorf("probe: %w", context.Cause(ctx))
	}
	if err != nil {
		return p, fmt.Errorf("probe: %w", err)
	}
	p.slow = p.echo > l.Echo+2*rtt || p.cross > l.Cross+8*rtt
	return p, nil
}

// echo sends n octets and waits until they have come back.
func echo(conn net.Conn, n int) (time.Duration, error) {
	out := make([]byte, 5+n)
	out[0] = sayProbe
	binary.BigEndian.PutUint32(out[1:], uint32(n))
	for i := range n {
		out[5+i] = byte(i * i >> 3)
	}
	began := time.Now()
	sent := make(chan error, 1)
	go func() {
		var err error
		for rest := out; len(rest) > 0 && err == nil; {
			n := min(len(rest), echoPiece)
			_, err = conn.Write(rest[:n])
			rest = rest[n:]
		}
		sent <- err
	}()
	back := make([]byte, n)
	_, err := io.ReadFull(conn, back)
	if err != nil {
		conn.SetWriteDeadline(time.Unix(1, 0)) // the other end is gone or cheats: do not wait for it
	}
	if e := <-sent; e != nil && err == nil {
		err = e
	}
	if err == nil && !bytes.Equal(back, out[5:]) {
		err = errors.New("the echo differs")
	}
	return time.Since(began), err
}

// errPreamble is what a relay says about a device that does not keep to the preamble.
var errPreamble = errors.New("preamble")

// readPreamble answers probes until the device has said what follows.
func readPreamble(conn net.Conn) (what byte, ticket [16]byte, err error) {
	var head [5]byte
	for probes := 0; ; probes++ {
		if _, err := io.ReadFull(conn, head[:1]); err != nil {
			return 0, ticket, err
		}
		switch head[0] {
		case saySession, sayEnrol:
			return head[0], ticket, nil
		case sayBulk:
			_, err := io.ReadFull(conn, ticket[:])
			return head[0], ticket, err
		case sayProbe:
		default:
			return 0, ticket, fmt.Errorf("%w: %#x", errPreamble, head[0])
		}
		if probes == maxProbes {
			return 0, ticket, fmt.Errorf("%w: too many probes", errPreamble)
		}
		if _, err := io.ReadFull(conn, head[1:]); err != nil {
			return 0, ticket, err
		}
		if err := answerEcho(conn, binary.BigEndian.Uint32(head[1:])); err != nil {
			return 0, ticket, err
		}
	}
}

// answerEcho sends back what comes, in chunks.
func answerEcho(conn net.Conn, n uint32) error {
	if n > longEcho {
		return fmt.Errorf("%w: an echo of %d octets", errPreamble, n)
	}
	buf := make([]byte, min(int(n), echoChunk))
	for left := int(n); left > 0; {
		part := buf[:min(left, len(buf))]
		if _, err := io.ReadFull(conn, part); err != nil {
			return err
		}
		if _, err := conn.Write(part); err != nil {
			return err
		}
		left -= len(part)
	}
	return nil
}
