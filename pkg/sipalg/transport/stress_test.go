package transport

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/sipalg/flow"
)

// tally checks the promises of Handler: Closed once per connection, after its last Receive.
type tally struct {
	echo
	mu     sync.Mutex
	closed map[uint64]int
	late   int
	seen   map[uint64]bool
}

func (h *tally) Receive(f flow.Flow, raw []byte) {
	h.mu.Lock()
	h.seen[f.Conn] = true
	if h.closed[f.Conn] > 0 {
		h.late++
	}
	h.mu.Unlock()
	h.echo.Receive(f, raw)
}

func (h *tally) Closed(f flow.Flow) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed[f.Conn]++
}

// Connections that come, talk, are dialled, hung up and closed at once, from both ends.
func TestChurn(t *testing.T) {
	tr, _ := newTransport(Config{PerSource: 1000}, nil)
	h := &tally{echo: echo{tr: tr}, closed: map[uint64]int{}, seen: map[uint64]bool{}}
	tr.h = h
	own, stop := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	waitLocal(t, tr, "inside", flow.TCP)
	echoed, stopPeer := echoServer(t)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 40 {
				nc := dialTCP(t, own)
				msg := sipMessage(w*1000+i, "x")
				nc.Write([]byte(msg + msg))
				if i%3 != 0 {
					io.ReadFull(nc, make([]byte, 2*len(msg)))
				}
				nc.Close()
				var done sync.WaitGroup
				done.Add(1)
				tr.SendTo(flow.Target{Network: "inside", Proto: flow.TCP, Addr: echoed}, []byte(msg), func(f flow.Flow, err error) {
					if err == nil && i%5 == 0 {
						tr.Hangup(f)
					}
					done.Done()
				})
				done.Wait()
				tr.SetLimits(Config{PerSource: 1000 + i})
				tr.Connections()
			}
		})
	}
	wg.Wait()
	stopPeer()
	stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, n := range h.closed {
		if n != 1 {
			t.Errorf("connection %d was closed %d times", id, n)
		}
	}
	for id := range h.seen {
		if h.closed[id] == 0 {
			t.Errorf("connection %d was never closed", id)
		}
	}
	if h.late > 0 {
		t.Errorf("%d messages after Closed", h.late)
	}
	if tr.in != 0 || tr.out != 0 || len(tr.conns)+len(tr.peers)+len(tr.dials)+len(tr.sources) != 0 {
		t.Errorf("left: %d in, %d out, %d connections, %d peers, %d dials, %d sources",
			tr.in, tr.out, len(tr.conns), len(tr.peers), len(tr.dials), len(tr.sources))
	}
}

// echoServer sends back whatever it gets.
func echoServer(t testing.TB) (addr netip.AddrPort, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(nc, io.LimitReader(nc, 20000))
				nc.Close()
			})
		}
	})
	return pinhole.AddrPortOf(ln.Addr()), func() { ln.Close() }
}
