package refuse

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// patience is for a loaded machine; nothing here takes so long otherwise.
const patience = time.Minute

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestRefused: connections are reset, datagrams are not answered, both are counted and logged once.
func TestRefused(t *testing.T) {
	core, logged := observer.New(zap.InfoLevel)
	r := New(zap.New(core))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- r.ServeListener(ctx, "tcp://outside:135", ln) }()
	go func() { ended <- r.ServePacket(ctx, "udp://outside:3478", pc) }()
	for range 3 {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			conn.SetDeadline(time.Now().Add(patience))
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
	}
	u, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write(nil)
	u.Write(make([]byte, 1400))
	counts := func() map[string]uint64 {
		got := map[string]uint64{}
		for _, a := range r.Attempts() {
			got[fmt.Sprint(a.Port, " ", a.Source)] = a.Count
		}
		return got
	}
	until(t, "all are counted", func() bool {
		c := counts()
		return c["tcp://outside:135 127.0.0.1"] == 3 && c["udp://outside:3478 127.0.0.1"] == 2
	})
	cancel()
	if err := errors.Join(<-ended, <-ended); err != nil {
		t.Error(err)
	}
	if n := logged.FilterMessage("blocked").Len(); n != 2 {
		t.Errorf("%d log lines, want one for each port", n)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r)
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 2 {
		t.Fatalf("%v, %v", families, err)
	}
	if v := families[0].GetMetric()[0].GetCounter().GetValue(); v != 3 {
		t.Errorf("the metric says %v", v)
	}
}

// TestLogged: a source that goes on is logged again after a minute, and sources are forgotten when there are too many.
func TestLogged(t *testing.T) {
	core, logged := observer.New(zap.InfoLevel)
	r := New(zap.New(core))
	now := time.Unix(0, 0)
	r.now = func() time.Time { return now }
	from := net.TCPAddrFromAddrPort(netip.MustParseAddrPort("198.51.100.7:1000"))
	for range 120 {
		r.note("tcp://outside:135", from)
		now = now.Add(time.Second)
	}
	lines := logged.FilterMessage("blocked").All()
	if len(lines) != 2 || lines[1].ContextMap()["attempts"] != uint64(61) {
		t.Errorf("%d lines: %v", len(lines), lines)
	}
	for i := range 2 * maxSources {
		now = now.Add(time.Second)
		r.note("tcp://outside:135", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 9)))
	}
	list := r.Attempts()
	if len(list) != maxSources || list[0].Source != netip.AddrFrom4([4]byte{192, 0, 7, 255}) {
		t.Errorf("%d sources, first %v", len(list), list[0].Source)
	}
}
