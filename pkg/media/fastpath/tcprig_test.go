package fastpath

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"edged.dev/edged/pkg/media/pathtest"
)

// tcpRig is a rig with one forward: from the near side to a server at the far host.
type tcpRig struct {
	*rig
	server  *net.TCPListener
	forward *Forward
	listen  netip.AddrPort
	// up counts the connections that came to the gateway's own listener.
	up chan net.Conn
}

// newTCPRig puts a rule in force; family is 0 for IPv4, 1 for IPv6.
func newTCPRig(t *testing.T, family int, change func(*ForwardRule)) *tcpRig {
	t.Helper()
	r, rule := newTCPHosts(t, newRig(t, rigOptions{}), family)
	if change != nil {
		change(&rule)
	}
	r.begin(rule)
	return r
}

// begin asks for the rule, and waits until it is in force.
func (r *tcpRig) begin(rule ForwardRule) {
	r.t.Helper()
	var err error
	r.forward, err = r.path.Forward(rule)
	must(r.t, err)
	r.wait("in force", func(s ForwardStats) bool { return s.Why == "" })
}

// newTCPHosts makes the server, the gateway's own listener, and the rule from that to the server.
func newTCPHosts(t *testing.T, under *rig, family int) (*tcpRig, ForwardRule) {
	t.Helper()
	r := &tcpRig{rig: under, up: make(chan net.Conn, 256)}
	at := [2]string{"192.0.2.1", "2001:db8:1::1"}[family]
	far := r.hosts[far]
	pathtest.Within(t, far.ns, func() {
		var err error
		r.server, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(far.addrs[family], 0)))
		must(t, err)
	})
	t.Cleanup(func() { r.server.Close() })
	own, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(at), 0)))
	must(t, err)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := own.Accept()
			if err != nil {
				return
			}
			r.up <- c
		}
	})
	t.Cleanup(func() { own.Close(); accepting.Wait() })
	r.listen = own.Addr().(*net.TCPAddr).AddrPort()
	return r, ForwardRule{
		Name: "test", Listen: r.listen, To: r.server.Addr().(*net.TCPAddr).AddrPort(),
		Allow: []netip.Prefix{netip.PrefixFrom(r.hosts[near].addrs[family], r.hosts[near].addrs[family].BitLen())},
	}
}

// wait waits for a condition of the rule's figures.
func (r *tcpRig) wait(what string, ok func(ForwardStats) bool) ForwardStats {
	r.t.Helper()
	for end := time.Now().Add(patience); ; pause() {
		s, err := r.forward.Stats()
		must(r.t, err)
		if ok(s) {
			return s
		}
		if time.Now().After(end) {
			r.t.Fatalf("%s: %+v", what, s)
		}
	}
}

func (h *host) dial(from netip.Addr, to netip.AddrPort) (c *net.TCPConn, err error) {
	pathtest.Within(h.t, h.ns, func() {
		d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		var conn net.Conn
		if conn, err = d.DialContext(context.Background(), "tcp", to.String()); err == nil {
			c = conn.(*net.TCPConn)
		}
	})
	return c, err
}

// connect opens a connection through the gateway, and returns both of its ends.
func (r *tcpRig) connect(family int) (client, server *net.TCPConn) {
	r.t.Helper()
	client, err := r.hosts[near].dial(r.hosts[near].addrs[family], r.listen)
	must(r.t, err)
	r.t.Cleanup(func() { client.Close() })
	must(r.t, r.server.SetDeadline(time.Now().Add(patience)))
	server, err = r.server.AcceptTCP()
	if err != nil {
		s, _ := r.forward.Stats()
		r.t.Fatalf("%v: %+v", err, s)
	}
	r.t.Cleanup(func() { server.Close() })
	return client, server
}

// segmentsIn returns how many TCP segments the gateway's sockets have got.
func segmentsIn(t *testing.T) int { return tcpFigure(t, "InSegs") }

// tcpFigure returns a figure of the thread's namespace; IPv6 is in it.
func tcpFigure(t *testing.T, name string) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/net/snmp")
	must(t, err)
	at := -1
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[0] != "Tcp:" {
			continue
		}
		if at < 0 {
			at = slices.Index(f, name)
			continue
		}
		_, err := fmt.Sscan(f[at], &n)
		must(t, err)
	}
	return n
}

