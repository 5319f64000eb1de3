package pinholetest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"edged.dev/edged/pkg/pinhole"
)

func nets() pinhole.Networks {
	return pinhole.Networks{
		"inside": {
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			Trusted:   true,
		},
		"outside": {
			Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
			Advertise: netip.MustParseAddr("203.0.113.5"),
		},
	}
}

func request(k pinhole.Kind) pinhole.Request {
	return pinhole.Request{Owner: "192.0.2.7", Kind: k, Networks: [2]string{"inside", "outside"}}
}

func open(t *testing.T, o *Opener, r pinhole.Request) *Lease {
	t.Helper()
	l, err := o.Open(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	return l.(*Lease)
}

func TestPortsAreDeterministic(t *testing.T) {
	o := New(nets(), 50001)
	rtp, udp := open(t, o, request(pinhole.RTP)), open(t, o, request(pinhole.UDP))
	six := request(pinhole.RTP)
	six.Families[pinhole.Near] = pinhole.IPv6
	v6 := open(t, o, six)
	for _, tt := range []struct {
		name      string
		got       pinhole.Local
		addr, ctl string
	}{
		{"rtp near", rtp.Local(pinhole.Near), "192.0.2.1:50000", "192.0.2.1:50001"},
		{"rtp far", rtp.Local(pinhole.Far), "203.0.113.5:50000", "203.0.113.5:50001"},
		{"udp near", udp.Local(pinhole.Near), "192.0.2.1:50002", ""},
		{"udp far", udp.Local(pinhole.Far), "203.0.113.5:50002", ""},
		{"v6 near", v6.Local(pinhole.Near), "[2001:db8::1]:50000", "[2001:db8::1]:50001"},
	} {
		want := pinhole.Local{Addr: netip.MustParseAddrPort(tt.addr)}
		if tt.ctl != "" {
			want.RTCP = netip.MustParseAddrPort(tt.ctl)
		}
		if tt.got != want {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, want)
		}
	}
}

func TestDeclareAndClose(t *testing.T) {
	o := New(nets(), 50000)
	l := open(t, o, request(pinhole.RTP))
	src := netip.MustParseAddr("192.0.2.7")
	good := pinhole.Remote{Addr: netip.MustParseAddrPort("192.0.2.7:4000"), Source: src}
	bad := pinhole.Remote{Addr: netip.MustParseAddrPort("192.0.2.8:4000"), Source: src}
	if err := l.Declare(pinhole.Near, good); err != nil {
		t.Fatal(err)
	}
	if err := l.Declare(pinhole.Near, bad); !errors.Is(err, pinhole.ErrTarget) {
		t.Fatalf("a neighbour's address: %v", err)
	}
	if l.Remote(pinhole.Near) != good || len(l.Declared()) != 2 {
		t.Fatalf("remote %v after %d declares", l.Remote(pinhole.Near), len(l.Declared()))
	}
	spiral := pinhole.Remote{Addr: l.Local(pinhole.Far).Addr, Source: netip.MustParseAddr("198.51.100.9")}
	if err := l.Declare(pinhole.Far, spiral); err != nil {
		t.Fatalf("an open port of the edge: %v", err)
	}
	l.SetStats(pinhole.Far, pinhole.StreamStats{Packets: 7})
	first, second := l.Close(), l.Close()
	if first != second || first.From[pinhole.Far].Packets != 7 || o.Count() != 0 || !l.Closed() {
		t.Fatalf("close: %v then %v, %d open", first, second, o.Count())
	}
	if err := l.Declare(pinhole.Near, good); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("after close: %v", err)
	}
}

