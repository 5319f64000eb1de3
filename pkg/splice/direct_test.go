package splice

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// ends returns both ends of a TCP connection over loopback, the first one read and written directly.
func ends(t *testing.T) (*Direct, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDirect(a.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return d, b.(*net.TCPConn)
}

// What is written in pieces, more than a call takes and more than the kernel holds, arrives as it was, and comes back.
func TestDirectParts(t *testing.T) {
	d, peer := ends(t)
	want, parts := sha256.New(), [][]byte{nil}
	for i := range 3 * 8 {
		b := bytes.Repeat([]byte{byte(i)}, i*40_000)
		want.Write(b)
		parts = append(parts, b)
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(peer, struct{ io.Reader }{peer})
		done <- errors.Join(err, peer.CloseWrite())
	}()
	wrote := make(chan error, 1)
	var n int
	go func() {
		var err error
		n, err = d.WriteParts(parts)
		wrote <- errors.Join(err, d.CloseWrite())
	}()
	got := sha256.New()
	read, err := io.Copy(got, struct{ io.Reader }{d})
	if err := errors.Join(err, <-wrote, <-done); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) || read != int64(n) {
		t.Errorf("%d bytes written, %d read, or not the same", n, read)
	}
}

// Deadlines, a reset and Close end a Read and a Write that wait.
func TestDirectEnds(t *testing.T) {
	var b [1 << 20]byte
	read := func(d *Direct) error { _, err := d.Read(b[:]); return err }
	write := func(d *Direct) error {
		for {
			if _, err := d.Write(b[:]); err != nil {
				return err
			}
		}
	}
	for _, tc := range []struct {
		name string
		do   func(*Direct) error
		end  func(*Direct, *net.TCPConn)
		want error
	}{
		{"read deadline", read, func(d *Direct, _ *net.TCPConn) { d.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		{"write deadline", write, func(d *Direct, _ *net.TCPConn) { d.SetWriteDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		{"closed reader", read, func(d *Direct, _ *net.TCPConn) { d.Close() }, net.ErrClosed},
		{"closed writer", write, func(d *Direct, _ *net.TCPConn) { d.Close() }, net.ErrClosed},
		{"end", read, func(_ *Direct, peer *net.TCPConn) { peer.CloseWrite() }, io.EOF},
		{"reset reader", read, func(_ *Direct, peer *net.TCPConn) { peer.SetLinger(0); peer.Close() }, syscall.ECONNRESET},
		{"reset writer", write, func(_ *Direct, peer *net.TCPConn) { peer.SetLinger(0); peer.Close() }, syscall.ECONNRESET},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, peer := ends(t)
			got := make(chan error, 1)
			go func() { got <- tc.do(d) }()
			select {
			case err := <-got:
				t.Fatalf("ended by itself: %v", err)
			case <-time.After(20 * time.Millisecond): // it may not have begun yet, which must not matter
			}
			tc.end(d, peer)
			if err := <-got; !errors.Is(err, tc.want) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("%v, not %v", err, tc.want)
			}
		})
	}
}