// TestForward: data flow both ways, the gateway's sockets see nothing, the target sees the gateway, and the
// figures are right.
func TestForward(t *testing.T) {
	needKernel(t)
	for family, name := range []string{"v4", "v6"} {
		t.Run(name, func(t *testing.T) {
			r := newTCPRig(t, family, nil)
			before := segmentsIn(t)
			client, server := r.connect(family)
			const size = 1 << 20
			for _, pair := range [][2]*net.TCPConn{{client, server}, {server, client}} {
				go func() { _, _ = pair[0].Write(make([]byte, size)) }()
				if _, err := io.ReadFull(pair[1], make([]byte, size)); err != nil {
					t.Fatal(err)
				}
			}
			if got := segmentsIn(t); got != before {
				t.Errorf("%d segments came to the gateway's sockets", got-before)
			}
			from := server.RemoteAddr().(*net.TCPAddr).AddrPort()
			if want := r.forward.Rule().From; from.Addr() != want {
				t.Errorf("the target sees %s, want %s", from, want)
			}
			s := r.wait("traffic", func(s ForwardStats) bool { return s.FromClient.Bytes >= size && s.FromTarget.Bytes >= size })
			if s.Open != 1 || s.HalfOpen != 0 || s.Total != 1 || len(s.HandedUp) != 0 || len(s.Dropped) != 0 {
				t.Errorf("%+v", s)
			}
			list, err := r.forward.Connections()
			must(t, err)
			if len(list) != 1 || list[0].State != stateEstablished || list[0].Source != from ||
				list[0].Client != client.LocalAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("%+v", list)
			}
		})
	}
}

// TestForwardOffload: checksums and sizes are right whoever has to make them, cut or not.
func TestForwardOffload(t *testing.T) {
	needKernel(t)
	for family, name := range []string{"v4", "v6"} {
		for mask := range 4 {
			sender, gateway := mask&1 != 0, mask&2 != 0
			t.Run(fmt.Sprintf("%s/sender %v gateway %v", name, sender, gateway), func(t *testing.T) {
				r := newTCPRig(t, family, nil)
				for _, h := range r.hosts {
					pathtest.Within(t, h.ns, func() { must(t, pathtest.TXChecksums(h.own, sender)) })
					must(t, pathtest.TXChecksums(h.dev, gateway))
				}
				bad := r.hosts[near].badSegments() + r.hosts[far].badSegments()
				client, server := r.connect(family)
				exchange(t, client, server, 77)
				if n := r.hosts[near].badSegments() + r.hosts[far].badSegments() - bad; n != 0 {
					t.Errorf("%d segments with bad checksums", n)
				}
			})
		}
	}
}

// badSegments returns how many segments the host refused for their checksums.
func (h *host) badSegments() (n int) {
	h.t.Helper()
	pathtest.Within(h.t, h.ns, func() { n = tcpFigure(h.t, "InCsumErrors") })
	return n
}

// TestForwardMTU: where one side carries less than the other, neither end sends more.
func TestForwardMTU(t *testing.T) {
	needKernel(t)
	for family, name := range []string{"v4", "v6"} {
		for side := range 2 {
			t.Run(fmt.Sprintf("%s/side %d", name, side), func(t *testing.T) {
				const mtu = 1300
				r := newTCPRig(t, family, nil)
				dev, err := netlink.LinkByName(r.hosts[side].dev)
				must(t, err)
				must(t, netlink.LinkSetMTU(dev, mtu))
				r.waitMTU(side, mtu)
				client, server := r.connect(family)
				for _, c := range []*net.TCPConn{client, server} {
					raw, err := c.SyscallConn()
					must(t, err)
					must(t, raw.Control(func(fd uintptr) {
						n, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG)
						if most := mtu - 40 - 20*family; err != nil || n > most || n < most-40 {
							t.Errorf("segments of %d bytes: %v", n, err)
						}
					}))
				}
				exchange(t, client, server, 78)
				if s, err := r.forward.Stats(); err != nil || len(s.Dropped) != 0 {
					t.Errorf("%+v %v", s, err)
				}
			})
		}
	}
}

