package link

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// device is an interface in memory.
type device struct {
	read, written chan []byte
	once          sync.Once
	done          chan struct{}
}

func newDevice() *device {
	return &device{read: make(chan []byte), written: make(chan []byte, 16), done: make(chan struct{})}
}

func (d *device) Read(b []byte) (int, error) {
	select {
	case p := <-d.read:
		return copy(b, p), nil
	case <-d.done:
		return 0, io.EOF
	}
}

func (d *device) Write(b []byte) (int, error) {
	d.written <- slices.Clone(b)
	return len(b), nil
}

func (d *device) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// wire is one end of a carrier in memory.
type wire struct {
	in, out chan []byte
	cut     chan struct{}
}

func newWire() (a, b wire) {
	x, y, cut := make(chan []byte, 16), make(chan []byte, 16), make(chan struct{})
	return wire{x, y, cut}, wire{y, x, cut}
}

var errCut = errors.New("cut")

func (w wire) Send(b []byte) error {
	select {
	case <-w.cut:
		return errCut
	default:
		w.out <- slices.Clone(b)
		return nil
	}
}

func (w wire) Receive(ctx context.Context) ([]byte, error) {
	select {
	case b := <-w.in:
		return b, nil
	case <-w.cut:
		return nil, errCut
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// packet4 is an empty IPv4 packet, packet6 one of IPv6.
func packet4(from, to string, size int) []byte {
	b := make([]byte, size)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	copy(b[12:], netip.MustParseAddr(from).AsSlice())
	copy(b[16:], netip.MustParseAddr(to).AsSlice())
	return b
}

func packet6(from, to string, size int) []byte {
	b := make([]byte, size)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(size-size6))
	copy(b[8:], netip.MustParseAddr(from).AsSlice())
	copy(b[24:], netip.MustParseAddr(to).AsSlice())
	return b
}

func testConfig() Config {
	return Config{
		Name: "site", Device: "other", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Peer: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")},
	}
}

// running is a link on a device in memory, in a bubble of synctest.
type running struct {
	*Link
	dev    *device
	cancel context.CancelFunc
	ended  chan error
}

func run(t *testing.T) *running {
	t.Helper()
	r := &running{dev: newDevice(), ended: make(chan error, 1)}
	r.Link = New(testConfig(), r.dev, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.ended <- r.Run(ctx) }()
	return r
}

func (r *running) dropped(direction, reason string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drops[[2]string{direction, reason}]
}

func TestLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t)
		r.dev.read <- packet4("192.0.2.1", "192.0.2.2", 40)
		synctest.Wait()
		if r.dropped("out", dropDown) != 1 || r.Up() {
			t.Error("a packet left a wire that is cut")
		}
		near, far := newWire()
		ctx, cancel := context.WithCancel(t.Context())
		carried := make(chan error, 1)
		go func() { carried <- r.Carry(ctx, near) }()
		synctest.Wait()
		for _, tc := range []struct {
			reason string
			b      []byte
		}{
			{"", packet4("192.0.2.1", "192.0.2.2", 1500)},
			{"", packet6("2001:db8::1", "2001:db8::2", 1500)},
			{dropTarget, packet4("192.0.2.1", "192.0.2.3", 40)},
			{dropTarget, packet6("2001:db8::1", "ff02::2", 48)},
			{dropSource, packet4("192.0.2.9", "192.0.2.2", 40)},
			{dropMalformed, packet4("192.0.2.1", "192.0.2.2", 40)[:39]},
			{dropMalformed, []byte{0x50}},
		} {
			before := r.dropped("out", tc.reason)
			r.dev.read <- tc.b
			synctest.Wait()
			switch {
			case tc.reason != "" && (r.dropped("out", tc.reason) != before+1 || len(far.in) > 0):
				t.Errorf("%x left, or is not counted as %s", tc.b[:1], tc.reason)
			case tc.reason == "" && !slices.Equal(<-far.in, tc.b):
				t.Error("another packet left")
			}
		}
		for _, tc := range []struct {
			reason string
			b      []byte
		}{
			{"", packet4("192.0.2.2", "192.0.2.1", 1500)},
			{"", packet6("2001:db8::2", "2001:db8::1", 1500)},
			{dropSource, packet4("127.0.0.1", "192.0.2.1", 40)},
			{dropSource, packet4("192.0.2.1", "192.0.2.1", 40)},
			{dropSource, packet6("fe80::1", "2001:db8::1", 40)},
			{dropTarget, packet4("192.0.2.2", "10.0.0.1", 40)},
			{dropTarget, packet4("192.0.2.2", "255.255.255.255", 40)},
			{dropMalformed, packet6("2001:db8::2", "2001:db8::1", 48)[:44]},
			{dropMalformed, nil},
			{dropMalformed, packet4("192.0.2.2", "192.0.2.1", maxMTU+1)},
		} {
			before := r.dropped("in", tc.reason)
			far.out <- tc.b
			synctest.Wait()
			switch {
			case tc.reason != "" && (r.dropped("in", tc.reason) != before+1 || len(r.dev.written) > 0):
				t.Errorf("%d octets arrived, or are not counted as %s", len(tc.b), tc.reason)
			case tc.reason == "" && !slices.Equal(<-r.dev.written, tc.b):
				t.Error("another packet arrived")
			}
		}
		if i := r.Info(); i.PacketsOut != 2 || i.PacketsIn != 2 || i.BytesOut != 3000 || i.BytesIn != 3000 || !i.Up || i.Carriers != 1 {
			t.Errorf("%+v", i)
		}
		cancel()
		if err := <-carried; !errors.Is(err, context.Canceled) || r.Up() {
			t.Errorf("%v, up %v", err, r.Up())
		}
		r.cancel()
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestNewest: packets leave by the newest carrier, and by the other when that ends.
func TestNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t)
		var near, far [2]wire
		for i := range near {
			near[i], far[i] = newWire()
			go r.Carry(t.Context(), near[i])
			synctest.Wait()
		}
		p := packet4("192.0.2.1", "192.0.2.2", 40)
		r.dev.read <- p
		synctest.Wait()
		if len(far[0].in) != 0 || len(far[1].in) != 1 {
			t.Errorf("%d by the older, %d by the newer", len(far[0].in), len(far[1].in))
		}
		close(far[1].cut)
		synctest.Wait()
		r.dev.read <- p
		synctest.Wait()
		if len(far[0].in) != 1 {
			t.Error("the older is not used when the newer has ended")
		}
		close(far[0].cut)
		synctest.Wait()
		r.cancel()
		<-r.ended
	})
}

