package gate

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

const patience = 20 * time.Second

// house is a gate that serves on loopback: it echoes.
type house struct {
	*Gate
	at     string
	cancel context.CancelFunc
	ended  chan error

	mu      sync.Mutex
	refused []string
}

func newHouse(t *testing.T, g *Gate) *house {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.11.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &house{Gate: g, at: ln.Addr().String(), cancel: cancel, ended: make(chan error, 1)}
	go func() {
		h.ended <- g.Serve(ctx, ln, func(ctx context.Context, c net.Conn) {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			_, _ = io.Copy(c, c)
		}, func(why string) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.refused = append(h.refused, why)
		})
	}()
	t.Cleanup(cancel)
	return h
}

// dial connects from a host and tells whether the connection is served.
func (h *house) dial(t *testing.T, from string) (net.Conn, bool) {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
	c, err := d.Dial("tcp", h.at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	_, _ = c.Write([]byte("x")) // fails where the other end has closed already
	_, err = io.ReadFull(c, make([]byte, 1))
	return c, err == nil
}

func (h *house) leaves(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); h.Open() != n; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d open, not %d", h.Open(), n)
		}
	}
}

// TestLimits: connections are refused beyond the limit of one source, beyond that of all, and while draining; one that
// ends makes room.
func TestLimits(t *testing.T) {
	h := newHouse(t, New(3, 2))
	want := func(from string, served bool) net.Conn {
		t.Helper()
		c, ok := h.dial(t, from)
		if ok != served {
			t.Fatalf("%s served: %v", from, ok)
		}
		return c
	}
	first := want("127.0.11.7", true)
	want("127.0.11.7", true)
	want("127.0.11.7", false)
	want("127.0.11.8", true)
	want("127.0.11.9", false)
	first.Close()
	h.leaves(t, 2)
	want("127.0.11.7", true)
	h.SetPerSource(0)
	want("127.0.11.9", false)
	h.mu.Lock()
	if !slices.Equal(h.refused, []string{Connections, Connections, Connections}) {
		t.Errorf("refused %v", h.refused)
	}
	h.mu.Unlock()
}

// TestDrain: what is open goes on, what comes is refused.
func TestDrain(t *testing.T) {
	h := newHouse(t, New(0, 0))
	c, ok := h.dial(t, "127.0.11.7")
	if !ok {
		t.Fatal("not served")
	}
	h.Drain()
	if _, ok := h.dial(t, "127.0.11.8"); ok {
		t.Error("served while draining")
	}
	if !h.Drains() {
		t.Error("it does not say so")
	}
	if _, err := c.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("the open one has ended: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.refused, []string{Draining}) {
		t.Errorf("refused %v", h.refused)
	}
}

// TestEnd: Serve returns when its context has ended, and nothing of it is left.
func TestEnd(t *testing.T) {
	h := newHouse(t, New(0, 0))
	for range 3 {
		if _, ok := h.dial(t, "127.0.11.7"); !ok {
			t.Fatal("not served")
		}
	}
	h.cancel()
	if err := <-h.ended; err != nil || h.Open() != 0 || len(h.sources) != 0 {
		t.Errorf("%v, %d open, %d sources", err, h.Open(), len(h.sources))
	}
}

// failing is a listener that lacks descriptors at first.
type failing struct {
	net.Listener
	left int
}

// Accept implements net.Listener.
func (f *failing) Accept() (net.Conn, error) {
	if f.left--; f.left >= 0 {
		return nil, syscall.EMFILE
	}
	return f.Listener.Accept()
}

// TestNoDescriptors: a lack of descriptors passes.
func TestNoDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.11.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- New(0, 0).Serve(context.Background(), &failing{ln, 2}, func(context.Context, net.Conn) { served <- struct{}{} }, func(string) {})
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-served
	ln.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener closed by others: %v", err)
	}
}
