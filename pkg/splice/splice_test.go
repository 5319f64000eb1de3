package splice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = 2 * time.Minute

// serve starts a joiner that ends with the test, and then looks for what was left behind.
func serve(t testing.TB, loops int) *Joiner {
	t.Helper()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	if _, fuzz := t.(*testing.F); fuzz {
		goroutines += 2 // with -fuzz package testing waits for signals, and goroutines of that remain
	}
	j, err := New(loops)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- j.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if _, fuzzing := t.(*testing.F); fuzzing {
			return // the fuzzing engine has goroutines and files of its own
		}
		// The runtime opens two descriptors of its own, once.
		until(t, "everything is given back", func() bool {
			return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files+3
		})
	})
	return j
}

func openFiles(t testing.TB) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc/self/fd: descriptors cannot be counted")
	}
	return len(list)
}

// until polls for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// dialPair returns the two ends of a TCP connection over loopback.
func dialPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	out, err := net.DialTCP("tcp4", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	in, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.TCPConn{out, in} {
		c.SetDeadline(time.Now().Add(patience))
		t.Cleanup(func() { c.Close() })
	}
	return out, in
}

// joined is a join under test: a and b are the peers.
type joined struct {
	a, b     *net.TCPConn
	counters Counters
	result   chan Result
}

// join joins two connections; wrap, if not nil, hides what they are from the joiner.
func join(ctx context.Context, t testing.TB, j *Joiner, o Options, wrap func(net.Conn) net.Conn) *joined {
	t.Helper()
	x := &joined{result: make(chan Result, 1)}
	a, toA := dialPair(t)
	b, toB := dialPair(t)
	x.a, x.b = a, b
	o.Counters = &x.counters
	var ca, cb net.Conn = toA, toB
	if wrap != nil {
		ca, cb = wrap(toA), wrap(toB)
	}
	go func() { x.result <- j.Join(ctx, ca, cb, o) }()
	return x
}

func (x *joined) wait(t testing.TB) Result {
	t.Helper()
	select {
	case r := <-x.result:
		return r
	case <-time.After(patience):
		t.Fatal("the join does not end")
		return Result{}
	}
}

// opaque is a connection that a joiner can not take the descriptor of.
type opaque struct{ net.Conn }

func (o opaque) CloseWrite() error { return o.Conn.(*net.TCPConn).CloseWrite() }

func (o opaque) NetConn() net.Conn { return o.Conn }

// ways are the two ways to join.
func ways(t *testing.T, f func(t *testing.T, wrap func(net.Conn) net.Conn)) {
	t.Run("loop", func(t *testing.T) { f(t, nil) })
	t.Run("copy", func(t *testing.T) { f(t, func(c net.Conn) net.Conn { return opaque{c} }) })
}

func TestMessagesAndHalfClose(t *testing.T) {
	ways(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		x := join(t.Context(), t, serve(t, 2), Options{Prefix: [2][]byte{[]byte("HE"), []byte("wor")}}, wrap)
		fmt.Fprint(x.a, "LLO")
		x.a.CloseWrite()
		if got, err := io.ReadAll(x.b); string(got) != "HELLO" || err != nil {
			t.Fatalf("b got %q, %v", got, err)
		}
		// The other way still works after the half-close.
		fmt.Fprint(x.b, "ld")
		x.b.Close()
		if got, err := io.ReadAll(x.a); string(got) != "world" || err != nil {
			t.Fatalf("a got %q, %v", got, err)
		}
		r := x.wait(t)
		if r.Err != nil || r.Bytes != [2]uint64{5, 5} || x.counters.Reads(0) < 2 || x.counters.Last().IsZero() {
			t.Errorf("%+v, %d reads, last %v", r, x.counters.Reads(0), x.counters.Last())
		}
	})
}

// TestUrgent: urgent bytes stay in their place, and what follows them is not left behind; in a stream that is copied, and
// in one that is spliced.
func TestUrgent(t *testing.T) {
	j := serve(t, 1)
	for _, bulk := range []int{3, 1 << 20} {
		var sent []byte
		x := join(t.Context(), t, j, Options{}, nil)
		got := make(chan []byte, 1)
		go func() {
			b, err := io.ReadAll(x.b)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		for range 20 {
			x.a.Write(numbered(&sent, bulk))
			writeUrgent(t, x.a, numbered(&sent, 1))
			x.a.Write(numbered(&sent, 5))
			until(t, "all has arrived", func() bool { return x.counters.Bytes(0) == uint64(len(sent)) })
		}
		x.a.CloseWrite()
		x.b.CloseWrite()
		if r := x.wait(t); r.Err != nil {
			t.Error(r.Err)
		}
		if b := <-got; !bytes.Equal(b, sent) {
			t.Errorf("%d bytes of %d, or others", len(b), len(sent))
		}
	}
}

func writeUrgent(t *testing.T, c *net.TCPConn, b []byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), b, unix.MSG_OOB, nil)
		return !errors.Is(failed, unix.EAGAIN)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

func TestResetIsPassedOn(t *testing.T) {
	ways(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		for _, halfClosed := range []bool{false, true} {
			x := join(t.Context(), t, serve(t, 1), Options{Prefix: [2][]byte{[]byte("x")}}, wrap)
			one := make([]byte, 1)
			if _, err := io.ReadFull(x.b, one); err != nil {
				t.Fatal(err)
			}
			if halfClosed {
				x.b.CloseWrite()
				if n, err := x.a.Read(one); n != 0 || !errors.Is(err, io.EOF) {
					t.Fatal(n, err)
				}
			}
			x.b.SetLinger(0)
			x.b.Close()
			if !halfClosed {
				if _, err := x.a.Read(one); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("half closed %v: a got %v", halfClosed, err)
				}
			} else if wrap != nil {
				// Copying goroutines see that reset when they next write.
				until(t, "the reset arrives", func() bool { _, err := x.a.Write(one); return err != nil })
			}
			if r := x.wait(t); r.Err == nil || !strings.HasPrefix(r.Err.Error(), "b: ") {
				t.Errorf("half closed %v: %v", halfClosed, r.Err)
			}
		}
	})
}

