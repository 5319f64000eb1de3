//go:build lab

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// endings is a service that tells how connections end: its answer to what begins with H comes after the other side's end,
// to R it answers with a reset, and to anything else with "ok" and then notes what it sees.
type endings struct{ seen chan error }

const answerSize = 1 << 20

// endings starts it at TCP 7002 of a host.
func (h *Host) endings(t *testing.T, port uint16) *endings {
	t.Helper()
	ln := h.listenTCP(t, port)
	_ = ln.(*net.TCPListener).SetDeadline(time.Time{})
	s := &endings{make(chan error, 1)}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c.(*net.TCPConn))
		}
	}()
	return s
}

func (s *endings) serve(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return
	}
	switch first[0] {
	case 'H':
		n, err := io.Copy(io.Discard, c)
		if err == nil {
			_, _ = c.Write(bytes.Repeat([]byte{byte(n)}, answerSize))
		}
	case 'R':
		_ = c.SetLinger(0)
	default:
		_, _ = c.Write([]byte("ok"))
		_, err := c.Read(first)
		s.seen <- err
	}
}

// endsKept tries all endings over connections that dial makes to the service.
func (s *endings) endsKept(dial func() *net.TCPConn) error {
	return errors.Join(halfClosed(dial()), resetHere(dial()), s.resetThere(dial()))
}

// halfClosed ends its own direction and wants the answer, whole, and its end.
func halfClosed(c *net.TCPConn) error {
	if _, err := c.Write(append([]byte("H"), make([]byte, 200)...)); err != nil {
		return fmt.Errorf("half-close: %w", err)
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("half-close: %w", err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{200}, answerSize)) {
		return fmt.Errorf("half-close: %d octets of the answer came, then %w", len(got), or(err, io.EOF))
	}
	return nil
}

// resetHere wants the service's reset to arrive as one.
func resetHere(c *net.TCPConn) error {
	if _, err := c.Write([]byte("R")); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the service's reset arrives as %w", or(err, errors.New("data")))
	}
	return nil
}

// resetThere resets, and wants the service to see it.
func (s *endings) resetThere(c *net.TCPConn) error {
	if _, err := c.Write([]byte("C")); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	_ = c.SetLinger(0)
	_ = c.Close()
	select {
	case err := <-s.seen:
		if !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("the client's reset arrives as %w", or(err, errors.New("data")))
		}
		return nil
	case <-time.After(time.Minute):
		return errors.New("the client's reset does not arrive")
	}
}