// waitMTU waits until the rule knows the MTU of a side.
func (r *tcpRig) waitMTU(side int, mtu uint32) {
	r.t.Helper()
	r.wait("MTU", func(ForwardStats) bool {
		a := r.path.tcp
		a.mu.Lock()
		defer a.mu.Unlock()
		a.path.mu.Lock()
		defer a.path.mu.Unlock()
		if side == int(near) {
			return r.forward.written.Mtu == mtu
		}
		return r.forward.way.hop.Mtu == mtu
	})
}

// TestForwardFlood: SYNs that come to nothing take a part of the rule's connections only, and no other rule's.
func TestForwardFlood(t *testing.T) {
	net24 := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	r := newTCPRig(t, 0, func(f *ForwardRule) { f.Allow, f.MaxConnections = net24, 80 })
	other := *r
	var err error
	rule := r.forward.Rule()
	rule.Listen = netip.AddrPortFrom(rule.Listen.Addr(), rule.Listen.Port()^1)
	other.forward, err = r.path.Forward(rule)
	must(t, err)
	other.listen = rule.Listen
	other.wait("in force", func(s ForwardStats) bool { return s.Why == "" })
	const n = 500
	pathtest.Within(t, r.hosts[near].ns, func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		must(t, err)
		defer unix.Close(fd)
		for i := range n {
			s := segment{
				from: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.77"), 1000+uint16(i)), to: r.listen,
				ttl: 64, flags: thSYN,
			}
			must(t, unix.Sendto(fd, s.wire()[14:], 0, sockaddr(r.listen)))
		}
	})
	s := r.wait("flood", func(s ForwardStats) bool {
		return s.HandedUp["half_open"] > 0 && int(s.HandedUp["half_open"])+s.Open == n
	})
	if s.HalfOpen != 20 || s.Open != 20 {
		t.Errorf("%+v", s)
	}
	client, server := other.connect(0)
	exchange(t, client, server, 5)
	if s, err := other.forward.Stats(); err != nil || s.Total != 1 || len(s.HandedUp) != 0 {
		t.Errorf("%+v %v", s, err)
	}
}

// TestForwardDenied: whoever is not allowed reaches the gateway's listener, and the target never. Prefixes of IPv6
// allow nobody of IPv4, not even those that hold the IPv4-mapped addresses.
func TestForwardDenied(t *testing.T) {
	r := newTCPRig(t, 0, func(f *ForwardRule) {
		f.Allow = append(f.Allow, netip.MustParsePrefix("::/0"), netip.MustParsePrefix("::ffff:0:0/96"))
	})
	evil := netip.MustParseAddr("192.0.2.66")
	c, err := r.hosts[near].dial(evil, r.listen)
	must(t, err)
	defer c.Close()
	var up net.Conn
	select {
	case up = <-r.up:
	case <-time.After(patience):
		t.Fatal("the gateway's listener was not reached")
	}
	defer up.Close()
	if got := up.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != evil {
		t.Errorf("%s came", got)
	}
	must(t, r.server.SetDeadline(time.Now().Add(50*time.Millisecond)))
	if conn, err := r.server.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the target was reached: %v %v", conn, err)
	}
	if s := r.wait("denied", func(s ForwardStats) bool { return s.HandedUp["denied"] > 0 }); s.Total != 0 {
		t.Errorf("%+v", s)
	}
}

