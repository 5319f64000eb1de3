package msturn

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"edged.dev/edged/pkg/pinhole"
)

// On TCP each message and each piece of data has a header of four octets ([MS-TURN] §2.1): 02 or 03, 00, length. A
// client that has to look like a TLS one first sends a ClientHello whose form never changes, and gets a
// ServerHello and ServerHelloDone; after these two nothing of TLS follows.
const (
	frameMessage = 2
	frameData    = 3
	frameHeader  = 4
	helloLen     = 50

	// firstTime is how long a client has for its first frame, hello included, and for each further one until it has an
	// allocation.
	firstTime = 10 * time.Second
	// idleTime is for those after that. It is longer than an allocation's longest life: refreshes come before.
	idleTime  = maxLifetime + time.Minute
	writeTime = 10 * time.Second
)

var errFrame = errors.New("not a frame of the protocol")

// stream is a client on TCP.
type stream struct {
	conn net.Conn
	mu   sync.Mutex // one frame after the other
}

func (s *stream) message(b []byte) error { return s.frame(frameMessage, b) }
func (s *stream) bare(b []byte) error    { return s.frame(frameData, b) }

func (s *stream) frame(kind byte, b []byte) error {
	head := binary.BigEndian.AppendUint16([]byte{kind, 0}, uint16(len(b)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn.SetWriteDeadline(time.Now().Add(writeTime))
	bufs := net.Buffers{head, b}
	if _, err := bufs.WriteTo(s.conn); err != nil {
		s.conn.Close() // part of a frame may have gone
		return fmt.Errorf("client: %w", err)
	}
	return nil
}

// Serve serves clients whose connections ln accepts on the named network, with pseudo-TLS or without, until ctx ends.
func (s *Server) Serve(ctx context.Context, network string, ln net.Listener) error {
	defer s.enter()()
	return s.gate.Serve(ctx, ln, func(ctx context.Context, c net.Conn) { s.serveStream(ctx, network, c) }, s.count.drop)
}

func (s *Server) serveStream(ctx context.Context, network string, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c := &stream{conn: conn}
	from := tuple{c, pinhole.AddrPortOf(conn.RemoteAddr())}
	defer s.endOf(from)
	conn.SetReadDeadline(time.Now().Add(firstTime))
	head := make([]byte, frameHeader)
	if _, err := io.ReadFull(conn, head); err != nil {
		return
	}
	if head[0] == 0x16 {
		if err := pseudoTLS(conn, head); err != nil {
			s.count.drop("hello")
			return
		}
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
	}
	buf := make([]byte, 2048)
	for {
		kind, b, err := readFrame(conn, head, &buf)
		if err != nil {
			s.count.drop("frame")
			return
		}
		if !s.take(ctx, network, from, c, b, kind == frameData) {
			s.count.drop("foreign")
			if kind == frameMessage {
				return // [MS-TURN] §3.1.10
			}
		}
		wait := firstTime
		if s.core.of(from) != nil {
			wait = idleTime
		}
		conn.SetReadDeadline(time.Now().Add(wait))
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
	}
}

// endOf closes the port of a client whose connection has ended.
func (s *Server) endOf(from tuple) {
	if a := s.core.of(from); a != nil {
		a.out.Close()
	}
}

// readFrame reads what follows a frame's header, into buf, which grows as far as it must.
func readFrame(r io.Reader, head []byte, buf *[]byte) (kind byte, b []byte, err error) {
	n := int(binary.BigEndian.Uint16(head[2:]))
	if head[0] != frameMessage && head[0] != frameData || head[1] != 0 || n == 0 || n > maxData {
		return 0, nil, errFrame
	}
	if n > len(*buf) {
		*buf = make([]byte, n)
	}
	b = (*buf)[:n]
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, fmt.Errorf("frame: %w", err)
	}
	return head[0], b, nil
}

// pseudoTLS reads the rest of a hello that begins with head, and answers it.
func pseudoTLS(rw io.ReadWriter, head []byte) error {
	hello := make([]byte, helloLen)
	copy(hello, head)
	if _, err := io.ReadFull(rw, hello[len(head):]); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	if !isHello(hello) {
		return errFrame
	}
	answer := serverHello()
	if _, err := rw.Write(answer[:]); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	return nil
}

// isHello tells whether b is the ClientHello of pseudo-TLS: 32 octets of it are random.
func isHello(b []byte) bool {
	return len(b) == helloLen && bytes.Equal(b[:11], []byte{0x16, 3, 1, 0, 0x2d, 1, 0, 0, 0x29, 3, 1}) &&
		bytes.Equal(b[43:], []byte{0, 0, 2, 0, 0x18, 1, 0})
}

// serverHello is the only answer: one record with ServerHello (random, a session id of 32 octets, TLS_DH_anon_RC4_128_MD5)
// and ServerHelloDone.
func serverHello() (b [83]byte) {
	copy(b[:], []byte{0x16, 3, 1, 0, 0x4e, 2, 0, 0, 0x46, 3, 1})
	_, _ = rand.Read(b[11:43]) // never fails
	b[43] = 32
	_, _ = rand.Read(b[44:76])
	copy(b[76:], []byte{0, 0x18, 0, 0x0e, 0, 0, 0})
	return b
}
