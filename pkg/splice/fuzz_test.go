package splice

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// FuzzHandOver plays a script on both peers of a pair: what an ALG has read before, what follows in which pieces,
// half-closes, and a limit. What arrives must be what was sent, in order, up to the limit.
//
//	byte 0, 1: sizes of the prefixes; byte 2: limit of a in steps of 100, 0 = none; then operations:
//	bit 0: side; bits 1-2: 0, 1 = write the next byte's number of bytes, 2 = 256 times as many, 3 = half-close
func FuzzHandOver(f *testing.F) {
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{5, 0, 0, 0, 10, 6, 1, 200, 7})
	f.Add([]byte{255, 255, 0, 4, 255, 5, 255, 4, 255, 6, 5, 255, 7})
	f.Add([]byte{100, 0, 1, 6, 7})
	f.Add([]byte{100, 0, 1, 0, 1, 6, 7})
	f.Add([]byte{9, 0, 4, 4, 200, 5, 1, 6})
	j := serve(f, 1)
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) < 3 || len(script) > 64 {
			return
		}
		var sent [2][]byte
		o := Options{Limit: [2]int64{int64(script[2]) * 100}}
		for s := range sent {
			o.Prefix[s] = numbered(&sent[s], int(script[s]))
		}
		x := join(t.Context(), t, j, o, nil)
		peers := [2]*net.TCPConn{x.a, x.b}
		got := [2]chan []byte{make(chan []byte, 1), make(chan []byte, 1)}
		failed := make(chan error, 2)
		for s, c := range peers {
			go func() {
				b, err := io.ReadAll(c)
				got[1-s] <- b
				failed <- err
			}()
		}
		play(peers, &sent, script[3:])
		r := x.wait(t)
		over := o.Limit[0] > 0 && len(sent[0]) > int(o.Limit[0])
		if over != errors.Is(r.Err, ErrLimit) || !over && r.Err != nil {
			t.Fatalf("%d bytes, limit %d: %v", len(sent[0]), o.Limit[0], r.Err)
		}
		for s := range got {
			b := <-got[s]
			if over && !bytes.HasPrefix(sent[s], b) || !over && !bytes.Equal(sent[s], b) {
				t.Fatalf("from %d: %d bytes arrived of %d", s, len(b), len(sent[s]))
			}
			if err := <-failed; !over && err != nil {
				t.Fatal(err)
			}
		}
		if over && len(sent[0]) > 0 && r.Bytes[0] < uint64(o.Limit[0]) {
			t.Fatalf("ended at %d bytes of %d", r.Bytes[0], o.Limit[0])
		}
	})
}

// numbered appends n bytes to a stream that repeats after a prime number of bytes, and returns them.
func numbered(stream *[]byte, n int) []byte {
	at := len(*stream)
	for range n {
		*stream = append(*stream, byte(len(*stream)%251))
	}
	return (*stream)[at:len(*stream):len(*stream)]
}

// play runs the operations, then half-closes what is open. Writes to a pair that has ended fail.
func play(peers [2]*net.TCPConn, sent *[2][]byte, script []byte) {
	var closed [2]bool
	for i := 0; i < len(script); i++ {
		s, kind := script[i]&1, script[i]>>1&3
		switch {
		case closed[s]:
		case kind == 3:
			closed[s] = true
			peers[s].CloseWrite()
		case i+1 < len(script):
			i++
			n := int(script[i])
			if kind == 2 {
				n *= 256
			}
			peers[s].Write(numbered(&sent[s], n))
		}
	}
	for s, c := range peers {
		if !closed[s] {
			c.CloseWrite()
		}
	}
}