// TestForwardSpoofed: a neighbour that uses the address of an allowed host behind a router hears nothing.
func TestForwardSpoofed(t *testing.T) {
	r, rule := newTCPHosts(t, newRig(t, rigOptions{}), 0)
	allowed, router := netip.MustParseAddr("203.0.113.50"), net.ParseIP("192.0.2.9")
	rule.Allow = []netip.Prefix{netip.PrefixFrom(allowed, 32)}
	dev, err := netlink.LinkByName(r.hosts[near].dev)
	must(t, err)
	must(t, netlink.NeighAdd(&netlink.Neigh{
		LinkIndex: dev.Attrs().Index, IP: router, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT,
	}))
	must(t, netlink.RouteAdd(&netlink.Route{
		LinkIndex: dev.Attrs().Index, Dst: &net.IPNet{IP: allowed.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: router,
	}))
	addresses(t, r.hosts[near].nl, r.hosts[near].own, "203.0.113.50/32")
	r.begin(rule)
	pathtest.Within(t, r.hosts[near].ns, func() {
		d := net.Dialer{Timeout: time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(allowed, 0))}
		if c, err := d.DialContext(t.Context(), "tcp", r.listen.String()); err == nil {
			t.Errorf("%s got an answer", c.LocalAddr())
			c.Close()
		}
	})
	if s, err := r.forward.Stats(); err != nil || s.Total != 1 || s.HalfOpen != 1 {
		t.Errorf("%+v %v", s, err)
	}
}

// TestForwardStreams: 40 connections at once carry random amounts of random bytes both ways, with half-closes, stalls
// and resets, and each byte arrives.
func TestForwardStreams(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	before := segmentsIn(t)
	const n = 40
	var all sync.WaitGroup
	for i := range n {
		// Both ends make the same numbers from the seed that the client sends first.
		client, server := r.connect(0)
		all.Go(func() { exchange(t, client, server, uint64(i)) })
	}
	all.Wait()
	if got := segmentsIn(t); got != before {
		t.Errorf("%d segments came to the gateway's sockets", got-before)
	}
	// All of them have ended, by a FIN from both sides or by a RST.
	r.wait("ends", func(s ForwardStats) bool {
		list, err := r.forward.Connections()
		must(t, err)
		for _, c := range list {
			if c.State != stateClosing && c.State != stateReset {
				return false
			}
		}
		return len(list) == n && s.Total == n
	})
}

// exchange has both ends send a random stream, checks what arrives, and ends in a random way.
func exchange(t *testing.T, a, b *net.TCPConn, seed uint64) {
	var both sync.WaitGroup
	for side, pair := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		g := rand.New(rand.NewPCG(seed, uint64(side)))
		size := g.IntN(1 << 20)
		var sent, got [sha256.Size]byte
		var way sync.WaitGroup
		way.Go(func() { sent = sendRandom(t, pair[0], g, size) })
		way.Go(func() { got = receiveSlowly(t, pair[1], seed, size) })
		both.Go(func() {
			way.Wait()
			if sent != got {
				t.Errorf("connection %d, side %d: other bytes arrived", seed, side)
			}
		})
	}
	both.Wait()
	if seed%3 == 0 {
		_ = a.SetLinger(0)
	}
	a.Close()
	b.Close()
}

// exchangeSome sends a little each way.
func exchangeSome(t *testing.T, a, b *net.TCPConn) {
	t.Helper()
	for _, pair := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		_, err := pair[0].Write(make([]byte, 5000))
		must(t, err)
		must(t, pair[1].SetReadDeadline(time.Now().Add(patience)))
		_, err = io.ReadFull(pair[1], make([]byte, 5000))
		must(t, err)
	}
}

