package media

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/pinhole"
)

// heldPath is a Path in memory: a test hands it the packets, so that timers can run in synctest.
type heldPath struct {
	mu    sync.Mutex
	flows map[netip.AddrPort][]*Flow
}

func newHeldPath() *heldPath { return &heldPath{flows: make(map[netip.AddrPort][]*Flow)} }

func (p *heldPath) Set(s *Socket, flows []*Flow) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flows[s.Local] = flows
	return nil
}

func (p *heldPath) Delete(s *Socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flows, s.Local)
	unix.Close(s.FD)
}

func (p *heldPath) Serve(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// packet lets b arrive at the local address from src, and returns where it was sent.
func (p *heldPath) packet(local, src netip.AddrPort, b []byte) netip.AddrPort {
	p.mu.Lock()
	flows := p.flows[local]
	p.mu.Unlock()
	if len(flows) == 0 {
		return netip.AddrPort{}
	}
	sa, now := SockaddrOf(src), time.Now()
	f := Pick(flows, &sa, now, b)
	if f == nil {
		return netip.AddrPort{}
	}
	f.Counters.Receive(now, b)
	return f.To.AddrPort()
}

func (p *heldPath) unreachable(local netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flows[local] {
		f.Counters.Unreachable(time.Now())
	}
}

func testNetworks() pinhole.Networks {
	return pinhole.Networks{
		"inside":  {Addresses: []netip.Addr{netip.MustParseAddr("127.0.3.1")}, Trusted: true},
		"outside": {Addresses: []netip.Addr{netip.MustParseAddr("127.0.4.1")}},
	}
}

func newTestRelay(t *testing.T, change func(*PinholeConfig)) (*Relay, *heldPath) {
	t.Helper()
	pin, path := DefaultPinholeConfig(), newHeldPath()
	if change != nil {
		change(&pin)
	}
	r, err := New(pin, DefaultConfig(), testNetworks(), path, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return r, path
}

// serve runs the relay until the test (or its synctest bubble) calls the function returned.
func serve(t *testing.T, r *Relay) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}

func testRequest(k pinhole.Kind) pinhole.Request {
	return pinhole.Request{Owner: "127.0.3.7", Label: "a call", Kind: k, Networks: [2]string{"inside", "outside"}}
}

func mustOpen(t *testing.T, r *Relay, req pinhole.Request) pinhole.Lease {
	t.Helper()
	l, err := r.Open(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var (
	nearPhone = netip.MustParseAddrPort("127.0.3.7:4000")
	farPhone  = netip.MustParseAddrPort("127.0.4.7:4000")
)

func declareBoth(t *testing.T, l pinhole.Lease) {
	t.Helper()
	for s, a := range []netip.AddrPort{nearPhone, farPhone} {
		if err := l.Declare(pinhole.Side(s), pinhole.Remote{Addr: a, Source: a.Addr()}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, path := newTestRelay(t, nil)
		defer serve(t, r)()
		var calls atomic.Int32
		req := testRequest(pinhole.RTP)
		var idle atomic.Bool
		req.OnIdle = func(is bool) { calls.Add(1); idle.Store(is) }
		l := mustOpen(t, r, req)
		declareBoth(t, l)
		near := l.Local(pinhole.Near).Addr
		for range 30 {
			time.Sleep(10 * time.Second)
			if to := path.packet(near, nearPhone, []byte("alive")); to != farPhone {
				t.Fatalf("sent to %v", to)
			}
		}
		if synctest.Wait(); calls.Load() != 0 {
			t.Fatal("idle in spite of packets")
		}
		quiet := pinhole.Remote{Addr: farPhone, Source: farPhone.Addr(), Quiet: true}
		if err := l.Declare(pinhole.Far, quiet); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if synctest.Wait(); calls.Load() != 0 {
			t.Fatal("a call on hold was judged idle")
		}
		quiet.Quiet = false
		if err := l.Declare(pinhole.Far, quiet); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		if synctest.Wait(); calls.Load() != 0 {
			t.Fatal("idle at once after the hold")
		}
		time.Sleep(10 * time.Minute)
		if synctest.Wait(); calls.Load() != 1 {
			t.Fatalf("OnIdle was called %d times", calls.Load())
		}
		if path.packet(near, nearPhone, []byte("again")); !idle.Load() {
			t.Fatal("not idle")
		}
		time.Sleep(30 * time.Second)
		if synctest.Wait(); calls.Load() != 2 || idle.Load() {
			t.Fatalf("OnIdle was called %d times, idle %v, after a packet came", calls.Load(), idle.Load())
		}
		if len(r.Pinholes()) != 1 {
			t.Fatal("the lease was closed behind its owner's back")
		}
	})
}

// TestIdleUnreachable: a peer that answers with ICMP errors only is gone, though the other one talks on.
func TestIdleUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, path := newTestRelay(t, nil)
		defer serve(t, r)()
		l := mustOpen(t, r, testRequest(pinhole.RTP))
		declareBoth(t, l)
		near, far := l.Local(pinhole.Near).Addr, l.Local(pinhole.Far).Addr
		path.packet(far, farPhone, []byte("the last word"))
		for range 50 {
			time.Sleep(time.Second)
			path.packet(near, nearPhone, []byte("hello?"))
			path.unreachable(far)
		}
		if len(r.Pinholes()) != 1 {
			t.Fatal("closed before the idle time")
		}
		for range 12 {
			time.Sleep(time.Second)
			path.packet(near, nearPhone, []byte("hello?"))
			path.unreachable(far)
		}
		if left := r.Pinholes(); len(left) != 0 {
			t.Fatalf("left: %+v", left)
		}
	})
}

