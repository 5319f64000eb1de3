package userpath_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/userpath"
	"edged.dev/edged/pkg/pinhole"
)

// sharedRig is a relay on loopback, with hosts on both sides.
type sharedRig struct {
	relay *media.Relay
	port  uint16
}

func newSharedRig(t *testing.T) *sharedRig {
	t.Helper()
	path, err := userpath.New(1)
	if err != nil {
		t.Fatal(err)
	}
	nets := pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.0.3.1")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.4.1")}},
	}
	r, err := media.New(media.DefaultPinholeConfig(), media.DefaultConfig(), nets, path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1) // one result
	go func() { done <- r.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	// A port that is free now, made even.
	probe := udp(t, "127.0.4.1")
	port := local(probe).Port() &^ 1
	probe.Close()
	return &sharedRig{r, port}
}

func udp(t *testing.T, host string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func local(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// open opens a lease with a shared Far end between two hosts' sockets.
func (r *sharedRig) open(t *testing.T, near, far *net.UDPConn, tag uint32, tagged bool) pinhole.Lease {
	t.Helper()
	l, err := r.relay.Open(context.Background(), pinhole.Request{
		Owner: "owner", Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}, Shared: [2]uint16{0, r.port},
	})
	if err != nil {
		t.Fatal(err)
	}
	for s, c := range []*net.UDPConn{near, far} {
		remote := pinhole.Remote{Addr: local(c), Source: local(c).Addr()}
		if s == int(pinhole.Far) {
			remote.Tag, remote.Tagged = tag, tagged
		}
		if err := l.Declare(pinhole.Side(s), remote); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func tagged(tag uint32, b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, tag), b...)
}

func send(t *testing.T, c *net.UDPConn, to netip.AddrPort, b []byte) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// want reads a packet that must be b.
func want(t *testing.T, c *net.UDPConn, b []byte) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 2048)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%s heard nothing: %v", c.LocalAddr(), err)
	}
	if !slices.Equal(buf[:n], b) {
		t.Fatalf("%s heard %x, not %x", c.LocalAddr(), buf[:n], b)
	}
}

func rtp(mark byte) []byte {
	b := make([]byte, 172)
	b[0], b[171] = 0x80, mark
	return b
}

// TestShared: two leases share a pair of ports; each gets what has its tag, and what it sends there has its peer's.
// A tag that is nobody's, one of another host's and one of a lease that has ended open nothing.
func TestShared(t *testing.T) {
	r := newSharedRig(t)
	var near, far [2]*net.UDPConn
	var leases [2]pinhole.Lease
	for i := range near {
		near[i], far[i] = udp(t, "127.0.3.7"), udp(t, [...]string{"127.0.4.7", "127.0.4.8"}[i])
		leases[i] = r.open(t, near[i], far[i], uint32(7000+i), true)
	}
	port := leases[0].Local(pinhole.Far)
	if other := leases[1].Local(pinhole.Far); port.Addr != other.Addr || port.RTCP != other.RTCP || port.Tag == other.Tag || port.Addr.Port() != r.port {
		t.Fatalf("%+v and %+v", port, other)
	}
	for i := range near {
		tag := leases[i].Local(pinhole.Far).Tag
		send(t, far[i], port.Addr, tagged(tag, rtp(byte(i))))
		want(t, near[i], rtp(byte(i)))
		send(t, near[i], leases[i].Local(pinhole.Near).Addr, rtp(byte(10+i)))
		want(t, far[i], tagged(uint32(7000+i), rtp(byte(10+i))))
	}
	stray := leases[0].Local(pinhole.Far).Tag
	for _, b := range [][]byte{{}, {1, 2, 3}, tagged(stray, nil), tagged(stray^1<<20, rtp(99)), rtp(99)} {
		send(t, far[0], port.Addr, b)
	}
	send(t, far[1], port.Addr, tagged(stray, rtp(98))) // the tag of another's lease
	ended := leases[1].Local(pinhole.Far).Tag
	leases[1].Close()
	send(t, far[1], port.Addr, tagged(ended, rtp(97)))
	send(t, far[0], port.Addr, tagged(stray, rtp(42)))
	want(t, near[0], rtp(42))
	if sum := leases[0].Close(); sum.From[pinhole.Far].Packets != 2 || sum.From[pinhole.Far].Dropped != 1 {
		t.Errorf("counted %+v", sum.From[pinhole.Far])
	}
	again := r.open(t, near[1], far[1], 0, false)
	if again.Local(pinhole.Far).Tag == ended {
		t.Error("a tag is used again at once")
	}
	send(t, near[1], again.Local(pinhole.Near).Addr, rtp(5))
	want(t, far[1], rtp(5)) // a peer that asks for no tag gets none
}

// TestSharedRefused: a shared port is for a pair of ports of RTP, and is no lease's own.
func TestSharedRefused(t *testing.T) {
	r := newSharedRig(t)
	req := pinhole.Request{Owner: "owner", Kind: pinhole.UDP, Networks: [2]string{"inside", "outside"}, Shared: [2]uint16{0, r.port}}
	if l, err := r.relay.Open(context.Background(), req); err == nil {
		t.Errorf("kind udp got %v", l.Local(pinhole.Far))
	}
	req.Kind, req.Shared[1] = pinhole.RTP, r.port+1
	if l, err := r.relay.Open(context.Background(), req); err == nil {
		t.Errorf("an odd port got %v", l.Local(pinhole.Far))
	}
	req.Shared[1] = r.port
	l, err := r.relay.Open(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Fork(); err == nil {
		t.Error("it was forked")
	}
}