func sendRandom(t *testing.T, c *net.TCPConn, g *rand.Rand, size int) (sum [sha256.Size]byte) {
	h := sha256.New()
	for size > 0 {
		chunk := make([]byte, min(size, 1+g.IntN(40000)))
		for i := 0; i+8 <= len(chunk); i += 8 {
			binary.NativeEndian.PutUint64(chunk[i:], g.Uint64())
		}
		if _, err := c.Write(chunk); err != nil {
			t.Error(err)
			return sum
		}
		h.Write(chunk)
		size -= len(chunk)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// receiveSlowly reads all there is, and now and then stops for a while.
func receiveSlowly(t *testing.T, c *net.TCPConn, seed uint64, size int) (sum [sha256.Size]byte) {
	h := sha256.New()
	g := rand.New(rand.NewPCG(seed, 77))
	buf := make([]byte, 1+g.IntN(60000))
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	must(c.SetReadDeadline(time.Now().Add(3 * patience)))
	total := 0
	for {
		n, err := c.Read(buf)
		h.Write(buf[:n])
		total += n
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Errorf("connection %d: %d of %d bytes: %v", seed, total, size, err)
			return sum
		}
		if g.IntN(50) == 0 {
			<-time.After(time.Duration(g.IntN(30)) * time.Millisecond)
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// TestForwardReset: a RST of one end comes to the other.
func TestForwardReset(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	for side := range 2 {
		client, server := r.connect(0)
		ends := [2]*net.TCPConn{client, server}
		if side == 1 {
			ends = [2]*net.TCPConn{server, client}
		}
		must(t, ends[0].SetLinger(0))
		must(t, ends[0].Close())
		must(t, ends[1].SetReadDeadline(time.Now().Add(patience)))
		if _, err := ends[1].Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("side %d: %v", side, err)
		}
	}
}

// TestForwardRefused: the target's refusal comes to the client.
func TestForwardRefused(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	must(t, r.server.Close())
	if c, err := r.hosts[near].dial(r.hosts[near].addrs[0], r.listen); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%v %v", c, err)
	}
}

// TestForwardAlone: data flow though the daemon does nothing, as if it had been stopped.
func TestForwardAlone(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	client, server := r.connect(0)
	r.path.tcp.mu.Lock()
	defer r.path.tcp.mu.Unlock()
	r.path.mu.Lock()
	defer r.path.mu.Unlock()
	second, other := r.connect(0) // a new one too
	exchange(t, client, server, 1)
	exchange(t, second, other, 2)
}

// TestForwardIdle: a silent connection is forgotten, with the way to its client; its figures stay.
func TestForwardIdle(t *testing.T) {
	r := newTCPRig(t, 0, func(f *ForwardRule) { f.Idle = time.Second })
	client, server := r.connect(0)
	_, err := client.Write([]byte("hello"))
	must(t, err)
	_, err = io.ReadFull(server, make([]byte, 5))
	must(t, err)
	s := r.wait("end", func(s ForwardStats) bool { return s.Open == 0 })
	if s.Total != 1 || s.HalfOpen != 0 || s.FromClient.Bytes != 5 || s.FromTarget.Packets == 0 {
		t.Errorf("%+v", s)
	}
	r.wait("the client's way", func(ForwardStats) bool {
		r.path.tcp.mu.Lock()
		defer r.path.tcp.mu.Unlock()
		return len(r.path.tcp.clients) == 0
	})
	_, err = client.Write([]byte("too late"))
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(patience)))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v", err)
	}
}

// TestForwardKilled: connections go on when the daemon is killed, new ones too, and the next daemon looks after them
// until they end.
func TestForwardKilled(t *testing.T) {
	hosts := newHosts(t)
	r, rule := newTCPHosts(t, hosts, 0)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin, Forward: &rule}, 0)
	old, oldServer := r.connect(0)
	exchangeSome(t, old, oldServer)
	v.kill()
	exchangeSome(t, old, oldServer)
	young, youngServer := r.connect(0) // while there is no daemon
	before := segmentsIn(t)
	end := r.serve(pin, options{})
	exchangeSome(t, old, oldServer)
	r.begin(rule)
	s, err := r.forward.Stats()
	must(t, err)
	if s.Open != 2 || s.HalfOpen != 0 || s.Total != 2 {
		t.Errorf("%+v", s)
	}
	newest, newestServer := r.connect(0)
	exchange(t, old, oldServer, 1)
	exchange(t, young, youngServer, 2)
	exchange(t, newest, newestServer, 3)
	if n := segmentsIn(t) - before; n != 0 {
		t.Errorf("%d segments came to sockets", n)
	}
	if s, err := r.forward.Stats(); err != nil || len(s.HandedUp) != 0 || len(s.Dropped) != 0 || s.Total != 3 {
		t.Errorf("%+v %v", s, err)
	}
	end()
	wantClean(t, pin)
}

