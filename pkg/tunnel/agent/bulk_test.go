package agent

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"edged.dev/edged/pkg/splice"
	"edged.dev/edged/pkg/tunnel/bulk"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/relay"
)

// plain is a carrier for bulk without TLS to be dropped; who dials is told by the test.
type plain struct{ *net.TCPConn }

func (p plain) Unwrap() (*net.TCPConn, error) { return p.TCPConn, nil }

// dialer returns a device's Bulk.
func (h *hub) dialer(t *testing.T, key device.Key, open *sync.WaitGroup) func(context.Context, bulk.Ticket) (bulk.Carrier, error) {
	return func(ctx context.Context, ticket bulk.Ticket) (bulk.Carrier, error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		ours, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		theirs, err := ln.Accept()
		if err != nil {
			return nil, err
		}
		open.Go(func() { h.relay.Bulk(t.Context(), plain{theirs.(*net.TCPConn)}, key.ID(), ticket) })
		return plain{ours.(*net.TCPConn)}, nil
	}
}

// cutting joins, and resets the first connections after some bytes.
type cutting struct {
	left  atomic.Int32
	bytes atomic.Uint64
}

func (c *cutting) Join(ctx context.Context, a, b net.Conn, o splice.Options) splice.Result {
	if c.left.Add(-1) >= 0 {
		o.Limit[0] = 700 << 10 // more is the end of it
	}
	r := splice.Copier{}.Join(ctx, a, b, o)
	c.bytes.Add(r.Bytes[0] + r.Bytes[1])
	return r
}

// TestForwardBulk: what is much passes beside the sessions; connections that are lost there lose no byte.
func TestForwardBulk(t *testing.T) {
	j := &cutting{}
	j.left.Store(2)
	keyA, keyB := newKey(t), newKey(t)
	known := []device.Device{{ID: keyA.ID(), Name: "a"}, {ID: keyB.ID(), Name: "b"}}
	h := newHub(t, relay.Rules{Policy: everything()}, relay.Deps{Joiner: j}, known...)
	var open sync.WaitGroup
	devices := map[string]device.ID{"a": keyA.ID(), "b": keyB.ID()}
	a := joinWith(t, Deps{Key: keyA, Bulk: h.dialer(t, keyA, &open)}, Config{Devices: devices}, h)
	services := map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}}
	joinWith(t, Deps{Key: keyB, Bulk: h.dialer(t, keyB, &open)}, Config{Devices: devices, Services: services}, h)
	eventually(t, "both are attached", func() bool { return len(h.relay.Tunnels()) == 2 })
	at := a.listen(t, Forward{Device: "b", Service: "echo"})
	const much = 48 << 20
	if err := through(dialTCP(t, at), much); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no stream is left", func() bool { return h.relay.Open() == 0 })
	open.Wait()
	if n := j.bytes.Load(); n < much {
		t.Errorf("only %d bytes beside the sessions", n)
	}
	if j.left.Load() >= 0 {
		t.Error("nothing was cut")
	}
}

// TestBulkRefused: who has no stream there gets no ticket, and a stream whose bulk is refused stays in the session.
func TestBulkRefused(t *testing.T) {
	rules := relay.Rules{Policy: everything(), Limits: relay.DefaultLimits()}
	rules.Limits.Bandwidth = 1 << 40
	j := &cutting{}
	keyA, keyB := newKey(t), newKey(t)
	known := []device.Device{{ID: keyA.ID(), Name: "a"}, {ID: keyB.ID(), Name: "b"}}
	h := newHub(t, rules, relay.Deps{Joiner: j}, known...)
	var open sync.WaitGroup
	devices := map[string]device.ID{"a": keyA.ID(), "b": keyB.ID()}
	a := joinWith(t, Deps{Key: keyA, Bulk: h.dialer(t, keyA, &open)}, Config{Devices: devices}, h)
	services := map[string]Service{"echo": {TCP: echoTCP(t), Allow: []string{"a"}}}
	joinWith(t, Deps{Key: keyB, Bulk: h.dialer(t, keyB, &open)}, Config{Devices: devices, Services: services}, h)
	eventually(t, "both are attached", func() bool { return len(h.relay.Tunnels()) == 2 })
	at := a.listen(t, Forward{Device: "b", Service: "echo"})
	if err := through(dialTCP(t, at), 8<<20); err != nil {
		t.Fatal(err)
	}
	open.Wait()
	if n := j.bytes.Load(); n != 0 {
		t.Errorf("%d bytes beside the sessions", n)
	}
	x, y := net.Pipe()
	defer x.Close()
	go func() { _, _ = io.Copy(io.Discard, x) }()
	h.relay.Bulk(t.Context(), pipeCarrier{y}, keyA.ID(), bulk.Ticket{1})
	if _, err := y.Write([]byte("x")); err == nil {
		t.Error("a connection with a false ticket is open")
	}
}

type pipeCarrier struct{ net.Conn }

func (pipeCarrier) Unwrap() (*net.TCPConn, error) { return nil, net.ErrClosed }
