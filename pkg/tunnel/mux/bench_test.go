package mux

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
)

// One stream in bulk over TLS, beside TLS alone.
func BenchmarkBulk(b *testing.B) {
	server, client := selfSigned(b)
	b.Run("tls", func(b *testing.B) {
		x, y := loopback(b)
		bulk(b, tls.Client(x, client), tls.Server(y, server))
	})
	b.Run("mux", func(b *testing.B) {
		x, y := loopback(b)
		c, s := pair(b, tls.Client(x, client), tls.Server(y, server), Config{})
		from, to := open(b, c, s, OpenOptions{})
		bulk(b, from, to)
	})
}

func bulk(b *testing.B, from, to net.Conn) {
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{to}, make([]byte, 64<<10)) // until the end
	}()
	for b.Loop() {
		if _, err := from.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	from.(interface{ CloseWrite() error }).CloseWrite()
	<-done
	from.Close()
	to.Close()
}

// A small request and its answer, over TLS.
func BenchmarkTurn(b *testing.B) {
	server, client := selfSigned(b)
	turn := func(b *testing.B, from, to net.Conn) {
		go func() { _, _ = io.Copy(to, struct{ io.Reader }{to}) }() // until the end
		buf := make([]byte, 64)
		for b.Loop() {
			if _, err := from.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(from, buf); err != nil {
				b.Fatal(err)
			}
		}
		from.Close()
		to.Close()
	}
	b.Run("tls", func(b *testing.B) {
		x, y := loopback(b)
		turn(b, tls.Client(x, client), tls.Server(y, server))
	})
	b.Run("mux", func(b *testing.B) {
		x, y := loopback(b)
		c, s := pair(b, tls.Client(x, client), tls.Server(y, server), Config{})
		from, to := open(b, c, s, OpenOptions{})
		turn(b, from, to)
	})
}