// TestForwardBanned: the next daemon ends the connections of who is not on its list any more, and of nobody else.
func TestForwardBanned(t *testing.T) {
	hosts := newHosts(t)
	r, rule := newTCPHosts(t, hosts, 0)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	good, evil := rule.Allow[0], netip.MustParsePrefix("192.0.2.66/32")
	rule.Allow = append(rule.Allow, evil)
	v := r.daemon(script{Pin: pin, Forward: &rule}, 0)
	client, server := r.connect(0)
	banned, err := r.hosts[near].dial(evil.Addr(), r.listen)
	must(t, err)
	defer banned.Close()
	other, err := r.server.Accept()
	must(t, err)
	defer other.Close()
	v.kill()
	r.serve(pin, options{})
	rule.Allow = []netip.Prefix{good}
	r.begin(rule)
	r.wait("ended", func(s ForwardStats) bool { return s.Open == 1 })
	_, err = banned.Write([]byte("x"))
	must(t, err)
	must(t, banned.SetReadDeadline(time.Now().Add(patience)))
	if _, err := banned.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v", err)
	}
	exchange(t, client, server, 7)
}

// TestForwardDrain: the kernel begins no connections any more, and those that are open go on.
func TestForwardDrain(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	client, server := r.connect(0)
	must(t, r.forward.Drain())
	c, err := r.hosts[near].dial(r.hosts[near].addrs[0], r.listen)
	must(t, err)
	defer c.Close()
	select {
	case up := <-r.up:
		up.Close()
	case <-time.After(patience):
		t.Fatal("the gateway's listener was not reached")
	}
	exchange(t, client, server, 6)
	if s, err := r.forward.Stats(); err != nil || s.Total != 1 {
		t.Errorf("%+v %v", s, err)
	}
}

// TestForwardUnclaimed: a rule of an earlier run begins nothing, and another at its address replaces it.
func TestForwardUnclaimed(t *testing.T) {
	hosts := newHosts(t)
	r, rule := newTCPHosts(t, hosts, 0)
	pin := Pin{Folder: bpffs(t), Name: "a"}
	v := r.daemon(script{Pin: pin, Forward: &rule}, 0)
	client, server := r.connect(0)
	v.kill()
	r.serve(pin, options{})
	c, err := r.hosts[near].dial(r.hosts[near].addrs[0], r.listen)
	must(t, err)
	defer c.Close()
	(<-r.up).Close()
	exchangeSome(t, client, server)
	// The connections of a rule that nobody asks for end with it.
	r.path.tcp.mu.Lock()
	r.path.tcp.expireLocked(time.Now().Add(2 * leaseTime))
	r.path.tcp.mu.Unlock()
	_, err = client.Write([]byte("x"))
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(patience)))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v", err)
	}
	r.begin(rule)
	client, server = r.connect(0)
	exchangeSome(t, client, server)
}

// TestForwardNoPorts: a rule whose address this machine has not takes nothing, and says so once.
func TestForwardNoPorts(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	rule := r.forward.Rule()
	must(t, r.forward.Close())
	rule.From = netip.MustParseAddr("198.51.100.99")
	var err error
	r.forward, err = r.path.Forward(rule)
	must(t, err)
	eventually(t, "the trouble is noticed", func() bool {
		r.path.tcp.mu.Lock()
		defer r.path.tcp.mu.Unlock()
		return r.forward.trouble != "" && r.forward.value.Given == 0
	})
	if s, err := r.forward.Stats(); err != nil || s.Why == "" {
		t.Errorf("%+v %v", s, err)
	}
	c, err := r.hosts[near].dial(r.hosts[near].addrs[0], r.listen)
	must(t, err)
	defer c.Close()
	(<-r.up).Close()
}

// TestForwardClose: after Close connections come to the gateway's listener, and the live ones are reset.
func TestForwardClose(t *testing.T) {
	r := newTCPRig(t, 0, nil)
	client, _ := r.connect(0)
	must(t, r.forward.Close())
	must(t, r.forward.Close())
	_, err := client.Write([]byte("x"))
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(patience)))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v", err)
	}
	c, err := r.hosts[near].dial(r.hosts[near].addrs[0], r.listen)
	must(t, err)
	defer c.Close()
	(<-r.up).Close()
	var k tcTuple
	if err := r.path.kern.objs.TcpConns.NextKey(nil, &k); err == nil {
		t.Error("a connection is left in the kernel")
	}
	if s, err := r.forward.Stats(); err != nil || s.Why != "closed" {
		t.Errorf("%+v %v", s, err)
	}
}
