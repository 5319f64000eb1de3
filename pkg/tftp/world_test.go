package tftp

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
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
	now     time.Time
	records []Record
	// file is what senders send, four octets as they are on the wire, and mac what they say of it.
	file, mac string
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
	w := &world{t: t, opener: pinholetest.New(networks(), 40000), now: time.Unix(1_000_000, 0), file: "file", mac: "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}
	e, err := New(cfg, Deps{Networks: networks(), Opener: w.opener, RouteTo: route, Record: func(r Record) { w.records = append(w.records, r) }}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	w.e = e
	return w
}

// connect has the data connection of the last pinhole come, and plays a whole transfer.
func (w *world) connect() {
	leases := w.opener.Leases()
	if err := w.join(leases[len(leases)-1], "77", nil); err != nil {
		w.t.Fatal(err)
	}
}

// join plays a transfer of four octets through a pinhole. Its receiver knows a cookie, and says good-bye when hold is closed.
func (w *world) join(l *pinholetest.Lease, cookie string, hold <-chan struct{}) error {
	near, listener := w.pair()
	far, dialler := w.pair()
	receiver, sender := dialler, listener
	if w.e.receives(l) {
		receiver, sender = listener, dialler
	}
	var clients sync.WaitGroup
	clients.Go(func() {
		play(sender, "", "VER MSN_SECURE_FTP\r\n", "VER MSN_SECURE_FTP\r\n", "USR alice@example.org "+cookie+"\r\n", "FIL 4\r\n", "TFR\r\n",
			"\x00\x04\x00"+w.file, "BYE 16777989\r\n", "MAC "+w.mac+"\x00\r\n")
		sender.Close()
	})
	clients.Go(func() {
		play(receiver, "VER MSN_SECURE_FTP\r\n", "VER MSN_SECURE_FTP\r\n", "USR alice@example.org "+cookie+"\r\n", "FIL 4\r\n", "TFR\r\n", "\x00\x04\x00"+w.file)
		if hold != nil {
			<-hold
		}
		play(receiver, "BYE 16777989\r\n", "MAC "+w.mac+"\x00\r\n")
		receiver.Close()
	})
	err := l.Connect(w.t.Context(), pinhole.Far, [2]net.Conn{near, far})
	listener.Close()
	dialler.Close()
	clients.Wait()
	return err
}

// route knows that 10.0.0.0/8 is inside too.
func route(a netip.Addr) string {
	if netip.MustParsePrefix("10.0.0.0/8").Contains(a) {
		return "inside"
	}
	return "outside"
}

// pair returns both ends of a connection.
func (w *world) pair() (a, b net.Conn) {
	var lc net.ListenConfig
	ln, err := lc.Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Error(err)
		return net.Pipe()
	}
	defer ln.Close()
	var d net.Dialer
	if a, err = d.DialContext(w.t.Context(), "tcp", ln.Addr().String()); err == nil {
		b, err = ln.Accept()
	}
	if err != nil {
		w.t.Error(err)
		return net.Pipe()
	}
	return a, b
}

// play says the first, hears the second, and so on; it gives up when the connection ends.
func play(c net.Conn, lines ...string) {
	for i, line := range lines {
		var err error
		if i%2 == 0 {
			_, err = io.WriteString(c, line)
		} else {
			_, err = io.ReadFull(c, make([]byte, len(line)))
		}
		if err != nil {
			return
		}
	}
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
