package transport

import (
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"edged.dev/edged/pkg/sipalg/flow"
)

// echo is a Handler that sends back what it gets, as a proxy would answer.
type echo struct {
	discard
	tr *Transport
	n  atomic.Int64
}

func (e *echo) Receive(f flow.Flow, raw []byte) {
	e.n.Add(1)
	e.tr.Send(f, raw)
}

// BenchmarkTCPEcho measures a message in and one out on one connection, pipelined.
func BenchmarkTCPEcho(b *testing.B) {
	tr, _ := newTransport(Config{}, nil)
	tr.h = &echo{tr: tr}
	own, _ := serveTCP(b, tr, "inside", flow.TCP, "127.0.0.1:0")
	nc, err := net.Dial("tcp", own.String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	const batch = 8
	out := []byte(strings.Repeat(sipMessage(1, strings.Repeat("x", 1000)), batch))
	in := make([]byte, len(out))
	b.ReportAllocs()
	b.SetBytes(int64(len(out) / batch))
	for i := 0; b.Loop(); i++ {
		if i%batch == 0 {
			nc.Write(out)
			if _, err := io.ReadFull(nc, in); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkUDPEcho measures a datagram in and one out.
func BenchmarkUDPEcho(b *testing.B) {
	tr, _ := newTransport(Config{}, nil)
	tr.h = &echo{tr: tr}
	own, _ := serveUDP(b, tr, "inside", "127.0.0.1:0")
	peer := udpPeer(b, "127.0.0.1:0")
	msg, buf := []byte(sipMessage(1, strings.Repeat("x", 1000))), make([]byte, 2000)
	b.ReportAllocs()
	for b.Loop() {
		peer.WriteToUDPAddrPort(msg, own)
		if _, _, err := peer.ReadFromUDPAddrPort(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// Idle connections hold no buffer: their cost is a goroutine and a struct each.
func TestIdleConnectionMemory(t *testing.T) {
	const n = 500
	tr, rec := newTransport(Config{PerSource: n}, nil)
	own, _ := serveTCP(t, tr, "inside", flow.TCP, "127.0.0.1:0")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		nc := dialTCP(t, own)
		write(t, nc, sipMessage(i, ""))
		rec.message(t, sipMessage(i, ""))
	}
	runtime.GC()
	runtime.GC() // pools are emptied by the second
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / n
	t.Logf("%d bytes per idle connection, the client's half included", each)
	if each > 24<<10 {
		t.Errorf("%d bytes per idle connection", each)
	}
}
