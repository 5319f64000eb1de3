//go:build lab

package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// crashCalls is how many calls are up when the daemon is killed.
const crashCalls = 100

// crashHold is how long nobody looks after them.
func crashHold() time.Duration {
	if os.Getenv("EDGED_LAB_FULL") != "" {
		return 10 * time.Second
	}
	return 3 * time.Second
}

// crowd is many streams at once, without sound: numbered RTP packets, 20 ms apart, each way. One goroutine
// speaks for all.
type crowd struct {
	t     *testing.T
	ends  []*crowdEnd
	calls []*Dialog // of the callers
	stop  chan struct{}
	wg    sync.WaitGroup
	// mu is held while packets are sent.
	mu      sync.Mutex
	talking bool
}

// crowdEnd is one peer of a stream; what it sends is for its partner, the next or the last one in the list.
type crowdEnd struct {
	addr    netip.AddrPort
	pc      *net.UDPConn
	ssrc    uint32
	partner *crowdEnd
	// to and silent are guarded by the crowd's mutex.
	to     netip.AddrPort
	silent bool
	seq    uint16
	sent   int
	// got counts the partner's packets, strange all others.
	got, strange atomic.Int64
}

func newCrowd(t *testing.T, in, out *Host, n int) *crowd {
	c := &crowd{t: t, stop: make(chan struct{})}
	for i := range n {
		port := uint16(32000 + 2*i)
		a, b := c.end(in, port), c.end(out, port)
		a.partner, b.partner = b, a
		c.ends = append(c.ends, a, b)
		c.wg.Go(a.listen)
		c.wg.Go(b.listen)
	}
	c.wg.Go(c.speak)
	t.Cleanup(func() {
		close(c.stop)
		for _, e := range c.ends {
			_ = e.pc.Close()
		}
		c.wg.Wait() // for the listeners, whose sockets are closed, too
	})
	return c
}

// end binds a socket; nothing listens at it yet.
func (c *crowd) end(h *Host, port uint16) *crowdEnd {
	e := &crowdEnd{addr: h.Addr(4, port), ssrc: uint32(h.Side)<<16 | uint32(port)}
	must(c.t, "stream", h.Do(func() (err error) {
		e.pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(e.addr))
		return err
	}))
	raw, err := e.pc.SyscallConn()
	must(c.t, "stream", err)
	must(c.t, "stream", raw.Control(func(fd uintptr) { // what waits here must not count as lost
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	}))
	return e
}

// listen ends when the socket is closed.
func (e *crowdEnd) listen() {
	buf := make([]byte, 2048)
	for {
		n, err := e.pc.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP error of an earlier packet
		case n == 172 && binary.BigEndian.Uint32(buf[8:]) == e.partner.ssrc:
			e.got.Add(1)
		default:
			e.strange.Add(1)
		}
	}
}

func (c *crowd) speak() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	packet := make([]byte, 172)
	packet[0] = 0x80
	for {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		c.mu.Lock()
		for _, e := range c.ends {
			if c.talking && e.to.IsValid() && !e.silent {
				e.speak(packet)
			}
		}
		c.mu.Unlock()
	}
}

func (e *crowdEnd) speak(packet []byte) {
	binary.BigEndian.PutUint16(packet[2:], e.seq)
	binary.BigEndian.PutUint32(packet[4:], uint32(e.seq)*160)
	binary.BigEndian.PutUint32(packet[8:], e.ssrc)
	if _, err := e.pc.WriteToUDPAddrPort(packet, e.to); err == nil {
		e.seq++
		e.sent++
	}
}

// talk has all speak from now on; hush ends it and returns how many packets have not arrived, of how many.
func (c *crowd) talk() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.ends {
		e.sent = 0
		e.got.Store(0)
	}
	c.talking = true
}

func (c *crowd) hush() (lost, sent int) {
	c.mu.Lock()
	c.talking = false
	c.mu.Unlock()
	until(3*time.Second, func() bool { lost, sent = c.count(); return lost == 0 })
	return lost, sent
}

// count returns how many packets have not arrived yet, of how many.
func (c *crowd) count() (missing, sent int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.ends {
		sent += e.sent
		missing += e.sent - int(e.partner.got.Load())
	}
	return missing, sent
}