// TestKeep: the end that is first dials at once and again when its carrier ends; the other only if nobody dials it.
func TestKeep(t *testing.T) {
	for _, first := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			r := run(t)
			began := time.Now()
			var at []time.Duration
			var cut chan struct{}
			fail := 2
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r.Keep(ctx, first, func(ctx context.Context) error {
					at = append(at, time.Since(began))
					if fail--; fail >= 0 {
						return errCut
					}
					near, _ := newWire()
					cut = near.cut
					return r.Carry(ctx, near)
				})
			}()
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(at) != 3 || !r.Up() || (at[0] == 0) != first || at[1]-at[0] < tryEvery || at[2]-at[1] < 2*tryEvery {
				t.Errorf("first %v: tries at %v", first, at)
			}
			began, at = time.Now(), nil
			close(cut)
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(at) != 1 || (at[0] == 0) != first || !r.Up() {
				t.Errorf("first %v: after the end tries at %v", first, at)
			}
			cancel()
			<-ended
			r.cancel()
			<-r.ended
		})
	}
}

// TestKeepWaits: who is dialled does not dial.
func TestKeepWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t)
		near, _ := newWire()
		ctx, cancel := context.WithCancel(t.Context())
		go r.Carry(ctx, near)
		dialled := 0
		go r.Keep(ctx, false, func(context.Context) error {
			dialled++
			return errCut
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		if dialled != 0 {
			t.Errorf("%d times dialled", dialled)
		}
		cancel()
		synctest.Wait()
		r.cancel()
		<-r.ended
	})
}

// TestInterfaceGone: an interface that somebody takes away ends the link.
func TestInterfaceGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t)
		r.dev.Close()
		if err := <-r.ended; !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

func TestValidate(t *testing.T) {
	if err := testConfig().Validate(); err != nil {
		t.Error(err)
	}
	addr := netip.MustParseAddr
	for key, change := range map[string]func(*Config){
		"name":         func(c *Config) { c.Name = "a name" },
		"device":       func(c *Config) { c.Device = "" },
		"addresses":    func(c *Config) { c.Addresses, c.Peer = nil, nil },
		"addresses[1]": func(c *Config) { c.Peer = c.Peer[:1] },
		"addresses[0]": func(c *Config) { c.Addresses[0] = addr("127.0.0.1") },
		"peer[1]":      func(c *Config) { c.Peer[1] = addr("192.0.2.3") },
		"peer[0]":      func(c *Config) { c.Peer[0] = c.Addresses[0] },
		"mtu":          func(c *Config) { c.MTU = 1279 },
	} {
		c := testConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains("\n"+err.Error(), "\n"+key+": ") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	l := New(testConfig(), newDevice(), zap.NewNop())
	l.drop("in", dropSource)
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(Collector([]*Link{l}))
	families, err := reg.Gather()
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	want := []string{"edged_link_bytes_total", "edged_link_carriers_total", "edged_link_dropped_packets_total", "edged_link_packets_total", "edged_link_up"}
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%v, %v", names, err)
	}
}

func FuzzEnds(f *testing.F) {
	f.Add(packet4("192.0.2.1", "192.0.2.2", 40))
	f.Add(packet6("2001:db8::1", "2001:db8::2", 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		from, to, ok := ends(b)
		if ok && (!from.IsValid() || !to.IsValid() || from.Is4() != (b[0]>>4 == 4)) {
			t.Fatalf("%x: %s, %s", b, from, to)
		}
	})
}