// TestIdleForks: branches of one call live together, and end together.
func TestIdleForks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, path := newTestRelay(t, nil)
		defer serve(t, r)()
		l := mustOpen(t, r, testRequest(pinhole.RTP))
		declareBoth(t, l)
		if _, err := l.Fork(); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(20 * time.Second)
			path.packet(l.Local(pinhole.Near).Addr, nearPhone, []byte("branch 1"))
		}
		if n := len(r.Pinholes()); n != 2 {
			t.Fatalf("%d leases while one branch talks", n)
		}
		time.Sleep(62 * time.Second)
		if n := len(r.Pinholes()); n != 0 {
			t.Fatalf("%d leases after silence", n)
		}
	})
}

// TestLateSource: the old source is barred after a new declaration, but not for ever: a NAT may
// keep its port when the phone behind it changes its own.
func TestLateSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, path := newTestRelay(t, nil)
		l := mustOpen(t, r, testRequest(pinhole.RTP))
		defer l.Close()
		declareBoth(t, l)
		far := l.Local(pinhole.Far).Addr
		path.packet(far, farPhone, nil)
		moved := netip.AddrPortFrom(farPhone.Addr(), 5000)
		if err := l.Declare(pinhole.Far, pinhole.Remote{Addr: moved, Source: moved.Addr()}); err != nil {
			t.Fatal(err)
		}
		if to := path.packet(far, farPhone, nil); to.IsValid() {
			t.Fatalf("a late packet went to %v", to)
		}
		time.Sleep(lateTime)
		if to := path.packet(far, farPhone, nil); to != nearPhone {
			t.Fatalf("afterwards it went to %v", to)
		}
	})
}

func TestQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newTestRelay(t, func(c *PinholeConfig) { c.UDP = PortRange{56001, 56005} })
		a, b := mustOpen(t, r, testRequest(pinhole.RTP)), mustOpen(t, r, testRequest(pinhole.RTP))
		defer b.Close()
		if _, err := r.Open(context.Background(), testRequest(pinhole.RTP)); !errors.Is(err, pinhole.ErrExhausted) {
			t.Fatalf("a third pair of two: %v", err)
		}
		single := mustOpen(t, r, testRequest(pinhole.UDP))
		if p := single.Local(pinhole.Near).Addr.Port(); p != 56001 {
			t.Fatalf("the odd port is left, got %d", p)
		}
		single.Close()
		a.Close()
		time.Sleep(4900 * time.Millisecond)
		if _, err := r.Open(context.Background(), testRequest(pinhole.RTP)); !errors.Is(err, pinhole.ErrExhausted) {
			t.Fatalf("a resting port: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
		mustOpen(t, r, testRequest(pinhole.RTP)).Close()
	})
}

func TestPortsOfStrangers(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.UDP = PortRange{56100, 56103} })
	stranger, err := net.ListenPacket("udp", "127.0.4.1:56101")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	if p := l.Local(pinhole.Far).Addr.Port(); p != 56102 {
		t.Fatalf("got port %d beside a stranger's", p)
	}
	if _, err := r.Open(context.Background(), testRequest(pinhole.RTP)); !errors.Is(err, pinhole.ErrExhausted) {
		t.Fatalf("no whole pair is left: %v", err)
	}
	l.Close()
}

func TestLimits(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.PerOwner = 2 })
	a := mustOpen(t, r, testRequest(pinhole.RTP))
	b, err := a.Fork()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(context.Background(), testRequest(pinhole.UDP)); !errors.Is(err, pinhole.ErrLimit) {
		t.Fatalf("a third pinhole: %v", err)
	}
	if _, err := a.Fork(); !errors.Is(err, pinhole.ErrLimit) {
		t.Fatalf("a second fork: %v", err)
	}
	other := testRequest(pinhole.UDP)
	other.Owner = "127.0.3.8"
	mustOpen(t, r, other).Close()
	b.Close()
	mustOpen(t, r, testRequest(pinhole.UDP)).Close()
	a.Close()
	a.Close()
	if len(r.owners) != 0 {
		t.Fatalf("owners left: %v", r.owners)
	}
	other.Networks[1] = "dmz"
	if _, err := r.Open(context.Background(), other); !errors.Is(err, pinhole.ErrNetwork) {
		t.Fatalf("unknown network: %v", err)
	}
}