// without checks that what happens while all speak costs no packet, and none comes to the gateway's sockets.
func (c *crowd) without(loss string, gw *Host, f func()) {
	c.t.Helper()
	before := gw.datagrams(c.t)
	c.talk()
	f()
	lost, sent := c.hush()
	c.t.Logf("%s: %d of %d packets lost", loss, lost, sent)
	if lost != 0 || sent < len(c.ends)*10 {
		c.t.Errorf("%s: %d of %d packets lost", loss, lost, sent)
	}
	if n := gw.datagrams(c.t) - before; n > sent/1000 { // SIP may have come
		c.t.Errorf("%s: %d packets came to the gateway's sockets", loss, n)
	}
}

// crowded sets up the calls, one after the other, and waits until the kernel carries them all.
func (s *scene) crowded(n int) *crowd {
	s.Helper()
	return s.crowdedOn("tc", n)
}

// crowdedOn is crowded with any path.
func (s *scene) crowdedOn(path string, n int) *crowd {
	s.Helper()
	c := newCrowd(s.T, s.inHost, s.outHost, n)
	for i := 0; i < len(c.ends); i += 2 {
		near, far := c.ends[i], c.ends[i+1]
		d, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: near.addr})
		toNear, err := mediaAddr(req.Body, 0)
		must(s, "offer", err)
		s.bob.Reply(req, 200, "OK", Offer{Addr: far.addr}.String())
		toFar, err := mediaAddr(d.Await("INVITE", 200, 299).Body, 0)
		must(s, "answer", err)
		d.Send("ACK", "")
		c.calls = append(c.calls, d)
		c.mu.Lock()
		near.to, far.to = toFar, toNear
		c.mu.Unlock()
	}
	c.talk()
	until(3*time.Second, func() bool { _, sent := c.count(); return sent > 10*len(c.ends) })
	c.wantOn(s, path)
	c.hush()
	return c
}

// wantOn waits until a path carries all calls.
func (c *crowd) wantOn(s *scene, path string) {
	s.Helper()
	var doc carried
	if !until(20*time.Second, func() bool {
		doc = s.carried()
		in := 0
		for _, p := range doc.Pinholes {
			if p.Path == path {
				in++
			}
		}
		return in >= len(c.calls)
	}) {
		s.Fatalf("not all by %s: %+v", path, doc)
	}
}

// hangUp ends all calls.
func (c *crowd) hangUp(s *scene) {
	s.Helper()
	for _, d := range c.calls {
		d.Bye(s.bob)
	}
}

// adopted returns how many flows of an earlier run the daemon has, as its status says.
func (s *scene) adopted() int {
	code, b := s.edge.get("/api/v1/status")
	var doc struct {
		Services struct{ Media struct{ Adopted *int } }
	}
	if code != 200 || json.Unmarshal(b, &doc) != nil || doc.Services.Media.Adopted == nil {
		return -1
	}
	return *doc.Services.Media.Adopted
}

// fastpath runs "edged fastpath" on the gateway; the error is in what it prints.
func (s *scene) fastpath(argv ...string) string {
	s.Helper()
	bin, err := edgedBinary()
	must(s, "build edged", err)
	var out []byte
	must(s, "fastpath", s.rig.GW.Do(func() error {
		out, _ = exec.Command(bin, append([]string{"fastpath"}, argv...)...).CombinedOutput()
		return nil
	}))
	return string(out)
}

// crashScene has 100 calls in the kernel; pin is "" or a folder on a bpffs.
func crashScene(t *testing.T, pin string) (*scene, *crowd) {
	s := newScene(t, plan{Edge: EdgeConfig{
		Pinholes: "{udp: 50000-51999, idle: 5s}",
		More:     fmt.Sprintf("media: {datapath: tc, pin: %q}\nlimits: {per_source: {messages_per_second: 0}}\n", pin),
	}})
	s.needKernelPath(t)
	return s, s.crowded(crashCalls)
}

// bpffs mounts a bpffs of the test's own and returns a folder on it.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Skipf("SKIPPED: no bpffs: %v", err)
	}
	t.Cleanup(func() { must(t, "bpffs", unix.Unmount(dir, unix.MNT_DETACH)) })
	return filepath.Join(dir, "edged")
}

