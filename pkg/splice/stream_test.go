package splice

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestStreams sends random streams both ways with stalls, pieces of every size, prefixes and half-closes in
// random order. EDGED_SOAK=1 sends 1 GiB each, 100 times.
func TestStreams(t *testing.T) {
	size, times := int64(16<<20), 8
	if os.Getenv("EDGED_SOAK") != "" {
		size, times = 1<<30, 100
	} else if testing.Short() {
		size, times = 1<<20, 4
	}
	ways(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		j := serve(t, 2)
		for i := range times {
			if size == 1<<30 {
				t.Logf("stream %d of %d", i+1, times)
			}
			seed := uint64(i)
			if size == 1<<30 {
				seed = rand.Uint64()
			}
			streams(t, j, wrap, size, seed)
		}
	})
}

func streams(t *testing.T, j *Joiner, wrap func(net.Conn) net.Conn, size int64, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	var s [2]*stream
	o := Options{}
	for i := range s {
		s[i] = newStream(seed, uint64(i), size/int64(1+rnd.IntN(3)))
		o.Prefix[i] = make([]byte, rnd.IntN(3)*rnd.IntN(100000))
		io.ReadFull(s[i], o.Prefix[i])
	}
	x := join(t.Context(), t, j, o, wrap)
	for _, c := range []*net.TCPConn{x.a, x.b} {
		c.SetDeadline(time.Time{})
		if rnd.IntN(2) == 0 {
			c.SetReadBuffer(1 << 17)
			c.SetWriteBuffer(1 << 17)
		}
	}
	var all sync.WaitGroup
	var got [2][]byte
	all.Go(func() { s[0].send(t, x.a) })
	all.Go(func() { s[1].send(t, x.b) })
	all.Go(func() { got[0] = receive(t, x.b, seed+2) })
	all.Go(func() { got[1] = receive(t, x.a, seed+3) })
	all.Wait()
	r := x.wait(t)
	for i := range s {
		if want := s[i].sum.Sum(nil); !bytes.Equal(got[i], want) || r.Bytes[i] != uint64(s[i].size) || r.Err != nil {
			t.Fatalf("seed %d, from %d: %+v, want %d bytes; equal %v", seed, i, r, s[i].size, bytes.Equal(got[i], want))
		}
	}
}

// stall waits for a little while, now and then, so that buffers run full or empty.
func stall(rnd *rand.Rand) {
	switch n := rnd.IntN(400); {
	case n == 0:
		<-time.After(time.Duration(rnd.IntN(20)) * time.Millisecond)
	case n < 20:
		runtime.Gosched()
	}
}

// stream is size random bytes, and the sum of those that were read.
type stream struct {
	src  io.Reader
	rnd  *rand.Rand
	size int64
	sum  hash.Hash
}

func newStream(seed, side uint64, size int64) *stream {
	key := sha256.Sum256([]byte{byte(seed), byte(seed >> 8), byte(side)})
	return &stream{
		src: io.LimitReader(rand.NewChaCha8(key), size), rnd: rand.New(rand.NewPCG(seed, side+10)), size: size, sum: sha256.New(),
	}
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.src.Read(b)
	s.sum.Write(b[:n])
	return n, err
}

// send writes the stream in pieces from one byte to 128 KiB, with stalls, and half-closes.
func (s *stream) send(t *testing.T, conn *net.TCPConn) {
	b := make([]byte, 1<<17)
	most := 1 << s.rnd.IntN(18)
	for {
		if s.rnd.IntN(100) == 0 {
			most = 1 << (8 + s.rnd.IntN(10))
		}
		n, err := s.Read(b[:1+s.rnd.IntN(most)])
		if n > 0 {
			if _, err := conn.Write(b[:n]); err != nil {
				t.Error(err)
				return
			}
		}
		if err != nil {
			break
		}
		stall(s.rnd)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
}

// receive reads to the end, with stalls, and returns the sum.
func receive(t *testing.T, conn net.Conn, seed uint64) []byte {
	rnd, sum, b := rand.New(rand.NewPCG(seed, 5)), sha256.New(), make([]byte, 1<<17)
	for {
		n, err := conn.Read(b[:1+rnd.IntN(len(b))])
		sum.Write(b[:n])
		if errors.Is(err, io.EOF) {
			return sum.Sum(nil)
		}
		if err != nil {
			t.Error(err)
			return nil
		}
		stall(rnd)
	}
}
