package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/proxydial"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// dialer is an agent's way to the relay; it counts what fails while the relay runs.
type dialer struct {
	*carrier.Dialer
	failures *atomic.Int64
}

// Dial implements [uplink.Dialer].
func (d dialer) Dial(ctx context.Context) (*uplink.Carrier, error) {
	c, err := d.Dialer.Dial(ctx)
	if err != nil {
		d.failures.Add(1)
		return nil, err
	}
	return &uplink.Carrier{Conn: c.Conn, Rung: c.Rung.String(), Path: c.Path}, nil
}

// Better implements [uplink.Dialer]: there is one way.
func (dialer) Better(context.Context, *uplink.Carrier) (*uplink.Carrier, error) { return nil, nil }

// agents makes keys for n agents and tells their IDs; told to go, it keeps them attached until it is killed, and tells how many
// have been since the relay's last start.
func agents(first, n int) error {
	keys := make([]device.Key, n)
	for i := range keys {
		k, err := device.NewKey()
		if err != nil {
			return err
		}
		keys[i] = k
		fmt.Println(k.ID())
	}
	var ups []*uplink.Uplink
	var failures, since atomic.Int64
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var at, id string
		var now int64
		if _, err := fmt.Sscanf(lines.Text(), "go %s %s %d", &at, &id, &now); err != nil {
			return err
		}
		since.Store(now)
		failures.Store(0)
		if ups != nil {
			continue
		}
		for i, k := range keys {
			u, err := agent(k, at, id, first+i, &failures)
			if err != nil {
				return err
			}
			ups = append(ups, u)
		}
		go tell(ups, &since, &failures)
	}
	return lines.Err()
}

// agent starts an agent with an address of its own.
func agent(k device.Key, at, relay string, number int, failures *atomic.Int64) (*uplink.Uplink, error) {
	id, err := device.ParseID(relay)
	if err != nil {
		return nil, err
	}
	secure, err := device.ClientTLS(k, id, "")
	if err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(at)
	if err != nil {
		return nil, err
	}
	proxy, err := proxydial.New(proxydial.Config{URL: "none"}, zap.NewNop())
	if err != nil {
		return nil, err
	}
	local := &net.TCPAddr{IP: net.IPv4(127, 20, byte(number/250), byte(number%250+1))}
	proxy.TCP = func(ctx context.Context, network, address string) (net.Conn, error) {
		return (&net.Dialer{LocalAddr: local}).DialContext(ctx, network, address)
	}
	d := &carrier.Dialer{Relay: to.Addr().String(), TLS: secure, PortTLS: to.Port(), Proxy: proxy, Rungs: []carrier.Rung{carrier.TLS}}
	u := uplink.New([]uplink.Dialer{dialer{d, failures}}, uplink.Config{Mux: mux.Config{Logger: zap.NewNop()}}, zap.NewNop())
	go func() { _ = u.Run(context.Background(), func(_ context.Context, s *mux.Session) { <-s.Done() }) }()
	return u, nil
}

// tell prints how many are attached, twice a second.
func tell(ups []*uplink.Uplink, since, failures *atomic.Int64) {
	for range time.Tick(500 * time.Millisecond) {
		from, n := time.Unix(0, since.Load()), 0
		for _, u := range ups {
			if st := u.State(); st.Attached && st.Since.After(from) {
				n++
			}
		}
		fmt.Println(n, failures.Load())
	}
}