// TestFastPathKilled: neither SIGSTOP nor kill -9 nor the start of the next daemon costs 100 calls a packet. The
// next daemon keeps what is in use, and nothing else.
func TestFastPathKilled(t *testing.T) {
	onlyEdged(t, "the reference has no kernel module here")
	if unprivileged() || os.Geteuid() != 0 {
		t.Skip("SKIPPED: the kernel path needs root here")
	}
	pin := bpffs(t)
	s, c := crashScene(t, pin)
	gw := s.rig.GW
	c.without("stopped", gw, func() {
		s.edge.proc.Signal(syscall.SIGSTOP)
		pass(crashHold())
	})
	s.edge.proc.Signal(syscall.SIGCONT)
	c.without("killed", gw, func() {
		s.edge.Kill()
		pass(crashHold())
	})
	if out := s.fastpath("status", "--pin", pin); !strings.Contains(out, "no daemon holds it, in this network namespace") || !strings.Contains(out, " s left") {
		t.Errorf("status without a daemon: %s", out)
	}
	c.without("a new daemon", gw, func() {
		s.edge.Start(t)
		if n := s.adopted(); n != 2*crashCalls {
			t.Errorf("%d flows adopted, want %d", n, 2*crashCalls)
		}
		pass(crashHold())
	})
	s.strangerAt(c)
	s.silenced(c)
	s.edge.proc.Stop(syscall.SIGTERM)
	if out := s.fastpath("status", "--pin", pin); !strings.HasPrefix(out, "nothing is pinned") {
		t.Errorf("after SIGTERM: %s", out)
	}
}

// strangerAt checks that nobody who was not signalled hears, or is heard by, an adopted call.
func (s *scene) strangerAt(c *crowd) {
	s.Helper()
	evil := c.end(s.rig.Outside("evil"), 40000)
	c.talk()
	packet := make([]byte, 172)
	packet[0] = 0x80
	for _, victim := range c.ends {
		if victim.to.Addr() == s.outGate.Addr() {
			evil.to = victim.to
			evil.speak(packet)
		}
	}
	pass(300 * time.Millisecond)
	if lost, sent := c.hush(); lost != 0 || sent == 0 || evil.sent != crashCalls {
		s.Errorf("%d of %d packets lost beside %d of a stranger", lost, sent, evil.sent)
	}
	_ = evil.pc.SetReadDeadline(time.Now().Add(time.Millisecond))
	heard := int64(0)
	for buf := make([]byte, 2048); ; heard++ {
		if _, err := evil.pc.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil { // an ICMP error: nobody is at the sockets
			heard--
		}
	}
	_ = evil.pc.Close()
	for _, victim := range c.ends {
		heard += victim.strange.Load()
	}
	if heard != 0 {
		s.Errorf("the stranger was heard, or heard, %d packets", heard)
	}
}

// silenced ends half of the calls by silence; the others go on, and a new call has ports of its own.
func (s *scene) silenced(c *crowd) {
	s.Helper()
	c.mu.Lock()
	for _, e := range c.ends[crashCalls:] {
		e.silent = true
	}
	c.mu.Unlock()
	c.without("half of the calls have ended", s.rig.GW, func() {
		eventually(s, 20*time.Second, "the silent flows are removed", func() bool { return s.adopted() == crashCalls })
	})
	a, req := s.invite(s.alice, s.bob, "sip:bob@example.org", Offer{Addr: s.va.Addr})
	s.answer(a, s.bob, req, s.va, s.vb)
	at, err := mediaAddr(req.Body, 0)
	must(s, "offer", err)
	for _, e := range c.ends[:crashCalls] {
		if e.to == at {
			s.Errorf("the new call has got %v, which an adopted one uses", at)
		}
	}
	s.hearEachOther(300 * time.Millisecond)
	a.Bye(s.bob)
	s.edge.Clean(s)
}

// TestFastPathKilledControl: without pins a killed daemon takes the streams with it.
func TestFastPathKilledControl(t *testing.T) {
	onlyEdged(t, "the reference has no kernel module here")
	if unprivileged() {
		t.Skip("SKIPPED: the kernel path needs root here")
	}
	s, c := crashScene(t, "")
	s.edge.Kill()
	c.talk()
	pass(time.Second)
	lost, sent := c.hush()
	t.Logf("%d of %d packets lost", lost, sent)
	if lost < sent/2 {
		t.Errorf("only %d of %d packets lost: what does the pinning do?", lost, sent)
	}
}