func TestDeclareRefused(t *testing.T) {
	r, path := newTestRelay(t, nil)
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	declareBoth(t, l)
	victim := pinhole.Remote{Addr: netip.MustParseAddrPort("127.0.3.99:445"), Source: nearPhone.Addr()}
	if err := l.Declare(pinhole.Near, victim); !errors.Is(err, pinhole.ErrTarget) {
		t.Fatalf("a neighbour's address: %v", err)
	}
	if to := path.packet(l.Local(pinhole.Far).Addr, farPhone, nil); to != nearPhone {
		t.Fatalf("after the refusal packets go to %v", to)
	}
	six := pinhole.Remote{Addr: netip.MustParseAddrPort("[2001:db8::1]:4000"), Source: netip.MustParseAddr("2001:db8::1")}
	if err := l.Declare(pinhole.Far, six); !errors.Is(err, pinhole.ErrNetwork) {
		t.Fatalf("an IPv6 address at an IPv4 end: %v", err)
	}
	if n := r.totals.refused["target_"+pinhole.ReasonNotSource]; n != 1 {
		t.Fatalf("counted %d refusals: %v", n, r.totals.refused)
	}
	spiral := pinhole.Remote{Addr: l.Local(pinhole.Far).Addr, Source: farPhone.Addr()}
	if err := l.Declare(pinhole.Far, spiral); err != nil {
		t.Fatalf("an own relay port: %v", err)
	}
	l.Close()
	if err := l.Declare(pinhole.Near, victim); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("after close: %v", err)
	}
	if _, err := l.Fork(); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("fork after close: %v", err)
	}
}

func TestServeEndsLeases(t *testing.T) {
	r, _ := newTestRelay(t, nil)
	end := serve(t, r)
	l := mustOpen(t, r, testRequest(pinhole.RTP))
	mustOpen(t, r, testRequest(pinhole.TCP))
	end()
	if err := l.Declare(pinhole.Near, pinhole.Remote{}); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("declare: %v", err)
	}
	if _, err := r.Open(context.Background(), testRequest(pinhole.RTP)); !errors.Is(err, pinhole.ErrClosed) {
		t.Fatalf("open: %v", err)
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

func TestNoDescriptorLeft(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.PerOwner = 1000 })
	warm := mustOpen(t, r, testRequest(pinhole.TCP)) // starts the runtime's poller
	warm.Close()
	before := descriptors(t)
	for range 20 {
		var open []pinhole.Lease
		for _, k := range []pinhole.Kind{pinhole.RTP, pinhole.UDP, pinhole.TCP} {
			l := mustOpen(t, r, testRequest(k))
			f, err := l.Fork()
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, l, f)
		}
		for _, l := range open {
			l.Close()
			l.Close()
		}
	}
	if after := descriptors(t); after != before {
		t.Fatalf("%d descriptors before, %d after", before, after)
	}
	for k, p := range r.pools {
		if p.n != 0 {
			t.Errorf("%v: %d ports in use", k, p.n)
		}
	}
}

func TestOutOfDescriptors(t *testing.T) {
	r, _ := newTestRelay(t, func(c *PinholeConfig) { c.PerOwner = 1000 })
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	low := old
	low.Cur = uint64(before + 30)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var open []pinhole.Lease
	var err error
	for range 20 {
		var l pinhole.Lease
		if l, err = r.Open(context.Background(), testRequest(pinhole.RTP)); err != nil {
			break
		}
		open = append(open, l)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, pinhole.ErrExhausted) || !errors.Is(err, unix.EMFILE) {
		t.Errorf("out of descriptors after %d leases: %v", len(open), err)
	}
	if len(open) < 5 {
		t.Errorf("only %d leases in 30 descriptors", len(open))
	}
	for _, l := range open {
		l.Close()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestMemory bounds the heap of an RTP lease: 24 KiB per call in all is the product's promise.
func TestMemory(t *testing.T) {
	const n = 200
	r, path := newTestRelay(t, func(c *PinholeConfig) { c.PerOwner = n + 1 })
	defer mustOpen(t, r, testRequest(pinhole.RTP)).Close()
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	open := make([]pinhole.Lease, n)
	for i := range open {
		open[i] = mustOpen(t, r, testRequest(pinhole.RTP))
		declareBoth(t, open[i])
		path.packet(open[i].Local(pinhole.Near).Addr, nearPhone, nil)
		path.packet(open[i].Local(pinhole.Far).Addr, farPhone, nil)
	}
	per := (heap() - before) / n
	t.Logf("%d bytes of heap per RTP lease", per)
	if per > 4096 {
		t.Errorf("%d bytes of heap per RTP lease, at most 4096", per)
	}
	for _, l := range open {
		l.Close()
	}
}
