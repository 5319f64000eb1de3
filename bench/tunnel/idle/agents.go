package main

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/tunnel/carrier"
	"edged.dev/edged/pkg/tunnel/device"
	"edged.dev/edged/pkg/tunnel/mux"
	"edged.dev/edged/pkg/tunnel/proxydial"
	"edged.dev/edged/pkg/tunnel/uplink"
)

// failures counts attempts that were begun while the relay listens and failed, by reason.
type failures struct {
	mu    sync.Mutex
	since time.Time
	of    map[string]int
	total int
}

func (f *failures) reset(listens time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of, f.total, f.since = map[string]int{}, 0, listens
}

// add counts an error by its last words, without addresses.
func (f *failures) add(began time.Time, err error) {
	text := err.Error()
	words := strings.Fields(text[strings.LastIndex(text, ": ")+1:])
	f.mu.Lock()
	defer f.mu.Unlock()
	if began.Before(f.since) {
		return
	}
	f.of[strings.Join(words[:min(len(words), 6)], "_")]++
	f.total++
}

// String writes "TOTAL REASON=N,REASON=N".
func (f *failures) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, why := range slices.Sorted(maps.Keys(f.of)) {
		list = append(list, fmt.Sprintf("%s=%d", why, f.of[why]))
	}
	return fmt.Sprintf("%d %s", f.total, strings.Join(list, ","))
}

// dialer is an agent's way to the relay; it counts what fails while the relay runs.
type dialer struct {
	*carrier.Dialer
	failures *failures
}

// Dial implements [uplink.Dialer].
func (d dialer) Dial(ctx context.Context) (*uplink.Carrier, error) {
	began := time.Now()
	c, err := d.Dialer.Dial(ctx)
	if err != nil {
		d.failures.add(began, err)
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
	var failed failures
	var since atomic.Int64
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var at, id string
		var now, listens int64
		if _, err := fmt.Sscanf(lines.Text(), "go %s %s %d %d", &at, &id, &now, &listens); err != nil {
			return err
		}
		since.Store(now)
		failed.reset(time.Unix(0, listens))
		if ups != nil {
			continue
		}
		for i, k := range keys {
			u, err := agent(k, at, id, first+i, &failed)
			if err != nil {
				return err
			}
			ups = append(ups, u)
		}
		go tell(ups, &since, &failed)
	}
	return lines.Err()
}

// agent starts an agent with an address of its own.
func agent(k device.Key, at, relay string, number int, failed *failures) (*uplink.Uplink, error) {
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
	u := uplink.New([]uplink.Dialer{dialer{d, failed}}, uplink.Config{Mux: mux.Config{Logger: zap.NewNop()}}, zap.NewNop())
	go func() { _ = u.Run(context.Background(), func(_ context.Context, s *mux.Session) { <-s.Done() }) }()
	return u, nil
}

// tell prints how many are attached, twice a second.
func tell(ups []*uplink.Uplink, since *atomic.Int64, failed *failures) {
	for range time.Tick(500 * time.Millisecond) {
		from, n := time.Unix(0, since.Load()), 0
		for _, u := range ups {
			if st := u.State(); st.Attached && st.Since.After(from) {
				n++
			}
		}
		fmt.Println(n, failed)
	}
}
