package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/relay"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// TestServed: what the process itself serves gets streams of those whom it allows, and is known to nobody else.
func TestServed(t *testing.T) {
	keyA, keyB, keyC := newKey(t), newKey(t), newKey(t)
	h := newHub(t, relay.Rules{Policy: device.Policy{{From: device.Any, To: device.Any, Services: []string{device.Any}}}}, relay.Deps{},
		device.Device{ID: keyA.ID(), Name: "a"}, device.Device{ID: keyB.ID(), Name: "b"}, device.Device{ID: keyC.ID(), Name: "c"})
	devices := map[string]device.ID{"b": keyB.ID()}
	a, c := join(t, keyA, Config{Devices: devices}, h), join(t, keyC, Config{Devices: devices}, h)
	up := uplink.New([]uplink.Dialer{direct{keyB, h}}, uplink.Config{Pause: 20 * time.Millisecond}, quietly(t))
	b := New(Config{}, Deps{Key: keyB, Uplink: up, Handlers: map[string]Served{"echo": {
		Datagrams: true, Allow: keyA.ID().Equal,
		Serve: func(ctx context.Context, c *Conn) {
			defer c.Close()
			for {
				p, err := c.Datagrams().Receive(ctx)
				if err != nil {
					return
				}
				c.Datagrams().Send(p)
			}
		},
	}}}, quietly(t))
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { b.Run(ctx) })
	defer run.Wait()
	defer cancel()
	eventually(t, "all are attached", func() bool { return len(h.relay.Tunnels()) == 3 })
	conn, err := a.DialDatagrams(timeout(t), "b", "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Datagrams().Send([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if p, err := conn.Datagrams().Receive(timeout(t)); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
	for name, dial := range map[string]func() (*Conn, error){
		"a stranger":      func() (*Conn, error) { return c.DialDatagrams(timeout(t), "b", "echo") },
		"without packets": func() (*Conn, error) { return a.Dial(timeout(t), "b", "echo") },
	} {
		var reset *mux.ResetError
		if conn, err := dial(); err == nil {
			conn.Close()
			t.Errorf("%s is served", name)
		} else if !errors.As(err, &reset) || reset.Code != mux.CodeNoSuchService {
			t.Errorf("%s: %v", name, err)
		}
	}
}