func TestFork(t *testing.T) {
	o := New(nets(), 50000)
	l := open(t, o, request(pinhole.RTP))
	f, err := l.Fork()
	if err != nil {
		t.Fatal(err)
	}
	if f.Local(pinhole.Far) != l.Local(pinhole.Far) || f.Local(pinhole.Near) == l.Local(pinhole.Near) {
		t.Fatalf("fork has %v and %v", f.Local(pinhole.Near), f.Local(pinhole.Far))
	}
	l.Close()
	if o.Count() != 1 || o.Leases()[1].Parent != l {
		t.Fatalf("%d open after the parent closed", o.Count())
	}
	f.Close()
	if _, err := l.Fork(); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("fork of a closed lease: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	o := New(nets(), 65532)
	ctx := context.Background()
	o.Fail(pinhole.ErrExhausted)
	if _, err := o.Open(ctx, request(pinhole.RTP)); !errors.Is(err, pinhole.ErrExhausted) {
		t.Fatalf("told to fail: %v", err)
	}
	o.Fail(nil)
	o.Limit(1)
	open(t, o, request(pinhole.RTP))
	if _, err := o.Open(ctx, request(pinhole.RTP)); !errors.Is(err, pinhole.ErrLimit) {
		t.Fatalf("over the limit: %v", err)
	}
	o.Limit(0)
	open(t, o, request(pinhole.RTP))
	if _, err := o.Open(ctx, request(pinhole.RTP)); !errors.Is(err, pinhole.ErrExhausted) {
		t.Fatalf("past the last port: %v", err)
	}
	other := request(pinhole.RTP)
	other.Networks[1] = "dmz"
	if _, err := New(nets(), 50000).Open(ctx, other); !errors.Is(err, pinhole.ErrNetwork) {
		t.Fatalf("unknown network: %v", err)
	}
	if o.Count() != 2 {
		t.Fatalf("%d open, want 2", o.Count())
	}
}

func TestIdle(t *testing.T) {
	o := New(nets(), 50000)
	calls := 0
	r := request(pinhole.UDP)
	r.OnIdle = func(bool) { calls++ }
	l := open(t, o, r)
	l.Idle()
	l.Idle()
	if calls != 1 || l.Closed() {
		t.Fatalf("OnIdle called %d times, closed %v", calls, l.Closed())
	}
	bare := open(t, o, request(pinhole.UDP))
	bare.Idle()
	if !bare.Closed() {
		t.Fatal("without OnIdle the lease stays open")
	}
}

// TestAskedPorts: a transfer's port is of the range that it names, until its one connection has come.
func TestAskedPorts(t *testing.T) {
	o := New(nets(), 50000)
	q := request(pinhole.TCP)
	q.Ports, q.Listen, q.Once = [2]uint16{6891, 6892}, [2]bool{pinhole.Near: true}, true
	refuse := errors.New("wrong cookie")
	q.Admit = func(_ context.Context, _ pinhole.Side, c net.Conn) (net.Conn, error) {
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || b[0] != 'y' {
			return nil, refuse
		}
		return c, nil
	}
	q.Serve = func(_ context.Context, c [2]net.Conn, moved func(pinhole.Side, int)) {
		moved(pinhole.Near, 7)
		io.WriteString(c[pinhole.Far], "served")
	}
	a, b := open(t, o, q), open(t, o, q)
	if p, f := a.Local(pinhole.Near).Addr, a.Local(pinhole.Far).Addr; p.String() != "192.0.2.1:6891" || f.String() != "203.0.113.5:0" {
		t.Fatalf("ports %v and %v", p, f)
	}
	if p := b.Local(pinhole.Near).Addr; p.String() != "192.0.2.1:6892" {
		t.Fatalf("port %v", p)
	}
	if _, err := o.Open(context.Background(), q); !errors.Is(err, pinhole.ErrExhausted) {
		t.Fatalf("a third port of two: %v", err)
	}
	if _, err := connect(t, a, "n"); !errors.Is(err, refuse) {
		t.Fatalf("refused with %v", err)
	}
	if got, err := connect(t, a, "y"); err != nil || got != "served" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := connect(t, a, "y"); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("a second connection: %v", err)
	}
	if p := open(t, o, q).Local(pinhole.Near).Addr; p.String() != "192.0.2.1:6891" {
		t.Fatalf("the port that was given back is %v", p)
	}
	if n := a.Close().From[pinhole.Near].Bytes; n != 7 {
		t.Errorf("%d bytes counted", n)
	}
}

// connect plays a connection at the near side that says hello, and returns what the far side got.
func connect(t *testing.T, l *Lease, hello string) (string, error) {
	t.Helper()
	client, near := net.Pipe()
	server, far := net.Pipe()
	defer client.Close()
	go io.WriteString(client, hello)
	got := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(server)
		got <- string(b)
	}()
	err := l.Connect(context.Background(), pinhole.Near, [2]net.Conn{near, far})
	return <-got, err
}
