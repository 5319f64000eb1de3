package tftp

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"edged.dev/edged/pkg/pinhole"
	"edged.dev/edged/pkg/pinhole/pinholetest"
)

func networks() pinhole.Networks {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	return pinhole.Networks{
		"inside": {
			Addresses: []netip.Addr{addr("192.0.2.1"), addr("2001:db8:1::1")}, Trusted: true,
			Subnets: []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8:1::/64")},
		},
		"outside": {Addresses: []netip.Addr{addr("198.51.100.1"), addr("2001:db8:2::1")}, Advertise: addr("203.0.113.5")},
	}
}

// world is an editor with a relay and data connections in memory.
type world struct {
	t       *testing.T
	e       *Editor
	opener  *pinholetest.Opener
	data    *carrier
	now     time.Time
	records []Record
}

// newWorld returns a world; words are "key=value" of the configuration.
func newWorld(t *testing.T, words ...string) *world {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Ports = PortRange{6891, 6901}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "deny":
			cfg.Deny = strings.Split(value, ",")
		case "ports":
			if err := cfg.Ports.UnmarshalText([]byte(value)); err != nil {
				t.Fatal(err)
			}
		case "directions":
			cfg.Directions = Directions(value)
		case "guids":
			cfg.GUIDs = strings.Split(value, ",")
		case "max_size":
			if err := cfg.MaxSize.UnmarshalText([]byte(value)); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, opener: pinholetest.New(networks(), 40000), data: &carrier{}, now: time.Unix(1_000_000, 0)}
	w.e = New(cfg, Deps{Networks: networks(), Opener: w.opener, Data: w.data, Record: func(r Record) { w.records = append(w.records, r) }}, zap.NewNop())
	return w
}

// carrier stands for the data connections: a transfer lasts until it is told to end.
type carrier struct {
	carried []Connection
}

// Carry implements Data.
func (d *carrier) Carry(c Connection, done func(string)) (
	admit func(context.Context, pinhole.Side, net.Conn) (net.Conn, error),
	serve func(context.Context, [2]net.Conn, func(pinhole.Side, int)),
) {
	d.carried = append(d.carried, c)
	return func(_ context.Context, _ pinhole.Side, conn net.Conn) (net.Conn, error) { return conn, nil },
		func(_ context.Context, conns [2]net.Conn, moved func(pinhole.Side, int)) {
			b := make([]byte, 16)
			n, _ := conns[pinhole.Far].Read(b)
			moved(pinhole.Far, n)
			done("completed")
		}
}

// connect has the data connection of the last pinhole come, carry four octets and end.
func (w *world) connect() {
	leases := w.opener.Leases()
	if err := join(leases[len(leases)-1]); err != nil {
		w.t.Fatal(err)
	}
}

// join plays a whole transfer of four octets through a pinhole.
func join(l *pinholetest.Lease) error {
	near, _ := net.Pipe()
	far, client := net.Pipe()
	go client.Write([]byte("file"))
	return l.Connect(context.Background(), pinhole.Far, [2]net.Conn{near, far})
}

// registry holds an editor's metrics.
func registry(t *testing.T, e *Editor) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := reg.Register(e.Collector()); err != nil {
		t.Fatal(err)
	}
	return reg
}
