package userpath

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media"
	"edged.dev/edged/pkg/media/pathtest"
	"edged.dev/edged/pkg/pinhole"
)

func TestMain(m *testing.M) { pathtest.Main(m) }

// driver makes user-space paths for the suite.
type driver struct{}

func (driver) Path(t *testing.T, _ pathtest.Setup) media.Path {
	t.Helper()
	p, err := New(0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (driver) Name() string { return "user" }

func (driver) Carried(*testing.T, media.Path, netip.AddrPort) uint64 { return 0 }

func TestLoopback(t *testing.T) { pathtest.Loopback(t, driver{}) }

func TestWire(t *testing.T) { pathtest.Wire(t, driver{}) }

// startRelay returns a relay that serves on loopback until the test ends.
func startRelay(t *testing.T) *media.Relay {
	t.Helper()
	r, _ := newRelay(t)
	serve(t, r)
	return r
}

// TestAllocations: a packet through a running path, kernel included, allocates nothing.
func TestAllocations(t *testing.T) {
	r := startRelay(t)
	_, a, b := openCall(t, r)
	packet := make([]byte, 172)
	packet[0] = 0x80
	buf := make([]byte, 2048)
	pass := func() {
		if _, err := unix.Write(a, packet); err != nil {
			t.Fatal(err)
		}
		if n, err := readAgain(b, buf); err != nil || n != len(packet) {
			t.Fatalf("read %d bytes: %v", n, err)
		}
	}
	pass()
	if n := testing.AllocsPerRun(2000, pass); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

// peerSocket returns a blocking socket, so that the test itself allocates nothing either.
func peerSocket(t *testing.T, host string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(host).As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func socketAddr(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

// TestChurn opens and closes leases while packets fly: no descriptor is left, none is used by the wrong
// socket, and the race detector has something to see.
func TestChurn(t *testing.T) {
	r := startRelay(t)
	stop := make(chan struct{})
	var busy sync.WaitGroup
	before := descriptors(t)
	flood := peerSocket(t, "127.0.5.7")
	src := socketAddr(t, flood)
	targets := make(chan netip.AddrPort, 1024)
	busy.Go(func() {
		var last netip.AddrPort
		for {
			select {
			case <-stop:
				return
			case last = <-targets:
			default:
			}
			if last.IsValid() {
				// Refusals of closed ports are expected.
				_ = unix.Sendto(flood, []byte("x"), unix.MSG_DONTWAIT, &unix.SockaddrInet4{Port: int(last.Port()), Addr: last.Addr().As4()})
			}
		}
	})
	for range 300 {
		l, err := r.Open(context.Background(), pinhole.Request{Kind: pinhole.RTP, Networks: [2]string{"inside", "outside"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Declare(pinhole.Near, pinhole.Remote{Addr: src, Source: src.Addr()}); err != nil {
			t.Fatal(err)
		}
		far := netip.AddrPortFrom(netip.MustParseAddr("127.0.6.7"), 9)
		if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: far, Source: far.Addr()}); err != nil {
			t.Fatal(err)
		}
		targets <- l.Local(pinhole.Near).Addr
		runtime.Gosched()
		l.Close()
	}
	close(stop)
	busy.Wait()
	for end := time.Now().Add(20 * time.Second); ; <-time.After(2 * time.Millisecond) {
		after := descriptors(t)
		if after <= before+1 { // the flooding socket
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d descriptors before, %d after", before, after)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("cannot count descriptors: %v", err)
	}
	return len(list)
}