func TestEndsFromOutside(t *testing.T) {
	ways(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		x := join(ctx, t, serve(t, 1), Options{Prefix: [2][]byte{[]byte("x")}}, wrap)
		if _, err := io.ReadFull(x.b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		cancel()
		if r := x.wait(t); !errors.Is(r.Err, context.Canceled) {
			t.Error(r.Err)
		}
		for _, c := range []net.Conn{x.a, x.b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("a peer got %v", err)
			}
		}
	})
}

// TestEndedStreamArrives: an end from outside takes nothing from the peer that has its end of stream already.
func TestEndedStreamArrives(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	x := join(ctx, t, serve(t, 1), Options{}, nil)
	const size = 100_000 // what the sockets' buffers hold
	if _, err := x.a.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	x.a.CloseWrite()
	until(t, "b was told the end", func() bool { return tcpState(t, x.b) == closeWait })
	cancel()
	x.wait(t)
	if got, err := io.ReadAll(x.b); len(got) != size || err != nil {
		t.Errorf("b got %d bytes, %v", len(got), err)
	}
	if _, err := x.a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a got %v", err)
	}
}

// closeWait is the state of a connection whose peer has ended, as the kernel numbers it.
const closeWait = 8

func tcpState(t *testing.T, c *net.TCPConn) uint8 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var failed error
	if err := raw.Control(func(fd uintptr) {
		info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	return info.State
}

func TestIdle(t *testing.T) {
	ways(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		const idle = 300 * time.Millisecond
		begun := time.Now()
		x := join(t.Context(), t, serve(t, 1), Options{Idle: idle}, wrap)
		fmt.Fprint(x.a, "x")
		if _, err := io.ReadFull(x.b, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if r := x.wait(t); !errors.Is(r.Err, ErrIdle) || time.Since(begun) < idle {
			t.Errorf("%v after %v", r.Err, time.Since(begun))
		}
		if _, err := x.b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("b got %v", err)
		}
	})
}

func TestLimit(t *testing.T) {
	ways(t, func(t *testing.T, wrap func(net.Conn) net.Conn) {
		j := serve(t, 1)
		for _, size := range []int{1, 10, copySize, copySize + 1, 1 << 20} {
			for _, more := range []int{0, 1, 1 << 16} {
				x := join(t.Context(), t, j, Options{Limit: [2]int64{0, int64(size)}, Prefix: [2][]byte{nil, {0}}}, wrap)
				go func() {
					x.b.Write(make([]byte, size-1+more))
					x.b.CloseWrite()
				}()
				got, err := io.ReadAll(x.a)
				x.a.Close()
				r := x.wait(t)
				if more == 0 && (r.Err != nil || err != nil || len(got) != size) ||
					more > 0 && (!errors.Is(r.Err, ErrLimit) || !errors.Is(err, syscall.ECONNRESET) || len(got) > size) {
					t.Errorf("%d of %d: %v; a got %d, %v", size+more, size, r.Err, len(got), err)
				}
			}
		}
	})
}

func TestServeEndsJoins(t *testing.T) {
	j, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	// A join that was given up before the loops run.
	gone, cancel := context.WithCancel(t.Context())
	early := join(gone, t, j, Options{}, nil)
	cancel()
	if r := early.wait(t); !errors.Is(r.Err, context.Canceled) {
		t.Error(r.Err)
	}
	// One that waits for them.
	x := join(t.Context(), t, j, Options{Prefix: [2][]byte{[]byte("x")}}, nil)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- j.Serve(ctx) }()
	if _, err := io.ReadFull(x.b, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	late := join(t.Context(), t, j, Options{}, nil)
	for _, x := range []*joined{x, late} {
		if r := x.wait(t); !errors.Is(r.Err, ErrClosed) {
			t.Error(r.Err)
		}
	}
}

// TestNoDescriptors: without any for pipes, much is copied; without any at all, goroutines copy.
func TestNoDescriptors(t *testing.T) {
	j := serve(t, 1)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	a, toA := dialPair(t)
	b, toB := dialPair(t)
	none := old
	none.Cur = 3
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	done := make(chan Result, 1)
	go func() { done <- j.Join(t.Context(), toA, toB, Options{}) }()
	go func() {
		a.Write(make([]byte, 1<<20))
		a.Close()
	}()
	n, err := io.Copy(io.Discard, b)
	b.Close()
	if r := <-done; n != 1<<20 || err != nil || r.Err != nil {
		t.Errorf("%d bytes, %v, %v", n, err, r.Err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	x := join(t.Context(), t, j, Options{Prefix: [2][]byte{{1}}}, nil)
	if _, err := io.ReadFull(x.b, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	go func() {
		x.a.Write(make([]byte, 1<<20))
		x.a.Close()
	}()
	n, err = io.Copy(io.Discard, x.b)
	x.b.Close()
	if r := x.wait(t); n != 1<<20 || err != nil || r.Err != nil {
		t.Errorf("%d bytes, %v, %v", n, err, r.Err)
	}
}
